//! What clap's parser cannot judge: every problem is found before anything is started, and all are told at once.

use std::{fmt, time::Duration};

use mcp_mqtt_transport::{
    mqtt::KEEP_ALIVE,
    presence::Rbac,
    redact,
    topic::{ServerId, ServerName},
};
use tracing_subscriber::filter::Targets;
use url::Url;

use super::{BackendOptions, GatewayConfig};

/// Schemes under which a broker is reached.
const BROKER_SCHEMES: [&str; 4] = ["mqtt", "mqtts", "ws", "wss"];
/// Of these, the ones with TLS.
const TLS_SCHEMES: [&str; 2] = ["mqtts", "wss"];
/// An error message of our own must fit into the message limit.
const MIN_MESSAGE_BYTES: u32 = 1024;
/// The largest packet of MQTT is 256 MiB; we take four messages' worth, so that what is too large is answered.
const MAX_MESSAGE_BYTES: u32 = 64 * 1024 * 1024;

/// Longer waits are mistyped; and deadlines are to be times that a clock can show.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// The configuration cannot be used: all that is wrong with it, a sentence each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// One sentence a problem; each begins with the argument that it is about.
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// What the configuration's texts mean, once checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `--server-name`.
    pub server_name: ServerName,
    /// `--server-id`.
    pub server_id: ServerId,
    /// `--standby-id`.
    pub standby_id: Option<ServerId>,
    /// `--rbac`.
    pub rbac: Option<Rbac>,
}

impl GatewayConfig {
    /// Judges everything that can be judged without a look at the world.
    ///
    /// # Errors
    /// All problems at once.
    pub fn check(&self) -> Result<Identity, ConfigError> {
        let mut problems = Vec::new();
        let server_name = keep(&mut problems, "--server-name", ServerName::new(&self.server_name));
        let server_id = keep(&mut problems, "--server-id", ServerId::new(&self.server_id));
        let standby_id = self.standby_id.as_deref().map(ServerId::new).transpose();
        let standby_id = keep(&mut problems, "--standby-id", standby_id);
        if self.standby_id.as_ref() == Some(&self.server_id) {
            problems.push("--standby-id is --server-id: it must be no instance's own".to_owned());
        }
        let rbac = self.rbac.as_deref().map(serde_json::from_str::<Rbac>).transpose();
        let rbac = keep(
            &mut problems,
            "--rbac",
            rbac.map_err(|error| format!("is not {{\"roles\": […]}}: {error}")),
        );
        self.check_backend(&mut problems);
        self.check_broker(&mut problems);
        self.check_limits(&mut problems);
        self.check_durations(&mut problems);
        if let Some(url) = &self.otlp_endpoint {
            check_http(&mut problems, "--otlp-endpoint", url, "HOST:PORT");
        }
        keep(
            &mut problems,
            "--log",
            self.log.parse::<Targets>().map_err(|error| format!("is no filter: {error}")),
        );
        match (server_name, server_id, standby_id, rbac) {
            (Some(server_name), Some(server_id), Some(standby_id), Some(rbac)) if problems.is_empty() => {
                Ok(Identity { server_name, server_id, standby_id, rbac })
            }
            _ => Err(ConfigError { problems }),
        }
    }

    fn check_backend(&self, problems: &mut Vec<String>) {
        let BackendOptions { http_ca_file, prewarm, stop_grace } = &self.backend_options;
        let default = BackendOptions::default();
        if self.backend.command.is_empty() && (*prewarm, *stop_grace) != (default.prewarm, default.stop_grace)
        {
            problems.push(
                "--prewarm and --stop-grace are for a command after `--`: where there is a shim, they are its own"
                    .to_owned(),
            );
        }
        if self.backend.command.first().is_some_and(String::is_empty) {
            problems.push("the command after `--` is empty".to_owned());
        }
        let mut has_tls = false;
        for (flag, url) in [("--http-url", &self.backend.http_url), ("--sse-url", &self.backend.sse_url)] {
            let Some(url) = url else { continue };
            has_tls |= url.scheme() == "https";
            check_http(problems, flag, url, "HOST:PORT/PATH");
        }
        if http_ca_file.is_some() && !has_tls {
            problems.push("--http-ca-file is for an --http-url or --sse-url that is https://".to_owned());
        }
    }

