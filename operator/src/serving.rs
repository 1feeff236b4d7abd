//! What the operator's servers have in common: they begin again after a failure, and take so many connections.

use std::{fmt::Display, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};

/// Between two tries of what did not work.
const RETRY: Duration = Duration::from_secs(30);
/// How often the servers look whether the API server still has what was written for them: whoever applies the chart's
/// objects anew may take it away.
pub const LOOK: Duration = Duration::from_mins(1);
/// Out of descriptors: not in a tight loop.
const NO_ROOM: Duration = Duration::from_millis(100);

/// Why a connection ended; nobody is told but the log.
pub type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

/// Serves for as long as it is polled: what fails is told (`what` is not done because of it), and tried again.
pub async fn keep_serving<E: Display>(what: &str, mut serve: impl AsyncFnMut() -> Result<(), E>) {
    loop {
        if let Err(error) = serve().await {
            tracing::warn!(retry_in = ?RETRY, "{what}: {error}");
            sleep(RETRY).await;
        }
    }
}

/// Serves each connection in a task of its own, this many at one time; the next one waits for a place.
pub async fn accept<F>(
    name: &'static str,
    listener: TcpListener,
    connections: usize,
    serve: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = Result<(), ConnectionError>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(connections));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("{name}: cannot accept: {error}");
                sleep(NO_ROOM).await;
                continue;
            }
        };
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
    use std::time::Duration;

    use tokio::{io::AsyncReadExt, sync::mpsc, time::timeout};

    use super::*;

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

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_after_a_while() {
        let mut tries = Vec::new();
        let begin = tokio::time::Instant::now();
        let serving = keep_serving("it is not served", async || {
            tries.push(begin.elapsed());
            Err("no")
        });
        assert!(timeout(RETRY * 5 / 2, serving).await.is_err());
        assert_eq!(tries, [Duration::ZERO, RETRY, RETRY * 2]);
    }
}
