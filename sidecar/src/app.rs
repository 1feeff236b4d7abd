//! The gateway: parse, check, build, run, drain. Wiring only.

use std::{process::ExitCode, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};

use crate::{
    admin,
    backend::{Backend, BackendConfigError},
    bridge::Bridge,
    cli::EXIT_USAGE,
    config::{ConfigError, GatewayConfig, Identity},
    drain::{self, Drainer, GOODBYE},
    health::{self, Health},
    metrics::Metrics,
    process,
    readiness::Board,
    registrar::Registrar,
    telemetry,
    traces::{Exporter, Settings, Tracer, TracesError},
};

/// Shows the configuration with all its defaults, as a command line. Exit code 64 when it cannot be used.
pub fn print_config(config: &GatewayConfig) -> ExitCode {
    match judge(config) {
        Ok(()) => {
            println!("{}", config.to_command_line());
            ExitCode::SUCCESS
        }
        Err(error) => unusable(&error),
    }
}

/// Tells all that is wrong with a configuration. Exit code 64.
pub fn unusable(error: &ConfigError) -> ExitCode {
    eprintln!("{error}\nSee `{} gateway --help`.", crate::config::BINARY);
    ExitCode::from(EXIT_USAGE)
}

/// Whether the configuration can be used, without a look at the world.
///
/// # Errors
/// All its problems.
pub fn judge(config: &GatewayConfig) -> Result<(), ConfigError> {
    check(config).map(drop)
}

/// Runs the gateway until SIGTERM (or SIGINT), then drains. Exit code 64 when the configuration cannot be used, before
/// anything was started.
pub fn run(config: GatewayConfig) -> ExitCode {
    let checked = match check(&config) {
        Ok(checked) => checked,
        Err(error) => return unusable(&error),
    };
    telemetry::init(config.log_format, &config.log);
    process::raise_open_files(); // processes of our own get back what it was
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start: {error}")),
    };
    runtime.block_on(serve(config, checked))
}

/// What the configuration means.
struct Checked {
    identity: Identity,
    backend: Backend,
    traces: Option<Settings>,
}

/// The configuration's problems, all of them.
fn check(config: &GatewayConfig) -> Result<Checked, ConfigError> {
    let identity = config.check();
    let backend = Backend::from_config(&config.backend, &config.backend_options, &config.limits);
    match (identity, backend, traces(config)) {
        (Ok(identity), Ok(backend), Ok(traces)) => Ok(Checked { identity, backend, traces }),
        (identity, backend, traces) => {
            let mut problems = identity.err().map(|error| error.problems).unwrap_or_default();
            // A bad URL is among them already.
            let another = |error: &BackendConfigError| {
                problems.is_empty() || !matches!(error, BackendConfigError::BadUrl { .. })
            };
            problems.extend(backend.err().filter(another).map(|error| error.to_string()));
            let another =
                |error: &TracesError| problems.is_empty() || !matches!(error, TracesError::Endpoint);
            problems.extend(traces.err().filter(another).map(|error| error.to_string()));
            Err(ConfigError { problems })
        }
    }
}

fn traces(config: &GatewayConfig) -> Result<Option<Settings>, TracesError> {
    let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
    let identity = [
        ("service.name", config.server_name.as_str()),
        ("service.instance.id", config.server_id.as_str()),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ];
    Settings::read(endpoint, &identity, |name| std::env::var(name).ok())
}

async fn serve(config: GatewayConfig, checked: Checked) -> ExitCode {
    let Checked { identity, backend, traces } = checked;
    let config = Arc::new(config);
    let metrics = Metrics::new();
    metrics.sessions_limit.set(config.limits.max_sessions.into());
    let board = Board::new(&config.server_id, &config.server_name, metrics.clone());
    let (mut terminate, mut interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                return failed(&format!("cannot listen for signals: {error}"));
            }
        };
    if let Some(address) = config.admin_address {
        match admin::serve(address, board.clone(), metrics.clone()) {
            Ok(address) => tracing::info!(%address, "serving /healthz, /readyz, /status and /metrics"),
            Err(error) => return failed(&format!("cannot serve on --admin-address {address}: {error}")),
        }
    }
    let started: Option<(Tracer, Exporter)> =
        match traces.map(|settings| Tracer::start(settings, metrics.clone())).transpose() {
            Ok(started) => started,
            Err(error) => return failed(&error.to_string()),
        };
    let (tracer, exporter) = started.unzip();
    let (drainer, drains) = drain::channel();
    if let Some(path) = &config.drain_socket {
        match drain::listen(path, drainer.clone(), config.drain_timeout) {
            Ok(socket) => drop(tokio::spawn(socket)),
            Err(error) => {
                return failed(&format!("cannot serve on --drain-socket {}: {error}", path.display()));
            }
        }
    }

    let processes = match backend.start() {
        Ok(processes) => processes,
        Err(error) => return failed(&format!("cannot look after the MCP server's processes: {error}")),
    };
    let (to_bridge, health) = watch::channel(Health::unknown());
    tokio::spawn(health::watch(backend.clone(), board.clone(), to_bridge));
    let registrar = Registrar::new(config.clone(), identity, board.clone(), metrics.clone());
    let bridge = Bridge::new(config.clone(), backend, health, drains, board, metrics, tracer);
    tokio::spawn(bridge.run(registrar));

    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
    }
    // Without a drain the processes see their stdin close, and get SIGTERM when this one is gone.
    tokio::select! {
        code = async {
            let code = drain_and_end(drainer, &config).await;
            if let Some(processes) = processes {
                processes.stop().await;
            }
            if let Some(exporter) = exporter {
                exporter.finish().await;
            }
            code
        } => code,
        _ = terminate.recv() => failed("a second signal: ending without a drain"),
        _ = interrupt.recv() => failed("a second signal: ending without a drain"),
    }
}

async fn drain_and_end(drainer: Drainer, config: &GatewayConfig) -> ExitCode {
    let patience = config.drain_timeout;
    match timeout(patience + GOODBYE, drainer.drain(patience)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => failed(&format!("not drained within {:?}: the broker does not answer", patience + GOODBYE)),
    }
}

fn failed(message: &str) -> ExitCode {
    tracing::error!("{message}");
    ExitCode::FAILURE
}
