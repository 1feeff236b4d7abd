//! From a URL to a stream of bytes: TCP, with TLS and a websocket on top where the URL says so.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error as WebSocketError, Message,
        client::IntoClientRequest,
        http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL},
        protocol::WebSocketConfig,
    },
};

use super::{ConnectError, ConnectOptions, tls};
use crate::redact;

/// What an address gets at least before the next one is tried.
const LEAST_SHARE: Duration = Duration::from_secs(2);
/// The library's own limit of a message. A broker may put several packets into one.
const LARGEST_MESSAGE: usize = 64 << 20;

/// Bytes, both ways, in order.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Where to connect to.
pub(super) struct Address {
    secure: bool,
    websocket: bool,
    host: String,
    port: u16,
    /// For messages: `host:port`.
    pub(super) text: String,
}

impl Address {
    pub(super) fn of(options: &ConnectOptions) -> Result<Self, ConnectError> {
        let url = &options.url;
        let refuse =
            |why: &str| Err(ConnectError::Options(format!("the URL {}: {why}", redact::url(url.as_str()))));
        let (secure, websocket, default_port) = match url.scheme() {
            "mqtt" => (false, false, 1883),
            "mqtts" => (true, false, 8883),
            "ws" => (false, true, 80),
            "wss" => (true, true, 443),
            _ => return refuse("its scheme is none of mqtt, mqtts, ws, wss"),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("credentials do not belong in it; give them on their own");
        }
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return refuse("it has no host");
        };
        let port = url.port().unwrap_or(default_port);
        let text = format!("{host}:{port}");
        // Without the brackets of an IPv6 address: the resolver takes it, and TLS wants it so.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { secure, websocket, host, port, text })
    }

    /// Connects, with what the URL asks for on top of TCP. The TLS files are read first: without them there is no use
    /// in a connection.
    pub(super) async fn open(&self, options: &ConnectOptions) -> Result<Box<dyn ByteStream>, ConnectError> {
        let tls = self
            .secure
            .then(|| tls::client_config(&options.tls))
            .transpose()
            .map_err(|detail| self.tls(detail))?;
        let addresses = lookup_host((self.host.as_str(), self.port)).await;
        let addresses: Vec<SocketAddr> = addresses.map_err(|error| self.unreachable(&error))?.collect();
        let stream =
            connect(&addresses, options.connect_timeout).await.map_err(|error| self.unreachable(&error))?;
        // Off by default, and 40 to 90 ms per QoS 1 round trip without it.
        stream.set_nodelay(true).map_err(|error| self.unreachable(&error))?;
        let stream: Box<dyn ByteStream> = match tls {
            Some(config) => Box::new(self.secured(stream, config).await?),
            None => Box::new(stream),
        };
        if self.websocket { self.upgraded(stream, options).await } else { Ok(stream) }
    }

    async fn secured(
        &self,
        stream: TcpStream,
        config: Arc<ClientConfig>,
    ) -> Result<impl ByteStream + use<>, ConnectError> {
        let name = ServerName::try_from(self.host.clone()).map_err(|error| self.tls(error.to_string()))?;
        // Whatever ends a handshake: what speaks no TLS may just close, or reset.
        TlsConnector::from(config).connect(name, stream).await.map_err(|error| self.tls(error.to_string()))
    }

    async fn upgraded(
        &self,
        stream: Box<dyn ByteStream>,
        options: &ConnectOptions,
    ) -> Result<Box<dyn ByteStream>, ConnectError> {
        let mut request =
            options.url.as_str().into_client_request().map_err(|error| self.unreachable(&error))?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"));
        // It fails, too, where the answer does not choose this protocol (MQTT 5, section 6.0).
        // The library's limit of a frame is less than a packet that we announce may have.
        let largest = LARGEST_MESSAGE.max((options.max_packet_size as usize).saturating_mul(2));
        let config = WebSocketConfig::default().max_message_size(Some(largest)).max_frame_size(Some(largest));
        let upgrade = client_async_with_config(request, stream, Some(config));
        let (socket, _) = upgrade.await.map_err(|error| match &error {
            WebSocketError::Io(io) if caused_by_tls(io) => self.tls(io.to_string()),
            _ => self.unreachable(&error),
        })?;
        Ok(Box::new(WebSocket { socket, rest: Bytes::new() }))
    }

    pub(super) fn tls(&self, detail: String) -> ConnectError {
        ConnectError::Tls { address: self.text.clone(), detail }
    }

    fn unreachable(&self, error: &dyn Error) -> ConnectError {
        ConnectError::Unreachable { address: self.text.clone(), detail: error.to_string() }
    }
}

