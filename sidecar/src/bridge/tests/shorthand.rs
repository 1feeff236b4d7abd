//! A shorthand for tests: messages and actions as short texts, both ways.
//!
//! `1 tools/call` is a request, `1 ok` and `1 error` its answers, `notifications/progress p1` a notification.

use std::time::Duration;

use bytes::Bytes;
use mcp_mqtt_transport::{
    jsonrpc::{Kind, Message},
    topic::ClientId,
};

use crate::{
    bridge::{action::Action, placement::LinkId, session::Rules},
    config::Timeouts,
};

/// Limits small enough to reach.
pub(in crate::bridge) const RULES: Rules = Rules {
    timeouts: Timeouts {
        timeout_ping: Duration::from_secs(10),
        timeout_call: Duration::from_mins(1),
        timeout_default: Duration::from_secs(30),
        timeout_max: Duration::from_secs(100),
    },
    max_in_flight: 3,
    max_message_bytes: 1000,
    idle_timeout: None,
    sampler: None,
};

pub(in crate::bridge) fn client(id: &str) -> ClientId {
    ClientId::new(id).unwrap()
}

/// The JSON of a message in shorthand. `{n}` at the end pads it to n bytes.
pub(in crate::bridge) fn json(text: &str) -> String {
    let (text, pad) = match text.split_once(" {") {
        Some((text, pad)) => (text, pad.trim_end_matches('}').parse().unwrap()),
        None => (text, 0),
    };
    let words: Vec<&str> = text.split(' ').collect();
    let json = match words[..] {
        [id, "ok"] => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#),
        [id, "error"] => {
            format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-1,"message":"no"}}}}"#)
        }
        [id, "error", reason] => format!(
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-1,"message":"no","data":{{"reason":"{reason}"}}}}}}"#
        ),
        ["notifications/cancelled", id] => {
            format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#)
        }
        ["notifications/progress", token] => format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":"{token}","progress":1}}}}"#
        ),
        [id, method] => format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{"_meta":{{"progressToken":"p{id}"}}}}}}"#
        ),
        [method] => format!(r#"{{"jsonrpc":"2.0","method":"{method}"}}"#),
        _ => panic!("not shorthand: {text}"),
    };
    format!("{json:pad$}")
}

pub(in crate::bridge) fn message(text: &str) -> Message {
    Message::parse(Bytes::from(json(text)), usize::MAX).unwrap()
}

fn text_of(message: &Message) -> String {
    match message.kind() {
        Kind::Request { id, method } => format!("{id} {method}"),
        Kind::Notification { method } => match (message.cancelled_request(), message.progress_token()) {
            (Some(id), _) => format!("{method} {id}"),
            (_, Some(token)) => format!("{method} {}", token.as_json().trim_matches('"')),
            _ => method.to_string(),
        },
        Kind::Response { id, is_error } => {
            let id = id.as_ref().map_or("null".to_owned(), ToString::to_string);
            let error = message.error().filter(|_| *is_error);
            let reason = error.as_ref().and_then(|error| error.reason()).map(|reason| format!(" {reason}"));
            format!("{id} {}{}", if *is_error { "error" } else { "ok" }, reason.unwrap_or_default())
        }
    }
}

/// The registering connection goes without saying.
fn by(via: LinkId) -> String {
    if via == LinkId::REGISTERING { String::new() } else { format!("@{}", via.0) }
}

/// An action in shorthand; what is only counted is left out.
pub(in crate::bridge) fn text(action: &Action) -> Option<String> {
    Some(match action {
        Action::Subscribe { via, client, .. } => format!("subscribe {client}{}", by(*via)),
        Action::Unsubscribe { via, client } => format!("unsubscribe {client}{}", by(*via)),
        Action::ToClient { via, client, message, .. } => {
            format!("{client}{} < {}", by(*via), text_of(message))
        }
        Action::Broadcast { message } => format!("all < {}", text_of(message)),
        Action::ToBackend { session, message } => format!("server {} < {}", session.0, text_of(message)),
        Action::Opened { client, .. } => format!("opened {client}"),
        Action::Ended { client, reason, .. } => format!("ended {client} {}", reason.as_str()),
        Action::Dropped { reason } => format!("dropped {reason}"),
        Action::Resolved { .. } | Action::Refused { .. } => return None,
    })
}

/// Takes the actions out and compares them.
#[track_caller]
pub(in crate::bridge) fn assert_actions(out: &mut Vec<Action>, expected: &[&str]) {
    let actual: Vec<String> = out.drain(..).filter_map(|action| text(&action)).collect();
    assert_eq!(actual, expected);
}
