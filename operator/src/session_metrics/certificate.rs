//! Certificate: the leader makes its own authority and certificate, keeps the keys in memory, and tells the API server
//! whom to trust (`caBundle` of the `APIService`). Nothing is stored, and nothing expires unseen.

use std::time::Duration;

use k8s_openapi::{
    ByteString,
    kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec},
};
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

use super::{GROUP, VERSION, endpoint::Place};
use crate::{names::FIELD_MANAGER, serving::LOOK};

/// A new certificate is made when this part of its lifetime has passed: a third.
pub const RENEWED_AFTER: u32 = 3;
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

/// Which authority the API server is to trust for the API, as long as the `APIService` leads to our Service.
pub struct Trust<'a> {
    client: &'a Client,
    place: &'a Place,
    authority: &'a str,
    /// The Service to which the `APIService` led last, if that was another one.
    other: Option<String>,
}

impl<'a> Trust<'a> {
    /// Nothing is written yet.
    pub fn new(client: &'a Client, place: &'a Place, authority: &'a str) -> Self {
        Self { client, place, authority, other: None }
    }

    /// Tells the API server to trust what the authority signed, where it does not do so. Whether something was written.
    /// An `APIService` that leads to another Service is left alone, and that is told once.
    ///
    /// # Errors
    /// The API server's; 404: the chart was installed without the API.
    pub async fn publish(&mut self) -> Result<bool, kube::Error> {
        let api: Api<APIService> = Api::all(self.client.clone());
        let name = format!("{VERSION}.{GROUP}");
        let spec = api.get(&name).await?.spec.unwrap_or_default();
        if let Some(other) = other(&spec, self.place) {
            if self.other.as_ref() != Some(&other) {
                tracing::warn!(
                    "the APIService {name} leads to {other} and not to {}/{}: session metrics are not ours to serve, \
                     and it is left alone",
                    self.place.namespace,
                    self.place.service
                );
            }
            self.other = Some(other);
            return Ok(false);
        }
        if self.other.take().is_some() {
            tracing::info!("the APIService {name} leads to our Service again");
        }
        let bundle = ByteString(self.authority.as_bytes().to_vec());
        if spec.ca_bundle.as_ref() == Some(&bundle) {
            return Ok(false);
        }
        let patch = Patch::Merge(json!({"spec": {"caBundle": bundle}}));
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        api.patch(&name, &parameters, &patch).await.map(|_| true)
    }

    /// Looks after it for as long as it is polled.
    pub async fn keep(&mut self) {
        loop {
            sleep(LOOK).await;
            match self.publish().await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!("the APIService {VERSION}.{GROUP} had lost our authority: written again");
                }
                Err(error) => {
                    tracing::warn!(retry_in = ?LOOK, "the APIService {VERSION}.{GROUP} cannot be looked after: {error}");
                }
            }
        }
    }
}

/// The Service to which it leads, if that is not ours.
fn other(spec: &APIServiceSpec, place: &Place) -> Option<String> {
    let Some(service) = &spec.service else { return Some("the API server itself".to_owned()) };
    let (namespace, name) = (service.namespace.as_deref(), service.name.as_deref());
    let ours = namespace == Some(place.namespace.as_str()) && name == Some(place.service.as_str());
    (!ours).then(|| format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default()))
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

    /// The spec that the API server has, and how often it was written.
    type Stored = Arc<std::sync::Mutex<(serde_json::Value, usize)>>;

    /// The API server is one of the test's own: time passes, and the real one's does not.
    fn api_server() -> (Client, Stored) {
        let spec = json!({
            "service": {"namespace": "mcp-mqtt", "name": "metrics"},
            "groupPriorityMinimum": 1, "versionPriority": 1,
        });
        let stored: Stored = Arc::new(std::sync::Mutex::new((spec, 0)));
        let shared = stored.clone();
        let api = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let stored = shared.clone();
            async move {
                let patches = request.method() == http::Method::PATCH;
                let body = request.into_body().collect_bytes().await?;
                let mut stored = stored.lock().expect("no panic");
                if patches {
                    let patch: serde_json::Value = serde_json::from_slice(&body)?;
                    stored.0["caBundle"] = patch["spec"]["caBundle"].clone();
                    stored.1 += 1;
                }
                let answer = json!({"metadata": {"name": "ours"}, "spec": stored.0}).to_string();
                Ok::<_, tower::BoxError>(http::Response::new(kube::client::Body::from(answer.into_bytes())))
            }
        });
        (Client::new(api, "default"), stored)
    }

    fn place() -> Place {
        Place {
            namespace: "mcp-mqtt".to_owned(),
            service: "metrics".to_owned(),
            address: ([127, 0, 0, 1], 6443).into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_authority_that_somebody_takes_away_is_told_again() {
        let (client, stored) = api_server();
        let writes = || stored.lock().expect("no panic").1;
        let kept = tokio::spawn({
            let client = client.clone();
            async move {
                let place = place();
                let mut trust = Trust::new(&client, &place, "ours");
                assert!(trust.publish().await.unwrap() && !trust.publish().await.unwrap());
                trust.keep().await;
            }
        });
        sleep(LOOK * 3).await;
        assert_eq!(writes(), 1, "it stands there");
        stored.lock().expect("no panic").0["caBundle"] = json!(null);
        sleep(LOOK * 3).await;
        assert_eq!(writes(), 2);
        kept.abort();
        assert!(Trust::new(&client, &place(), "another").publish().await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_another_adapter_serves_is_left_alone() {
        let (client, stored) = api_server();
        let writes = || stored.lock().expect("no panic").1;
        let ours = stored.lock().expect("no panic").0["service"].clone();
        let theirs = json!({"namespace": "monitoring", "name": "adapter"});
        let lead_to = |service: &serde_json::Value| {
            stored.lock().expect("no panic").0["service"] = service.clone();
        };
        lead_to(&theirs);
        let kept = tokio::spawn(async move {
            let place = place();
            let mut trust = Trust::new(&client, &place, "ours");
            assert!(!trust.publish().await.unwrap());
            trust.keep().await;
        });
        sleep(LOOK * 3).await;
        assert_eq!(writes(), 0);
        lead_to(&ours);
        sleep(LOOK * 3).await;
        assert_eq!(writes(), 1);
        lead_to(&theirs);
        stored.lock().expect("no panic").0["caBundle"] = json!("dGhlaXJz");
        sleep(LOOK * 3).await;
        assert_eq!(writes(), 1, "the other adapter's authority is not ours to replace");
        kept.abort();
    }
}
