//! The watch over the backend: asks until it answers, waits until it is gone, and begins again.

use std::time::Duration;

use mcp_mqtt_transport::backoff::Backoff;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{
    backend::{Backend, BackendEnd, Lost, ProbeError},
    readiness::Board,
    status::ServerInfo,
};

/// First and longest wait between probes, where the server fails.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Where nobody listens, a look costs a refused connection, and what is waited for is the server's start, while a client
/// may be waiting for it: next after this part of the time that it took so far, but no sooner than this.
const PART: u32 = 50;
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

/// A server that never was there gets so long before its absence is called a fault.
const START: Duration = Duration::from_secs(10);

/// How the backend does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it answered `initialize`, or why it does not.
    pub state: State,
    /// When nobody was there last: a server that answers now was started after that.
    pub absence: Option<Instant>,
}

/// Whether the backend answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It does not; why.
    Down(String),
    /// It did, and takes no new session now; why. The sessions that it has go on.
    Failing(String),
    /// It answered `initialize`.
    Up,
}

impl Health {
    /// Nobody has asked yet.
    pub fn unknown() -> Self {
        Self { state: State::Down("not asked yet".to_owned()), absence: None }
    }
}

/// Watches for as long as somebody listens.
pub async fn watch(backend: Backend, board: Board, health: watch::Sender<Health>) {
    let mut first = true;
    while !health.is_closed() {
        let was_modern = backend.is_modern();
        let server = probe_until_up(&backend, &board, &health, first).await;
        first = false;
        if is_failing(&health) && backend.is_modern() != was_modern {
            // Nobody saw it go. What went on has nobody behind it any more.
            note_lost(Lost::to_another(&server), &board, &health);
            continue;
        }
        board.backend_up(&server);
        health.send_modify(|health| health.state = State::Up);
        note_lost(backend.lost().await, &board, &health);
    }
}

fn note_lost(lost: Lost, board: &Board, health: &watch::Sender<Health>) {
    if matches!(lost, Lost::Gone(_)) {
        note_absence(health);
    }
    let is_failing = matches!(lost, Lost::Failing(_));
    let why = lost.into_why();
    board.backend_down(&why);
    health.send_modify(|health| {
        health.state = if is_failing { State::Failing(why) } else { State::Down(why) };
    });
}

/// Nobody is there. Wakes no one: what counts is whoever answers after that.
fn note_absence(health: &watch::Sender<Health>) {
    health.send_if_modified(|health| {
        health.absence = Some(Instant::now());
        false
    });
}

async fn probe_until_up(
    backend: &Backend,
    board: &Board,
    health: &watch::Sender<Health>,
    first: bool,
) -> ServerInfo {
    let begun = Instant::now();
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let error = match backend.probe().await {
            Ok(server) => return server,
            Err(error) => error,
        };
        if first && begun.elapsed() < START {
            board.backend_starting(&error.to_string());
        } else {
            board.backend_down(&error.to_string());
        }
        // Whether sessions that went on have nobody behind them any more. A server that is silent to a new one may answer
        // them all the same.
        let note_more = |lost: Lost| {
            let is_over = match lost {
                Lost::Gone(_) => true,
                Lost::Silent(_) => backend.is_silent(),
                Lost::Failing(_) => false,
            };
            if is_over && is_failing(health) {
                note_lost(lost, board, health);
            }
        };
        note_more(backend.verdict(&error));
        if matches!(error, ProbeError::Ended(BackendEnd::NobodyListens(_))) {
            note_absence(health);
            sleep(wait_for_start(begun.elapsed())).await;
            continue;
        }
        // A server may also be started anew between two probes.
        let next = Instant::now() + backoff.wait();
        if let Ok(lost @ Lost::Gone(_)) = timeout_at(next, backend.gone()).await {
            note_absence(health);
            note_more(lost);
        }
        sleep_until(next).await;
    }
}

fn is_failing(health: &watch::Sender<Health>) -> bool {
    matches!(health.borrow().state, State::Failing(_))
}

