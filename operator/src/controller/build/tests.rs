//! Minimal YAML in, whole objects out.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{Container, VolumeMount},
};
use mcp_mqtt_sidecar::config::BackendConfig;
use serde::Serialize;
use serde_json::{Value, json};
use url::Url;

use super::*;
use crate::{
    controller::{
        fetch::Fetched,
        fixtures::{HTTP, SSE, STDIO, built, parse_gateway_args, salt, settings, validated},
    },
    settings::{DefaultBroker, Settings, Token},
};

pub(super) fn of(spec: &str) -> Resources<Prepared> {
    built(spec, &settings(), &Fetched::default())
}

pub(super) fn value(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap()
}

pub(super) fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap()
}

fn template(resources: &Resources<Prepared>) -> Value {
    value(&resources.deployment)["spec"]["template"].clone()
}

pub(super) fn container(resources: &Resources<Prepared>, name: &str) -> Container {
    let spec = resources.deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .find(|container| container.name == name)
        .unwrap()
        .clone()
}

pub(super) const METADATA: &str = "
name: weather
namespace: meteo
labels: &labels
  app.kubernetes.io/instance: weather
  app.kubernetes.io/managed-by: mcp-mqtt-operator
  app.kubernetes.io/name: mcp-service
  app.kubernetes.io/part-of: mcp-mqtt
  mcp-mqtt.io/service: weather
ownerReferences:
- apiVersion: mcp-mqtt.io/v1alpha1
  kind: McpService
  name: weather
  uid: uid-of-weather
  controller: true
  blockOwnerDeletion: true
";

#[test]
fn the_service_account_has_no_token() {
    let expected = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": yaml(METADATA), "automountServiceAccountToken": false,
    });
    assert_eq!(value(&of(STDIO).service_account.unwrap()), expected);
}

#[test]
fn a_service_account_of_the_users_own_replaces_ours() {
    let resources = of(&format!("{STDIO}\npodTemplate: {{spec: {{serviceAccountName: robot}}}}"));
    assert_eq!(resources.service_account, None);
    assert_eq!(template(&resources)["spec"]["serviceAccountName"], json!("robot"));
}

#[test]
fn several_replicas_have_a_disruption_budget_and_one_has_none() {
    assert_eq!(of(STDIO).disruption_budget, None);
    assert_eq!(of(&format!("{STDIO}\nreplicas: 0")).disruption_budget, None);
    let expected = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": yaml(METADATA),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": {"mcp-mqtt.io/service": "weather"}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    });
    assert_eq!(value(&of(&format!("{STDIO}\nreplicas: 2")).disruption_budget.unwrap()), expected);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a whole object, as YAML")]
