//! Every problem of a gateway's command line at once. clap stops at the first: what it names is noted and taken out,
//! and clap is asked again, until it has a configuration; that is then judged as any other.

use std::ffi::{OsStr, OsString};

use clap::{
    Command, Error, FromArgMatches,
    builder::Resettable,
    error::{ContextKind, ContextValue, ErrorKind},
};

use mcp_mqtt_transport::redact;

use crate::config::{ConfigError, GatewayConfig, REQUIRED};

/// Each round takes an argument out or puts one in; nobody has so many.
const MAX_ROUNDS: usize = 200;

/// A command line that is taken apart.
struct Search {
    command: Command,
    args: Vec<OsString>,
    problems: Vec<String>,
    /// Flags that were taken out or put in: what is said of them later is not the user's doing.
    touched: Vec<String>,
}

/// All problems of these arguments (those behind `gateway`), with which `command` cannot be run.
pub(super) fn find(
    command: Command,
    args: impl IntoIterator<Item = OsString>,
    judge: impl Fn(&GatewayConfig) -> Result<(), ConfigError>,
) -> ConfigError {
    let args = args.into_iter().collect();
    let mut search =
        Search { command: command.no_binary_name(true), args, problems: Vec::new(), touched: Vec::new() };
    for _ in 0..MAX_ROUNDS {
        match search.command.clone().try_get_matches_from(&search.args) {
            Ok(matches) => {
                if let Ok(config) = GatewayConfig::from_arg_matches(&matches)
                    && let Err(error) = judge(&config)
                {
                    search.add_all(error);
                }
                break;
            }
            Err(error) if search.take(&error) => {}
            Err(error) => {
                search.problems.push(first_line(&error));
                break;
            }
        }
    }
    ConfigError { problems: search.problems }
}

impl Search {
    fn add_all(&mut self, error: ConfigError) {
        let touched = &self.touched;
        let by_itself = |problem: &String| {
            let about = problem.split(' ').next().unwrap_or_default();
            !touched.iter().any(|flag| flag == about)
        };
        self.problems.extend(error.problems.into_iter().filter(by_itself));
    }

    /// Notes the problem and mends the arguments; false when that cannot be done.
    fn take(&mut self, error: &Error) -> bool {
        if error.kind() == ErrorKind::MissingRequiredArgument {
            return self.take_missing(error);
        }
        let Some(named) = text(error, ContextKind::InvalidArg) else { return false };
        let flag = named.split([' ', '=']).next().unwrap_or_default().to_owned();
        let source = || std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        let problem = match error.kind() {
            ErrorKind::UnknownArgument => {
                let meant = text(error, ContextKind::SuggestedArg);
                let meant = meant.map(|meant| format!("; is {meant} meant?")).unwrap_or_default();
                // A URL without its flag is no argument, either.
                format!("{} is no argument of the gateway{meant}", redact::url(&flag))
            }
            ErrorKind::ArgumentConflict => match text(error, ContextKind::PriorArg) {
                Some(prior) if prior == named => format!("{flag} is given more than once"),
                Some(prior) => format!("{flag} cannot be given beside {prior}"),
                None => first_line(error),
            },
            // The value is not shown where it might hold a password or a key.
            ErrorKind::ValueValidation if self.is_url(&flag) => {
                format!("{flag} is no URL: {}", source())
            }
            ErrorKind::ValueValidation => {
                let value = text(error, ContextKind::InvalidValue).unwrap_or_default();
                format!("{flag} {value:?} cannot be used: {}", source())
            }
            _ => format!("{flag}: {}", first_line(error)),
        };
        let in_arguments = self.remove(&flag, error.kind() == ErrorKind::UnknownArgument);
        let variable = self.forget_variable(&flag);
        if !in_arguments && variable.is_none() {
            return false;
        }
        self.problems.push(match variable.filter(|_| !in_arguments) {
            Some(variable) => format!("{problem} (from the environment variable {variable})"),
            None => problem,
        });
        self.touched.push(flag);
        true
    }

