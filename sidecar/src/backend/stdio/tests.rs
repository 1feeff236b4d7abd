use std::io::{Write, pipe};

use bytes::Bytes;
use mcp_mqtt_transport::jsonrpc::Message;
use tokio::time::sleep;

use super::*;
use crate::backend::{SendQuota, reports::Report as Reported};

const MAX: usize = 1 << 20;
const SESSION: SessionId = SessionId(1);
const ANOTHER: SessionId = SessionId(2);

fn says(bytes: usize) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"m","params":{{"p":"{}"}}}}"#, "x".repeat(bytes))
}

/// Another session's server takes all the room there is.
async fn fill(events: &BackendEvents) {
    let large = Message::parse(Bytes::from(says(MAX - 100)), MAX).unwrap();
    let report = async || events.report(ANOTHER, FromBackend::Message(large.clone()), None).await;
    while timeout(Duration::from_millis(1), report()).await.is_ok() {}
}

#[tokio::test(start_paused = true)]
async fn the_last_answer_of_a_process_waits_for_room_however_long_it_is_dead() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let ((stdin, to_process), (from_process, mut stdout)) = (pipe().unwrap(), pipe().unwrap());
    let process =
        Process::new(Watch::Shim(Control::new(ours)), Some([to_process.into(), from_process.into()]));
    let (events, mut reported) = BackendEvents::channel(256, MAX);
    fill(&events).await;
    let (session, from_bridge) = SendQuota::for_messages_of(MAX).session();
    let serving = tokio::spawn(async move {
        let session = Session { id: SESSION, events: &events, max: MAX, reports: AtomicBool::new(false) };
        let end = session.serve(process.unwrap(), from_bridge).await;
        events.report(SESSION, FromBackend::Ended(end), None).await;
    });
    let last = says(40_000);
    writeln!(stdout, "{last}").unwrap();
    drop((stdin, stdout));
    Control::new(theirs).send(&Report::Exited(Exit::Code(3))).await.unwrap();
    // Whoever still speaks to it finds a pipe that nobody reads.
    session.say(Message::parse(Bytes::from(says(1)), MAX).unwrap()).unwrap();
    sleep(LAST_WORDS / 2).await;
    assert!(!serving.is_finished(), "it did not wait");
    let of_session = async |reported: &mut tokio::sync::mpsc::Receiver<Reported>| loop {
        let report = reported.recv().await.unwrap();
        if report.session == SESSION {
            return report.event;
        }
    };
    let FromBackend::Message(message) = of_session(&mut reported).await else { panic!("it is lost") };
    assert_eq!(message.raw(), last.as_bytes());
    let FromBackend::Ended(BackendEnd::Exited(how)) = of_session(&mut reported).await else {
        panic!("another end")
    };
    assert_eq!(how, "exit code 3");
}