fn a_stdio_service_becomes_this_deployment() {
    let expected = yaml(
        "
apiVersion: apps/v1
kind: Deployment
spec:
  replicas: 1
  revisionHistoryLimit: 3
  selector: {matchLabels: {mcp-mqtt.io/service: weather}}
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 0}}
  template:
    metadata:
      labels:
        app.kubernetes.io/instance: weather
        app.kubernetes.io/managed-by: mcp-mqtt-operator
        app.kubernetes.io/name: mcp-service
        app.kubernetes.io/part-of: mcp-mqtt
        mcp-mqtt.io/service: weather
      annotations:
        mcp-mqtt.io/service-name: weather
    spec:
      automountServiceAccountToken: false
      serviceAccountName: weather
      enableServiceLinks: false
      securityContext: {seccompProfile: {type: RuntimeDefault}}
      terminationGracePeriodSeconds: 80
      topologySpreadConstraints:
      - labelSelector: {matchLabels: {mcp-mqtt.io/service: weather}}
        matchLabelKeys: [pod-template-hash]
        maxSkew: 1
        topologyKey: topology.kubernetes.io/zone
        whenUnsatisfiable: ScheduleAnyway
      - labelSelector: {matchLabels: {mcp-mqtt.io/service: weather}}
        matchLabelKeys: [pod-template-hash]
        maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
      volumes:
      - {name: mcp-mqtt-bin, emptyDir: {}}
      - {name: mcp-mqtt-run, emptyDir: {}}
      initContainers:
      - name: gateway
        image: registry.example/bridge:9
        imagePullPolicy: Never
        restartPolicy: Always
        lifecycle:
          postStart: {exec: {command: [/mcp-mqtt-sidecar, install, --to, /mcp-mqtt/bin]}}
        args:
        - gateway
        - --server-name=meteo/weather
        - --server-id=north.$(POD_NAMESPACE).$(POD_NAME)
        - --owner-mark=66072ce3bf722e8e
        - --stdio-socket=/mcp-mqtt/run/shim.sock
        - --broker-url=mqtt://hub.example:1883
        - --drain-socket=/mcp-mqtt/run/gateway.sock
        - --admin-address=0.0.0.0:8079
        - --log-format=json
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        ports:
        - {name: mcp-mqtt-admin, containerPort: 8079, protocol: TCP}
        readinessProbe:
          httpGet: {path: /readyz, port: 8079}
          periodSeconds: 1
          failureThreshold: 2
          timeoutSeconds: 5
        livenessProbe:
          httpGet: {path: /healthz, port: 8079}
          periodSeconds: 10
          failureThreshold: 3
          timeoutSeconds: 5
        resources:
          requests: {cpu: 10m, memory: 16Mi}
          limits: {memory: 128Mi}
        securityContext:
          allowPrivilegeEscalation: false
          capabilities: {drop: [ALL]}
          readOnlyRootFilesystem: true
          runAsGroup: 65532
          runAsNonRoot: true
          runAsUser: 65532
        volumeMounts:
        - {name: mcp-mqtt-bin, mountPath: /mcp-mqtt/bin}
        - {name: mcp-mqtt-run, mountPath: /mcp-mqtt/run}
      containers:
      - name: server
        image: registry.example/weather:3
        command:
        - /mcp-mqtt/bin/mcp-mqtt-sidecar
        - shim
        - run
        - --prewarm=0
        - --max-processes=201
        - --
        - node
        - server.js
        lifecycle:
          preStop: {exec: {command: [/mcp-mqtt/bin/mcp-mqtt-sidecar, shim, drain, --timeout=70s]}}
        securityContext:
          allowPrivilegeEscalation: false
          capabilities: {drop: [ALL]}
        volumeMounts:
        - {name: mcp-mqtt-bin, mountPath: /mcp-mqtt/bin, readOnly: true}
        - {name: mcp-mqtt-run, mountPath: /mcp-mqtt/run}
",
    );
    let mut expected = expected;
    expected["metadata"] = yaml(METADATA);
    assert_eq!(value(&of(STDIO).deployment), expected);
}

#[test]
fn an_http_server_keeps_its_own_entrypoint() {
    let server = container(&of(HTTP), SERVER);
    assert_eq!((server.command, server.args), (None, None));
    let config = parse_gateway_args(container(&of(HTTP), GATEWAY).args.as_ref().unwrap());
    assert_eq!(config.backend, BackendConfig::http("http://127.0.0.1:3001/mcp".parse().unwrap()));
}

#[test]
fn a_server_of_2024_keeps_its_own_entrypoint_too() {
    let server = container(&of(SSE), SERVER);
    assert_eq!((server.command, server.args), (None, None));
    let config = parse_gateway_args(container(&of(SSE), GATEWAY).args.as_ref().unwrap());
    assert_eq!(config.backend, BackendConfig::sse("http://127.0.0.1:3002/sse".parse().unwrap()));
}

#[test]
fn the_gateways_variables_stand_behind_its_own_and_may_name_them() {
    let spec = format!(
        "{STDIO}
gateway:
  env:
  - {{name: OTEL_EXPORTER_OTLP_HEADERS, valueFrom: {{secretKeyRef: {{name: collector, key: headers}}}}}}
  - {{name: OTEL_RESOURCE_ATTRIBUTES, value: k8s.pod.name=$(POD_NAME)}}
"
    );
    let expected = yaml(
        "
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: OTEL_EXPORTER_OTLP_HEADERS, valueFrom: {secretKeyRef: {name: collector, key: headers}}}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: k8s.pod.name=$(POD_NAME)}
",
    );
    let env = container(&of(&spec), GATEWAY).env.unwrap();
    assert_eq!(value(&env), expected);
    assert_eq!(container(&of(&spec), SERVER).env, None, "they are the gateway's alone");
    // What the kubelet makes of them, as the gateway reads it.
    let kubelet = |name: &str| {
        let variable = env.iter().find(|variable| variable.name == name)?;
        let text = variable.value.clone().unwrap_or_else(|| "api-key=secret".to_owned());
        Some(text.replace("$(POD_NAME)", "weather-1-x"))
    };
    let collector = Url::parse("http://collector:4318").unwrap();
    let read = mcp_mqtt_sidecar::traces::export::Settings::read(&collector, &[], kubelet).unwrap();
    let read = format!("{:?}", read.unwrap());
    assert!(read.contains("api-key") && read.contains("weather-1-x"), "{read}");
}

