//! Packets on one side, a stream of bytes on the other, and the buffers between them.
//!
//! Nothing goes out before it is [`hurry`](Wire::hurry)d, or before something else is: so acknowledgements can travel
//! with the next message of ours, which saves the broker a wake-up and both sides a system call.

use std::{
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use rumqttc::v5::mqttbytes::{
    Error as CodecError,
    v5::{Disconnect, DisconnectReasonCode, Packet},
};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::{
    incoming::{self, Incoming},
    socket::ByteStream,
};

/// Room that is made for reading: some twenty calls.
const READ_BYTES: usize = 8 << 10;

/// With less room than this, more is made.
const SPARE_BYTES: usize = 1 << 10;

/// A buffer that grew beyond this for one large packet is given back when it is empty.
const KEEP_BYTES: usize = 64 << 10;

/// DISCONNECT without reason code and properties.
const NORMAL_DISCONNECT: [u8; 2] = [0xE0, 0];

/// See the module.
pub(super) struct Wire {
    stream: Box<dyn ByteStream>,
    input: BytesMut,
    output: BytesMut,
    /// What is in `output` has to go now.
    urgent: bool,
    /// What was written may still stand in a layer below (TLS, websocket).
    unflushed: bool,
    /// Whether the stream took bytes since somebody asked.
    progress: bool,
    max_incoming: u32,
}

/// What [`Wire::poll`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// Bytes came in.
    In,
    /// All that was urgent is out.
    Out,
}

/// Why nothing moves any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The other side closed.
    #[error("it closed the connection")]
    Closed,
    /// It could not be read.
    #[error("{0}")]
    Read(io::Error),
    /// It could not be written; there may still be something to read, the reason among it.
    #[error("{0}")]
    Write(io::Error),
    /// What came is no packet, or a larger one than we take.
    #[error("{0}")]
    Codec(CodecError),
}

impl Wire {
    pub(super) fn new(stream: Box<dyn ByteStream>, max_incoming: u32) -> Self {
        Self {
            stream,
            input: BytesMut::with_capacity(READ_BYTES),
            output: BytesMut::new(),
            urgent: false,
            unflushed: false,
            progress: false,
            max_incoming,
        }
    }

    /// Where packets are written to.
    pub(super) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// What stands in the output goes out with the next poll.
    pub(super) fn hurry(&mut self) {
        self.urgent = true;
    }

    /// Whether something urgent is not out yet.
    pub(super) fn is_sending(&self) -> bool {
        self.unflushed || self.urgent && !self.output.is_empty()
    }

    /// Whether the stream took any bytes since the last time that this was asked.
    pub(super) fn take_progress(&mut self) -> bool {
        mem::take(&mut self.progress)
    }

    /// The next packet of what came in.
    pub(super) fn packet(&mut self) -> Result<Option<Incoming>, WireError> {
        if self.input.is_empty() {
            return Ok(None);
        }
        if self.input.starts_with(&NORMAL_DISCONNECT) {
            // The codec refuses the short form, which MQTT 5 (section 3.14.2.1) allows.
            self.input.advance(NORMAL_DISCONNECT.len());
            let disconnect = Disconnect::new(DisconnectReasonCode::NormalDisconnection);
            return Ok(Some(Incoming::Packet(Packet::Disconnect(disconnect))));
        }
        match incoming::take(&mut self.input, self.max_incoming) {
            Ok(incoming) => Ok(Some(incoming)),
            Err(CodecError::InsufficientBytes(missing)) => {
                self.input.reserve(missing);
                Ok(None)
            }
            Err(error) => Err(WireError::Codec(error)),
        }
    }

    /// Writes what is urgent, and reads if it is asked to; ready as soon as one of them is done.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, read: bool) -> Poll<Result<Moved, WireError>> {
        if self.is_sending()
            && let Poll::Ready(written) = self.poll_out(cx)
        {
            return Poll::Ready(written.map(|()| Moved::Out).map_err(WireError::Write));
        }
        if read { self.poll_in(cx).map_ok(|()| Moved::In) } else { Poll::Pending }
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
            (self.unflushed, self.progress) = (true, true);
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        (self.urgent, self.unflushed) = (false, false);
        if self.output.capacity() > KEEP_BYTES {
            self.output = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what there is, at least a byte.
    pub(super) fn poll_in(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        if self.input.capacity() - self.input.len() < SPARE_BYTES {
            self.input.reserve(READ_BYTES);
        }
        match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input)) {
            Ok(0) => Poll::Ready(Err(WireError::Closed)),
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(WireError::Read(error))),
        }
    }
}
