//! A call whose server wants to know more: what it wants is asked of the client as requests of the server, and the
//! call repeated with the answers (2026-07-28, Multi Round-Trip Requests). Without IO.

use mcp_mqtt_transport::jsonrpc::{Message, RequestId};

use super::{
    Ids,
    envelope::{Asking, is_url},
    members::{member, members, string},
    reason,
};
use crate::backend::{failure, send_quota::Reserved};

/// How often a server may ask before it has to answer: what the official SDKs allow.
pub(super) const MAX_ROUNDS: u32 = 10;
/// Questions of one round.
const MAX_QUESTIONS: usize = 32;

/// What one round waits for.
#[derive(Debug)]
pub(super) struct Round {
    questions: Vec<Question>,
    /// `requestState`, as the server wrote it.
    state: Option<Box<str>>,
}

#[derive(Debug)]
struct Question {
    /// Its key, as the server wrote it.
    key: Box<str>,
    method: Box<str>,
    id: RequestId,
    answer: Option<Message>,
    /// The room of a large answer.
    reserved: Option<Reserved>,
}

/// Why a call cannot go on: a stable word, and a sentence.
pub(super) type Impossible = (&'static str, String);

impl Round {
    /// Makes the requests that go to the client.
    ///
    /// # Errors
    /// The client cannot be asked that, or the server asks in a form that the revision does not have.
    pub(super) fn begin(
        requests: Option<&str>,
        state: Option<&str>,
        can: &Asking,
        ids: &mut Ids,
    ) -> Result<(Self, Vec<Message>), Impossible> {
        let bad = |what: String| (failure::BAD_ANSWER, format!("the server asks for input, but {what}"));
        let requests = requests.unwrap_or("{}");
        if !requests.starts_with('{') || state.is_some_and(|state| !state.starts_with('"')) {
            return Err(bad("not in the form of 2026-07-28".to_owned()));
        }
        let mut questions = Vec::new();
        let mut messages = Vec::new();
        for request in members(requests) {
            let key = request.key;
            let method = member(request.value, "method").and_then(string);
            let method = method.ok_or_else(|| bad(format!("{key} has no method")))?;
            let params = member(request.value, "params").filter(|params| params.starts_with('{'));
            match can.lacks(&method, params.unwrap_or_default()) {
                Ok(None) => {}
                Ok(Some(capability)) => {
                    let detail = format!(
                        "the server wants to ask its client ({method}), which did not declare the capability \
                         {capability}"
                    );
                    return Err((reason::CLIENT_LACKS_CAPABILITY, detail));
                }
                Err(()) => return Err(bad(format!("{key} is `{method}`, which is no question to a client"))),
            }
            let id = ids.next();
            messages.push(question(&id, &method, params));
            questions.push(Question {
                key: key.into(),
                method: method.as_ref().into(),
                id,
                answer: None,
                reserved: None,
            });
            if questions.len() > MAX_QUESTIONS {
                return Err(bad(format!("for more than {MAX_QUESTIONS} things at once")));
            }
        }
        if questions.is_empty() && state.is_none() {
            return Err(bad("says neither for what nor what to come back with".to_owned()));
        }
        Ok((Self { questions, state: state.map(Into::into) }, messages))
    }

    /// The ids of the requests that the client has not answered.
    pub(super) fn open(&self) -> impl Iterator<Item = &RequestId> {
        self.questions.iter().filter(|question| question.answer.is_none()).map(|question| &question.id)
    }

    /// The client answered one; true when that was the last.
    ///
    /// # Errors
    /// It answered with an error.
    pub(super) fn answer(
        &mut self,
        message: Message,
        reserved: Option<Reserved>,
    ) -> Result<bool, Impossible> {
        let Some(question) = self.questions.iter_mut().find(|question| Some(&question.id) == message.id())
        else {
            return Ok(false);
        };
        if let Some(error) = message.error() {
            question.answer = Some(message);
            let asked = &question.method;
            let detail =
                format!("the server asked its client ({asked}), which answered with an error: {error}");
            return Err((reason::INPUT_REFUSED, detail));
        }
        question.answer = Some(message);
        question.reserved = reserved;
        Ok(self.is_complete())
    }

    /// Whether nothing has to be waited for.
    pub(super) fn is_complete(&self) -> bool {
        self.open().next().is_none()
    }

    /// The members that the repeated call carries beside its own.
    pub(super) fn members(&self) -> Vec<String> {
        let mut members = Vec::with_capacity(2);
        if !self.questions.is_empty() {
            let answers = self.questions.iter().map(|question| {
                let answer = question.answer.as_ref().and_then(Message::result).unwrap_or("null");
                format!("{}:{answer}", question.key)
            });
            members.push(format!("\"inputResponses\":{{{}}}", answers.collect::<Vec<_>>().join(",")));
        }
        members.extend(self.state.as_ref().map(|state| format!("\"requestState\":{state}")));
        members
    }
}

fn question(id: &RequestId, method: &str, params: Option<&str>) -> Message {
    match params {
        // 2025-11-25 wants an id there; 2026-07-28 has none, and the answer to the question is all it takes.
        Some(params) if method == "elicitation/create" && is_url(params) => {
            let mut parts = vec![r#"{"elicitationId":"#, id.as_json()];
            for theirs in members(params).filter(|theirs| !theirs.is("elicitationId")) {
                parts.extend([",", theirs.text]);
            }
            parts.push("}");
            Message::request_of_parts(id, method, &parts)
        }
        Some(params) => Message::request_of_parts(id, method, &[params]),
        None => Message::request::<()>(id.clone(), method, None).expect("nothing is JSON"),
    }
}