#[test]
fn the_gateway_parses_what_is_built_for_it() {
    let spec = "
serverName: sky/report
description: 'costs $(HOME) and $$ a \"day\"'
rbac: {roles: [{name: reader, description: may look, allowedMethods: [tools/list], allowedTools: all, allowedResources: []}]}
transport: {stdio: {command: [node, server.js], prewarm: 2}}
server: {image: registry.example/weather:3}
gateway:
  maxSessions: 5
  maxMessageBytes: 2048
  maxInFlight: 6
  idleTimeout: 1h30m
  otlpEndpoint: http://collector:4318
  qos: 0
  workers: 4
  keepAlive: 30s
  timeouts: {ping: 1s, call: 2m, default: 3s, max: 1h}
  log: {level: debug, format: text}
drain: {timeoutSeconds: 5}
broker:
  url: wss://sea.example/mqtt
  tls: {ca: {configMapKeyRef: {name: roots}}, clientCertificateSecret: badge}
  auth: {serviceAccountToken: {audience: sea, username: sailor}}
";
    let service = validated(spec).unwrap();
    let args = container(&of(spec), GATEWAY).args.unwrap();
    // What the kubelet makes of them.
    let args: Vec<String> = args
        .iter()
        .map(|arg| {
            arg.replace("$(POD_NAMESPACE)", "meteo").replace("$(POD_NAME)", "weather-1-x").replace("$$", "$")
        })
        .collect();
    let mut expected = service.gateway.clone();
    expected.server_id = "north.meteo.weather-1-x".to_owned();
    expected.owner_mark = Some(salt().owner_mark());
    assert_eq!(parse_gateway_args(&args), expected);
    assert_eq!(expected.limits.idle_timeout, Some(std::time::Duration::from_mins(90)));
    assert_eq!(expected.description, "costs $(HOME) and $$ a \"day\"");
    assert_eq!(expected.broker.broker_password_file.as_deref(), Some("/mcp-mqtt/broker/token".as_ref()));
    assert_eq!(
        serde_json::from_str::<Value>(expected.rbac.as_deref().unwrap()).unwrap(),
        json!({"roles": [{"name": "reader", "description": "may look", "allowed_methods": ["tools/list"], "allowed_tools": "all", "allowed_resources": []}]})
    );
    expected.check().unwrap();
}

