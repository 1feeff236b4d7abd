//! The one HTTP client: hyper, with rustls where the URL wants it.

use std::{error::Error, path::Path, time::Duration};

use hyper::body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::connect::HttpConnector,
    rt::{TokioExecutor, TokioTimer},
};
use mcp_mqtt_transport::mqtt::{TlsFiles, tls};

/// How long a TCP connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which TCP asks whether the other side is there, how often it asks again, and how many times.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// How long an idle connection is kept: less than the 5 s of Node and uvicorn, so that we never write into a
/// connection that they are closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Idle connections kept: a burst of sessions should not leave hundreds.
const MAX_IDLE: usize = 32;

/// Speaks `http://` and `https://`.
pub(crate) type Client<B> = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, B>;

/// A client that trusts the certificates of this PEM file, or the public roots.
///
/// # Errors
/// A sentence that names the file and what is wrong with it.
pub(crate) fn client<B>(ca: Option<&Path>) -> Result<Client<B>, String>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // A stream may be silent for hours, and what carried it be gone.
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    let files = TlsFiles { ca: ca.map(Path::to_owned), ..TlsFiles::default() };
    let tls = tls::client_config(&files)?;
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls.as_ref().clone())
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Ok(hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE)
        .build(connector))
}

/// The last cause in a chain of errors: the one that says what happened.
pub(crate) fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

/// An error and its causes.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let next = |error: &&'a (dyn Error + 'static)| -> Option<&'a (dyn Error + 'static)> { (*error).source() };
    std::iter::successors(Some(error), next)
}
