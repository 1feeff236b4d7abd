//! The client to the API server: kube's own stack of layers, but for what its builder does not let be set.
//!
//! What the API server refuses for a while (429, 503, 504) is sent again a few times, after the time that it names or
//! within seconds. Kube's policy goes on for minutes, with ever longer waits; here whoever asked tries again, and says
//! so: nothing is logged of a single request. And a connection that nothing uses is closed: a burst of a thousand
//! objects opens dozens, each with its buffers. One that has died unheard, as with the API server of
//! several that it led to, is found out: by the kernel, and by an answer that does not begin.

use std::time::Duration;

use http::HeaderValue;
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config, Error,
    client::{Body, ConfigExt, retry::RetryPolicy},
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer, timeout::TimeoutLayer};

/// First and longest wait before a request that was refused for a while is sent again, where the API server names none.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How often it is sent again.
const RETRIES: u32 = 3;
/// How long a connection is kept that nothing uses.
const IDLE: Duration = Duration::from_secs(10);

/// Until an answer begins; a watch's begins at once. The API server itself gives a request up after a minute, and what
/// it does for us takes milliseconds.
const ANSWER: Duration = Duration::from_secs(30);
/// After so long without a word the kernel asks whether the other end is there, so often and at most so many times.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// What was sent and not acknowledged for so long never will be: KEEPALIVE does not count while something is under way.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A client that calls itself by this name, to the cluster that the environment names.
///
/// # Errors
/// There is no cluster, or its certificates or credentials cannot be read.
pub async fn connect(user_agent: &'static str) -> Result<Client, BoxError> {
    let mut config = Config::infer().await?;
    // The audit log tells by this who wrote what.
    config.headers.push((http::header::USER_AGENT, HeaderValue::from_static(user_agent)));
    Ok(build(config)?)
}

fn build(config: Config) -> Result<Client, Error> {
    if config.proxy_url.is_some() {
        return Client::try_from(config); // which says what it cannot do
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let connections: legacy::Client<_, Body> = legacy::Builder::new(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(connector);
    let retries =
        RetryPolicy::new(FIRST_WAIT, LONGEST_WAIT, RETRIES, true).expect("the shorter wait is first");
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(retries))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .layer(TimeoutLayer::new(ANSWER))
        .service(connections);
    Ok(Client::new(service, config.default_namespace))
}

/// Whether it makes no difference to ask again: the API server knows us and our request, and will have neither.
pub fn is_refused(error: &Error) -> bool {
    matches!(error, Error::Api(answer) if matches!(answer.code, 401 | 403 | 422))
}

#[cfg(test)]
pub(crate) mod tests {
    use kube::core::Status;

    use super::*;

    /// To an API server at this address.
    pub(crate) fn client_of(address: std::net::SocketAddr) -> Client {
        build(Config::new(format!("http://{address}").parse().expect("a URL"))).expect("a client")
    }

    #[test]
    fn what_may_pass_is_no_refusal() {
        let answer = |code| Error::Api(Box::new(Status { code, ..Status::default() }));
        let refused = [401, 403, 404, 409, 422, 429, 500, 503, 504].map(|code| is_refused(&answer(code)));
        assert_eq!(refused, [true, true, false, false, true, false, false, false, false]);
        assert!(!is_refused(&Error::Service("connection refused".into())));
    }

    /// As one does that was cut off its network: the connection stands, and nothing comes.
    #[tokio::test]
    async fn an_api_server_that_stays_mute_is_not_waited_for_without_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = client_of(listener.local_addr().unwrap());
        let mute = tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.push(connection);
            }
        });
        let asked = tokio::spawn(async move { client.apiserver_version().await });
        // The connection is there, by the real clock; then only time passes.
        tokio::time::sleep(Duration::from_millis(200)).await;
        tokio::time::pause();
        tokio::time::advance(ANSWER).await;
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await.expect("it waits on").unwrap();
        assert!(matches!(answer, Err(Error::Service(_))), "{answer:?}");
        mute.abort();
    }
}