#[test]
fn the_shim_and_its_drain_parse_what_is_built_for_them() {
    use clap::Parser;
    use mcp_mqtt_sidecar::cli::{Cli, Face, ShimFace};
    let server = container(&of(&STDIO.replace("stdio: {", "stdio: {prewarm: 3, ")), SERVER);
    match Cli::try_parse_from(server.command.unwrap()).unwrap().face {
        Face::Shim(ShimFace::Run(config)) => {
            assert_eq!((config.prewarm, config.max_processes), (3, 207));
            assert_eq!(config.command, ["node", "server.js"]);
        }
        other => panic!("{other:?}"),
    }
    let drain = server.lifecycle.unwrap().pre_stop.unwrap().exec.unwrap().command.unwrap();
    match Cli::try_parse_from(drain).unwrap().face {
        Face::Shim(ShimFace::Drain(config)) => assert_eq!(config.timeout.as_secs(), 70),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_binary_is_installed_where_the_servers_container_has_it_and_may_not_change_it() {
    use clap::Parser;
    use mcp_mqtt_sidecar::{
        cli::{Cli, Face},
        config::IMAGE_BINARY,
    };
    let resources = of(STDIO);
    let (gateway, server) = (container(&resources, GATEWAY), container(&resources, SERVER));
    let hook = gateway.lifecycle.unwrap().post_start.unwrap().exec.unwrap().command.unwrap();
    // The path is the image's, whose entrypoint a hook does not have.
    let image = include_str!("../../../../sidecar/Dockerfile");
    assert!(
        hook[0] == IMAGE_BINARY && image.contains(&format!("COPY mcp-mqtt-sidecar {IMAGE_BINARY}\n")),
        "{hook:?}"
    );
    let Face::Install(install) = Cli::try_parse_from(hook).unwrap().face else { panic!("no installation") };
    let mount = |container: Option<Vec<VolumeMount>>| {
        container.unwrap().into_iter().find(|mount| mount.name == BIN_VOLUME).unwrap()
    };
    let (ours, theirs) = (mount(gateway.volume_mounts), mount(server.volume_mounts));
    assert_eq!((ours.mount_path.as_ref(), ours.read_only), (install.to.to_str().unwrap(), None));
    assert!(server.command.unwrap()[0].starts_with(&theirs.mount_path));
    assert_eq!((theirs.mount_path, theirs.read_only), (ours.mount_path, Some(true)));
}

#[test]
fn the_brokers_files_are_mounted_by_the_gateway_alone() {
    let resources = of(&format!(
        "{STDIO}
broker:
  url: mqtts://sea.example
  tls: {{ca: {{secretKeyRef: {{name: roots, key: bundle.pem}}}}, clientCertificateSecret: badge}}
  auth: {{serviceAccountToken: {{audience: sea, expirationSeconds: 900, username: sailor}}}}"
    ));
    let volumes = template(&resources)["spec"]["volumes"].clone();
    assert_eq!(
        volumes[2],
        yaml(
            "
name: mcp-mqtt-broker
projected:
  defaultMode: 292
  sources:
  - secret: {name: roots, items: [{key: bundle.pem, path: ca.crt}]}
  - secret: {name: badge, items: [{key: tls.crt, path: tls.crt}]}
  - secret: {name: badge, items: [{key: tls.key, path: tls.key}]}
  - serviceAccountToken: {audience: sea, expirationSeconds: 900, path: token}
  - downwardAPI: {items: [{path: username, fieldRef: {fieldPath: \"metadata.annotations['mcp-mqtt.io/broker-username']\"}}]}
"
        )
    );
    assert_eq!(
        template(&resources)["metadata"]["annotations"]["mcp-mqtt.io/broker-username"],
        json!("sailor")
    );
    let mounts = |name: &str| {
        let mounts = container(&resources, name).volume_mounts.unwrap();
        mounts.iter().any(|mount| mount.name == BROKER_VOLUME)
    };
    assert_eq!([mounts(GATEWAY), mounts(SERVER)], [true, false]);
}

fn with_default_secret(token: Option<Token>) -> (Settings, Fetched) {
    let settings = Settings {
        default_broker: Some(DefaultBroker {
            url: Url::parse("mqtts://hub.example").unwrap(),
            secret: Some("hub-credentials".to_owned()),
            token,
        }),
        ..settings()
    };
    let data = ["username", "password", "ca.crt", "unrelated"]
        .map(|key| (key.to_owned(), ByteString(format!("the {key}").into_bytes())));
    (settings, Fetched { default_broker_secret: Some(BTreeMap::from(data)) })
}

#[test]
fn the_default_brokers_credentials_are_copied_but_for_what_no_gateway_reads() {
    let (settings, fetched) = with_default_secret(None);
    let resources = built(STDIO, &settings, &fetched);
    let secret = resources.broker_secret.as_ref().unwrap();
    assert_eq!(secret.metadata.name.as_deref(), Some("weather-broker"));
    assert_eq!(secret.data.as_ref().unwrap().keys().collect::<Vec<_>>(), ["ca.crt", "password", "username"]);
    let hash = salt().hash_data(secret.data.as_ref().unwrap());
    assert_eq!(template(&resources)["metadata"]["annotations"]["mcp-mqtt.io/references-hash"], json!(hash));
    let config = parse_gateway_args(container(&resources, GATEWAY).args.as_ref().unwrap());
    assert_eq!(config.broker.broker_password_file.as_deref(), Some("/mcp-mqtt/broker/password".as_ref()));
    assert_eq!(config.broker.broker_cert_file, None);
}

#[test]
fn with_a_token_the_default_brokers_secret_serves_for_tls_alone() {
    let token = Token { audience: "hub".to_owned(), expiration_seconds: 3600, username: None };
    let (settings, fetched) = with_default_secret(Some(token));
    let resources = built(STDIO, &settings, &fetched);
    assert_eq!(
        resources.broker_secret.as_ref().unwrap().data.as_ref().unwrap().keys().collect::<Vec<_>>(),
        ["ca.crt"]
    );
    let config = parse_gateway_args(container(&resources, GATEWAY).args.as_ref().unwrap());
    assert_eq!(config.broker.broker_password_file.as_deref(), Some("/mcp-mqtt/broker/token".as_ref()));
    assert_eq!(config.broker.broker_username_file, None);
}

#[test]
fn a_service_with_its_own_broker_gets_no_copy() {
    let (settings, fetched) = with_default_secret(None);
    let resources = built(&format!("{STDIO}\nbroker: {{url: 'mqtt://sea.example'}}"), &settings, &fetched);
    assert_eq!(resources.broker_secret, None);
    assert_eq!(template(&resources)["spec"]["volumes"].as_array().unwrap().len(), 2);
}

#[test]
fn the_pod_template_is_merged_last_by_the_names_of_lists() {
    let resources = of(&format!(
        "{STDIO}
podTemplate:
  metadata: {{labels: {{team: sky}}, annotations: {{note: x}}}}
  spec:
    nodeSelector: {{disk: ssd}}
    securityContext: {{fsGroup: 7}}
    volumes: [{{name: cache, emptyDir: {{}}}}]
    initContainers: [{{name: gateway, resources: {{limits: {{memory: 1Gi}}}}}}]
    containers:
    - {{name: server, env: [{{name: A, value: b}}], volumeMounts: [{{name: cache, mountPath: /cache}}]}}
    - {{name: helper, image: 'registry.example/helper:1'}}
    topologySpreadConstraints: [{{topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, maxSkew: 2}}]"
    ));
    let template = template(&resources);
    assert_eq!(template["metadata"]["labels"]["team"], json!("sky"));
    assert_eq!(template["metadata"]["labels"]["mcp-mqtt.io/service"], json!("weather"));
    let spec = &template["spec"];
    assert_eq!(spec["nodeSelector"], json!({"disk": "ssd"}));
    assert_eq!(spec["securityContext"], json!({"fsGroup": 7, "seccompProfile": {"type": "RuntimeDefault"}}));
    assert_eq!(spec["containers"][1]["name"], json!("helper"));
    let server = container(&resources, SERVER);
    assert_eq!(server.image.as_deref(), Some("registry.example/weather:3"));
    assert_eq!(server.volume_mounts.unwrap().len(), 3);
    let gateway = container(&resources, GATEWAY).resources.unwrap();
    assert_eq!(
        (gateway.limits.unwrap()["memory"].0.as_str(), gateway.requests.unwrap()["cpu"].0.as_str()),
        ("1Gi", "10m")
    );
    assert_eq!(spec["topologySpreadConstraints"].as_array().unwrap().len(), 1);
    assert_eq!(spec["topologySpreadConstraints"][0]["whenUnsatisfiable"], json!("DoNotSchedule"));
}

#[test]
fn the_servers_security_is_the_users_where_the_user_says_so() {
    let server = container(
        &of(&STDIO.replace("image: ", "securityContext: {runAsNonRoot: true, runAsUser: 1000}, image: ")),
        SERVER,
    );
    assert_eq!(
        value(&server.security_context.unwrap()),
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true, "runAsUser": 1000})
    );
}

#[test]
fn what_the_pods_read_is_in_their_annotations_as_a_hash() {
    let service = validated(STDIO).unwrap();
    let settings = settings();
    let with = |references_hash| {
        let salt = salt();
        template(&build(
            &service,
            Surroundings { settings: &settings, default_broker_secret: None, references_hash, salt: &salt },
        ))
    };
    assert_eq!(with(Some("abc"))["metadata"]["annotations"]["mcp-mqtt.io/references-hash"], json!("abc"));
    assert_eq!(with(None)["metadata"]["annotations"].get("mcp-mqtt.io/references-hash"), None);
}
