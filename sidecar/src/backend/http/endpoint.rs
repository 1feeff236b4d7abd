//! Where a server listens, the connections to it, and whether it still does.

use std::{error::Error, io, path::Path, time::Duration};

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use mcp_mqtt_transport::redact;
use rustix::io::Errno;
use tokio::{
    net::TcpStream,
    sync::Notify,
    time::{Instant, timeout},
};
use url::Url;

use super::wire::{Failure, RequestBody};
use crate::{
    backend::{BackendConfigError, Lost},
    https::{self, Client, causes, innermost},
};

/// How often to look whether the server still listens. A connection within the pod costs some 50 µs.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long that may take: a server that does not accept in time is slow, not gone.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Who cannot be reached for so long, though nothing refuses the connection, is gone: a name that is not found and a
/// network without a way may come back.
const UNREACHABLE: Duration = Duration::from_secs(6);

/// The server's endpoint and the connections to it, shared by all sessions.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) uri: Uri,
    url: Url,
    /// As it is told to clients and in the log.
    shown: String,
    /// Host and port to connect to.
    address: (String, u16),
    /// Where it is said: by an argument, and in an `McpService`: `transport.streamableHttp`.
    flag: &'static str,
    field: &'static str,
    client: Client<RequestBody>,
    /// Told when a connection was refused or broke: it is time to look whether the server is there.
    trouble: Notify,
}

impl Endpoint {
    /// The endpoint at this URL, which the argument `flag` and the field `field` have; `ca`: a PEM file of the
    /// certificates to trust, in place of the public roots.
    ///
    /// # Errors
    /// The URL is not `http` or `https` with a host, or the certificates cannot be used.
    pub(super) fn new(
        url: &Url,
        ca: Option<&Path>,
        flag: &'static str,
        field: &'static str,
    ) -> Result<Self, BackendConfigError> {
        let bad = |why| BackendConfigError::BadUrl { flag, why };
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad("the scheme has to be http or https"));
        }
        if has_credentials(url) {
            return Err(bad("credentials in the URL are not supported"));
        }
        let host = match url.host().ok_or_else(|| bad("it has no host"))? {
            url::Host::Ipv6(address) => address.to_string(),
            other => other.to_string(),
        };
        let address = (host, url.port_or_known_default().ok_or_else(|| bad("it has no port"))?);
        let uri = uri(url).ok_or_else(|| bad("it is no usable URL"))?;
        let client = https::client(ca).map_err(BackendConfigError::BadCertificates)?;
        Ok(Self {
            uri,
            url: url.clone(),
            shown: redact::url(url.as_str()),
            address,
            flag,
            field,
            client,
            trouble: Notify::new(),
        })
    }

    /// Another place of the same server, as a reference relative to this one.
    ///
    /// # Errors
    /// It is no URL of this server; why, for a person.
    pub(super) fn join(&self, reference: &[u8]) -> Result<Uri, String> {
        let text = std::str::from_utf8(reference).map_err(|_| "it is not UTF-8".to_owned())?;
        if text.trim().is_empty() {
            return Err("it is empty".to_owned());
        }
        let url = self.url.join(text).map_err(|error| format!("it is no URL: {error}"))?;
        if url.origin() != self.url.origin() || has_credentials(&url) {
            let (theirs, ours) = (url.origin(), self.url.origin());
            return Err(format!(
                "it is of {}, and this server is {}",
                theirs.ascii_serialization(),
                ours.ascii_serialization()
            ));
        }
        uri(&url).ok_or_else(|| "it is no usable URL".to_owned())
    }

    pub(super) async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, Failure> {
        self.client.request(request).await.map_err(|error| {
            self.look();
            if is_refused(&error) {
                Failure::Refused(self.refused())
            } else {
                Failure::Broken(format!("no reply from {}: {}", self.shown, innermost(&error)))
            }
        })
    }

    /// Something went wrong: it is time to look whether the server is there.
    pub(super) fn look(&self) {
        self.trouble.notify_one();
    }

    /// What to look at where a path may be wrong.
    pub(super) fn hint(&self) -> String {
        format!("Is {}.path (or that of {}) the path of its MCP endpoint?", self.field, self.flag)
    }

    /// Resolves when nobody listens any more. Looks now and then, and at once when a request had trouble.
    pub(super) async fn lost(&self) -> Lost {
        let mut unreachable = None;
        loop {
            match self.connect().await {
                Look::Refused => return Lost::Gone(self.refused()),
                Look::Unreachable(error) => {
                    let since = *unreachable.get_or_insert_with(Instant::now);
                    if since.elapsed() >= UNREACHABLE {
                        return Lost::Silent(format!("{} cannot be reached: {error}", self.shown));
                    }
                }
                Look::Listens | Look::Unknown => unreachable = None,
            }
            let _ = timeout(LOOK_EVERY, self.trouble.notified()).await; // or it is time to look
        }
    }

    /// Why nobody can connect, if nobody listens.
    pub(super) async fn gone(&self) -> Option<String> {
        matches!(self.connect().await, Look::Refused).then(|| self.refused())
    }

    async fn connect(&self) -> Look {
        let (host, port) = &self.address;
        match timeout(LOOK_TIMEOUT, TcpStream::connect((host.as_str(), *port))).await {
            Ok(Ok(_)) => Look::Listens,
            Ok(Err(error)) => Look::of(error),
            Err(_) => Look::Unknown,
        }
    }

    fn refused(&self) -> String {
        format!(
            "nobody listens at {}: the server has not started, or restarts, or listens on another port. See its log \
             (`kubectl logs -c server`) and the port of {} (or {}).",
            self.shown, self.field, self.flag
        )
    }
}

