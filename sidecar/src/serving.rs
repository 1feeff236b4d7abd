//! What all servers have in common, the operator's too: they take so many connections, and outlive being out of
//! descriptors.

use std::{io, sync::Arc, time::Duration};

use axum::{Router, http::StatusCode};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::pulse::Pulse;

/// What Prometheus is told of the text that it gets: as plain text it would refuse the type `info`.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections to an admin port at one time: the kubelet, the operator and Prometheus have one each, and whoever else
/// comes must not take the descriptors of what the process is there for.
const ADMIN_CONNECTIONS: usize = 128;
/// From a connection to an admin port to the end of the one answer that it brings: all there is to say is known at once.
const ADMIN_PATIENCE: Duration = Duration::from_secs(5);
/// Out of descriptors: not in a tight loop.
const NO_ROOM: Duration = Duration::from_millis(100);

/// Why a connection ended; nobody is told but the log.
pub type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

/// Serves an admin port: probes, metrics, and what else is said at once and to everybody.
pub async fn admin(listener: TcpListener, router: Router) {
    accept("admin", listener, ADMIN_CONNECTIONS, |stream| answer_once(stream, router.clone())).await;
}

/// What `/healthz` says of the work that this is the pulse of; `who` is at it.
pub fn health(pulse: &Pulse, who: &str) -> (StatusCode, String) {
    match pulse.standstill() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(silence) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{who} has stood still for {} s\n", silence.as_secs()))
        }
    }
}

/// One request of a connection, so that nobody holds a place who has nothing to ask.
async fn answer_once<S>(stream: S, router: Router) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    timeout(ADMIN_PATIENCE, connection).await??;
    Ok(())
}

/// Where connections come from.
pub trait Listener: Send {
    /// A connection.
    type Stream: Send + 'static;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// Serves each connection in a task of its own, this many at one time; the next one waits for a place.
pub async fn accept<L, F>(name: &'static str, listener: L, connections: usize, serve: impl Fn(L::Stream) -> F)
where
    L: Listener,
    F: Future<Output = Result<(), ConnectionError>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(connections));
    let mut accepts = true;
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.next().await {
            Ok(stream) => stream,
            Err(error) => {
                if std::mem::replace(&mut accepts, false) {
                    tracing::warn!("{name}: cannot accept: {error}");
                }
                sleep(NO_ROOM).await;
                continue;
            }
        };
        accepts = true;
        let connection = serve(stream);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("{name}: {error}");
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::mpsc,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_says_nothing_or_does_not_read_is_not_waited_for() {
        let large = Router::new().route("/", axum::routing::get(async || "x".repeat(1 << 20)));
        for request in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let (mut peer, ours) = tokio::io::duplex(1024);
            peer.write_all(request.as_bytes()).await.unwrap();
            let begin = tokio::time::Instant::now();
            let ended = answer_once(ours, large.clone()).await.unwrap_err();
            assert!(ended.is::<tokio::time::error::Elapsed>(), "{request}: {ended}");
            assert_eq!(begin.elapsed(), ADMIN_PATIENCE);
        }
    }

    #[tokio::test]
    async fn a_connection_without_a_place_waits_for_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (begun, mut begins) = mpsc::unbounded_channel();
        tokio::spawn(accept("test", listener, 1, move |mut stream| {
            begun.send(()).unwrap();
            async move {
                stream.read_to_end(&mut Vec::new()).await?;
                Ok(())
            }
        }));
        let patience = Duration::from_secs(30);
        let first = TcpStream::connect(address).await.unwrap();
        timeout(patience, begins.recv()).await.unwrap().unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        assert!(timeout(Duration::from_millis(100), begins.recv()).await.is_err(), "there is one place");
        drop(first);
        timeout(patience, begins.recv()).await.unwrap().unwrap();
    }
}
