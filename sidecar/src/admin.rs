//! `/healthz`, `/readyz`, `/status`, `/metrics`: read-only, on a thread and runtime of their own, so that a busy data
//! path cannot fail a probe.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    thread,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};

use crate::{
    metrics::Metrics,
    readiness::Board,
    serving::{self, OPENMETRICS},
    status::GatewayStatus,
};

/// Four small handlers need no more.
const STACK_BYTES: usize = 256 * 1024;

#[derive(Debug, Clone)]
struct Admin {
    board: Board,
    metrics: Metrics,
}

/// Binds the address and serves on a thread of its own for as long as the process lives. Returns the address, as
/// port 0 means any.
///
/// # Errors
/// The address cannot be bound, or no thread be started.
pub fn serve(address: SocketAddr, board: Board, metrics: Metrics) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route(
            "/status",
            get(async |State(admin): State<Admin>| -> Json<GatewayStatus> { Json(admin.board.status()) }),
        )
        .route("/metrics", get(render))
        .with_state(Admin { board, metrics });
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        serving::admin(listener, router).await;
        io::Result::Ok(())
    };
    thread::Builder::new().name("admin".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        if let Err(error) = runtime.block_on(serve) {
            tracing::error!(%error, "the admin endpoints have ended");
        }
    })?;
    Ok(address)
}

/// The kubelet restarts a gateway that stands still, as nothing else would mend it.
async fn healthz(State(admin): State<Admin>) -> impl IntoResponse {
    serving::health(admin.board.pulse(), "the task that serves all sessions")
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    let pending = admin.board.pending();
    if pending.is_empty() {
        let trouble = admin.board.trouble().map(|trouble| format!("but {trouble}\n"));
        return (StatusCode::OK, format!("ready\n{}", trouble.unwrap_or_default()));
    }
    (StatusCode::SERVICE_UNAVAILABLE, pending.join("\n") + "\n")
}

async fn render(State(admin): State<Admin>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPENMETRICS)], admin.metrics.render())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
        time::Duration,
    };

    use super::*;
    use crate::status::{ServerInfo, reason};

    fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[test]
    fn readiness_names_what_is_pending_and_the_status_tells_all() {
        let metrics = Metrics::new();
        let board = Board::new("id", "a/b", metrics.clone());
        let address = serve("127.0.0.1:0".parse().unwrap(), board.clone(), metrics).unwrap();
        assert_eq!(get(address, "/healthz"), (200, "ok\n".to_owned()));
        board.unregistered(reason::BROKER_NOT_AUTHORIZED, "the ACL forbids it");
        let (code, body) = get(address, "/readyz");
        assert_eq!(code, 503);
        assert!(body.contains("backend: BackendStarting: "), "{body}");
        assert!(body.contains("broker: BrokerNotAuthorized: the ACL forbids it"), "{body}");
        let server =
            ServerInfo { name: "n".to_owned(), version: "1".to_owned(), protocol_version: "2".to_owned() };
        board.backend_up(&server);
        board.registered("a/b", None);
        assert_eq!(get(address, "/readyz"), (200, "ready\n".to_owned()));
        let (code, body) = get(address, "/status");
        assert_eq!(code, 200);
        assert_eq!(serde_json::from_str::<GatewayStatus>(&body).unwrap(), board.status());
        let (code, body) = get(address, "/metrics");
        assert_eq!(code, 200);
        assert!(body.contains("mcp_mqtt_gateway_sessions 0") && body.trim_end().ends_with("# EOF"), "{body}");
        board.pulse().be_silent_for(Duration::from_mins(2));
        let (code, body) = get(address, "/healthz");
        assert_eq!(code, 503);
        assert!(body.starts_with("the task that serves all sessions has stood still for 120 s"), "{body}");
        board.pulse().beat();
        assert_eq!(get(address, "/healthz").0, 200);
        assert_eq!(get(address, "/drain").0, 404, "nothing here changes anything");
    }
}
