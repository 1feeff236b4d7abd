//! The configuration as command-line arguments: what the operator writes into the pod.

use std::{path::Path, sync::LazyLock, time::Duration};

use clap::{Args, Command, FromArgMatches, ValueEnum, builder::Resettable};

use super::{BINARY, BackendConfig, BackendOptions, BrokerConfig, GatewayConfig, Limits, Timeouts};

/// The arguments without which there is no configuration, with values that can be used.
pub(crate) const REQUIRED: [&str; 3] = ["--server-name=a/b", "--broker-url=mqtt://a", "--stdio-socket=/a"];

/// A configuration that says only what has to be said: every other field holds its default.
static DEFAULTS: LazyLock<GatewayConfig> = LazyLock::new(|| {
    let required = ["gateway", "--server-id=a"].into_iter().chain(REQUIRED);
    // The environment of whoever writes the arguments is not the environment in which they are read.
    let command = GatewayConfig::augment_args(Command::new("gateway"))
        .mut_args(|argument| argument.env(Resettable::Reset));
    let matches = command.try_get_matches_from(required).expect("a constant that a test parses");
    GatewayConfig::from_arg_matches(&matches).expect("as above")
});

impl GatewayConfig {
    /// Arguments of the `gateway` face that parse to this very configuration; only what differs from the
    /// defaults. Holds no secret: the credentials are named by file.
    pub fn to_args(&self) -> Vec<String> {
        self.write(Arguments::default())
    }

    /// The same, the defaults included: what `gateway --print-config` shows.
    pub fn to_args_in_full(&self) -> Vec<String> {
        self.write(Arguments { written: Vec::new(), in_full: true })
    }

    /// The command that starts a gateway with this very configuration, for a shell; all defaults are written out. It is
    /// for people to read: the query of a URL, which may be a key, is not shown.
    pub fn to_command_line(&self) -> String {
        let mut shown = self.clone();
        let GatewayConfig { backend, broker, otlp_endpoint, .. } = &mut shown;
        let urls = [&mut backend.http_url, &mut backend.sse_url, otlp_endpoint].into_iter().flatten();
        for url in urls.chain([&mut broker.broker_url]).filter(|url| url.query().is_some()) {
            url.set_query(Some("***"));
        }
        let words = shown.to_args_in_full();
        words.iter().fold(format!("{BINARY} gateway"), |line, word| format!("{line} \\\n  {}", quoted(word)))
    }

    fn write(&self, mut args: Arguments) -> Vec<String> {
        let Self {
            server_name,
            server_id,
            standby_id,
            owner_mark,
            description,
            rbac,
            backend: BackendConfig { stdio_socket, http_url, sse_url, command },
            backend_options: BackendOptions { http_ca_file, prewarm, stop_grace },
            broker:
                BrokerConfig {
                    broker_url,
                    broker_username_file,
                    broker_password_file,
                    broker_ca_file,
                    broker_cert_file,
                    broker_key_file,
                    keep_alive,
                    qos,
                    workers,
                },
            limits: Limits { max_sessions, max_message_bytes, max_in_flight, idle_timeout },
            timeouts: Timeouts { timeout_ping, timeout_call, timeout_default, timeout_max },
            drain_timeout,
            drain_socket,
            admin_address,
            otlp_endpoint,
            log_format,
            log,
        } = self; // no `..`: a new field does not compile until it is written here
        let default = &*DEFAULTS;
        args.always("server-name", server_name);
        args.always("server-id", server_id);
        args.if_set("standby-id", standby_id.as_deref());
        args.if_set("owner-mark", owner_mark.as_deref());
        args.unless_default("description", description, &default.description);
        args.if_set("rbac", rbac.as_deref());
        args.if_set("stdio-socket", stdio_socket.as_deref().map(Path::display));
        args.if_set("http-url", http_url.as_ref());
        args.if_set("sse-url", sse_url.as_ref());
        args.if_set("http-ca-file", http_ca_file.as_deref().map(Path::display));
        args.unless_default("prewarm", prewarm, &default.backend_options.prewarm);
        args.duration("stop-grace", *stop_grace, default.backend_options.stop_grace);
        args.always("broker-url", broker_url);
        args.if_set("broker-username-file", broker_username_file.as_deref().map(Path::display));
        args.if_set("broker-password-file", broker_password_file.as_deref().map(Path::display));
        args.if_set("broker-ca-file", broker_ca_file.as_deref().map(Path::display));
        args.if_set("broker-cert-file", broker_cert_file.as_deref().map(Path::display));
        args.if_set("broker-key-file", broker_key_file.as_deref().map(Path::display));
        args.duration("keep-alive", *keep_alive, default.broker.keep_alive);
        args.unless_default("qos", qos, &default.broker.qos);
        args.unless_default("workers", workers, &default.broker.workers);
        args.unless_default("max-sessions", max_sessions, &default.limits.max_sessions);
        args.unless_default("max-message-bytes", max_message_bytes, &default.limits.max_message_bytes);
        args.unless_default("max-in-flight", max_in_flight, &default.limits.max_in_flight);
        args.if_set("idle-timeout", idle_timeout.map(humantime::format_duration));
        args.duration("timeout-ping", *timeout_ping, default.timeouts.timeout_ping);
        args.duration("timeout-call", *timeout_call, default.timeouts.timeout_call);
        args.duration("timeout-default", *timeout_default, default.timeouts.timeout_default);
        args.duration("timeout-max", *timeout_max, default.timeouts.timeout_max);
        args.duration("drain-timeout", *drain_timeout, default.drain_timeout);
        args.if_set("drain-socket", drain_socket.as_deref().map(Path::display));
        args.if_set("admin-address", admin_address.as_ref());
        args.if_set("otlp-endpoint", otlp_endpoint.as_ref());
        if args.in_full || *log_format != default.log_format {
            let value = log_format.to_possible_value().expect("no format is hidden");
            args.always("log-format", value.get_name());
        }
        args.unless_default("log", log, &default.log);
        if !command.is_empty() {
            args.written.push("--".to_owned());
            args.written.extend(command.iter().cloned());
        }
        args.written
    }
}

