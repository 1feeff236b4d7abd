//! Server: the API over TLS, for the API server alone.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use k8s_openapi::jiff::Timestamp;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    GROUP, Metric, VERSION, answers,
    certificate::{Certificate, CertificateError, RENEWED_AFTER, Trust},
    counts::{CountError, Counts},
    endpoint::{self, Place},
    requester::{Authorizer, Proxying, ProxyingError},
};
use crate::serving::{self, ConnectionError};

/// Connections at one time: the API server keeps a few open.
const CONNECTIONS: usize = 64;
/// A handshake takes milliseconds.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection that stays silent for so long after its last request is closed.
const HEADERS: Duration = Duration::from_mins(2);
/// How often it is looked whether the API server proxies as before: its authority may be rotated.
const REFRESH: Duration = Duration::from_mins(10);

/// Name of the port, in the Service and in its `EndpointSlice`.
const PORT_NAME: &str = "https";

/// It cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port.
    #[error("cannot listen on {address} (--session-metrics-port): {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// How the API server proxies.
    #[error(transparent)]
    Proxying(#[from] ProxyingError),
    /// TLS.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The API server's authority.
    #[error("the API server's authority cannot be used: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// What the API server has to know of us.
    #[error(
        "the API server cannot be told of {what}: {source}; install the chart with autoscaling.sessionMetrics.enabled"
    )]
    Publish {
        /// What.
        what: &'static str,
        /// What it said.
        #[source]
        source: kube::Error,
    },
}

/// Serves the API for as long as it is polled, each time with a certificate that is good for `lifetime`; what fails is
/// told and tried again.
pub async fn serve(client: kube::Client, counts: Counts, place: Place, lifetime: Duration) {
    let serve = async || serve_until_renewal(&client, &counts, &place, lifetime).await;
    serving::keep_serving("session metrics are not served", serve).await;
}

async fn serve_until_renewal(
    client: &kube::Client,
    counts: &Counts,
    place: &Place,
    lifetime: Duration,
) -> Result<(), ServeError> {
    let Place { namespace, service, address } = place;
    let any = place.listen();
    let listener =
        TcpListener::bind(any).await.map_err(|source| ServeError::Listen { address: any, source })?;
    let made = Certificate::new(&format!("{service}.{namespace}.svc"), lifetime)?;
    let proxying = Proxying::fetch(client).await?;
    let api = Arc::new(Api { authorizer: Authorizer::new(client.clone()), proxying, counts: counts.clone() });
    let tls = TlsAcceptor::from(Arc::new(tls_config(&made, &api.proxying)?));
    let published = |what| move |source| ServeError::Publish { what, source };
    let mut trust = Trust::new(client, place, &made.authority);
    trust.publish().await.map_err(published("the authority (APIService)"))?;
    endpoint::publish(client, place, PORT_NAME).await.map_err(published("the address (EndpointSlice)"))?;
    tracing::info!(%address, "serving {GROUP}/{VERSION}");
    tokio::select! {
        () = accept(listener, tls, api.clone()) => {}
        () = changed(client, &api.proxying) => tracing::info!("the API server proxies otherwise now"),
        () = trust.keep() => {}
        () = endpoint::keep_published(client, place, PORT_NAME) => {}
        () = sleep(lifetime / RENEWED_AFTER) => tracing::info!("making a new certificate"),
    }
    Ok(())
}

/// Resolves when the API server proxies otherwise.
async fn changed(client: &kube::Client, known: &Proxying) {
    loop {
        sleep(REFRESH).await;
        if Proxying::fetch(client).await.is_ok_and(|now| now != *known) {
            return;
        }
    }
}

fn tls_config(made: &Certificate, proxying: &Proxying) -> Result<ServerConfig, ServeError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(proxying.authorities.iter().cloned());
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![made.certificate.clone()], made.key.clone_key())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What answers.
pub struct Api {
    authorizer: Authorizer,
    proxying: Proxying,
    counts: Counts,
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, api: Arc<Api>) {
    let router = router(api.clone());
    let serve = |stream| connection(stream, tls.clone(), api.clone(), router.clone());
    serving::accept("session metrics", listener, CONNECTIONS, serve).await;
}

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    api: Arc<Api>,
    router: Router,
) -> Result<(), ConnectionError> {
    let stream = timeout(HANDSHAKE, tls.accept(stream)).await??;
    if !api.proxying.trusts(&common_names(&stream)) {
        return Err("the certificate's name is not one that may speak for others".into());
    }
    hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await?;
    Ok(())
}

/// The names in the certificate that the other side has shown.
fn common_names(stream: &TlsStream<TcpStream>) -> Vec<String> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let Some(Ok((_, certificate))) = certificate.map(|der| X509Certificate::from_der(der)) else {
        return Vec::new();
    };
    let names = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    names.map(str::to_owned).collect()
}