/// What a connection has come to.
#[derive(Debug)]
enum Look {
    Listens,
    /// Nobody listens: every session there is over.
    Refused,
    /// It may be the way there.
    Unreachable(io::Error),
    /// It is for want of something of our own, or takes long: that says nothing of the server.
    Unknown,
}

impl Look {
    fn of(error: io::Error) -> Self {
        let own =
            [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL, Errno::AGAIN];
        match Errno::from_io_error(&error) {
            Some(errno) if own.contains(&errno) => Self::Unknown,
            _ if error.kind() == io::ErrorKind::ConnectionRefused => Self::Refused,
            _ => Self::Unreachable(error),
        }
    }
}

fn has_credentials(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

fn uri(url: &Url) -> Option<Uri> {
    let mut without_fragment = url.clone();
    without_fragment.set_fragment(None);
    without_fragment.as_str().parse().ok()
}

fn is_refused(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(url: &str) -> Result<Endpoint, BackendConfigError> {
        Endpoint::new(&Url::parse(url).unwrap(), None, "--sse-url", "transport.sse")
    }

    #[test]
    fn only_a_refusal_says_at_once_that_nobody_listens() {
        let look = |errno: Errno| Look::of(errno.into());
        assert!(matches!(look(Errno::CONNREFUSED), Look::Refused));
        for own in [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL] {
            assert!(matches!(look(own), Look::Unknown), "{own:?}");
        }
        assert!(matches!(look(Errno::HOSTUNREACH), Look::Unreachable(_)));
        assert!(matches!(Look::of(io::Error::other("failed to lookup address")), Look::Unreachable(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_not_found_for_a_moment_ends_no_session_and_one_that_stays_away_does() {
        let endpoint = take("http://no-such-server.invalid/mcp").unwrap();
        assert_eq!(endpoint.gone().await, None);
        let begin = Instant::now();
        let lost = endpoint.lost().await;
        assert!(matches!(&lost, Lost::Silent(why) if why.contains("cannot be reached")), "{lost:?}");
        assert!(begin.elapsed() >= UNREACHABLE);
    }

    #[test]
    fn only_a_url_of_http_without_credentials_is_taken() {
        assert_eq!(
            take("http://127.0.0.1:3001/mcp?a=b#c").unwrap().uri.to_string(),
            "http://127.0.0.1:3001/mcp?a=b"
        );
        assert_eq!(take("http://[::1]/mcp").unwrap().address, ("::1".to_owned(), 80));
        assert_eq!(take("https://example.com/mcp").unwrap().address, ("example.com".to_owned(), 443));
        for bad in ["ftp://127.0.0.1/mcp", "file:///mcp", "http://me:secret@127.0.0.1/"] {
            let error = take(bad).unwrap_err().to_string();
            assert!(error.starts_with("--sse-url: ") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_reference_leads_to_the_same_server_only() {
        let endpoint = take("http://127.0.0.1:3001/app/sse?x=y").unwrap();
        let join = |reference: &str| endpoint.join(reference.as_bytes()).map(|uri| uri.to_string());
        for (reference, whole) in [
            ("/message?sessionId=1", "http://127.0.0.1:3001/message?sessionId=1"),
            ("message", "http://127.0.0.1:3001/app/message"),
            ("?sessionId=1", "http://127.0.0.1:3001/app/sse?sessionId=1"),
            ("http://127.0.0.1:3001/m#part", "http://127.0.0.1:3001/m"),
            ("//127.0.0.1:3001/m", "http://127.0.0.1:3001/m"),
        ] {
            assert_eq!(join(reference).as_deref(), Ok(whole), "{reference}");
        }
        for reference in [
            "http://127.0.0.1:3002/m",
            "http://127.0.0.1/m",
            "https://127.0.0.1:3001/m",
            "http://localhost:3001/m",
            "//evil.example/m",
            "http://me@127.0.0.1:3001/m",
            "data:text/plain,m",
            "",
            " ",
            "http://[",
        ] {
            assert!(join(reference).is_err(), "{reference}: {:?}", join(reference));
        }
        assert!(endpoint.join(b"/\xff").is_err());
        let told = join("http://localhost:3001/m").unwrap_err();
        assert!(told.contains("http://localhost:3001") && told.contains("http://127.0.0.1:3001"), "{told}");
    }
}
