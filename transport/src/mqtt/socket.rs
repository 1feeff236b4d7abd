//! From a URL to a stream of bytes: TCP, with TLS and a websocket on top where the URL says so.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error as WebSocketError, Message,
        client::IntoClientRequest,
        http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL},
    },
};

use super::{ConnectError, ConnectOptions, tls};
use crate::redact;

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
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| self.unreachable(&error))?;
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
        let (socket, _) = client_async(request, stream).await.map_err(|error| match &error {
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
