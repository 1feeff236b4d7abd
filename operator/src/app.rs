//! Start and end of `run`: everything is read and checked, then the port is bound, then leadership is sought, and
//! only the leader works.

use std::{process::ExitCode, sync::Arc, time::Duration};

use kube::{Client, runtime::events::Reporter};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    admin::{self, AdminError, Readiness, Shown},
    api_client,
    cli::{KedaArgs, RunArgs, SessionMetricsArgs},
    controller::{
        self,
        events::EventWriter,
        scope::{Failures, Scope, ServiceRef},
        watches::{self, DefaultSecret, Optional},
    },
    keda,
    leader::{Candidate, Leadership},
    metrics::Metrics,
    names::{self, FIELD_MANAGER},
    observe::{CHANGED_CAPACITY, Observations, Observer},
    registry::{RegistryFeed, controller as registry_controller},
    salt::{Salt, SaltError},
    serving::Pulse,
    session_metrics::{counts::Counts, endpoint::Place, server},
    settings::{Settings, SettingsError},
    telemetry::{self, TelemetryError},
    watched::{Parts, Watched},
};

/// How the operator calls itself towards the API server.
const USER_AGENT: &str = concat!("mcp-mqtt-operator/", env!("CARGO_PKG_VERSION"));
/// Reconciles under way may take this long to end when the operator stops.
const STOP: Duration = Duration::from_secs(10);
/// How often readiness is brought up to date while the watches start.
const SYNC_POLL: Duration = Duration::from_millis(100);

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The command line.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The log filter.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The admin port.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// No way to the API server.
    #[error(
        "no Kubernetes client: {0}; in a pod the operator needs its ServiceAccount's token, elsewhere KUBECONFIG"
    )]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The Lease.
    #[error("the Lease {namespace}/{name}: {source}")]
    Lease {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What went wrong.
        #[source]
        source: Box<kube::Error>,
    },
    /// The salt.
    #[error(transparent)]
    Salt(#[from] SaltError),
    /// Signals.
    #[error("signals cannot be caught: {0}")]
    Signal(#[source] std::io::Error),
    /// The work.
    #[error(
        "the watch over the McpServices ended by itself: this is a bug; the operator ends, and is started anew"
    )]
    Ended,
    /// Leadership.
    #[error("another operator leads now: this one ends, and is started anew as a follower")]
    LeadershipLost,
}

impl AppError {
    /// Whether the command line is at fault: nothing was started.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Settings(_) | Self::Telemetry(_))
    }
}

/// The command line cannot be used (`EX_USAGE` of sysexits.h); nothing was started.
const EXIT_USAGE: u8 = 64;
/// The work is waiting for answers: two threads are plenty.
const THREADS: usize = 2;

/// `run` as a process: its runtime, its words on stderr, its exit code.
pub fn main(args: RunArgs) -> ExitCode {
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("failed: no runtime: {error}");
                return ExitCode::FAILURE;
            }
        };
    let result = runtime.block_on(run(args));
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error}");
            if error.is_usage() { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps it from starting, or ends it.
pub async fn run(args: RunArgs) -> Result<(), AppError> {
    let args = args.without_blanks();
    let settings = Settings::new(&args)?;
    telemetry::start(args.log_format, &args.log)?;
    let shown = Shown {
        readiness: Readiness::pending("waiting for the API server"),
        pulse: Pulse::default(),
        metrics: Arc::new(Metrics::new()),
    };
    let address = admin::serve(args.admin_address, shown.clone()).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %address, "starting");
    let stop = stop_signal()?;
    let work = async {
        let client = api_client::connect(USER_AGENT).await.map_err(AppError::Client)?;
        lead(&args, settings, client, &shown, stop.clone()).await
    };
    let mut stopped = stop.clone();
    tokio::select! {
        // A stop while the API server or the Lease is waited for ends at once; a leader's work ends by itself.
        biased;
        result = work => result,
        () = async { let _ = stopped.wait_for(|stop| *stop).await; tokio::time::sleep(STOP + STOP).await; } => {
            tracing::warn!("it did not end in time");
            Ok(())
        }
    }
}

