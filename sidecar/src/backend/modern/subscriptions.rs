//! What a session wants to hear of changes, as one `subscriptions/listen` (2026-07-28, Subscriptions). Without IO.
//!
//! ```text
//!            wanted            acknowledged              wanted changes
//!  nothing ─────────► opening ──────────────► listening ────────────────► opening (the old one listens on
//!     ▲                  │ refused, ended, broken │                        until the new one is acknowledged)
//!     └── later, backoff ◄────────────────────────┘
//! ```

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mcp_mqtt_transport::{
    backoff::Backoff,
    jsonrpc::{Message, RequestId},
};
use serde::Deserialize;

use super::{Action, Ids, envelope::Envelope, members::members, reason};
use crate::backend::{FromBackend, failure};

/// Where the subscription's id stands in `_meta`.
pub(super) const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";
/// The method.
pub(super) const LISTEN: &str = "subscriptions/listen";
/// Resources that one session may subscribe to: each goes into every `subscriptions/listen` anew.
const MAX_RESOURCES: usize = 1024;
/// Bytes of their URIs, of which there are several copies while one listening replaces another.
pub(super) const MAX_URIS: usize = 256 << 10;
/// Bytes of one URI: what HTTP servers take of one.
pub(super) const MAX_URI: usize = 8 << 10;
/// Pause before a listening that ended is begun again.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause: shorter than a client waits for the answer to `resources/subscribe`.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A listening that stood at least this long was no failure.
const STOOD: Duration = Duration::from_secs(5);

/// The kinds of lists whose changes can be told, by their names in `notifications` and in methods.
const LISTS: [(&str, &str); 3] = [
    ("toolsListChanged", "notifications/tools/list_changed"),
    ("promptsListChanged", "notifications/prompts/list_changed"),
    ("resourcesListChanged", "notifications/resources/list_changed"),
];

/// See the module.
#[derive(Debug)]
pub(super) struct Subscriptions {
    /// Which of [`LISTS`] the server tells the changes of.
    lists: [bool; 3],
    /// The client is ready to hear of them.
    begun: bool,
    resources: BTreeSet<String>,
    current: Option<Listening>,
    /// The one before, until the current one is acknowledged.
    previous: Option<RequestId>,
    /// Something was wanted or no longer wanted since the current one was sent.
    changed: bool,
    /// `resources/subscribe` requests that are answered once the server hears of them.
    waiting: Vec<(RequestId, String)>,
    retry_at: Option<Instant>,
    backoff: Backoff,
    /// Nobody listened for a while: what changed meanwhile is not known.
    gap: bool,
}

#[derive(Debug)]
struct Listening {
    id: RequestId,
    /// Lists were asked for.
    lists: bool,
    resources: BTreeSet<String>,
    /// Since when the server tells.
    since: Option<Instant>,
}

/// What it needs for one step.
pub(super) struct Step<'a> {
    pub(super) now: Instant,
    pub(super) envelope: &'a Envelope,
    pub(super) ids: &'a mut Ids,
    pub(super) out: &'a mut Vec<Action>,
}

impl Subscriptions {
    /// Of a server with these capabilities, by the order of tools, prompts, resources.
    pub(super) fn new(lists: [bool; 3]) -> Self {
        Self {
            lists,
            begun: false,
            resources: BTreeSet::new(),
            current: None,
            previous: None,
            changed: false,
            waiting: Vec::new(),
            retry_at: None,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            gap: false,
        }
    }

    /// The client is ready to hear of changes.
    pub(super) fn begin(&mut self, step: &mut Step<'_>) {
        if !std::mem::replace(&mut self.begun, true) {
            self.changed(step);
        }
    }

    /// `resources/subscribe`: answered when the server has acknowledged it, so that no change is missed after that.
    pub(super) fn subscribe(&mut self, id: RequestId, uri: String, step: &mut Step<'_>) {
        if uri.len() > MAX_URI {
            let detail = format!("the URI has {} bytes; a subscription takes {MAX_URI}", uri.len());
            return step.out.push(Action::fail(id, reason::URI_TOO_LONG, detail));
        }
        if self.resources.contains(&uri) {
            let heard = self
                .current
                .as_ref()
                .is_some_and(|current| current.since.is_some() && current.resources.contains(&uri));
            if heard {
                return step.out.push(Action::answer(&id, "{}"));
            }
            return self.waiting.push((id, uri)); // it is on its way already
        }
        let uris: usize = self.resources.iter().map(String::len).sum();
        if self.resources.len() >= MAX_RESOURCES || uris + uri.len() > MAX_URIS {
            let detail = format!(
                "a session can subscribe to {MAX_RESOURCES} resources, whose URIs have {MAX_URIS} bytes together"
            );
            return step.out.push(Action::fail(id, reason::TOO_MANY_SUBSCRIPTIONS, detail));
        }
        self.resources.insert(uri.clone());
        self.waiting.push((id, uri));
        self.changed(step);
    }