/// A word as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// `--name=value`, in one piece, so that a value may begin with a dash.
#[derive(Default)]
struct Arguments {
    written: Vec<String>,
    in_full: bool,
}

impl Arguments {
    fn always(&mut self, name: &str, value: impl std::fmt::Display) {
        self.written.push(format!("--{name}={value}"));
    }

    fn if_set(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.always(name, value);
        }
    }

    fn unless_default<T: PartialEq + std::fmt::Display>(&mut self, name: &str, value: &T, default: &T) {
        if self.in_full || value != default {
            self.always(name, value);
        }
    }

    fn duration(&mut self, name: &str, value: Duration, default: Duration) {
        if self.in_full || value != default {
            self.always(name, humantime::format_duration(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, path::PathBuf};

    use clap::Parser;
    use proptest::{option, prelude::*};
    use url::Url;

    use super::*;
    use crate::config::LogFormat;

    #[derive(Debug, Parser)]
    struct Gateway {
        #[command(flatten)]
        config: GatewayConfig,
    }

    fn parse(args: Vec<String>) -> GatewayConfig {
        Gateway::try_parse_from(std::iter::once("gateway".to_owned()).chain(args)).unwrap().config
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), "[ -~äß\\n]{1,24}", Just("--server-id=x".to_owned())]
    }

    fn path() -> impl Strategy<Value = PathBuf> {
        "[-/a-z= ]{1,16}".prop_map(PathBuf::from)
    }

    fn duration() -> impl Strategy<Value = Duration> {
        prop_oneof![
            (0u64..100_000_000, 0u32..1_000_000_000).prop_map(|(s, ns)| Duration::new(s, ns)),
            (0u64..100_000).prop_map(Duration::from_millis),
            Just(Duration::from_mins(1)),
        ]
    }

    fn url(path: &'static str) -> impl Strategy<Value = Url> {
        (1u16..).prop_map(move |port| Url::parse(&format!("http://127.0.0.1:{port}/{path}")).unwrap())
    }

    fn backend() -> impl Strategy<Value = BackendConfig> {
        prop_oneof![
            path().prop_map(BackendConfig::stdio),
            url("mcp?a=b").prop_map(BackendConfig::http),
            url("sse").prop_map(BackendConfig::sse),
            proptest::collection::vec(text(), 1..4)
                .prop_map(|command| BackendConfig { command, ..BackendConfig::default() }),
        ]
    }

    fn broker() -> impl Strategy<Value = BrokerConfig> {
        let files =
            (option::of(path()), option::of(path()), option::of(path()), option::of((path(), path())));
        ("(mqtts?|wss?)://[a-z]{1,9}(:[1-9][0-9]{0,3})?(/[a-z]{1,5})?", files, duration(), 0u8..=1, 0u8..=16)
            .prop_map(|(url, (username, password, ca, pair), keep_alive, qos, workers)| {
                let (cert, key) = pair.unzip();
                BrokerConfig {
                    broker_url: Url::parse(&url).unwrap(),
                    broker_username_file: username,
                    broker_password_file: password,
                    broker_ca_file: ca,
                    broker_cert_file: cert,
                    broker_key_file: key,
                    keep_alive,
                    qos,
                    workers,
                }
            })
    }

    fn limits() -> impl Strategy<Value = Limits> {
        (any::<(u32, u32, u32)>(), option::of(duration())).prop_map(
            |((max_sessions, max_message_bytes, max_in_flight), idle_timeout)| Limits {
                max_sessions,
                max_message_bytes,
                max_in_flight,
                idle_timeout,
            },
        )
    }

    fn timeouts() -> impl Strategy<Value = Timeouts> {
        [duration(), duration(), duration(), duration()].prop_map(
            |[timeout_ping, timeout_call, timeout_default, timeout_max]| Timeouts {
                timeout_ping,
                timeout_call,
                timeout_default,
                timeout_max,
            },
        )
    }

    fn config() -> impl Strategy<Value = GatewayConfig> {
        let identity = (text(), text(), text(), option::of(text()), option::of(text()), option::of(text()));
        let options =
            (option::of(path()), any::<u16>(), duration()).prop_map(|(http_ca_file, prewarm, stop_grace)| {
                BackendOptions { http_ca_file, prewarm, stop_grace }
            });
        let endpoint = option::of("https?://[a-z]{1,9}(:[1-9][0-9]{0,3})?(/[a-z]{1,5})?");
        let endpoint = endpoint.prop_map(|url| url.map(|url| Url::parse(&url).unwrap()));
        // A scope id does not survive `SocketAddr`'s own text form, and an address to listen on has none.
        let address = any::<SocketAddr>()
            .prop_filter("as its text", |address| address.to_string().parse() == Ok(*address));
        let format = prop_oneof![Just(LogFormat::Auto), Just(LogFormat::Json), Just(LogFormat::Text)];
        let rest = (duration(), option::of(path()), option::of(address), endpoint, format, text());
        (identity, (backend(), options), broker(), limits(), timeouts(), rest).prop_map(
            |(identity, (backend, backend_options), broker, limits, timeouts, rest)| {
                let (server_name, server_id, description, rbac, standby_id, owner_mark) = identity;
                let (drain_timeout, drain_socket, admin_address, otlp_endpoint, log_format, log) = rest;
                GatewayConfig {
                    server_name,
                    server_id,
                    standby_id,
                    owner_mark,
                    description,
                    rbac,
                    backend,
                    backend_options,
                    broker,
                    limits,
                    timeouts,
                    drain_timeout,
                    drain_socket,
                    admin_address,
                    otlp_endpoint,
                    log_format,
                    log,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_as_arguments_is_read_back_unchanged(config in config()) {
            prop_assert_eq!(parse(config.to_args()), config.clone());
            prop_assert_eq!(parse(config.to_args_in_full()), config);
        }
    }

    #[test]
    fn a_shell_reads_the_shown_command_line_back() {
        let mut config = DEFAULTS.clone();
        config.description = "it's $HOME; `ls` \"x\" \\ *\n--end".to_owned();
        config.backend = BackendConfig {
            command: vec!["npx".into(), String::new(), "a b".into()],
            ..BackendConfig::default()
        };
        let line = config.to_command_line().replacen(&format!("{BINARY} gateway"), "printf '%s\\0'", 1);
        let shell = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        let mut words: Vec<String> =
            String::from_utf8(shell.stdout).unwrap().split('\0').map(ToOwned::to_owned).collect();
        words.pop(); // what follows the last NUL
        assert_eq!(parse(words), config);
        for shown in ["--qos=1", "--max-sessions=100", "--log-format=auto", "--stop-grace=2s"] {
            assert!(line.contains(shown), "{shown} is not in {line}");
        }
    }

    #[test]
    fn the_shown_command_line_holds_no_key_of_a_url() {
        let mut config = DEFAULTS.clone();
        let secret = |url: &str| Url::parse(&format!("{url}?key=hunter2")).unwrap();
        config.backend = BackendConfig::http(secret("https://a/mcp"));
        config.broker.broker_url = secret("wss://b/mqtt");
        config.otlp_endpoint = Some(secret("https://c/"));
        let line = config.to_command_line();
        for shown in ["'--http-url=https://a/mcp?***'", "'--broker-url=wss://b/mqtt?***'"] {
            assert!(line.contains(shown), "{shown} is not in {line}");
        }
        config.backend = BackendConfig::sse(secret("https://a/sse"));
        assert!(![line, config.to_command_line()].concat().contains("hunter2"));
    }

    #[test]
    fn the_defaults_in_code_are_those_of_the_command_line() {
        assert_eq!(DEFAULTS.limits, Limits::default());
        assert_eq!(DEFAULTS.backend_options, BackendOptions::default());
    }

    #[test]
    fn defaults_are_left_out() {
        let args = DEFAULTS.to_args();
        assert_eq!(
            args,
            ["--server-name=a/b", "--server-id=a", "--stdio-socket=/a", "--broker-url=mqtt://a"]
        );
    }
}
