//! What gateway and shim say to each other: JSON lines on a Unix stream, one connection per session.
//!
//! ```text
//! gateway → shim   {"open":"session"}                          the first and only line of the gateway
//! shim → gateway   {"spawned":{"pid":17}}                      with two file descriptors: stdin to write, stdout to read
//!                  {"failed":{"message":"command not found…"}} in place of it; then the shim closes
//!                  {"exited":{"code":3}} or {"exited":{"signal":9}}
//!
//! gateway → shim   {"open":"monitor"}
//! shim → gateway   {"ready":{"pid":1}}                         then silence, until either side goes
//! ```
//! Either side closing the connection is the end of the session and of its processes.

use std::{
    fmt, io,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::UnixStream,
};

/// Longest line either side takes, in bytes; the longest said is a `failed` with its message.
pub const MAX_LINE: usize = 8 * 1024;

/// File descriptors that come with `spawned`: stdin and stdout of the process.
const FDS: usize = 2;

/// The gateway's first line: what the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hello {
    /// What to open.
    Open(Purpose),
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// One process, for as long as the connection stands.
    Session,
    /// Nothing but to see when the shim is gone.
    Monitor,
}

/// A line of the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Report {
    /// The session's process runs; its pipes come with this line.
    Spawned {
        /// Process id, in the server container's view.
        pid: i32,
    },
    /// There is no process; the message is for a person.
    Failed {
        /// Cause and next step.
        message: String,
    },
    /// The process ended.
    Exited(Exit),
    /// Answer to a monitor.
    Ready {
        /// The shim's own process id.
        pid: i32,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SIGABRT: i32 = 6;
        const SIGKILL: i32 = 9;
        const SIGSEGV: i32 = 11;
        const SIGTERM: i32 = 15;
        match *self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(SIGKILL) => f.write_str("signal 9 (killed; out of memory?)"),
            Self::Signal(SIGABRT) => f.write_str("signal 6 (aborted)"),
            Self::Signal(SIGSEGV) => f.write_str("signal 11 (segmentation fault)"),
            Self::Signal(SIGTERM) => f.write_str("signal 15 (terminated)"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// One side of a control connection.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Control {
    /// Speaks over this stream.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new(), fds: Vec::new() }
    }

    /// Sends one line.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn send(&mut self, line: &impl Serialize) -> io::Result<()> {
        self.stream.write_all(&encode(line)?).await
    }

    /// Sends one line with file descriptors. The line is far smaller than a socket buffer that nothing else has
    /// been written to, so it goes out whole or not at all.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn send_with(&mut self, line: &impl Serialize, fds: [&OwnedFd; FDS]) -> io::Result<()> {
        let line = encode(line)?;
        let fds = fds.map(AsFd::as_fd);
        let sent = self
            .stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                ancillary.push(SendAncillaryMessage::ScmRights(&fds));
                let sent = rustix::net::sendmsg(
                    &self.stream,
                    &[IoSlice::new(&line)],
                    &mut ancillary,
                    SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
                )?;
                Ok(sent)
            })
            .await?;
        if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The next line; `None` when the other side closed. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke, or the line is too long or not one of ours.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(line) = decode(&mut self.buffer)? {
                return Ok(Some(line));
            }
            let mut chunk = [0; 1024];
            let (read, fds) =
                self.stream.async_io(Interest::READABLE, || receive_chunk(&self.stream, &mut chunk)).await?;
            self.fds.extend(fds);
            if read == 0 {
                return Ok(None);
            }
            self.buffer.extend_from_slice(&chunk[..read]);
        }
    }

    /// The file descriptors that came so far, when they are as many as `spawned` brings.
    pub fn take_pipes(&mut self) -> Option<[OwnedFd; FDS]> {
        std::mem::take(&mut self.fds).try_into().ok()
    }
}

/// The first line of what was received and not taken yet, when it is whole.
///
/// # Errors
/// It is too long, or not one of ours.
pub fn decode<T: DeserializeOwned>(received: &mut Vec<u8>) -> io::Result<Option<T>> {
    if let Some(end) = memchr::memchr(b'\n', received) {
        let line = serde_json::from_slice(&received[..end]).map_err(io::Error::from);
        received.drain(..=end);
        return line.map(Some);
    }
    if received.len() >= MAX_LINE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a control line is too long"));
    }
    Ok(None)
}

/// A line with its end.
///
/// # Errors
/// It cannot be JSON.
pub fn encode(line: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    Ok(line)
}

fn receive_chunk(stream: &UnixStream, chunk: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(chunk)],
        &mut ancillary,
        RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
    )?;
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((received.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn the_lines_are_as_documented() {
        let json = |line: &Report| serde_json::to_string(line).unwrap();
        assert_eq!(serde_json::to_string(&Hello::Open(Purpose::Session)).unwrap(), r#"{"open":"session"}"#);
        assert_eq!(json(&Report::Spawned { pid: 17 }), r#"{"spawned":{"pid":17}}"#);
        assert_eq!(json(&Report::Failed { message: "no".into() }), r#"{"failed":{"message":"no"}}"#);
        assert_eq!(json(&Report::Exited(Exit::Code(3))), r#"{"exited":{"code":3}}"#);
        assert_eq!(json(&Report::Exited(Exit::Signal(9))), r#"{"exited":{"signal":9}}"#);
    }

    #[tokio::test]
    async fn pipes_travel_with_their_line() {
        let (shim, gateway) = UnixStream::pair().unwrap();
        let (mut shim, mut gateway) = (Control::new(shim), Control::new(gateway));
        let (stdin_read, stdin_write) = io::pipe().unwrap();
        let (stdout_read, stdout_write) = io::pipe().unwrap();
        shim.send_with(&Report::Spawned { pid: 5 }, [&stdin_write.into(), &stdout_read.into()])
            .await
            .unwrap();
        shim.send(&Report::Exited(Exit::Code(0))).await.unwrap();
        drop(shim);

        assert_eq!(gateway.receive().await.unwrap(), Some(Report::Spawned { pid: 5 }));
        let [to_process, from_process] = gateway.take_pipes().unwrap();
        std::fs::File::from(to_process).write_all(b"in").unwrap();
        let mut stdout_write = stdout_write;
        stdout_write.write_all(b"out").unwrap();
        drop(stdout_write);
        let (mut stdin, mut stdout) = (String::new(), String::new());
        { stdin_read }.read_to_string(&mut stdin).unwrap();
        std::fs::File::from(from_process).read_to_string(&mut stdout).unwrap();
        assert_eq!((stdin.as_str(), stdout.as_str()), ("in", "out"));

        assert_eq!(gateway.receive().await.unwrap(), Some(Report::Exited(Exit::Code(0))));
        assert_eq!(gateway.receive::<Report>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused() {
        let (mut talker, listener) = UnixStream::pair().unwrap();
        tokio::spawn(async move { talker.write_all(&vec![b'x'; 1 << 20]).await });
        let refused = Control::new(listener).receive::<Report>().await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