fn router(api: Arc<Api>) -> Router {
    let discovery = |document: serde_json::Value| get(move || std::future::ready(Json(document.clone())));
    let described = answers::described_resource();
    Router::new()
        .route(&format!("/apis/{GROUP}"), discovery(answers::group()))
        .route(&format!("/apis/{GROUP}/{VERSION}"), discovery(answers::resources()))
        .route(
            &format!("/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/{described}/{{name}}/{{metric}}"),
            get(value),
        )
        .fallback(|request: Request| async move {
            failure(StatusCode::NOT_FOUND, "NotFound", &format!("nothing at {}", request.uri().path()))
        })
        .with_state(api)
}

async fn value(
    State(api): State<Arc<Api>>,
    Path((namespace, name, metric)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some(requester) = api.proxying.requester(&headers) else {
        return failure(StatusCode::UNAUTHORIZED, "Unauthorized", "the API server names no user");
    };
    let Some(metric) = Metric::named(&metric) else {
        return failure(StatusCode::NOT_FOUND, "NotFound", &format!("no metric {metric}"));
    };
    match api.authorizer.allows(requester, &namespace, &name, metric).await {
        Ok(true) => {}
        Ok(false) => {
            let message = format!("{} of McpService {namespace}/{name} may not be read", metric.name());
            return failure(StatusCode::FORBIDDEN, "Forbidden", &message);
        }
        Err(error) => {
            let message = format!("the API server does not say who may read it: {error}");
            return failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", &message);
        }
    }
    let all = name == "*";
    let names = if all { api.counts.services(&namespace) } else { vec![name] };
    let mut values = Vec::with_capacity(names.len());
    for name in names {
        match api.counts.of(&namespace, &name, metric) {
            Ok(value) => values.push((name, value)),
            Err(_) if all => {}
            Err(error @ CountError::NoService { .. }) => {
                return failure(StatusCode::NOT_FOUND, "NotFound", &error.to_string());
            }
            Err(error @ (CountError::TooFewAnswers { .. } | CountError::Unlisted { .. })) => {
                return failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", &error.to_string());
            }
        }
    }
    Json(answers::values(&namespace, metric, &values, Timestamp::now())).into_response()
}

fn failure(status: StatusCode, reason: &str, message: &str) -> Response {
    (status, Json(answers::failure(status.as_u16(), reason, message))).into_response()
}

#[cfg(test)]
mod tests {
    use kube::client::Body;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::session_metrics::{counts::tests::counts, requester::tests::proxying};

    const HOST: &str = "metrics.mcp-mqtt.svc";

    /// Who signs for those that speak for others.
    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            Self { issuer: Issuer::new(params, key), pem }
        }

        fn sign(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        }
    }

    /// The API of a service with seven sessions, at an API server that lets only `ann` read it.
    async fn serving(authority: &Authority) -> (SocketAddr, String) {
        let reviews = tower::service_fn(|request: http::Request<Body>| async move {
            let review = request.into_body().collect_bytes().await?;
            let mut review: serde_json::Value = serde_json::from_slice(&review)?;
            review["status"] = serde_json::json!({"allowed": review["spec"]["user"] == "ann"});
            Ok::<_, tower::BoxError>(http::Response::new(Body::from(review.to_string().into_bytes())))
        });
        let (made, proxying) =
            (Certificate::new(HOST, Duration::from_mins(1)).unwrap(), proxying(&authority.pem));
        let tls = TlsAcceptor::from(Arc::new(tls_config(&made, &proxying).unwrap()));
        let authorizer = Authorizer::new(kube::Client::new(reviews, "default"));
        let api = Arc::new(Api { authorizer, proxying, counts: counts(&[Some((7, 0))]) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, tls, api));
        (address, made.authority)
    }

    /// What this user is answered, through whoever shows this certificate.
    async fn ask(
        (address, authority): &(SocketAddr, String),
        shown: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
        user: Option<&str>,
    ) -> std::io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(ServerName::try_from(HOST).unwrap(), stream).await?;
        let path = format!(
            "/apis/{GROUP}/{VERSION}/namespaces/meteo/{}/weather/mcp_sessions",
            answers::described_resource()
        );
        let user = user.map(|user| format!("X-Remote-User: {user}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{user}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        if answer.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
    }

    #[tokio::test]
    async fn a_number_is_for_whom_the_api_server_lets_read_it() {
        let authority = Authority::new();
        let served = serving(&authority).await;
        let ask = async |user| ask(&served, Some(authority.sign("front-proxy-client")), user).await.unwrap();
        let answer = ask(Some("ann")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""value":"7""#), "{answer}");
        let answer = ask(Some("bob")).await;
        assert!(answer.starts_with("HTTP/1.1 403") && !answer.contains(r#""value""#), "{answer}");
        let answer = ask(None).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }

    #[tokio::test]
    async fn nobody_but_the_api_server_is_heard() {
        let authority = Authority::new();
        let served = serving(&authority).await;
        let somebody = authority.sign("somebody");
        let forged = Authority::new().sign("front-proxy-client");
        for shown in [None, Some(somebody), Some(forged)] {
            let answer = ask(&served, shown, Some("ann")).await;
            assert!(answer.is_err(), "{answer:?}");
        }
    }
}
