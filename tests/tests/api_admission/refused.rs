//! Specs that are refused, and with which words.

use serde_json::{Value, json};

use super::{broker, http, role, sse, with};

/// A spec, and what the API server says of it.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn refused() -> Vec<(Value, &'static str)> {
    let long = "x".repeat(600);
    vec![
        (
            with(&json!({"autoscaling": {"minReplicas": 4, "maxReplicas": 3}})),
            "autoscaling.minReplicas must not be more than autoscaling.maxReplicas",
        ),
        (
            with(&json!({"autoscaling": {"maxReplicas": 3, "sessions": {}}})),
            "autoscaling.sessions needs exactly one of targetPerReplica and targetUtilization",
        ),
        (
            with(
                &json!({"autoscaling": {"maxReplicas": 3, "sessions": {"targetPerReplica": 5, "targetUtilization": 50}}}),
            ),
            "autoscaling.sessions needs exactly one of targetPerReplica and targetUtilization",
        ),
        (
            with(&json!({"autoscaling": {"maxReplicas": 3, "idleSeconds": 60}})),
            "autoscaling.idleSeconds and autoscaling.wakeTimeoutSeconds are for autoscaling.minReplicas 0",
        ),
        (
            with(&json!({"autoscaling": {"minReplicas": 1, "maxReplicas": 3, "wakeTimeoutSeconds": 60}})),
            "autoscaling.idleSeconds and autoscaling.wakeTimeoutSeconds are for autoscaling.minReplicas 0",
        ),
        (
            with(&json!({"autoscaling": {"minReplicas": 0, "maxReplicas": 3, "idleSeconds": 0}})),
            "should be greater than or equal to 1",
        ),
        (
            with(&json!({"serverName": "flat"})),
            "spec.serverName: Invalid value: \"flat\": serverName must contain at least one '/', as in <namespace>/<name>",
        ),
        (with(&json!({"serverName": "/a/b"})), "serverName must not start with '/'"),
        (with(&json!({"serverName": "a/+"})), "serverName must not contain '+' or '#'"),
        (with(&json!({"serverName": "a/#"})), "serverName must not contain '+' or '#'"),
        (with(&json!({"serverName": "a/b c"})), "serverName must not contain spaces or control characters"),
        (with(&json!({"serverName": "a/b\n"})), "serverName must not contain spaces or control characters"),
        (
            with(&json!({"serverName": ""})),
            "spec.serverName: Invalid value: \"\": spec.serverName in body should be at least 1 chars long",
        ),
        (
            with(&json!({"serverName": format!("a/{long}")})),
            "spec.serverName: Too long: may not be more than 512 bytes",
        ),
        (
            with(&json!({"description": long.repeat(10)})),
            "spec.description: Too long: may not be more than 4096 bytes",
        ),
        (
            with(&json!({"replicas": -1})),
            "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0",
        ),
        (with(&json!({"transport": null})), "spec.transport: Required value"),
        (with(&json!({"server": null})), "spec.server: Required value"),
        (with(&json!({"server": {"image": null}})), "spec.server.image: Required value"),
        (
            with(&json!({"server": {"image": ""}})),
            "spec.server.image: Invalid value: \"\": spec.server.image in body should be at least 1 chars long",
        ),
        (
            with(&json!({"server": {"imagePullPolicy": "Sometimes"}})),
            "spec.server.imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            with(
                &json!({"server": {"volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "mcp-mqtt-broker", "mountPath": "/x"}]}}),
            ),
            "server.volumeMounts must not name mcp-mqtt-bin, mcp-mqtt-run or mcp-mqtt-broker: these volumes are the operator's own",
        ),
        (
            with(&json!({"server": {"volumeMounts": [{"name": "mcp-mqtt-bin", "mountPath": "/x"}]}})),
            "server.volumeMounts must not name mcp-mqtt-bin, mcp-mqtt-run or mcp-mqtt-broker: these volumes are the operator's own",
        ),
        (
            with(&json!({"transport": {"stdio": null}})),
            "transport needs exactly one of stdio, streamableHttp and sse",
        ),
        (
            with(&json!({"transport": {"streamableHttp": {"port": 3001}}})),
            "transport needs exactly one of stdio, streamableHttp and sse",
        ),
        (
            with(&json!({"transport": {"sse": {"port": 3001}}})),
            "transport needs exactly one of stdio, streamableHttp and sse",
        ),
        (
            with(
                &json!({"transport": {"stdio": null, "streamableHttp": {"port": 3001}, "sse": {"port": 3001}}}),
            ),
            "transport needs exactly one of stdio, streamableHttp and sse",
        ),
        (
            with(&json!({"transport": {"streamableHttp": {"port": 3001}, "sse": {"port": 3001}}})),
            "transport needs exactly one of stdio, streamableHttp and sse",
        ),
        (
            with(&json!({"transport": {"stdio": {"command": []}}})),
            "spec.transport.stdio.command: Invalid value: 0: spec.transport.stdio.command in body should have at least 1 items",
        ),
        (
            with(&json!({"transport": {"stdio": {"command": [""]}}})),
            "stdio.command must start with a program",
        ),
        (
            with(&json!({"transport": {"stdio": {"prewarm": -1}}})),
            "spec.transport.stdio.prewarm in body should be greater than or equal to 0",
        ),
        (
            with(&json!({"transport": {"stdio": {"prewarm": 101}}})),
            "spec.transport.stdio.prewarm in body should be less than or equal to 100",
        ),
        (
            with(&json!({"server": {"command": ["sh"]}})),
            "server.command must not be set with transport.stdio: transport.stdio.command is the command, and server.args follow it",
        ),
        (
            http(&json!({"port": 0})),
            "spec.transport.streamableHttp.port in body should be greater than or equal to 1",
        ),
        (
            http(&json!({"port": 70_000})),
            "spec.transport.streamableHttp.port in body should be less than or equal to 65535",
        ),
        (
            http(&json!({"port": 8079})),
            "streamableHttp.port 8079 is the gateway's own port in the pod: let the server listen on another",
        ),
        (
            http(&json!({"port": 3001, "path": "mcp"})),
            "streamableHttp.path must start with '/' and contain no spaces and no '#'",
        ),
        (
            http(&json!({"port": 3001, "path": "/a b"})),
            "streamableHttp.path must start with '/' and contain no spaces and no '#'",
        ),
        (
            http(&json!({"port": 3001, "path": "/a#b"})),
            "streamableHttp.path must start with '/' and contain no spaces and no '#'",
        ),
        (sse(&json!({"port": 0})), "spec.transport.sse.port in body should be greater than or equal to 1"),
        (
            sse(&json!({"port": 70_000})),
            "spec.transport.sse.port in body should be less than or equal to 65535",
        ),
        (
            sse(&json!({"port": 8079})),
            "sse.port 8079 is the gateway's own port in the pod: let the server listen on another",
        ),
        (
            sse(&json!({"port": 3001, "path": "sse"})),
            "sse.path must start with '/' and contain no spaces and no '#'",
        ),
        (
            sse(&json!({"port": 3001, "path": "/a b"})),
            "sse.path must start with '/' and contain no spaces and no '#'",
        ),
        (
            sse(&json!({"port": 3001, "path": "/a#b"})),
            "sse.path must start with '/' and contain no spaces and no '#'",
        ),
        (
            with(&json!({"gateway": {"maxSessions": 0}})),
            "spec.gateway.maxSessions in body should be greater than or equal to 1",
        ),
        (
            with(&json!({"gateway": {"maxMessageBytes": 100}})),
            "spec.gateway.maxMessageBytes in body should be greater than or equal to 1024",
        ),
        (
            with(&json!({"gateway": {"maxInFlight": 0}})),
            "spec.gateway.maxInFlight in body should be greater than or equal to 1",
        ),
        (
            with(&json!({"gateway": {"idleTimeout": "never"}})),
            "spec.gateway.idleTimeout: Invalid value: \"never\": must be a duration such as 500ms, 30s or 1m30s",
        ),
        (
            with(&json!({"gateway": {"workers": 17}})),
            "spec.gateway.workers in body should be less than or equal to 16",
        ),
        (with(&json!({"gateway": {"qos": 2}})), "spec.gateway.qos in body should be less than or equal to 1"),
        (
            with(&json!({"gateway": {"keepAlive": "soon"}})),
            "spec.gateway.keepAlive: Invalid value: \"soon\": must be a duration such as 500ms, 30s or 1m30s",
        ),
        (
            with(&json!({"gateway": {"keepAlive": "500ms"}})),
            "spec.gateway.keepAlive: Invalid value: \"500ms\": must be between 1s and 18h",
        ),
        (
            with(&json!({"gateway": {"keepAlive": "4s"}})),
            "spec.gateway.keepAlive: Invalid value: \"4s\": keepAlive must be at least 5s",
        ),
        (
            with(&json!({"gateway": {"otlpEndpoint": "collector:4318"}})),
            "gateway.otlpEndpoint must be a URL such as http://collector.observability:4318, without credentials",
        ),
        (
            with(&json!({"gateway": {"otlpEndpoint": "http://me:secret@collector:4318"}})),
            "without credentials: they belong in gateway.env as OTEL_EXPORTER_OTLP_HEADERS",
        ),
        (
            with(
                &json!({"gateway": {"env": [{"name": "OTEL_TRACES_SAMPLER", "value": "always_on"}, {"name": "LD_PRELOAD", "value": "/x"}]}}),
            ),
            "gateway.env takes OpenTelemetry's variables only, whose names begin with OTEL_",
        ),
        (
            with(&json!({"gateway": {"timeouts": {"call": "60"}}})),
            "spec.gateway.timeouts.call: Invalid value: \"60\": must be a duration such as 500ms, 30s or 1m30s",
        ),
        (
            with(&json!({"gateway": {"timeouts": {"ping": "19h"}}})),
            "spec.gateway.timeouts.ping: Invalid value: \"19h\": must be between 1s and 18h",
        ),
        (
            with(&json!({"gateway": {"timeouts": {"call": "11m"}}})),
            "timeouts.max must not be less than timeouts.ping, timeouts.call or timeouts.default",
        ),
        (
            with(&json!({"gateway": {"log": {"format": "xml"}}})),
            "spec.gateway.log.format: Unsupported value: \"xml\": supported values: \"json\", \"text\"",
        ),
        (
            with(&json!({"drain": {"timeoutSeconds": -1}})),
            "spec.drain.timeoutSeconds in body should be greater than or equal to 0",
        ),
        (
            with(&json!({"drain": {"timeoutSeconds": 3601}})),
            "spec.drain.timeoutSeconds in body should be less than or equal to 3600",
        ),
        (broker(&json!({})), "spec.broker.url: Required value"),
        (
            broker(&json!({"url": "http://broker"})),
            "broker.url must start with mqtt://, mqtts://, ws:// or wss://",
        ),
        (
            broker(&json!({"url": "mqtt://me:secret@broker"})),
            "broker.url must not contain credentials: they belong in broker.auth",
        ),
        (broker(&json!({"url": "mqtt://"})), "broker.url must be a URL such as mqtts://broker.example:8883"),
        (
            broker(&json!({"url": "mqtt://a b"})),
            "broker.url must be a URL such as mqtts://broker.example:8883",
        ),
        (broker(&json!({"url": "mqtt://broker:99999"})), "broker.url must have a port from 1 to 65535"),
        (
            broker(&json!({"url": "wss://[fd00::1]:65536/mqtt"})),
            "broker.url must have a port from 1 to 65535",
        ),
        (broker(&json!({"url": "mqtt://broker:0"})), "broker.url must have a port from 1 to 65535"),
        (
            broker(&json!({"url": "mqtt://broker", "tls": {}})),
            "broker.tls needs a broker.url with mqtts:// or wss://",
        ),
        (
            broker(&json!({"url": "mqtts://broker", "tls": {"ca": {}}})),
            "broker.tls.ca needs exactly one of secretKeyRef and configMapKeyRef",
        ),
        (
            broker(
                &json!({"url": "mqtts://broker", "tls": {"ca": {"secretKeyRef": {"name": "a"}, "configMapKeyRef": {"name": "b"}}}}),
            ),
            "broker.tls.ca needs exactly one of secretKeyRef and configMapKeyRef",
        ),
        (
            broker(&json!({"url": "mqtt://broker", "auth": {}})),
            "broker.auth needs exactly one of passwordSecret and serviceAccountToken",
        ),
        (
            broker(
                &json!({"url": "mqtt://broker", "auth": {"passwordSecret": "a", "serviceAccountToken": {"audience": "b"}}}),
            ),
            "broker.auth needs exactly one of passwordSecret and serviceAccountToken",
        ),
        (
            broker(
                &json!({"url": "mqtt://broker", "auth": {"serviceAccountToken": {"audience": "a", "expirationSeconds": 1}}}),
            ),
            "spec.broker.auth.serviceAccountToken.expirationSeconds in body should be greater than or equal to 600",
        ),
        (role(&json!({"name": ""})), "spec.rbac.roles[0].name in body should be at least 1 chars long"),
        (
            with(&json!({"rbac": {"roles": [{"name": "reader"}]}})),
            "spec.rbac.roles[0].allowedTools: Required value",
        ),
    ]
}
