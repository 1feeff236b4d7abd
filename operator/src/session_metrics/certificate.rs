//! Certificate: the leader makes its own authority and certificate, keeps the keys in memory, and tells the API server
//! whom to trust (`caBundle` of the `APIService`). Nothing is stored, and nothing expires unseen.

use std::time::Duration;

use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::sleep;

use super::{GROUP, VERSION};
use crate::names::FIELD_MANAGER;

/// A new certificate is made when this part of its lifetime has passed: a third.
pub const RENEWED_AFTER: u32 = 3;
/// How often it is looked whether the API server still knows it: whoever applies the chart's objects anew may take it away.
const LOOK: Duration = Duration::from_mins(1);
/// Clocks differ.
const SKEW: Duration = Duration::from_hours(1);

/// A certificate, its key, and who signed it.
#[derive(Debug)]
pub struct Certificate {
    /// The server's.
    pub certificate: CertificateDer<'static>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// PEM of the authority that signed it, and signs nothing else.
    pub authority: String,
}

/// No certificate could be made.
#[derive(Debug, thiserror::Error)]
#[error("no certificate for {host} can be made: {source}")]
pub struct CertificateError {
    host: String,
    #[source]
    source: rcgen::Error,
}

impl Certificate {
    /// For a server that is reached by this name, good for so long.
    ///
    /// # Errors
    /// The name is none, or the system has no randomness.
    pub fn new(host: &str, lifetime: Duration) -> Result<Self, CertificateError> {
        Self::make(host, lifetime).map_err(|source| CertificateError { host: host.to_owned(), source })
    }

    fn make(host: &str, lifetime: Duration) -> Result<Self, rcgen::Error> {
        let now = OffsetDateTime::now_utc();
        let lived = |mut params: CertificateParams, name: &str| {
            params.distinguished_name.push(DnType::CommonName, name);
            (params.not_before, params.not_after) = (now - SKEW, now + lifetime);
            params
        };
        let mut authority = lived(CertificateParams::default(), "mcp-mqtt-operator session metrics");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority_key = KeyPair::generate()?;
        let authority_pem = authority.self_signed(&authority_key)?.pem();

        let mut server = lived(CertificateParams::new(vec![host.to_owned()])?, host);
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &Issuer::new(authority, authority_key))?;
        Ok(Self {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            authority: authority_pem,
        })
    }
}

/// Tells the API server to trust what this authority signed.
///
/// # Errors
/// The API server's; 404: the chart was installed without the API.
pub async fn publish(client: &Client, authority: &str) -> Result<(), kube::Error> {
    let api: Api<APIService> = Api::all(client.clone());
    let bundle = k8s_openapi::ByteString(authority.as_bytes().to_vec());
    let patch = Patch::Merge(json!({"spec": {"caBundle": bundle}}));
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&format!("{VERSION}.{GROUP}"), &parameters, &patch).await.map(drop)
}

/// Tells it again whenever it is gone from there, for as long as it is polled.
pub async fn keep_published(client: &Client, authority: &str) {
    loop {
        sleep(LOOK).await;
        match is_published(client, authority).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(
                    "somebody took our authority from the APIService {VERSION}.{GROUP}: telling it again"
                );
                if let Err(error) = publish(client, authority).await {
                    tracing::warn!(retry_in = ?LOOK, "the APIService {VERSION}.{GROUP} cannot be written: {error}");
                }
            }
            Err(error) => tracing::debug!("the APIService {VERSION}.{GROUP} cannot be read: {error}"),
        }
    }
}

async fn is_published(client: &Client, authority: &str) -> Result<bool, kube::Error> {
    let service = Api::<APIService>::all(client.clone()).get(&format!("{VERSION}.{GROUP}")).await?;
    let bundle = service.spec.and_then(|spec| spec.ca_bundle);
    Ok(bundle.is_some_and(|bundle| bundle.0 == authority.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{RootCertStore, client::WebPkiServerVerifier, crypto::ring};
    use rustls_pki_types::{ServerName, UnixTime, pem::PemObject};

    use super::*;

    #[test]
    fn it_is_good_for_its_host_and_by_its_authority_for_a_while() {
        let lifetime = Duration::from_hours(30 * 24);
        let made = Certificate::new("metrics.mcp-mqtt.svc", lifetime).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(made.authority.as_bytes()).unwrap()).unwrap();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
                .build()
                .unwrap();
        let good = |host: &'static str, after: Duration| {
            use rustls::client::danger::ServerCertVerifier;
            let now = UnixTime::since_unix_epoch(
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap() + after,
            );
            let name = ServerName::try_from(host).unwrap();
            verifier.verify_server_cert(&made.certificate, &[], &name, &[], now).is_ok()
        };
        assert!(good("metrics.mcp-mqtt.svc", Duration::ZERO));
        assert!(good("metrics.mcp-mqtt.svc", lifetime / RENEWED_AFTER * 2));
        assert!(!good("other.mcp-mqtt.svc", Duration::ZERO));
        assert!(!good("metrics.mcp-mqtt.svc", lifetime + SKEW));
    }
    /// The API server is one of the test's own: time passes, and the real one's does not.
    #[tokio::test(start_paused = true)]
    async fn an_authority_that_somebody_takes_away_is_told_again() {
        type Shared = Arc<std::sync::Mutex<(serde_json::Value, usize)>>;
        let stored: Shared = Arc::new(std::sync::Mutex::new((json!({"caBundle": null}), 0)));
        let api = {
            let stored = stored.clone();
            tower::service_fn(move |request: http::Request<kube::client::Body>| {
                let stored = stored.clone();
                async move {
                    let patches = request.method() == http::Method::PATCH;
                    let body = request.into_body().collect_bytes().await?;
                    let mut stored = stored.lock().expect("no panic");
                    if patches {
                        let patch: serde_json::Value = serde_json::from_slice(&body)?;
                        *stored = (patch["spec"].clone(), stored.1 + 1);
                    }
                    let mut spec = stored.0.clone();
                    spec["groupPriorityMinimum"] = json!(1);
                    spec["versionPriority"] = json!(1);
                    let answer = json!({"metadata": {"name": "ours"}, "spec": spec}).to_string();
                    Ok::<_, tower::BoxError>(http::Response::new(kube::client::Body::from(
                        answer.into_bytes(),
                    )))
                }
            })
        };
        let client = Client::new(api, "default");
        let writes = || stored.lock().expect("no panic").1;
        publish(&client, "ours").await.unwrap();
        assert!(
            is_published(&client, "ours").await.unwrap() && !is_published(&client, "theirs").await.unwrap()
        );
        let kept = tokio::spawn(async move { keep_published(&client, "ours").await });
        sleep(LOOK * 3).await;
        assert_eq!(writes(), 1, "it stands there");
        stored.lock().expect("no panic").0 = json!({"caBundle": null});
        sleep(LOOK * 3).await;
        assert_eq!(writes(), 2);
        kept.abort();
    }
}