    /// `resources/unsubscribe`.
    pub(super) fn unsubscribe(&mut self, id: &RequestId, uri: &str, step: &mut Step<'_>) {
        step.out.push(Action::answer(id, "{}"));
        if self.resources.remove(uri) {
            for (id, _) in self.waiting.extract_if(.., |(_, waits_for)| waits_for == uri) {
                step.out.push(Action::answer(&id, "{}")); // subscribed and unsubscribed, in this order
            }
            self.changed(step);
        }
    }

    /// The client no longer waits for this `resources/subscribe`; it stays subscribed. False: it is no such request.
    pub(super) fn forget(&mut self, id: &RequestId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|(waiting, _)| waiting != id);
        self.waiting.len() < before
    }

    /// Whether this is the id of a listening of ours that stands.
    pub(super) fn owns(&self, id: &RequestId) -> bool {
        self.previous.as_ref() == Some(id) || self.current.as_ref().is_some_and(|current| current.id == *id)
    }

    /// `notifications/subscriptions/acknowledged`: which of what was wanted the server will tell.
    pub(super) fn acknowledged(&mut self, id: &RequestId, params: &str, step: &mut Step<'_>) {
        #[derive(Deserialize, Default)]
        struct Params {
            #[serde(default)]
            notifications: Honored,
        }
        #[derive(Deserialize, Default)]
        #[serde(default, rename_all = "camelCase")]
        struct Honored {
            tools_list_changed: bool,
            prompts_list_changed: bool,
            resources_list_changed: bool,
            resource_subscriptions: BTreeSet<String>,
        }
        let Some(current) = self.current.as_mut().filter(|current| current.id == *id) else { return };
        if current.since.replace(step.now).is_some() {
            return; // said twice
        }
        if let Some(previous) = self.previous.take() {
            step.out.push(Action::ToServer(Message::cancelled(&previous, "replaced by another one")));
        }
        let Params { notifications: told } = serde_json::from_str(params).unwrap_or_default();
        let honored = told.resource_subscriptions;
        for (id, uri) in self.waiting.extract_if(.., |(_, uri)| current.resources.contains(uri)) {
            if honored.contains(&uri) {
                step.out.push(Action::answer(&id, "{}"));
            } else {
                let detail = format!("the server does not tell of changes of {uri}");
                step.out.push(Action::fail(id, reason::SUBSCRIPTION_NOT_HONORED, detail));
            }
        }
        // What it does not tell now it need not be asked again.
        let refused = |uri: &String| current.resources.contains(uri) && !honored.contains(uri);
        self.resources.retain(|uri| !refused(uri));
        current.resources.retain(|uri| honored.contains(uri));
        if current.lists {
            let told = [told.tools_list_changed, told.prompts_list_changed, told.resources_list_changed];
            for (list, told) in self.lists.iter_mut().zip(told) {
                *list &= told;
            }
        }
        if std::mem::take(&mut self.gap) {
            for ((_, method), _) in LISTS.iter().zip(self.lists).filter(|(_, told)| *told) {
                step.out.push(Action::to_client(Message::notification_of_parts(method, &[])));
            }
            for uri in &current.resources {
                let uri = serde_json::json!({ "uri": uri }).to_string();
                let told = Message::notification_of_parts("notifications/resources/updated", &[&uri]);
                step.out.push(Action::to_client(told));
            }
        }
        if std::mem::take(&mut self.changed) {
            self.changed(step);
        }
    }

    /// A listening ended. `refusal`: the error that it ended with; `for_good`: it will not be otherwise next time.
    pub(super) fn ended(
        &mut self,
        id: &RequestId,
        refusal: Option<(&'static str, String)>,
        for_good: bool,
        step: &mut Step<'_>,
    ) {
        if self.previous.as_ref() == Some(id) {
            self.previous = None;
            self.gap = true; // until the one that replaces it is acknowledged
            return;
        }
        let Some(ended) = self.current.take_if(|current| current.id == *id) else { return };
        if let Some(previous) = self.previous.take() {
            self.gap = true;
            step.out.push(Action::ToServer(Message::cancelled(&previous, "replaced by another one")));
        }
        if let Some(since) = ended.since {
            self.gap = true;
            if step.now.saturating_duration_since(since) >= STOOD {
                self.backoff.reset();
            }
        } else {
            let (reason, detail) = refusal.unwrap_or((
                failure::CONNECTION_BROKEN,
                "the server ended the subscription before it began".to_owned(),
            ));
            let failed = |uri: &String| for_good || ended.resources.contains(uri);
            for (id, uri) in self.waiting.extract_if(.., |(_, uri)| failed(uri)) {
                self.resources.remove(&uri);
                step.out.push(Action::fail(id, reason, detail.clone()));
            }
        }
        if for_good {
            self.lists = [false; 3];
            self.resources.clear();
        }
        if self.wants_anything() {
            self.retry_at = Some(step.now + self.backoff.wait());
        }
        self.changed = false;
    }

    /// When to call [`Subscriptions::expire`].
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Begins again when it is time.
    pub(super) fn expire(&mut self, step: &mut Step<'_>) {
        if self.retry_at.is_some_and(|at| at <= step.now) {
            self.retry_at = None;
            self.listen(step);
        }
    }

    fn changed(&mut self, step: &mut Step<'_>) {
        if self.retry_at.is_some() {
            return; // it is part of the next attempt
        }
        match &self.current {
            // One change after the other: a burst of them becomes one.
            Some(current) if current.since.is_none() => self.changed = true,
            Some(current) => {
                let id = current.id.clone();
                if self.wants_anything() {
                    self.previous = Some(id);
                    self.listen(step);
                } else {
                    self.current = None;
                    step.out.push(Action::ToServer(Message::cancelled(&id, "no longer wanted")));
                }
            }
            None if self.wants_anything() => self.listen(step),
            None => {}
        }
    }

    fn wants_lists(&self) -> bool {
        self.begun && self.lists.contains(&true)
    }

    fn wants_anything(&self) -> bool {
        self.wants_lists() || !self.resources.is_empty()
    }

    fn listen(&mut self, step: &mut Step<'_>) {
        let id = step.ids.next();
        let mut wanted = serde_json::Map::new();
        for ((name, _), _) in LISTS.iter().zip(self.lists).filter(|(_, told)| self.begun && *told) {
            wanted.insert((*name).to_owned(), true.into());
        }
        if !self.resources.is_empty() {
            let resources: Vec<&str> = self.resources.iter().map(String::as_str).collect();
            wanted.insert("resourceSubscriptions".to_owned(), resources.into());
        }
        let wanted = format!("\"notifications\":{}", serde_json::Value::Object(wanted));
        let request = step.envelope.request(&id, LISTEN, None, &[&wanted]);
        step.out.push(Action::ToServer(request));
        self.current =
            Some(Listening { id, lists: self.begun, resources: self.resources.clone(), since: None });
    }
}

impl Action {
    fn answer(id: &RequestId, result: &str) -> Self {
        Self::to_client(Message::result_of_parts(id, &[result]))
    }

    fn fail(id: RequestId, reason: &'static str, detail: String) -> Self {
        Self::ToClient(FromBackend::RequestFailed { id, reason, detail })
    }
}

/// The same for every session that hears it, so that the bridge can tell that it is the same.
pub(super) fn without_subscription(method: &str, params: &str) -> Message {
    let mut kept = Vec::new();
    for field in members(params) {
        if !field.is("_meta") {
            kept.push(field.text.to_owned());
            continue;
        }
        let meta = members(field.value).filter(|meta| !meta.is(SUBSCRIPTION_ID)).map(|meta| meta.text);
        let meta = meta.collect::<Vec<_>>().join(",");
        if !meta.is_empty() {
            kept.push(format!("\"_meta\":{{{meta}}}"));
        }
    }
    if kept.is_empty() {
        return Message::notification_of_parts(method, &[]);
    }
    Message::notification_of_parts(method, &["{", &kept.join(","), "}"])
}
