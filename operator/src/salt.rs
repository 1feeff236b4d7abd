//! Hashes of Secrets stand in annotations, where more people can read than may read the Secret. Salted with what
//! only the operator knows, they tell that a content changed and nothing of the content: a weak password cannot
//! be guessed from them.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use crate::{api_client::is_refused, names};

/// Key of the salt in its Secret.
const KEY: &str = "salt";
/// Bytes of a salt.
const LENGTH: usize = 32;
/// Hexadecimal digits of a hash: 128 bits, which no chance meets.
const DIGITS: usize = 32;

/// Between two attempts to read or make it.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Hexadecimal digits of a mark: few operators share a broker.
const MARK_DIGITS: usize = 16;

/// What only the operator knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt([u8; LENGTH]);

/// The salt could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum SaltError {
    /// The API server said no.
    #[error(
        "the Secret {namespace}/{name} cannot be read or made: {source}; the operator's role in its own namespace must allow it"
    )]
    Api {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: kube::Error,
    },
    /// No randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(#[from] std::io::Error),
    /// Somebody changed it.
    #[error(
        "the Secret {namespace}/{name} has no key `{KEY}` of {LENGTH} bytes: delete it, and the operator makes a new one (which restarts all pods that read Secrets)"
    )]
    Malformed {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Salt {
    /// A salt of these bytes.
    pub fn new(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }

    /// Reads the salt, or makes it where there is none. An API server that cannot be reached is asked again.
    ///
    /// # Errors
    /// No permission, or a Secret that is not ours.
    pub async fn fetch(client: Client, namespace: &str, name: &str) -> Result<Self, SaltError> {
        loop {
            match Self::ask(client.clone(), namespace, name).await {
                Err(SaltError::Api { source, .. }) if !is_refused(&source) => {
                    tracing::warn!(
                        "the Secret {namespace}/{name} cannot be read or made: {source}; trying again in \
                         {ASK_AGAIN:?}: does the API server answer?"
                    );
                    sleep(ASK_AGAIN).await;
                }
                answer => return answer,
            }
        }
    }

    /// Two operators that start at once agree on one.
    async fn ask(client: Client, namespace: &str, name: &str) -> Result<Self, SaltError> {
        let api: Api<Secret> = Api::namespaced(client, namespace);
        let failed =
            |source| SaltError::Api { namespace: namespace.to_owned(), name: name.to_owned(), source };
        let secret = match api.get_opt(name).await.map_err(failed)? {
            Some(secret) => secret,
            None => match api.create(&PostParams::default(), &new_secret(name)?).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => {
                    api.get(name).await.map_err(failed)?
                }
                created => created.map_err(failed)?,
            },
        };
        let bytes = secret.data.as_ref().and_then(|data| data.get(KEY)).map(|bytes| bytes.0.as_slice());
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| SaltError::Malformed { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Hash of a text.
    pub fn hash(&self, text: &[u8]) -> String {
        names::hex(&Sha256::new().chain_update(self.0).chain_update(text).finalize(), DIGITS)
    }

    /// The owner mark of this operator on what it looks after at brokers: two that share a broker, and by mistake a cluster's
    /// name, leave each other's alone.
    pub fn owner_mark(&self) -> String {
        let mut mark = self.hash(b"keeper of the registry");
        mark.truncate(MARK_DIGITS);
        mark
    }

    /// Hash of the content of a Secret or `ConfigMap`; no two contents run together.
    pub fn hash_data(&self, data: &BTreeMap<String, ByteString>) -> String {
        let mut hash = Sha256::new().chain_update(self.0);
        for (key, value) in data {
            for part in [key.as_bytes(), value.0.as_slice()] {
                hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
                hash.update(part);
            }
        }
        names::hex(&hash.finalize(), DIGITS)
    }
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt(…)")
    }
}

fn new_secret(name: &str) -> Result<Secret, std::io::Error> {
    let mut bytes = vec![0; LENGTH];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        immutable: Some(true),
        data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(bytes))])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()))).collect()
    }

    #[test]
    fn the_same_content_has_the_same_hash_under_one_salt_only() {
        let (one, other) = (Salt::new([1; LENGTH]), Salt::new([2; LENGTH]));
        let content = data(&[("password", "hunter2")]);
        assert_eq!(one.hash_data(&content), one.hash_data(&content));
        assert_ne!(one.hash_data(&content), other.hash_data(&content));
        assert_eq!(one.hash_data(&content).len(), DIGITS);
    }

    #[test]
    fn keys_and_values_do_not_run_together() {
        let salt = Salt::new([1; LENGTH]);
        assert_ne!(salt.hash_data(&data(&[("a", "bc")])), salt.hash_data(&data(&[("ab", "c")])));
        assert_ne!(salt.hash_data(&data(&[("a", ""), ("b", "")])), salt.hash_data(&data(&[("a", "b")])));
    }

    #[test]
    fn it_is_never_printed() {
        assert_eq!(format!("{:?}", Salt::new([7; LENGTH])), "Salt(…)");
    }

    /// An API server that gives these answers in turn, the last one ever after; none: it cannot be reached.
    fn api_server(answers: &'static [Option<u16>]) -> Client {
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let api = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            let nth = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let answer = answers[nth.min(answers.len() - 1)];
            std::future::ready(match answer {
                None => Err("connection refused".into()),
                Some(code) => {
                    let body = if code == 200 {
                        serde_json::to_vec(&new_secret("salt").expect("randomness"))
                    } else {
                        serde_json::to_vec(&kube::core::Status { code, ..kube::core::Status::default() })
                    };
                    let body = kube::client::Body::from(body.expect("JSON"));
                    Ok::<_, tower::BoxError>(
                        http::Response::builder().status(code).body(body).expect("a response"),
                    )
                }
            })
        });
        Client::new(api, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_is_away_is_asked_again_and_one_that_refuses_is_not() {
        let back = api_server(&[None, Some(503), Some(500), Some(200)]);
        assert!(Salt::fetch(back, "mcp-mqtt", "salt").await.is_ok());
        let refused = Salt::fetch(api_server(&[None, Some(403), Some(200)]), "mcp-mqtt", "salt").await;
        let error = refused.expect_err("it is not let").to_string();
        assert!(error.contains("Secret mcp-mqtt/salt"), "{error}");
    }
}