    fn check_broker(&self, problems: &mut Vec<String>) {
        let broker = &self.broker;
        let (url, scheme) = (&broker.broker_url, broker.broker_url.scheme());
        // The URL is not shown where it might hold a password.
        if !url.username().is_empty() || url.password().is_some() {
            problems.push(
                "--broker-url holds credentials: give them in files (--broker-username-file, --broker-password-file)"
                    .to_owned(),
            );
        } else if !BROKER_SCHEMES.contains(&scheme) || url.host_str().is_none_or(str::is_empty) {
            let shown = redact::url(url.as_str());
            problems.push(format!(
                "--broker-url {shown} is none of mqtt://, mqtts://, ws://, wss:// with a host"
            ));
        }
        let tls_files = [
            ("--broker-ca-file", &broker.broker_ca_file),
            ("--broker-cert-file", &broker.broker_cert_file),
            ("--broker-key-file", &broker.broker_key_file),
        ];
        for (flag, file) in tls_files {
            if file.is_some() && !TLS_SCHEMES.contains(&scheme) {
                problems.push(format!("{flag} is for mqtts:// and wss://, and --broker-url is {scheme}://"));
            }
        }
        if !KEEP_ALIVE.contains(&broker.keep_alive) {
            let (shortest, longest) = (KEEP_ALIVE.start().as_secs(), KEEP_ALIVE.end().as_secs());
            problems.push(format!("--keep-alive is not between {shortest}s and {longest}s"));
        }
    }

    fn check_limits(&self, problems: &mut Vec<String>) {
        for (flag, value) in
            [("--max-sessions", self.limits.max_sessions), ("--max-in-flight", self.limits.max_in_flight)]
        {
            if value == 0 {
                problems.push(format!("{flag} is 0: nobody could be served"));
            }
        }
        if self.limits.idle_timeout.is_some_and(|timeout| timeout.is_zero()) {
            problems.push("--idle-timeout is 0: leave it out to have no session ended".to_owned());
        }
        let bytes = self.limits.max_message_bytes;
        if !(MIN_MESSAGE_BYTES..=MAX_MESSAGE_BYTES).contains(&bytes) {
            problems.push(format!(
                "--max-message-bytes is {bytes}, not between {MIN_MESSAGE_BYTES} and {MAX_MESSAGE_BYTES}"
            ));
        }
    }

    fn check_durations(&self, problems: &mut Vec<String>) {
        let timeouts = &self.timeouts;
        for (flag, value) in [
            ("--timeout-max", timeouts.timeout_max),
            ("--idle-timeout", self.limits.idle_timeout.unwrap_or_default()),
            ("--drain-timeout", self.drain_timeout),
        ] {
            if value > LONGEST {
                problems.push(format!("{flag} is longer than {} days", LONGEST.as_secs() / 86_400));
            }
        }
        for (flag, value) in [
            ("--timeout-ping", timeouts.timeout_ping),
            ("--timeout-call", timeouts.timeout_call),
            ("--timeout-default", timeouts.timeout_default),
        ] {
            if value.is_zero() {
                problems.push(format!("{flag} is 0: no request could be answered in time"));
            } else if value > timeouts.timeout_max {
                problems.push(format!("{flag} is longer than --timeout-max"));
            }
        }
    }
}

/// Whether a URL is one of HTTP with a host and without credentials; `form`: what follows the scheme.
fn check_http(problems: &mut Vec<String>, flag: &str, url: &Url, form: &str) {
    if !url.username().is_empty() || url.password().is_some() {
        problems.push(format!("{flag} holds credentials, which are not supported"));
    } else if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
        let shown = redact::url(url.as_str());
        problems.push(format!("{flag} {shown} is neither http://{form} nor https://{form}"));
    }
}

