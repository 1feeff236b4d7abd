use k8s_openapi::ByteString;

use crate::controller::{
    build::RESERVED_VOLUMES,
    fixtures::{STDIO, service, settings, validated},
};

use super::*;
use crate::settings::DefaultBroker;

fn error(spec: &str) -> (&'static str, String) {
    let error = validated(spec).unwrap_err();
    (error.reason(), error.to_string())
}

#[test]
fn the_server_name_is_namespace_and_name_unless_said() {
    assert_eq!(validated(STDIO).unwrap().server_name, "meteo/weather");
    assert_eq!(validated(&format!("{STDIO}\nserverName: sky/report")).unwrap().server_name, "sky/report");
}

#[test]
fn the_owner_is_the_service_and_waits_for_its_children() {
    let owner = validated(STDIO).unwrap().identity.owner;
    assert_eq!(
        (owner.uid.as_str(), owner.controller, owner.block_owner_deletion),
        ("uid-of-weather", Some(true), Some(true))
    );
}

#[test]
fn a_service_without_any_broker_is_told_both_ways_out() {
    let settings = Settings { default_broker: None, ..settings() };
    let error = validate(&service(STDIO), &Fetched::default(), &settings).unwrap_err();
    assert_eq!(error.reason(), reasons::NO_BROKER);
    assert!(
        error.to_string().contains("spec.broker.url") && error.to_string().contains("default broker"),
        "{error}"
    );
}

#[test]
fn a_default_broker_without_its_secret_names_the_secret() {
    let mut settings = settings();
    settings.default_broker.as_mut().unwrap().secret = Some("hub-credentials".to_owned());
    let error = validate(&service(STDIO), &Fetched::default(), &settings).unwrap_err();
    assert_eq!(error.reason(), reasons::REFERENCE_NOT_FOUND);
    assert!(error.to_string().contains("hub-credentials"), "{error}");
}

#[test]
fn what_the_schema_cannot_judge_is_named_by_its_field() {
    for (more, reason, says) in [
        (
            "rbac: {roles: [{name: a, description: b, allowedMethods: [], allowedTools: some, allowedResources: all}]}",
            reasons::INVALID_SPEC,
            "spec.rbac.roles[0].allowedTools must be \"all\" or a list of texts",
        ),
        (
            "broker: {url: 'mqtt://sea.example:99999'}",
            reasons::INVALID_SPEC,
            "spec.broker.url is not a URL: invalid port number",
        ),
        ("serverName: a+b/c", reasons::INVALID_SPEC, "spec.serverName cannot be used: "),
        (
            "gateway: {keepAlive: soon}",
            reasons::INVALID_SPEC,
            "spec.gateway.keepAlive must be a duration such as 30s",
        ),
        (
            "gateway: {otlpEndpoint: 'ftp://collector'}",
            reasons::INVALID_SPEC,
            "spec.gateway.otlpEndpoint must be an http:// or https:// URL",
        ),
        (
            "gateway: {otlpEndpoint: 'http://me:secret@collector:4318'}",
            reasons::INVALID_SPEC,
            "spec.gateway.otlpEndpoint must not contain credentials: they belong in gateway.env",
        ),
        (
            "gateway: {env: [{name: OTEL_TRACES_SAMPLER, value: always_on}, {name: LD_PRELOAD, value: /x}]}",
            reasons::INVALID_SPEC,
            "spec.gateway.env[1] must not set LD_PRELOAD: it takes OpenTelemetry's variables only, whose names begin with OTEL_",
        ),
        (
            "gateway: {log: {level: 'a=b=c'}}",
            reasons::INVALID_SPEC,
            "the gateway would refuse its configuration: --log",
        ),
        (
            "podTemplate: {spec: {nodeSelectr: {}}}",
            reasons::INVALID_POD_TEMPLATE,
            "spec.podTemplate: unknown field spec.nodeSelectr",
        ),
    ] {
        let (found, message) = error(&format!("{STDIO}\n{more}"));
        assert_eq!(found, reason, "{more}");
        assert!(message.starts_with(says), "{more}: {message}");
    }
}

#[test]
fn the_servers_mounts_leave_the_operators_volumes_alone() {
    let with_mount = |volume: &str| {
        let server = "server: {image: registry.example/weather:3";
        STDIO.replace(server, &format!("{server}, volumeMounts: [{{name: {volume}, mountPath: /x}}]"))
    };
    assert!(validated(&with_mount("their-data")).is_ok());
    for volume in RESERVED_VOLUMES {
        let (reason, message) = error(&with_mount(volume));
        assert_eq!(reason, reasons::INVALID_SPEC);
        assert!(
            message.starts_with(&format!("spec.server.volumeMounts[0] must not mount {volume}: ")),
            "{message}"
        );
    }
}

