//! The command line, made from the table of configuration keys.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{DEMO_COUNT, Flag, KEYS, Key, Of, Problem};
use crate::health::Question;

/// What the command line asks for.
#[derive(Debug)]
pub struct Invocation {
    /// The command.
    pub command: Wanted,
    /// The file of `--config`.
    pub file: Option<PathBuf>,
    /// The values that flags and arguments set.
    pub flags: Vec<Flag>,
    /// What is wrong with the command line itself.
    pub problems: Vec<Problem>,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The generator and the server.
    Demo,
    /// The server alone.
    Serve,
    /// Print the configuration in force.
    Config,
    /// Ask a server for its health.
    Health(Question),
}

/// Reads the command line.
///
/// # Errors
///
/// What clap answers itself: a request for help or for the version, and a command line of which nothing can be understood. Unknown
/// arguments are in [`Invocation::problems`], so that all problems can be told at once.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut problems = Vec::new();
    loop {
        let error = match command().try_get_matches_from(&arguments) {
            Ok(matches) => return Ok(understand(&matches, problems)),
            Err(error) => error,
        };
        let Some((unknown, place)) = unknown_argument(&error, &arguments) else { return Err(error) };
        arguments.remove(place);
        let nearest = match error.get(ContextKind::SuggestedArg) {
            Some(ContextValue::String(nearest)) => {
                // Its value goes with it: "--ack-deadlin 3s".
                let takes_value = KEYS.iter().any(|key| nearest[2..] == *key.flag && !key.value.is_empty());
                let is_value = |next: &OsString| !next.to_string_lossy().starts_with('-');
                if takes_value && !unknown.contains('=') && arguments.get(place).is_some_and(is_value) {
                    arguments.remove(place);
                }
                format!("; the nearest is {nearest}")
            }
            _ => String::new(),
        };
        problems.push(Problem {
            what: unknown,
            source: "command line".to_owned(),
            must: format!("there is no such argument here{nearest} (see --help)"),
        });
    }
}

/// The argument that clap does not know, and its place.
fn unknown_argument(error: &clap::Error, arguments: &[OsString]) -> Option<(String, usize)> {
    let (ErrorKind::UnknownArgument, Some(ContextValue::String(unknown))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    else {
        return None;
    };
    // clap names "-5" of "-5MiB", and "--bogus" of "--bogus=1".
    let place =
        arguments.iter().skip(1).position(|argument| argument.to_string_lossy().starts_with(unknown.as_str()))? + 1;
    Some((arguments[place].to_string_lossy().into_owned(), place))
}

/// The whole command line.
pub fn command() -> Command {
    let demo = || keys(|_| true);
    let server = || keys(|key| key.of == Of::Server);
    Command::new("ackstream")
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "Delivers messages over gRPC streams, at least once, and lets you watch it do so.\n\n\
             Without a command it runs the demo: a generator publishes COUNT messages, one a second, to the topic `demo`, beginning \
             with the first consumer, and the server ends when each is acked or dropped.",
        )
        .after_help(
            "Each option is also a key of ackstream.toml and an environment variable, for example ack_deadline and \
             ACKSTREAM_ACK_DEADLINE. `ackstream config` prints what is in force and where it came from.\n\n\
             Exit codes: 0 done, 1 not healthy, 64 wrong usage or configuration, 69 the port cannot be had, 70 a bug of ours.",
        )
        .args_conflicts_with_subcommands(true)
        .args_override_self(true)
        .disable_help_subcommand(true)
        .args(demo())
        .subcommand(
            Command::new("demo").about("Publish COUNT messages and serve until each is acked or dropped (the default)").args(demo()),
        )
        .subcommand(Command::new("serve").about("Serve until SIGTERM or SIGINT, without a generator").args(server()))
        .subcommand(Command::new("config").about("Print the configuration in force, with the source of each value").args(demo()))
        .subcommand(
            Command::new("health")
                .about("Ask a server whether it serves: exit code 0 if so, else 1")
                .args(keys(|key| key.name == "listen"))
                .mut_arg("listen", |listen| listen.help("Where the server listens; asked unless --target names another"))
                .arg(option("target", "HOST:PORT", "The server to ask [default: where the configuration has it listen]"))
                .arg(option("service", "NAME", "The service to ask for, such as ackstream.v1.MessageStream [default: the server]"))
                .arg(option("timeout", "TIME", "How long the answer may take [default: 2s]")),
        )
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn keys(wanted: impl Fn(&Key) -> bool) -> Vec<Arg> {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Configuration file [default: ackstream.toml, where there is one]");
    KEYS.iter().filter(|key| wanted(key)).map(argument).chain([file]).collect()
}

fn argument(key: &'static Key) -> Arg {
    let argument = Arg::new(key.name);
    if key.name == DEMO_COUNT {
        argument
            .value_name(key.value)
            .help(format!("{} [default: {}]", key.about, key.default))
            .allow_negative_numbers(true)
    } else if key.value.is_empty() {
        argument.long(key.flag).action(ArgAction::SetTrue).help(key.about)
    } else {
        let help = format!("{} [default: {}]", key.about, key.default);
        // A value is read by the configuration, which tells all problems at once; so is one that looks like a negative number.
        argument
            .long(key.flag)
            .value_name(key.value)
            .help(help)
            .allow_negative_numbers(true)
            .num_args(0..=1)
            .default_missing_value("")
    }
}

fn understand(matches: &ArgMatches, mut problems: Vec<Problem>) -> Invocation {
    let (command, matches) = match matches.subcommand() {
        Some(("health", matches)) => (Wanted::Health(question(matches, &mut problems)), matches),
        Some(("serve", matches)) => (Wanted::Serve, matches),
        Some(("config", matches)) => (Wanted::Config, matches),
        Some((_, matches)) => (Wanted::Demo, matches),
        None => (Wanted::Demo, matches),
    };
    let flags = KEYS.iter().filter_map(|key| {
        let value = if key.value.is_empty() {
            // `serve` has not got the flags of the demo.
            matches.try_get_one::<bool>(key.name).ok().flatten().filter(|set| **set)?.to_string()
        } else {
            matches.try_get_one::<String>(key.name).ok().flatten()?.clone()
        };
        let name = if key.flag.is_empty() { format!("argument {}", key.value) } else { format!("flag --{}", key.flag) };
        Some(Flag { key: key.name, name, value })
    });
    let file = matches.try_get_one::<PathBuf>("config").ok().flatten().cloned();
    Invocation { command, file, flags: flags.collect(), problems }
}

fn question(matches: &ArgMatches, problems: &mut Vec<Problem>) -> Question {
    let text = |name| matches.get_one::<String>(name).cloned();
    let timeout = text("timeout").unwrap_or_else(|| "2s".to_owned());
    let timeout = humantime::parse_duration(&timeout).unwrap_or_else(|_| {
        problems.push(Problem {
            what: format!("timeout = {timeout:?}"),
            source: "flag --timeout".to_owned(),
            must: "must be a length of time with its unit, such as \"2s\" or \"100ms\"".to_owned(),
        });
        Duration::ZERO
    });
    Question { target: text("target"), service: text("service").unwrap_or_default(), timeout }
}
