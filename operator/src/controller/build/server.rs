//! The server's container: the user's, with the shim as its entrypoint where the transport is stdio, and the drain
//! before its end.

use k8s_openapi::{
    DeepMerge,
    api::core::v1::{Capabilities, Container, ExecAction, Lifecycle, LifecycleHandler, SecurityContext},
};
use mcp_mqtt_sidecar::config::{BIN_DIR, BINARY, RUN_DIR};

use super::{BIN_VOLUME, RUN_VOLUME, SERVER, gateway::mount};
use crate::controller::validate::{Backend, ValidService};

/// How much longer than the gateway's own deadline the `preStop` waits for the end of a drain.
const WAIT_BEYOND_DRAIN_SECONDS: u64 = 10;
pub(super) fn build_server(service: &ValidService) -> Container {
    let spec = &service.server;
    let mut mounts = vec![mount(BIN_VOLUME, BIN_DIR, true), mount(RUN_VOLUME, RUN_DIR, false)];
    mounts.extend(spec.volume_mounts.iter().flatten().cloned());
    let mut security_context = default_security_context();
    if let Some(own) = &spec.security_context {
        security_context.merge_from((**own).clone());
    }
    Container {
        name: SERVER.to_owned(),
        image: Some(spec.image.clone()),
        image_pull_policy: spec.image_pull_policy.map(|policy| policy.as_str().to_owned()),
        command: command(service),
        args: spec.args.clone(),
        env: spec.env.clone(),
        env_from: spec.env_from.clone(),
        working_dir: spec.working_dir.clone(),
        ports: spec.ports.clone(),
        resources: spec.resources.clone(),
        volume_mounts: Some(mounts),
        liveness_probe: spec.liveness_probe.as_deref().cloned(),
        readiness_probe: spec.readiness_probe.as_deref().cloned(),
        startup_probe: spec.startup_probe.as_deref().cloned(),
        security_context: Some(security_context),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                exec: Some(ExecAction { command: Some(drain_command(service)) }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        ..Container::default()
    }
}

/// No user id here: an unmodified image runs as the user it was made for.
fn default_security_context() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

fn binary() -> String {
    format!("{BIN_DIR}/{BINARY}")
}

/// `server.args` follow this as the container's args: the shim's command ends with the user's.
fn command(service: &ValidService) -> Option<Vec<String>> {
    let Backend::Stdio { command, prewarm } = &service.backend else { return service.server.command.clone() };
    // One that is being ended counts, and a new session need not wait for that: after a lost connection all sessions
    // begin anew. One more is for the gateway's own question whether the server answers.
    let wanted = service.gateway.limits.max_sessions.saturating_add(prewarm.unsigned_abs());
    let max_processes = wanted.saturating_mul(2).saturating_add(1);
    let shim = [
        binary(),
        "shim".to_owned(),
        "run".to_owned(),
        format!("--prewarm={prewarm}"),
        format!("--max-processes={max_processes}"),
        "--".to_owned(),
    ];
    Some(shim.into_iter().chain(command.iter().cloned()).collect())
}

fn drain_command(service: &ValidService) -> Vec<String> {
    let seconds = service.gateway.drain_timeout.as_secs() + WAIT_BEYOND_DRAIN_SECONDS;
    vec![binary(), "shim".to_owned(), "drain".to_owned(), format!("--timeout={seconds}s")]
}
