mod silence;

use mcp_mqtt_sidecar::status::{Part, reason};

use super::*;

fn status(sessions: u32) -> GatewayStatus {
    let part = |reason: &str| Part { ok: true, reason: reason.to_owned(), message: String::new() };
    GatewayStatus {
        server_id: "north.meteo.weather-1".to_owned(),
        server_name: "meteo/weather".to_owned(),
        backend: part(reason::BACKEND_READY),
        broker: part(reason::REGISTERED),
        draining: false,
        sessions,
        in_flight: 0,
        idle_seconds: None,
        refused_sessions: 0,
        server: None,
        workers: Vec::new(),
    }
}

#[test]
fn sessions_alone_are_told_apart_from_the_rest() {
    let now = Ok(status(2));
    assert_eq!(change(None, &now), Change::Rest);
    assert_eq!(change(Some(&Ok(status(2))), &now), Change::None);
    assert_eq!(change(Some(&Ok(status(1))), &now), Change::Sessions);
    assert_eq!(change(Some(&Ok(status(0))), &now), Change::Use);
    assert_eq!(change(Some(&now), &Ok(status(0))), Change::Use);
    assert_eq!(
        change(Some(&Ok(GatewayStatus { in_flight: 9, refused_sessions: 1, ..status(2) })), &now),
        Change::None
    );
    assert_eq!(change(Some(&Ok(GatewayStatus { draining: true, ..status(2) })), &now), Change::Rest);
    assert_eq!(change(Some(&Err("refused".to_owned())), &now), Change::Rest);
    assert_eq!(change(Some(&Err("refused".to_owned())), &Err("refused".to_owned())), Change::None);
}

#[tokio::test(start_paused = true)]
async fn session_counts_reconcile_a_service_now_and_then_and_the_rest_at_once() {
    let (changed, mut inbox) = mpsc::channel(4);
    let weather = ServiceRef::new("weather").within("meteo");
    let mut pending = Pending::default();
    let mut sessions_of_weather = |pending: &mut Pending| {
        pending.sessions.insert(weather.clone());
        pending.flush(&changed, 1);
        inbox.try_recv().is_ok()
    };
    assert!(sessions_of_weather(&mut pending));
    assert!(!sessions_of_weather(&mut pending), "too soon");
    tokio::time::advance(SESSIONS_INTERVAL).await;
    assert!(sessions_of_weather(&mut pending));
    pending.now.insert(weather.clone());
    pending.flush(&changed, 1);
    assert!(inbox.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn of_many_services_the_session_counts_are_written_at_a_bounded_rate() {
    const SERVICES: u32 = 2000;
    const WHILE: u32 = 300;
    let (changed, mut inbox) = mpsc::channel(SERVICES as usize);
    let names = (0..SERVICES).map(|number| ServiceRef::new(&format!("s{number}")).within("meteo"));
    let (all, mut pending, mut written) = (names.collect::<Vec<_>>(), Pending::default(), 0);
    let mut told = |pending: &mut Pending| {
        pending.flush(&changed, SERVICES as usize);
        std::iter::from_fn(|| inbox.try_recv().ok()).count()
    };
    for _ in 0..WHILE {
        pending.sessions.extend(all.iter().cloned());
        written += told(&mut pending);
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let most = (SESSIONS_A_SECOND * WHILE + SERVICES) as usize;
    assert!(written <= most && written > most / 2, "{written} writes in {WHILE} s");
    pending = Pending::default();
    pending.sessions.insert(all[0].clone());
    assert_eq!(told(&mut pending), 1);
    tokio::time::advance(SESSIONS_INTERVAL).await;
    pending.sessions.insert(all[0].clone());
    assert_eq!(told(&mut pending), 0);
    pending.use_changed.insert(all[0].clone());
    assert_eq!(told(&mut pending), 1, "nobody uses it any more");
}

#[test]
fn the_sessions_of_a_gateway_that_falls_silent_stay_known() {
    let observations = Observations::default();
    let sessions = |uid: &str| observations.get(uid).unwrap().sessions;
    observations.set("u", Err("refused".to_owned()));
    assert_eq!(sessions("u"), None);
    observations.set("u", Ok(status(3)));
    for _ in 0..2 {
        observations.set("u", Err("timed out".to_owned()));
    }
    assert_eq!(sessions("u"), Some(3));
    observations.set("u", Ok(status(0)));
    assert_eq!(sessions("u"), Some(0));
}

#[test]
fn what_does_not_fit_waits_for_the_next_tick() {
    let (changed, mut inbox) = mpsc::channel(1);
    let mut pending = Pending::default();
    pending.now.extend(["a", "b"].map(|name| ServiceRef::new(name).within("meteo")));
    pending.flush(&changed, 2);
    assert_eq!(pending.now.len(), 1);
    inbox.try_recv().unwrap();
    pending.flush(&changed, 2);
    assert!(pending.now.is_empty() && inbox.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_is_silent_from_the_first_question_that_it_leaves_open() {
    let observations = Observations::default();
    assert_eq!(observations.silent_for("u"), None);
    observations.ask("u");
    tokio::time::advance(TICK).await;
    observations.set("u", Err("timed out".to_owned()));
    observations.ask("u");
    tokio::time::advance(TICK).await;
    assert_eq!(observations.silent_for("u"), Some(2 * TICK));
    observations.set("u", Ok(status(0)));
    assert_eq!(observations.silent_for("u"), None);
    observations.ask("u");
    assert_eq!(observations.silent_for("u"), Some(Duration::ZERO));
}

fn pod(status: &serde_json::Value) -> Pod {
    serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "status": status})).unwrap()
}

#[test]
fn only_a_running_gateway_has_an_address() {
    let running = serde_json::json!([{"name": "gateway", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}}]);
    let of = |phase: &str, ip: &str| {
        address(&pod(&serde_json::json!({"phase": phase, "podIP": ip, "initContainerStatuses": running})))
    };
    assert_eq!(of("Running", "10.0.0.1").as_deref(), Some("10.0.0.1:8079"));
    assert_eq!(of("Pending", "fd00::1").as_deref(), Some("[fd00::1]:8079"));
    assert_eq!(of("Failed", "10.0.0.1"), None);
    assert_eq!(of("Running", ""), None);
    assert_eq!(address(&pod(&serde_json::json!({"phase": "Running", "podIP": "10.0.0.1"}))), None);
}