/// How long to wait, after having waited so long, for somebody to listen.
fn wait_for_start(waited: Duration) -> Duration {
    (waited / PART).clamp(SHORTEST_WAIT, LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinHandle,
        time::timeout,
    };

    use super::*;
    use crate::{
        backend::Suspicion,
        config::{BackendConfig, BackendOptions, Limits},
        metrics::Metrics,
    };

    /// What a probe of it comes to.
    async fn probed(backend: BackendConfig) -> ProbeError {
        let backend = Backend::from_config(&backend, &BackendOptions::default(), &Limits::default()).unwrap();
        backend.probe().await.unwrap_err()
    }

    #[tokio::test]
    async fn a_server_that_has_not_started_is_told_from_one_that_fails() {
        let directory = tempfile::tempdir().unwrap();
        // Bound and not listening; listening, and not by MCP.
        let reserved = tokio::net::TcpSocket::new_v4().unwrap();
        reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let failing = listener.local_addr().unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let url = |address: std::net::SocketAddr| Some(format!("http://{address}/mcp").parse().unwrap());
        let starts = url(reserved.local_addr().unwrap());
        let (socket, none) = (Some(directory.path().join("shim.sock")), BackendConfig::default);
        for (backend, is_start) in [
            (BackendConfig { stdio_socket: socket, ..none() }, true),
            (BackendConfig { http_url: starts.clone(), ..none() }, true),
            (BackendConfig { sse_url: starts, ..none() }, true),
            (BackendConfig { http_url: url(failing), ..none() }, false),
            (BackendConfig { sse_url: url(failing), ..none() }, false),
        ] {
            let error = probed(backend.clone()).await;
            let nobody_listens = matches!(error, ProbeError::Ended(BackendEnd::NobodyListens(_)));
            assert_eq!(nobody_listens, is_start, "{backend:?}: {error}");
        }
    }

    /// What an HTTP server says at the time.
    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<[String; 2]>>);

    impl Said {
        /// To all requests.
        fn set(&self, reply: &str) {
            self.to_either(reply, reply);
        }

        /// To `initialize`, and to `server/discover`.
        fn to_either(&self, initialize: &str, discover: &str) {
            *self.0.lock().unwrap() = [initialize, discover].map(str::to_owned);
        }

        fn reply(&self, request: &[u8]) -> String {
            let is_discover = String::from_utf8_lossy(request).contains("server/discover");
            self.0.lock().unwrap()[usize::from(is_discover)].clone()
        }
    }

    /// Serves HTTP until it is aborted.
    fn serve(listener: TcpListener, said: Said) -> JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap_or_default();
                let _ = stream.write_all(said.reply(&request[..read]).as_bytes()).await;
            }
        })
    }

    fn reply(status: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }

    fn well() -> String {
        reply(
            "200 OK",
            r#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{"name":"n","version":"1"}}}"#,
        )
    }

    /// A server that is watched, has answered, and then takes no new session.
    struct Scene {
        said: Said,
        server: JoinHandle<()>,
        backend: Backend,
        board: Board,
        health: watch::Receiver<Health>,
    }

    impl Scene {
        async fn begin() -> Self {
            let said = Said::default();
            said.set(&well());
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = serve(listener, said.clone());
            let http = BackendConfig {
                http_url: Some(format!("http://{address}/mcp").parse().unwrap()),
                ..BackendConfig::default()
            };
            let backend =
                Backend::from_config(&http, &BackendOptions::default(), &Limits::default()).unwrap();
            let board = Board::new("id", "a/b", Metrics::new());
            let (sender, health) = watch::channel(Health::unknown());
            tokio::spawn(watch(backend.clone(), board.clone(), sender));
            let mut scene = Self { said, server, backend, board, health };
            scene.until(|state| *state == State::Up).await;
            scene
        }

        /// From now on it says this to whoever wants a session, and some have found out.
        async fn takes_none(&mut self, reply: &str, fits: fn(&State) -> bool) {
            self.said.set(reply);
            self.backend.suspect(Suspicion::NoSession);
            self.until(fits).await;
            assert!(!self.board.status().backend.ok);
        }

        async fn until(&mut self, fits: fn(&State) -> bool) {
            let found = self.health.wait_for(|health| fits(&health.state));
            drop(timeout(Duration::from_secs(20), found).await.unwrap().unwrap());
        }
    }

    fn is_full(state: &State) -> bool {
        matches!(state, State::Failing(why) if why.contains("503"))
    }

    #[tokio::test]
    async fn one_that_takes_no_new_session_is_failing_until_it_does_or_is_gone() {
        let (mut scene, full) = (Scene::begin().await, reply("503 Service Unavailable", "full"));
        scene.takes_none(&full, is_full).await;
        scene.said.set(&well());
        scene.until(|state| *state == State::Up).await;
        assert!(scene.board.status().backend.ok);
        scene.takes_none(&full, is_full).await;
        scene.server.abort();
        scene.until(|state| matches!(state, State::Down(_))).await;
    }

    #[tokio::test]
    async fn one_that_is_silent_to_new_sessions_is_failing_until_others_are_not_answered_either() {
        let mut scene = Scene::begin().await;
        scene.takes_none("", |state| matches!(state, State::Failing(_))).await;
        scene.backend.suspect(Suspicion::Silence);
        scene.until(|state| matches!(state, State::Down(_))).await;
    }

    #[tokio::test]
    async fn one_that_comes_back_as_another_has_none_of_the_sessions_that_went_on() {
        let mut scene = Scene::begin().await;
        scene.takes_none(&reply("503 Service Unavailable", "full"), is_full).await;
        let refused = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"Method not found"}}"#;
        let discovered = r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{},"ttlMs":0,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s","version":"1"}}}}"#;
        let mut went = scene.health.clone();
        let down = tokio::spawn(async move {
            went.wait_for(|health| matches!(health.state, State::Down(_))).await.map(|_| ())
        });
        scene.said.to_either(&reply("200 OK", refused), &reply("200 OK", discovered));
        scene.until(|state| *state == State::Up).await;
        assert!(scene.backend.is_modern());
        timeout(Duration::from_secs(1), down).await.expect("sessions go on").unwrap().unwrap();
    }

    #[test]
    fn who_starts_is_found_soon_and_who_does_not_is_not_asked_for_ever_so_often() {
        let seconds = Duration::from_secs;
        assert_eq!(wait_for_start(Duration::ZERO), SHORTEST_WAIT);
        assert_eq!(wait_for_start(seconds(2)), Duration::from_millis(40));
        assert_eq!(wait_for_start(seconds(60)), Duration::from_millis(1200));
        assert_eq!(wait_for_start(seconds(3600)), LONGEST_WAIT);
    }
}