#[test]
fn the_brokers_credentials_are_for_the_gateway_alone() {
    let broker = "broker: {url: 'mqtts://sea.example', auth: {passwordSecret: login}, \
        tls: {clientCertificateSecret: badge, ca: {secretKeyRef: {name: roots}}}}";
    let server = |more: &str| STDIO.replace("weather:3}", &format!("weather:3, {more}}}"));
    let of_key = |secret: &str, key: &str| {
        server(&format!("env: [{{name: A, valueFrom: {{secretKeyRef: {{name: {secret}, key: {key}}}}}}}]"))
    };
    let template = |more: &str| format!("{STDIO}\npodTemplate: {{spec: {{{more}}}}}");
    let whole =
        server("envFrom: [{configMapRef: {name: login}}, {secretRef: {name: login, optional: true}}]");
    let volume = template("volumes: [{name: a, secret: {secretName: badge}}]");
    let item = "volumes: [{name: a, projected: {sources: [{secret: {name: badge, items: [{key: tls.key, path: k}]}}]}}]";
    let more = template("containers: [{name: more, envFrom: [{secretRef: {name: login}}]}]");
    for (spec, field, secret) in [
        (of_key("login", "password"), "server.env[0]", "login"),
        (of_key("badge", "tls.key"), "server.env[0]", "badge"),
        (whole, "server.envFrom[1]", "login"),
        (volume, "podTemplate.spec.volumes[0]", "badge"),
        (template(item), "podTemplate.spec.volumes[0].projected.sources[0]", "badge"),
        (more, "podTemplate.spec.containers[0].envFrom[0]", "login"),
    ] {
        let (reason, said) = error(&format!("{spec}\n{broker}"));
        let in_template = field.starts_with("podTemplate");
        let expected = if in_template { reasons::INVALID_POD_TEMPLATE } else { reasons::INVALID_SPEC };
        assert_eq!(reason, expected, "{spec}");
        let problem = format!("must not read the broker's credentials from the Secret {secret}: only");
        assert!(said.starts_with(&format!("spec.{field} {problem}")), "{said}");
        assert!(validated(&spec).is_ok(), "with another broker they are none");
    }
    // Another key of the same Secret, a ConfigMap of the same name, and what is no secret.
    let map = server("envFrom: [{configMapRef: {name: login}}]");
    for spec in [of_key("login", "api-key"), of_key("roots", "ca.crt"), map] {
        assert!(validated(&format!("{spec}\n{broker}")).is_ok(), "{spec}");
    }
}

#[test]
fn the_copy_of_the_default_brokers_credentials_is_for_the_gateway_alone() {
    let default = DefaultBroker {
        url: Url::parse("mqtts://hub.example:8883").unwrap(),
        secret: Some("hub".to_owned()),
        token: None,
    };
    let settings = Settings { default_broker: Some(default), ..settings() };
    let data = [("username", "u"), ("password", "p"), ("ca.crt", "c")];
    let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.into())));
    let fetched = Fetched { default_broker_secret: Some(data.into()) };
    let with = |more: &str| {
        let spec = STDIO.replace("weather:3}", "weather:3, envFrom: [{secretRef: {name: weather-broker}}]}");
        validate(&service(&format!("{spec}\n{more}")), &fetched, &settings)
    };
    let said = with("").unwrap_err().to_string();
    assert!(said.starts_with("spec.server.envFrom[0] must not read the broker's credentials"), "{said}");
    assert!(with("broker: {url: 'mqtt://own.example'}").is_ok(), "there is no copy");
}

#[test]
fn what_concerns_the_registry_is_usable_where_the_rest_is_not() {
    let spec = |rest: &str| {
        format!(
            "{STDIO}
{rest}
serverName: sky/report
description: tells the weather
autoscaling: {{minReplicas: 0, maxReplicas: 2, idleSeconds: 7, wakeTimeoutSeconds: 9}}
broker: {{url: 'mqtt://sea.example', auth: {{passwordSecret: login}}}}
"
        )
    };
    let of = |spec: &str| validate(&for_registry(&service(spec)), &Fetched::default(), &settings());
    let valid = validated(&spec("")).unwrap();
    for typo in [
        "podTemplate: {spec: {nodeSelecter: {}}}",
        "gateway: {env: [{name: PATH, value: /bin}]}",
        "rbac: {roles: [{name: a, description: b, allowedMethods: [], allowedTools: some, allowedResources: all}]}",
    ] {
        let spec = spec(typo);
        assert!(validated(&spec).is_err(), "{typo}");
        let known = of(&spec).unwrap();
        assert_eq!(
            (&known.identity, &known.server_name, &known.broker, &known.gateway.description, known.replicas),
            (&valid.identity, &valid.server_name, &valid.broker, &valid.gateway.description, valid.replicas),
            "{typo}"
        );
        assert_eq!(known.autoscaling.unwrap().sleep, valid.autoscaling.as_ref().unwrap().sleep);
        assert_eq!(known.references, valid.references);
    }
    assert!(
        of(&format!("{STDIO}\nbroker: {{url: 'mqtt://sea.example:99999'}}")).is_err(),
        "no broker is known"
    );
}
