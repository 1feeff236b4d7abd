//! Requester: who asks, told by the API server that proxies the request (`requestheader` authentication), and whether
//! they may, by a `SubjectAccessReview`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::ConfigMap,
};
use kube::{Api, Client, api::PostParams};
use percent_encoding::percent_decode_str;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{GROUP, Metric, VERSION, answers::described_resource};
use crate::controller::scope::lock;

/// Where the API server says how it proxies.
const NAMESPACE: &str = "kube-system";
/// The `ConfigMap` that says it; every cluster has it.
const CONFIG_MAP: &str = "extension-apiserver-authentication";
/// An answer of the API server on who may do what is good for this long.
const DECISION_LIFE: Duration = Duration::from_secs(10);
/// Decisions kept at one time: a few autoscalers and people ask for a few thousand services.
const DECISIONS: usize = 8192;

/// How the API server proxies requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxying {
    /// Who signs the certificate that the API server shows.
    pub authorities: Vec<CertificateDer<'static>>,
    /// The names it may show; empty: any.
    pub allowed_names: Vec<String>,
    user_headers: Vec<HeaderName>,
    uid_headers: Vec<HeaderName>,
    group_headers: Vec<HeaderName>,
    extra_prefixes: Vec<String>,
}

/// How the API server proxies cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ProxyingError {
    /// The API server said no.
    #[error(
        "the ConfigMap {NAMESPACE}/{CONFIG_MAP} cannot be read: {0}; the operator needs the Role extension-apiserver-authentication-reader there"
    )]
    Api(#[source] kube::Error),
    /// The API server is not set up for it.
    #[error(
        "the ConfigMap {NAMESPACE}/{CONFIG_MAP} has no usable {0}: the API server has no aggregation layer (its flags --requestheader-…)"
    )]
    NoAggregation(&'static str),
}

/// Somebody that the API server has authenticated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requester {
    user: String,
    uid: Option<String>,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Proxying {
    /// As the API server says it now.
    ///
    /// # Errors
    /// No permission, or no aggregation layer.
    pub async fn fetch(client: &Client) -> Result<Self, ProxyingError> {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
        let data = api.get(CONFIG_MAP).await.map_err(ProxyingError::Api)?.data.unwrap_or_default();
        Self::parse(&data)
    }

    fn parse(data: &BTreeMap<String, String>) -> Result<Self, ProxyingError> {
        const AUTHORITY: &str = "requestheader-client-ca-file";
        const USER: &str = "requestheader-username-headers";
        let list = |key: &str| -> Vec<String> {
            data.get(key).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
        };
        let headers = |key: &str| -> Vec<HeaderName> {
            list(key).iter().filter_map(|name| name.parse().ok()).collect()
        };
        let pem = data.get(AUTHORITY).map(String::as_bytes).unwrap_or_default();
        let authorities: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
        if authorities.is_empty() {
            return Err(ProxyingError::NoAggregation(AUTHORITY));
        }
        let user_headers = headers(USER);
        if user_headers.is_empty() {
            return Err(ProxyingError::NoAggregation(USER));
        }
        Ok(Self {
            authorities,
            allowed_names: list("requestheader-allowed-names"),
            user_headers,
            uid_headers: headers("requestheader-uid-headers"),
            group_headers: headers("requestheader-group-headers"),
            extra_prefixes: list("requestheader-extra-headers-prefix")
                .iter()
                .map(|prefix| prefix.to_ascii_lowercase())
                .collect(),
        })
    }

    /// Whether the holder of a certificate that an authority signed may speak for others.
    pub fn trusts(&self, common_names: &[String]) -> bool {
        self.allowed_names.is_empty() || common_names.iter().any(|name| self.allowed_names.contains(name))
    }

    /// For whom the API server proxies; none: it does not say.
    pub fn requester(&self, headers: &HeaderMap) -> Option<Requester> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let first = |names: &[HeaderName]| {
            names.iter().find_map(text).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let user = first(&self.user_headers)?;
        let groups = self.group_headers.iter().flat_map(|name| headers.get_all(name));
        let groups = groups.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            let key =
                self.extra_prefixes.iter().find_map(|prefix| name.as_str().strip_prefix(prefix.as_str()));
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                // Keys have slashes, which no header's name can have.
                let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
                extra.entry(key).or_default().push(value.to_owned());
            }
        }
        Some(Requester { user, uid: first(&self.uid_headers), groups, extra })
    }
}

/// Asks the API server who may do what, and remembers it for a moment.
pub struct Authorizer {
    client: Client,
    decisions: Mutex<HashMap<(Requester, Question), (Instant, bool)>>,
}

/// May they read a metric of a service? With `*` for a name: of all services of the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    namespace: String,
    name: String,
    metric: &'static str,
}