/// Turns true on SIGTERM or SIGINT.
fn stop_signal() -> Result<watch::Receiver<bool>, AppError> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).map_err(AppError::Signal)?,
        signal(SignalKind::interrupt()).map_err(AppError::Signal)?,
    );
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        let _ = sender.send(true);
        sender.closed().await; // receivers must never see it dropped
    });
    Ok(receiver)
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn lead(
    args: &RunArgs,
    settings: Settings,
    client: Client,
    shown: &Shown,
    stop: watch::Receiver<bool>,
) -> Result<(), AppError> {
    let Shown { readiness, metrics, .. } = shown;
    if !args.leader_election {
        metrics.leads(true);
        return work(args, settings, client, shown, stop).await;
    }
    let identity = args.identity.clone().unwrap_or_else(default_identity);
    let failed = |source| AppError::Lease {
        namespace: args.namespace.clone(),
        name: args.lease_name.clone(),
        source: Box::new(source),
    };
    let candidate = Candidate {
        client: client.clone(),
        namespace: args.namespace.clone(),
        lease: args.lease_name.clone(),
        identity: identity.clone(),
    };
    let mut leadership = Leadership::seek(candidate).await.map_err(failed)?;
    // A follower is ready: it waits, as it should.
    readiness.set(Vec::new());
    tracing::info!(identity, "waiting for the Lease {}/{}", args.namespace, args.lease_name);
    tokio::select! {
        won = leadership.won() => if !won { return Err(AppError::LeadershipLost) },
        () = stopped(stop.clone()) => {
            leadership.release().await;
            return Ok(());
        }
    }
    metrics.leads(true);
    tracing::info!(identity, "leading");
    let result = tokio::select! {
        result = work(args, settings, client, shown, stop) => result,
        () = leadership.lost() => Err(AppError::LeadershipLost),
    };
    metrics.leads(false);
    leadership.release().await;
    result
}

/// The leader's work: a controller for each watched namespace, or one for all.
async fn work(
    args: &RunArgs,
    settings: Settings,
    client: Client,
    shown: &Shown,
    stop: watch::Receiver<bool>,
) -> Result<(), AppError> {
    let Shown { readiness, pulse, metrics } = shown;
    let salt_name = format!("{}-salt", args.lease_name);
    let salt = tokio::select! {
        salt = Salt::fetch(client.clone(), &args.namespace, &salt_name) => salt?,
        () = stopped(stop.clone()) => return Ok(()),
    };
    let namespaces: Vec<Option<&str>> = if args.watch_namespaces.is_empty() {
        vec![None]
    } else {
        args.watch_namespaces.iter().map(|name| Some(name.as_str())).collect()
    };
    let mut tasks = JoinSet::new();
    let registry = RegistryFeed::default();
    let mut watched = Vec::new();
    for namespace in namespaces {
        let part =
            Part { args, settings: &settings, client: &client, salt: &salt, metrics, registry: &registry };
        watched.push(part.start(namespace, &mut tasks, stop.clone()));
    }
    let watched: Parts = watched.into_iter().collect();
    let default_secret = watched.any().and_then(|part| part.stores.default_broker_secret.clone());
    let setting = registry_controller::Setting {
        client: client.clone(),
        cluster: settings.cluster_name.clone(),
        mark: salt.owner_mark(),
        salt: salt.clone(),
        client_id: names::operator_id(&settings.cluster_name, &args.namespace, &args.lease_name),
        default_broker: settings.default_broker.clone(),
        default_secret,
        watched: watched.clone(),
        registry,
        metrics: metrics.clone(),
        pulse: pulse.clone(),
    };
    let counts = Counts::new(watched.clone());
    // Nobody waits for the first lists of all namespaces: one that may not be listed holds up no other. What is not known
    // of it meanwhile, each of these has to see by itself.
    tokio::select! {
        () = tell_sync(&watched, readiness) => {}
        () = registry_controller::run(setting) => {}
        () = session_metrics(args, client.clone(), counts.clone()) => {}
        () = keda_scaler(args, client, counts) => {}
        () = stopped(stop.clone()) => {}
        // They end when it is time to stop; any other end would leave a leader that does nothing.
        _ = tasks.join_next() => if !*stop.borrow() { return Err(AppError::Ended) },
    }
    let ended = async { while tasks.join_next().await.is_some() {} };
    if timeout(STOP, ended).await.is_err() {
        tracing::warn!("reconciles were still under way; the next operator goes on with them");
    }
    Ok(())
}