    fn take_missing(&mut self, error: &Error) -> bool {
        let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg) else { return false };
        for named in missing {
            let required = REQUIRED
                .iter()
                .find(|required| required.split_once('=').is_some_and(|(flag, _)| named.contains(flag)));
            let (flag, stand_in) = if let Some(required) = required {
                (required.split('=').next().unwrap_or_default(), (*required).to_owned())
            } else {
                let flag = named.split(' ').next().unwrap_or_default();
                (flag, format!("{flag}=/"))
            };
            let words = || named.split(['<', '>', '|', ' ']);
            if !self.touched.iter().any(|touched| words().any(|word| word == touched)) {
                let group = named.strip_prefix('<').and_then(|named| named.strip_suffix('>'));
                self.problems.push(format!("{} is missing", group.unwrap_or(named)));
            }
            if self.args.iter().any(|arg| *arg == *stand_in) {
                return false; // it did not help
            }
            self.args.insert(0, stand_in.into());
            self.touched.push(flag.to_owned());
        }
        !missing.is_empty()
    }

    /// Takes a flag and its values out; whether it was there.
    fn remove(&mut self, flag: &str, unknown: bool) -> bool {
        let end = self.args.iter().position(|arg| arg == "--").unwrap_or(self.args.len());
        let behind = self.args.split_off(end);
        let names: Vec<String> = match self.argument(flag) {
            Some(argument) => argument
                .get_long_and_visible_aliases()
                .into_iter()
                .flatten()
                .map(|name| format!("--{name}"))
                .collect(),
            None => vec![flag.to_owned()],
        };
        let mut kept = Vec::with_capacity(self.args.len());
        let mut args = std::mem::take(&mut self.args).into_iter().peekable();
        let mut found = false;
        while let Some(arg) = args.next() {
            let (name, has_value) = split(&arg);
            if names.contains(&name) {
                found = true;
                let is_value = |next: &OsString| !next.to_string_lossy().starts_with('-');
                if !has_value && (!unknown || name.starts_with('-')) {
                    args.next_if(is_value);
                }
            } else {
                kept.push(arg);
            }
        }
        self.args = kept;
        self.args.extend(behind);
        found
    }

    /// Has clap look no more at the flag's environment variable; its name when it is set.
    fn forget_variable(&mut self, flag: &str) -> Option<String> {
        let argument = self.argument(flag)?;
        let variable = argument.get_env()?.to_string_lossy().into_owned();
        let id = argument.get_id().clone();
        self.command = self.command.clone().mut_arg(id, |argument| argument.env(Resettable::Reset));
        std::env::var_os(&variable).map(|_| variable)
    }

    fn is_url(&self, flag: &str) -> bool {
        let names = self.argument(flag).and_then(clap::Arg::get_value_names);
        names.is_some_and(|names| names.iter().any(|name| name == "URL"))
    }

    fn argument(&self, flag: &str) -> Option<&clap::Arg> {
        let long = flag.strip_prefix("--")?;
        self.command.get_arguments().find(|argument| argument.get_long() == Some(long))
    }
}

/// A flag's name, and whether a value stands in the same piece.
fn split(arg: &OsStr) -> (String, bool) {
    let arg = arg.to_string_lossy();
    match arg.split_once('=') {
        Some((name, _)) if name.starts_with('-') => (name.to_owned(), true),
        _ => (arg.into_owned(), false),
    }
}

fn text(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => Some(texts.join(", ")),
        _ => None,
    }
}

fn first_line(error: &Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;
    use crate::cli::GatewayFace;

    fn problems(args: &[&str]) -> Vec<String> {
        let command = GatewayFace::augment_args(Command::new("gateway"));
        let args = args.iter().map(OsString::from);
        find(command, args, |config| config.check().map(drop)).problems
    }

    #[track_caller]
    fn assert_problems(args: &[&str], expected: &[&str]) {
        let found = problems(args);
        let fits = found.len() == expected.len()
            && found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected));
        assert!(fits, "{args:?}: {found:#?}, not {expected:#?}");
    }

    #[test]
    fn claps_problems_and_ours_are_told_together() {
        assert_problems(
            &[
                "--server-name=a",
                "--keep-alive",
                "soon",
                "--qos=7",
                "--max-sessions=0",
                "--http-uri=x",
                "--url=x",
            ],
            &[
                "--keep-alive \"soon\" cannot be used: ",
                "--qos \"7\" cannot be used: ",
                "--http-uri is no argument of the gateway",
                "--http-url is no URL: ",
                "--broker-url <URL> is missing",
                "--server-name has no '/'",
                "--max-sessions is 0",
            ],
        );
    }

    #[test]
    fn nothing_at_all_lacks_what_is_required() {
        assert_problems(
            &[],
            &[
                "--server-name <NAME> is missing",
                "--broker-url <URL> is missing",
                "--stdio-socket <PATH>|--http-url",
            ],
        );
    }

    #[test]
    fn two_backends_and_half_a_pair_of_files_are_named() {
        assert_problems(
            &[
                "--server-name=a/b",
                "--broker=mqtts://a",
                "--broker-cert-file=/c",
                "--url=http://a",
                "--log=a=b=c",
                "--",
                "--keep-alive=soon",
            ],
            &[
                "--http-url cannot be given beside",
                "--broker-key-file <PATH> is missing",
                "--log is no filter",
            ],
        );
    }

    #[test]
    fn a_url_that_is_none_is_not_shown() {
        for (bad, told) in [
            ("--broker=mqtt://gate:hunter2@broker:x", "--broker-url is no URL"),
            ("--url=https://host:x/mcp?key=hunter2", "--http-url is no URL"),
            ("--sse-url=//host/sse?key=hunter2", "--sse-url is no URL"),
            ("--otlp-endpoint=https://me:hunter2@collector:x", "--otlp-endpoint is no URL"),
            ("https://me:hunter2@host/mcp?hunter2", "https://host/… is no argument"),
        ] {
            let found = problems(&["--server-name=a/b", "--qos=9", bad]);
            let about = found.iter().filter(|problem| problem.starts_with(told)).count();
            let shown = found.iter().any(|problem| problem.contains("hunter2"));
            assert!(about == 1 && !shown, "{found:?}");
        }
    }

    #[test]
    fn what_is_given_twice_is_named_once() {
        assert_problems(
            &["--server-name=a/b", "--broker=mqtt://a", "--qos=1", "--qos=0", "--url=http://a"],
            &["--qos is given more than once"],
        );
    }
}
