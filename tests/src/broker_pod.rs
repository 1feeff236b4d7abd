//! A Mosquitto of a test's own in the cluster: closed to all without a password, with TLS or without.

use anyhow::{Context, Result};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Pod, Secret, Service},
};
use kube::{
    Api, Client,
    api::{LogParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use url::Url;

use crate::{broker::password_file, certificates::Authority};

/// Name of its pod and Service, and of the Secret with its files.
const NAME: &str = "closed";
/// Where its files are mounted.
const DIRECTORY: &str = "/etc/closed";

/// A broker that asks for a password.
pub struct BrokerPod {
    kube: Client,
    namespace: String,
    /// As pods reach it: by its Service's name.
    pub url: Url,
    /// As a test reaches it: by its Service's address, for which its certificate is good, too.
    pub url_by_address: Url,
    /// Who signed its certificate, when it has one.
    pub authority: Option<Authority>,
}

impl BrokerPod {
    /// Starts it in a namespace, open to these users; nothing waits until it listens.
    ///
    /// # Errors
    /// When the API server refuses one of its objects, or Mosquitto is not installed on this machine.
    pub async fn create(kube: &Client, namespace: &str, users: &[(&str, &str)], tls: bool) -> Result<Self> {
        Self::create_with_acl(kube, namespace, users, tls, None).await
    }

    /// [`create`](Self::create), with the text of an ACL file.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub async fn create_with_acl(
        kube: &Client,
        namespace: &str,
        users: &[(&str, &str)],
        tls: bool,
        acl: Option<&str>,
    ) -> Result<Self> {
        let labels = json!({ "app": NAME });
        let metadata = json!({ "name": NAME, "labels": labels });
        let (scheme, port) = if tls { ("mqtts", 8883) } else { ("mqtt", 1883) };
        let spec = json!({ "selector": labels, "ports": [{ "port": port }] });
        let service: Service = create(kube, namespace, json!({ "metadata": metadata, "spec": spec })).await?;
        let address =
            service.spec.and_then(|spec| spec.cluster_ip).context("the broker's Service has no address")?;
        let host = format!("{NAME}.{namespace}.svc");

        let authority = tls.then(|| Authority::new("the cluster's test authority")).transpose()?;
        let users: Vec<_> = users.iter().map(|&(name, word)| (name.to_owned(), word.to_owned())).collect();
        let mut files = json!({
            "mosquitto.conf": configuration(port, tls, acl.is_some()),
            "passwords": password_file(&users)?,
        });
        if let Some(acl) = acl {
            files["acl"] = acl.into();
        }
        if let Some(authority) = &authority {
            let server = authority.sign(&host, &[&host, &address])?;
            files["server.crt"] = server.certificate.into();
            files["server.key"] = server.key.into();
        }
        create::<Secret>(kube, namespace, json!({ "metadata": metadata, "stringData": files })).await?;
        let pod = json!({
            "metadata": metadata,
            "spec": {
                "containers": [{
                    "name": "mosquitto",
                    "image": "mcp-mqtt-mosquitto:dev",
                    "command": ["/usr/sbin/mosquitto", "-c", format!("{DIRECTORY}/mosquitto.conf")],
                    "volumeMounts": [{ "name": "files", "mountPath": DIRECTORY }],
                }],
                "volumes": [{ "name": "files", "secret": { "secretName": NAME } }],
            },
        });
        create::<Pod>(kube, namespace, pod).await?;
        Ok(Self {
            kube: kube.clone(),
            namespace: namespace.to_owned(),
            url: Url::parse(&format!("{scheme}://{host}:{port}"))?,
            url_by_address: Url::parse(&format!("{scheme}://{address}:{port}"))?,
            authority,
        })
    }

    /// Its log: who connected as whom.
    ///
    /// # Errors
    /// When the kubelet does not have it.
    pub async fn log(&self) -> Result<String> {
        let pods = Api::<Pod>::namespaced(self.kube.clone(), &self.namespace);
        Ok(pods.logs(NAME, &LogParams::default()).await?)
    }
}

fn configuration(port: u16, tls: bool, acl: bool) -> String {
    let listener = format!("listener {port}\nset_tcp_nodelay true\n");
    let closed = format!("allow_anonymous false\npassword_file {DIRECTORY}/passwords\n");
    let certificate = format!("certfile {DIRECTORY}/server.crt\nkeyfile {DIRECTORY}/server.key\n");
    let rights = format!("acl_file {DIRECTORY}/acl\n");
    let log = "log_dest stdout\nlog_type all\n";
    [listener.as_str(), &closed, if acl { &rights } else { "" }, if tls { &certificate } else { "" }, log]
        .concat()
}

/// Creates an object in a namespace.
///
/// # Errors
/// When the API server refuses it.
pub async fn create<K>(kube: &Client, namespace: &str, object: Value) -> Result<K>
where
    K: kube::Resource<Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
    K::DynamicType: Default,
{
    let api = Api::<K>::namespaced(kube.clone(), namespace);
    Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}