/// Serves what the autoscaler asks for, where the chart has made a way for it.
async fn session_metrics(args: &RunArgs, client: Client, counts: Counts) {
    let args = (&args.namespace, &args.session_metrics);
    let (
        namespace,
        SessionMetricsArgs {
            session_metrics_service: Some(service),
            session_metrics_port,
            session_metrics_certificate_lifetime: lifetime,
            pod_ip: Some(ip),
        },
    ) = args
    else {
        return std::future::pending().await;
    };
    let place = Place {
        namespace: namespace.clone(),
        service: service.clone(),
        address: (*ip, *session_metrics_port).into(),
    };
    server::serve(client, counts, place, *lifetime).await;
}

/// Answers KEDA, where the chart has made a way for it.
async fn keda_scaler(args: &RunArgs, client: Client, counts: Counts) {
    let KedaArgs { keda_scaler_service: Some(service), keda_scaler_port } = &args.keda else {
        return std::future::pending().await;
    };
    let Some(ip) = args.session_metrics.pod_ip else { return std::future::pending().await };
    let place = Place {
        namespace: args.namespace.clone(),
        service: service.clone(),
        address: (ip, *keda_scaler_port).into(),
    };
    keda::server::serve(client, counts, place).await;
}

/// Ready as soon as all watches are; until then readiness names those that are not. It does not end.
async fn tell_sync(watched: &Parts, readiness: &Readiness) {
    loop {
        let unsynced = watched.unsynced();
        let is_synced = unsynced.is_empty();
        let pending =
            |what| format!("no first list yet of {what}; may the operator list and watch them there?");
        readiness.set(unsynced.into_iter().map(pending).collect());
        if is_synced {
            tracing::info!("watching");
            return std::future::pending().await;
        }
        tokio::time::sleep(SYNC_POLL).await;
    }
}

/// What the controllers have in common.
struct Part<'a> {
    args: &'a RunArgs,
    settings: &'a Settings,
    client: &'a Client,
    salt: &'a Salt,
    metrics: &'a Arc<Metrics>,
    registry: &'a RegistryFeed,
}

impl Part<'_> {
    fn start(
        &self,
        namespace: Option<&str>,
        tasks: &mut JoinSet<()>,
        stop: watch::Receiver<bool>,
    ) -> Watched {
        let secret = self.settings.default_broker.as_ref().and_then(|broker| broker.secret.as_deref());
        let secret = secret.map(|name| DefaultSecret { namespace: &self.args.namespace, name });
        let applied = Arc::new(controller::apply::AppliedMemory::default());
        let (stores, watches) = watches::watch(
            self.client,
            namespace,
            secret.as_ref(),
            Optional {
                keda: self.settings.keda_scaler.is_some(),
                network_policies: self.args.network_policy_from.is_some(),
            },
            &applied,
        );
        let observations = Arc::new(Observations::default());
        let (sender, changed) = mpsc::channel::<ServiceRef>(CHANGED_CAPACITY);
        let part = Watched {
            namespace: namespace.map(str::to_owned),
            stores: stores.clone(),
            observations: observations.clone(),
            changed: sender.clone(),
        };
        let observer = Observer {
            stores: stores.clone(),
            watched: namespace.unwrap_or("*").to_owned(),
            observations: observations.clone(),
            interval: self.args.status_interval,
            metrics: self.metrics.clone(),
            changed: sender,
        };
        let reporter =
            Reporter { controller: FIELD_MANAGER.to_owned(), instance: self.args.identity.clone() };
        let (events, write_events) = EventWriter::new(self.client.clone(), reporter, self.metrics.clone());
        let scope = Arc::new(Scope {
            client: self.client.clone(),
            settings: self.settings.clone(),
            salt: self.salt.clone(),
            stores,
            observations,
            metrics: self.metrics.clone(),
            registry: self.registry.clone(),
            events,
            references: controller::resolve::ReferenceMemory::default(),
            applied,
            contests: controller::apply::Contests::default(),
            statuses: controller::status::StatusMemory::default(),
            failures: Failures::default(),
            backlog: controller::backlog::Backlog::default(),
        });
        let changed =
            futures::stream::unfold(
                changed,
                |mut changed| async move { Some((changed.recv().await?, changed)) },
            );
        let concurrency = self.args.concurrency;
        tasks.spawn(async move {
            tokio::select! {
                () = controller::run(scope, watches, changed, write_events, concurrency, stopped(stop)) => {}
                () = observer.run() => {}
            }
        });
        part
    }
}

/// The host's name, and a number for the case that two of them share it.
fn default_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}
