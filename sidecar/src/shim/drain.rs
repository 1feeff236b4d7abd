//! The client of the gateway's drain socket: `drain\n` there; back come progress lines for a person, then
//! `drained\n` or the end of the connection.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

/// The last line of a drain.
pub const DRAINED: &str = "drained";
/// The one line that a client says.
pub const DRAIN: &str = "drain";

/// Longest stretch of progress that is read, in bytes: a gateway says far less.
const MAX_PROGRESS: u64 = 1024 * 1024;

/// How a drain ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The gateway said that it is done.
    Drained,
    /// There is no gateway (any more): nothing is left to drain.
    Gone(String),
    /// It did not end in time.
    TimedOut,
}

/// Asks the gateway to drain and waits until it has, at most `patience`. `progress` gets each line.
pub async fn drain(socket: &Path, patience: Duration, progress: impl FnMut(&str)) -> Outcome {
    match timeout(patience, converse(socket, progress)).await {
        Ok(Ok(true)) => Outcome::Drained,
        Ok(Ok(false)) => Outcome::Gone("it closed the connection".into()),
        Ok(Err(error)) => Outcome::Gone(format!("{}: {error}", socket.display())),
        Err(_) => Outcome::TimedOut,
    }
}

async fn converse(socket: &Path, mut progress: impl FnMut(&str)) -> io::Result<bool> {
    let (answers, mut commands) = UnixStream::connect(socket).await?.into_split();
    commands.write_all(format!("{DRAIN}\n").as_bytes()).await?;
    let mut lines = BufReader::new(answers.take(MAX_PROGRESS)).lines();
    while let Some(line) = lines.next_line().await? {
        if line == DRAINED {
            return Ok(true);
        }
        progress(&line);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// A gateway that answers one drain with these bytes and then closes, or (`None`) never does.
    fn gateway(answer: Option<&'static str>) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut command = String::new();
            stream.read_line(&mut command).await.unwrap();
            assert_eq!(command, "drain\n");
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                None => std::future::pending().await,
            }
        });
        (directory, path)
    }

    #[tokio::test]
    async fn progress_is_told_until_the_gateway_is_drained() {
        let (_directory, socket) = gateway(Some("2 requests in flight\n1 session left\ndrained\n"));
        let mut lines = Vec::new();
        let outcome = drain(&socket, Duration::from_secs(5), |line| lines.push(line.to_owned())).await;
        assert_eq!(outcome, Outcome::Drained);
        assert_eq!(lines, ["2 requests in flight", "1 session left"]);
    }

    #[tokio::test]
    async fn a_gateway_that_is_gone_or_goes_has_nothing_left_to_drain() {
        let (directory, socket) = gateway(Some("1 session left\n"));
        assert!(matches!(drain(&socket, Duration::from_secs(5), |_| ()).await, Outcome::Gone(_)));
        let missing = directory.path().join("missing.sock");
        assert!(matches!(drain(&missing, Duration::from_secs(5), |_| ()).await, Outcome::Gone(_)));
    }

    #[tokio::test]
    async fn a_gateway_that_does_not_end_is_not_waited_for_for_ever() {
        let (_directory, socket) = gateway(None);
        assert_eq!(drain(&socket, Duration::from_millis(50), |_| ()).await, Outcome::TimedOut);
    }
}
