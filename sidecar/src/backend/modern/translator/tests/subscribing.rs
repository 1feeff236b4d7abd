//! Subscriptions through the translator.

use std::time::Duration;

use super::Rig;
use crate::backend::modern::subscriptions::{MAX_URI, MAX_URIS};

const INITIALIZED: &str = r#"{"method":"notifications/initialized"}"#;
const NO_BACKOFF_IS_LONGER: Duration = Duration::from_secs(15);

fn subscribe(id: u32, uri: &str) -> String {
    format!(r#"{{"id":{id},"method":"resources/subscribe","params":{{"uri":"{uri}"}}}}"#)
}

fn unsubscribe(id: u32, uri: &str) -> String {
    format!(r#"{{"id":{id},"method":"resources/unsubscribe","params":{{"uri":"{uri}"}}}}"#)
}

fn listen(id: u32, wanted: &str) -> String {
    format!(
        r#"S {{"id":"mcp-mqtt-gateway/{id}","method":"subscriptions/listen","params":{{"notifications":{{{wanted}}}}}}}"#
    )
}

fn acknowledged(id: u32, honored: &str) -> String {
    format!(
        r#"{{"method":"notifications/subscriptions/acknowledged","params":{{"notifications":{{{honored}}},"_meta":{{"io.modelcontextprotocol/subscriptionId":"mcp-mqtt-gateway/{id}"}}}}}}"#
    )
}

fn cancelled(id: u32, why: &str) -> String {
    format!(
        r#"S {{"method":"notifications/cancelled","params":{{"reason":"{why}","requestId":"mcp-mqtt-gateway/{id}"}}}}"#
    )
}

const TOOLS: &str = r#""toolsListChanged":true"#;
const DONE: [&str; 3] =
    [r#"C {"id":1,"result":{}}"#, r#"C {"id":2,"result":{}}"#, r#"C {"id":3,"result":{}}"#];

/// Listens to changes of the tools.
fn listening() -> Rig {
    let mut rig = Rig::open("{}");
    assert_eq!(rig.client(INITIALIZED), [listen(1, TOOLS)]);
    assert!(rig.client(INITIALIZED).is_empty(), "once is enough");
    assert!(rig.server(&acknowledged(1, TOOLS)).is_empty());
    rig
}

#[test]
fn changes_are_told_as_every_session_tells_them() {
    let mut rig = listening();
    let meta = r#""_meta":{"io.modelcontextprotocol/subscriptionId":"mcp-mqtt-gateway/1"}"#;
    for (told, expected) in [
        (
            format!(r#"{{"method":"notifications/tools/list_changed","params":{{{meta}}}}}"#),
            vec![r#"C {"method":"notifications/tools/list_changed"}"#],
        ),
        (
            format!(r#"{{"method":"notifications/resources/updated","params":{{{meta},"uri":"a"}}}}"#),
            vec![r#"C {"method":"notifications/resources/updated","params":{"uri":"a"}}"#],
        ),
        (
            r#"{"method":"notifications/tools/list_changed","params":{"_meta":{"a":1,"io.modelcontextprotocol/subscriptionId":"mcp-mqtt-gateway/1"}}}"#.to_owned(),
            vec![r#"C {"method":"notifications/tools/list_changed","params":{"_meta":{"a":1}}}"#],
        ),
        (
            r#"{"method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":7}}}"#.to_owned(),
            vec![],
        ),
    ] {
        assert_eq!(rig.server(&told), expected, "{told}");
    }
}

#[test]
fn a_subscription_is_answered_once_the_server_listens_and_nothing_is_missed_between() {
    let mut rig = listening();
    let both = format!(r#""resourceSubscriptions":["a"],{TOOLS}"#);
    assert_eq!(rig.client(&subscribe(1, "a")), [listen(2, &both)]);
    let old = r#"{"method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"mcp-mqtt-gateway/1"}}}"#;
    assert_eq!(rig.server(old).len(), 1, "the old one still tells");
    assert_eq!(rig.server(&acknowledged(2, &both)), [&cancelled(1, "replaced by another one"), DONE[0]]);
    assert!(rig.server(old).is_empty(), "it is over");
    assert_eq!(rig.client(&subscribe(2, "a")), [DONE[1]], "it is heard already");
    assert_eq!(rig.client(&unsubscribe(3, "a")), [DONE[2], &listen(3, TOOLS)]);
    assert_eq!(rig.client(&unsubscribe(3, "a")), [DONE[2]], "nothing changes");
}

#[test]
fn a_burst_of_subscriptions_becomes_one_more_listening() {
    let mut rig = listening();
    assert_eq!(rig.client(&subscribe(1, "a")).len(), 1);
    assert!(rig.client(&subscribe(2, "b")).is_empty() && rig.client(&subscribe(3, "c")).is_empty());
    let first = format!(r#""resourceSubscriptions":["a"],{TOOLS}"#);
    let all = format!(r#""resourceSubscriptions":["a","b","c"],{TOOLS}"#);
    assert_eq!(
        rig.server(&acknowledged(2, &first)),
        [&cancelled(1, "replaced by another one"), DONE[0], &listen(3, &all)]
    );
    assert_eq!(
        rig.server(&acknowledged(3, &all)),
        [&cancelled(2, "replaced by another one"), DONE[1], DONE[2]]
    );
}

#[test]
fn what_the_server_does_not_tell_is_an_error_and_not_asked_again() {
    let mut rig = listening();
    rig.client(&subscribe(1, "a"));
    assert_eq!(
        rig.server(&acknowledged(2, TOOLS)),
        [&cancelled(1, "replaced by another one"), "F 1 subscription-not-honored"]
    );
    assert_eq!(
        rig.client(&subscribe(2, "b")),
        [listen(3, &format!(r#""resourceSubscriptions":["b"],{TOOLS}"#))]
    );
    // Nothing at all: an end that follows is no reason to begin again.
    rig.server(&acknowledged(3, ""));
    assert!(rig.server(r#"{"id":"mcp-mqtt-gateway/3","result":{}}"#).is_empty());
    assert_eq!(rig.translator.next_deadline(), None);
}

#[test]
fn a_listening_that_ends_is_begun_again_and_what_may_have_changed_is_told() {
    type End = fn(&mut Rig) -> Vec<String>;
    let ends: [End; 4] = [
        |rig| rig.server(r#"{"id":"mcp-mqtt-gateway/2","result":{"resultType":"complete"}}"#),
        |rig| {
            rig.server(r#"{"method":"notifications/cancelled","params":{"requestId":"mcp-mqtt-gateway/2"}}"#)
        },
        |rig| rig.server(r#"{"id":"mcp-mqtt-gateway/2","error":{"code":-32603,"message":"m"}}"#),
        |rig| rig.fail("\"mcp-mqtt-gateway/2\""),
    ];
    for end in ends {
        let mut rig = listening();
        let both = format!(r#""resourceSubscriptions":["a"],{TOOLS}"#);
        rig.client(&subscribe(1, "a"));
        rig.server(&acknowledged(2, &both));
        assert!(end(&mut rig).is_empty());
        assert!(rig.after(Duration::from_millis(1)).is_empty(), "not at once");
        assert!(rig.client(&subscribe(2, "b")).is_empty(), "it is part of the next attempt");
        let three = format!(r#""resourceSubscriptions":["a","b"],{TOOLS}"#);
        assert_eq!(rig.after(NO_BACKOFF_IS_LONGER), [listen(3, &three)]);
        assert_eq!(
            rig.server(&acknowledged(3, &three)),
            [
                DONE[1],
                r#"C {"method":"notifications/tools/list_changed"}"#,
                r#"C {"method":"notifications/resources/updated","params":{"uri":"a"}}"#,
                r#"C {"method":"notifications/resources/updated","params":{"uri":"b"}}"#,
            ]
        );
        assert!(rig.server(&acknowledged(3, &three)).is_empty(), "said twice");
    }
}

#[test]
fn a_refused_listening_fails_what_waits_for_it_and_the_rest_is_tried_again() {
    let mut rig = listening();
    rig.client(&subscribe(1, "a"));
    assert_eq!(
        rig.server(
            r#"{"id":"mcp-mqtt-gateway/2","error":{"code":-32603,"message":"Subscription limit reached"}}"#
        ),
        [&cancelled(1, "replaced by another one"), "F 1 subscription-not-honored"]
    );
    assert_eq!(rig.after(NO_BACKOFF_IS_LONGER), [listen(3, TOOLS)]);
    assert!(rig.fail("\"mcp-mqtt-gateway/3\"").is_empty());
    assert_eq!(rig.after(NO_BACKOFF_IS_LONGER), [listen(4, TOOLS)]);
    assert!(rig.server(r#"{"id":"mcp-mqtt-gateway/4","error":{"code":-32601,"message":"m"}}"#).is_empty());
    assert_eq!(rig.translator.next_deadline(), None, "it never will");
}

#[test]
fn who_no_longer_wants_to_hear_is_no_longer_told() {
    let mut rig = Rig::open("{}");
    rig.client(&subscribe(1, "a"));
    assert_eq!(rig.client(&unsubscribe(2, "a")), [DONE[1], DONE[0]], "both are answered");
    assert_eq!(
        rig.server(&acknowledged(1, r#""resourceSubscriptions":["a"]"#)),
        [cancelled(1, "no longer wanted")]
    );
    assert_eq!(rig.client(&subscribe(1, "a")).len(), 1);
    assert!(rig.client(r#"{"method":"notifications/cancelled","params":{"requestId":1}}"#).is_empty());
    assert!(rig.server(&acknowledged(2, r#""resourceSubscriptions":["a"]"#)).is_empty(), "nobody waits");
    assert!(rig.client(r#"{"id":4,"method":"resources/subscribe","params":{}}"#)[0].contains("wrong-params"));
}

#[test]
fn subscriptions_are_bounded() {
    let mut rig = Rig::open("{}");
    for n in 0..1024 {
        rig.client(&subscribe(n, &format!("test://{n}")));
    }
    assert_eq!(rig.client(&subscribe(9999, "test://more")), ["F 9999 too-many-subscriptions"]);

    let mut rig = Rig::open("{}");
    let uri = |n: u32, length: usize| format!("{n:0>length$}");
    assert_eq!(rig.client(&subscribe(1, &uri(1, MAX_URI + 1))), ["F 1 uri-too-long"]);
    let taken = (0..1024).take_while(|n| {
        !rig.client(&subscribe(*n, &uri(*n, MAX_URI))).iter().any(|told| told.starts_with('F'))
    });
    assert_eq!(taken.count(), MAX_URIS / MAX_URI);
}
