//! What all servers have in common, the operator's too: they take so many connections, and outlive being out of
//! descriptors.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};

/// Out of descriptors: not in a tight loop.
const NO_ROOM: Duration = Duration::from_millis(100);

/// Why a connection ended; nobody is told but the log.
pub type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

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
    let mut accepts = true;
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
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
}