/// Tries one address after the other, each for its share of the time: the first may swallow packets, and the next one
/// answer. The error is of the last.
async fn connect(addresses: &[SocketAddr], patience: Duration) -> io::Result<TcpStream> {
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let share = patience / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let share = share.max(LEAST_SHARE);
    for address in addresses {
        error = match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if addresses.len() == 1 => return Err(error), // it needs no name
            Ok(Err(error)) => io::Error::new(error.kind(), format!("{address}: {error}")),
            Err(_) => {
                io::Error::new(io::ErrorKind::TimedOut, format!("{address}: no answer within {share:?}"))
            }
        };
    }
    Err(error)
}

/// Whether rustls is behind it. In TLS 1.3 a broker refuses a client certificate after the handshake, so that
/// comes as a failed read.
pub(super) fn caused_by_tls(error: &io::Error) -> bool {
    let mut next = error.get_ref().map(|inner| inner as &(dyn Error + 'static));
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return true;
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// MQTT in the binary messages of a websocket, whose borders mean nothing (MQTT 5, section 6.0).
struct WebSocket {
    socket: WebSocketStream<Box<dyn ByteStream>>,
    /// Of the last message, what was not read yet.
    rest: Bytes,
}

impl AsyncRead for WebSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(payload))) => self.rest = payload,
                // Nothing read is the end.
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::other("a text message on the websocket")));
                }
                // It answers pings by itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let length = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..length]);
        self.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io_error)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(io_error)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(io_error)
    }
}

fn io_error(error: WebSocketError) -> io::Error {
    match error {
        WebSocketError::Io(error) => error,
        WebSocketError::ConnectionClosed | WebSocketError::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use futures::SinkExt;
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpSocket},
        time::Instant,
    };
    use tokio_tungstenite::{
        accept_hdr_async,
        tungstenite::handshake::server::{Request, Response},
    };

    use super::*;

    /// A listener whose backlog is full: it answers no SYN. With what fills it.
    async fn blackhole() -> (TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            queued.push(stream.unwrap());
        }
        (listener, queued)
    }

    #[tokio::test]
    async fn an_address_that_swallows_packets_does_not_hide_the_next() {
        let (silent, _queued) = blackhole().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [silent.local_addr().unwrap(), listener.local_addr().unwrap()];
        let begin = Instant::now();
        let stream = connect(&addresses, Duration::from_secs(5)).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addresses[1]);
        assert!(begin.elapsed() < Duration::from_secs(4), "half of the time: {:?}", begin.elapsed());
    }

    /// What ends the websocket ends all sessions on it.
    #[tokio::test]
    async fn a_packet_as_large_as_announced_comes_by_websocket_too() {
        const LARGE: usize = 17 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        let broker = async move {
            let (stream, _) = listener.accept().await.unwrap();
            #[allow(clippy::result_large_err, reason = "the library's own type")]
            let choose = |_: &Request, mut response: Response| {
                response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"));
                Ok(response)
            };
            let mut socket = accept_hdr_async(stream, choose).await.unwrap();
            socket.send(Message::Binary(vec![0; LARGE].into())).await.unwrap();
        };
        let client = async {
            let options = ConnectOptions { max_packet_size: 18 << 20, ..ConnectOptions::new(url, "c") };
            let mut stream = Address::of(&options).unwrap().open(&options).await.unwrap();
            stream.read_exact(&mut vec![0; LARGE]).await.unwrap();
        };
        timeout(Duration::from_secs(30), async { tokio::join!(broker, client) }).await.unwrap();
    }

    #[tokio::test]
    async fn the_error_is_of_the_last_address() {
        let (silent, _queued) = blackhole().await;
        let silent = silent.local_addr().unwrap();
        let reserved = TcpSocket::new_v4().unwrap();
        reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = reserved.local_addr().unwrap();
        let patience = Duration::from_millis(100); // each gets the least
        let refused = connect(&[silent, closed], patience).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(refused.to_string().starts_with(&format!("{closed}: ")), "{refused}");
        let late = connect(&[closed, silent], patience).await.unwrap_err();
        assert_eq!(late.to_string(), format!("{silent}: no answer within 2s"));
        assert_eq!(connect(&[], patience).await.unwrap_err().to_string(), "the name has no address");
    }
}