impl Authorizer {
    /// With no decision yet.
    pub fn new(client: Client) -> Self {
        Self { client, decisions: Mutex::default() }
    }

    /// Whether they may read a metric of a service.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn allows(
        &self,
        requester: Requester,
        namespace: &str,
        name: &str,
        metric: Metric,
    ) -> Result<bool, kube::Error> {
        let question =
            Question { namespace: namespace.to_owned(), name: name.to_owned(), metric: metric.name() };
        let key = (requester, question);
        if let Some((at, allowed)) = lock(&self.decisions).get(&key)
            && at.elapsed() < DECISION_LIFE
        {
            return Ok(*allowed);
        }
        let review = review(&key.0, &key.1);
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let allowed =
            api.create(&PostParams::default(), &review).await?.status.is_some_and(|status| status.allowed);
        let mut decisions = lock(&self.decisions);
        if decisions.len() >= DECISIONS {
            decisions.retain(|_, (at, _)| at.elapsed() < DECISION_LIFE);
        }
        if decisions.len() < DECISIONS {
            decisions.insert(key, (Instant::now(), allowed));
        }
        Ok(allowed)
    }
}

fn review(requester: &Requester, question: &Question) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(requester.user.clone()),
            uid: requester.uid.clone(),
            groups: Some(requester.groups.clone()),
            extra: Some(requester.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                version: Some(VERSION.to_owned()),
                resource: Some(described_resource()),
                subresource: Some(question.metric.to_owned()),
                namespace: Some(question.namespace.clone()),
                name: Some(question.name.clone()),
                verb: Some("get".to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As an API server with this authority says it.
    pub(crate) fn proxying(authority_pem: &str) -> Proxying {
        Proxying::parse(&data(authority_pem)).unwrap()
    }

    fn data(authority_pem: &str) -> BTreeMap<String, String> {
        [
            ("requestheader-client-ca-file", authority_pem),
            ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
            ("requestheader-uid-headers", r#"["X-Remote-Uid"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }

    fn pem() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn the_requester_is_whom_the_api_server_names() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("X-Remote-User", "system:serviceaccount:kube-system:horizontal-pod-autoscaler"),
            ("X-Remote-Group", "system:serviceaccounts"),
            ("X-Remote-Group", "system:authenticated"),
            ("X-Remote-Extra-Scopes", "read"),
            ("X-Remote-Extra-Authentication.kubernetes.io%2fnode-Name", "n1"),
            ("X-Remote-Uid", "7d"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let requester = proxying(&pem()).requester(&headers).unwrap();
        assert_eq!(requester.user, "system:serviceaccount:kube-system:horizontal-pod-autoscaler");
        assert_eq!(requester.groups, ["system:serviceaccounts", "system:authenticated"]);
        assert_eq!(requester.extra["scopes"], ["read"]);
        assert_eq!(requester.extra["authentication.kubernetes.io/node-name"], ["n1"]);
        headers.remove("X-Remote-User");
        assert_eq!(proxying(&pem()).requester(&headers), None);
    }

    #[test]
    fn only_the_names_that_are_allowed_speak_for_others() {
        let mut proxying = proxying(&pem());
        assert!(proxying.trusts(&["front-proxy-client".to_owned()]));
        assert!(!proxying.trusts(&["somebody".to_owned()]) && !proxying.trusts(&[]));
        proxying.allowed_names.clear();
        assert!(proxying.trusts(&[]), "any certificate of the authority");
    }

    #[test]
    fn a_cluster_without_aggregation_is_told_so() {
        for missing in ["requestheader-client-ca-file", "requestheader-username-headers"] {
            let mut data = data(&pem());
            data.remove(missing);
            let error = Proxying::parse(&data).unwrap_err().to_string();
            assert!(error.contains(missing) && error.contains("--requestheader-"), "{error}");
        }
    }

    #[test]
    fn a_review_asks_for_one_metric_of_one_service() {
        let requester = Requester {
            user: "ann".to_owned(),
            uid: Some("7d".to_owned()),
            groups: Vec::new(),
            extra: BTreeMap::new(),
        };
        let question =
            Question { namespace: "meteo".into(), name: "weather".into(), metric: Metric::Sessions.name() };
        let asked = review(&requester, &question).spec;
        assert_eq!((asked.user.as_deref(), asked.uid.as_deref()), (Some("ann"), Some("7d")));
        let attributes = asked.resource_attributes.unwrap();
        let asked =
            [attributes.group, attributes.resource, attributes.subresource, attributes.name, attributes.verb];
        assert_eq!(
            asked.map(Option::unwrap),
            ["custom.metrics.k8s.io", "mcpservices.mcp-mqtt.io", "mcp_sessions", "weather", "get"]
        );
    }
}
