//! A gateway that is registered, and that the broker does not show: it is told so, and registers again.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use mcp_mqtt_sidecar::config::ADMIN_PORT;
use mcp_mqtt_tests::{
    broker::Mosquitto,
    cluster::{PATIENCE, Space, eventually},
    gateway::{Gateway, Options},
    operator::Operator,
    presences::Presences,
    proxy::{Manner, Proxy},
};
use mcp_mqtt_transport::{
    mqtt::{ConnectOptions, Connection, Event, Filter, Qos},
    presence::REGISTER,
    topic::{self, ServerId},
};
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::timeout,
};

use crate::{NAME, server_name, sleepy};

/// Pods have addresses of their own, and one port for all gateways; here each is one of the loopback's.
struct PodNetwork {
    ip: Ipv4Addr,
    task: AbortHandle,
}

impl PodNetwork {
    async fn of(gateway: &Gateway) -> Result<Self> {
        let (ip, admin) = (Ipv4Addr::from(0x7f01_0000 | fastrand::u32(1..0xffff)), gateway.admin());
        let listener = TcpListener::bind((ip, ADMIN_PORT)).await.context("the pod has no address")?;
        let task = tokio::spawn(async move {
            while let Ok((mut operator, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut gateway = TcpStream::connect(admin).await?;
                    copy_bidirectional(&mut operator, &mut gateway).await
                });
            }
        });
        Ok(Self { ip, task: task.abort_handle() })
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The only pod of the service.
async fn only_pod(space: &Space) -> Result<String> {
    let found = eventually(PATIENCE, async || {
        let pods = space.api::<Pod>().list(&ListParams::default()).await.ok()?;
        pods.items.into_iter().next()?.metadata.name
    });
    found.await.context("there is no pod")
}

/// Says what the kubelet would say of a pod that is ready.
async fn make_ready(space: &Space, pod: &str, ip: Ipv4Addr) -> Result<()> {
    let running = json!({"running": {"startedAt": "2027-01-15T08:00:00Z"}});
    let gateway = json!({
        "name": "gateway", "image": "", "imageID": "", "ready": true, "started": true, "restartCount": 0,
        "state": running,
    });
    let status = json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "initContainerStatuses": [gateway],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    space.api::<Pod>().patch_status(pod, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// Waits until somebody tells the instance to register.
async fn told_to_register(control: &mut Connection) -> Result<()> {
    loop {
        match timeout(PATIENCE, control.events.recv()).await.context("nobody tells it to register")? {
            Some(Event::Received(received))
                if received.payload.windows(REGISTER.len()).any(|part| part == REGISTER.as_bytes()) =>
            {
                return Ok(());
            }
            Some(_) => {}
            None => anyhow::bail!("the connection is over"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_pod_that_the_broker_does_not_show_is_told_to_register_again() -> Result<()> {
    // An ACL keeps the gateway from seeing what becomes of its own presence.
    const BLIND: Manner = Manner {
        closes_on: None,
        cuts_in: None,
        server_name: None,
        max_packet: None,
        refuses: None,
        refuses_subscription: Some(("$mcp-server/presence/", 0x87)),
        refuses_publish: None,
        swallows: None,
        garbles: None,
    };
    let (space, broker) = (Space::new("missing").await?, Mosquitto::start().await?);
    let operator = Operator::start(&space, &[]).await?;
    let mut spec = sleepy(&broker);
    (spec["replicas"], spec["autoscaling"]) = (json!(1), json!(null));
    space.create(NAME, &spec).await?;
    let (pod, name) = (only_pod(&space).await?, server_name(&space)?);
    let id = ServerId::new(&format!("kubernetes.{}.{pod}", space.namespace))?;
    let proxy = Proxy::start(broker.port(), BLIND).await?;
    let gateway = Options::new(&proxy.url()).server_name(name.as_str()).server_id(id.as_str()).start()?;
    gateway.wait_ready().await?;
    let network = PodNetwork::of(&gateway).await?;
    make_ready(&space, &pod, network.ip).await?;
    space.condition(NAME, "Registered", "True", "Registered").await?;

    let place = topic::server_presence(&id, &name);
    let mut presences = Presences::of(&broker.url(), &name).await?;
    let mark = presences.next_at(&place, false).await?.user_properties;
    let mut control = Connection::open(&ConnectOptions::new(broker.url(), "overhears")).await?;
    let filter = Filter::new(topic::control(&id, &name), Qos::AtLeastOnce);
    control.publisher.subscribe(vec![filter], PATIENCE).await?;
    // Somebody clears it, and its gateway does not hear of that.
    presences.write(&place, Bytes::new(), &mark).await?;
    told_to_register(&mut control).await?;
    presences.next_at(&place, true).await?;
    presences.next_at(&place, false).await?;

    // As long as what it is told is of no use, the status says so.
    proxy.behave(Manner { swallows: Some("$mcp-server/presence/"), ..BLIND });
    presences.write(&place, Bytes::new(), &mark).await?;
    let said = space.condition(NAME, "Registered", "False", "PresenceMissing").await?;
    ensure!(said.contains(&pod) && said.contains("told to register again"), "{said}");
    proxy.behave(BLIND);
    presences.next_at(&place, true).await?;
    presences.next_at(&place, false).await?;
    space.condition(NAME, "Registered", "True", "Registered").await?;
    drop((gateway, network));
    operator.stop().await?;
    space.remove().await
}