fn keep<T, E: fmt::Display>(problems: &mut Vec<String>, flag: &str, result: Result<T, E>) -> Option<T> {
    result.map_err(|error| problems.push(format!("{flag} {error}"))).ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Gateway {
        #[command(flatten)]
        config: GatewayConfig,
    }

    fn problems(extra: &[&str]) -> Vec<String> {
        let mut args = vec!["gateway"];
        for (name, default) in [
            ("--server-name", "--server-name=tools/echo"),
            ("--server-id", "--server-id=c.ns.pod"),
            ("--broker-url", "--broker-url=mqtt://broker:1883"),
        ] {
            if !extra.iter().any(|arg| arg.starts_with(name)) {
                args.push(default);
            }
        }
        let backend =
            |arg: &&str| arg.starts_with("--http-url") || arg.starts_with("--sse-url") || *arg == "--";
        if !extra.iter().any(backend) {
            args.push("--stdio-socket=/run/shim.sock");
        }
        args.extend(extra);
        match Gateway::try_parse_from(args).unwrap().config.check() {
            Ok(_) => Vec::new(),
            Err(error) => error.problems,
        }
    }

    #[test]
    fn a_usual_configuration_has_no_problem() {
        let none: [String; 0] = [];
        assert_eq!(problems(&[]), none);
        assert_eq!(problems(&["--http-url=http://127.0.0.1:3001/mcp", "--drain-timeout=0s"]), none);
        assert_eq!(problems(&["--prewarm=1", "--stop-grace=1s", "--", "npx", "--keep-alive=0s"]), none);
        assert_eq!(problems(&["--sse-url=http://127.0.0.1:3001/sse"]), none);
        assert_eq!(problems(&["--otlp-endpoint=http://collector:4318", "--keep-alive=5s"]), none);
        assert_eq!(problems(&["--broker-url=wss://broker/mqtt", "--broker-ca-file=/ca.pem"]), none);
        let rbac = r#"--rbac={"roles":[{"name":"r","description":"d","allowed_methods":"all","allowed_tools":["a"],"allowed_resources":"all"}]}"#;
        assert_eq!(problems(&[rbac]), none);
    }

    #[test]
    fn each_problem_is_named_by_its_argument() {
        let table: &[(&[&str], &str)] = &[
            (&["--server-name=echo"], "--server-name has no '/'"),
            (&["--server-name=/a/b"], "--server-name begins with '/'"),
            (&["--server-name=a/#"], "--server-name contains '#'"),
            (&["--server-id=a/b"], "--server-id contains '/'"),
            (&["--server-id=presence"], "--server-id is \"presence\""),
            (&["--standby-id=a/b"], "--standby-id contains '/'"),
            (&["--server-id=s", "--standby-id=s"], "--standby-id is --server-id"),
            (&["--rbac={}"], "--rbac is not {\"roles\""),
            (&["--http-url=ftp://127.0.0.1/mcp"], "--http-url ftp://127.0.0.1/mcp is neither http"),
            (&["--http-url=http://a/mcp", "--http-ca-file=/ca"], "--http-ca-file is for"),
            (&["--http-url=http://me:hunter2@a/mcp"], "--http-url holds credentials"),
            (&["--sse-url=ftp://127.0.0.1/sse?key=hunter2"], "--sse-url ftp://127.0.0.1/sse is neither http"),
            (&["--broker-url=http://broker"], "--broker-url http://broker/ is none of"),
            (&["--broker-url=mqtt:broker"], "--broker-url mqtt:broker is none of"),
            (&["--broker-ca-file=/ca"], "--broker-ca-file is for mqtts://"),
            (&["--keep-alive=0s"], "--keep-alive is not between"),
            (&["--keep-alive=4s"], "--keep-alive is not between 5s and 65535s"),
            (&["--otlp-endpoint=ftp://collector"], "--otlp-endpoint ftp://collector/ is neither http"),
            (&["--otlp-endpoint=collector:4318"], "--otlp-endpoint collector:4318 is neither http"),
            (&["--otlp-endpoint=https://me:hunter2@collector"], "--otlp-endpoint holds credentials"),
            (&["--keep-alive=1day"], "--keep-alive is not between"),
            (&["--max-sessions=0"], "--max-sessions is 0"),
            (&["--idle-timeout=0s"], "--idle-timeout is 0"),
            (&["--prewarm=1"], "--prewarm and --stop-grace are for a command"),
            (&["--", ""], "the command after `--` is empty"),
            (&["--max-in-flight=0"], "--max-in-flight is 0"),
            (&["--max-message-bytes=10"], "--max-message-bytes is 10"),
            (&["--timeout-ping=0s"], "--timeout-ping is 0"),
            (&["--timeout-call=1h"], "--timeout-call is longer than --timeout-max"),
            (&["--timeout-max=500000000000y"], "--timeout-max is longer than 365 days"),
            (&["--idle-timeout=366d"], "--idle-timeout is longer than 365 days"),
            (&["--log=a=b=c"], "--log is no filter"),
        ];
        for (args, expected) in table {
            let found = problems(args);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{args:?}: {found:?}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        assert_eq!(problems(&["--server-name=a", "--server-id=+", "--max-sessions=0"]).len(), 3);
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_shown() {
        for (url, told) in [("mqtt://gate:hunter2@broker", "credentials"), ("gate:hunter2@broker", "none of")]
        {
            let found = problems(&[&format!("--broker-url={url}")]);
            assert!(
                found.len() == 1 && found[0].contains(told) && !found[0].contains("hunter2"),
                "{found:?}"
            );
        }
    }
}
