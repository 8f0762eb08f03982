//! The command line, made from the table of configuration keys.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};
use clap_complete::Shell;

use crate::client::{self, Credentials, Identity, NoTarget, Peer, Target, Tls, Trust, bench, consume, publish};
use crate::config::{DEMO_COUNT, Flag, KEYS, Key, Of, Problem};
use crate::exchange::DEFAULT_NAME;
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
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// The generator and the server.
    Demo,
    /// The server alone.
    Serve,
    /// Print the configuration in force.
    Config,
    /// Ask a server for its health.
    Health(Question),
    /// Publish lines.
    Publish(publish::Options),
    /// Print messages.
    Consume(consume::Options),
    /// Put a load on a server.
    Bench(bench::Options),
    /// Print what a shell needs to complete commands and options.
    Completions(Shell),
}

/// The server that clients talk to unless they are told of another.
const DEFAULT_TARGET: &str = "localhost:50051";
/// Where the server has its metrics, unless they are told to be elsewhere.
const DEFAULT_METRICS: &str = "localhost:9464";
/// How long the answer about a server's health may take, unless another time is given.
const HEALTH_WITHIN: Duration = Duration::from_secs(2);

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
                let is_nearest = |known: &&Arg| known.get_long() == Some(&nearest[2..]);
                let all = command();
                let mut known = all.get_subcommands().flat_map(Command::get_arguments);
                let takes_value = known.find(is_nearest).is_some_and(|known| known.get_action().takes_values());
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
             Exit codes: 0 done, 1 not healthy or some of the input was refused, 64 wrong usage or configuration, 66 the input file \
             cannot be read, 69 the other side or a port cannot be had, 70 a bug of ours.",
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
                .arg(option("timeout", "TIME", "How long the answer may take [default: 2s]"))
                .args(credentials()),
        )
        .subcommand(
            peer(Command::new("publish").about("Publish each line of a file, or of the standard input, as a message"))
                .after_help(PUBLISH_HELP)
                .arg(
                    Arg::new("file")
                        .value_name("FILE")
                        .value_parser(clap::value_parser!(PathBuf))
                        .help("What to publish; \"-\" or none = the standard input"),
                )
                .arg(
                    option("attribute", "NAME=VALUE", "An attribute for every message; may be given again")
                        .action(ArgAction::Append),
                )
                .arg(switch("json", "Each line is a message in JSON, as `consume --json` prints it")),
        )
        .subcommand(
            peer(Command::new("consume").about("Print the payload of each message on a line, and ack what is printed"))
                .arg(option("subscription", "NAME", "The subscription [default: demo]"))
                .arg(option("count", "N", "End after N messages"))
                .arg(option("wait", "TIME", "End when no message has come for so long"))
                .arg(switch("no-ack", "Only look: ack nothing; at the end all go back, at no cost in retries"))
                .arg(switch("json", "Print whole messages, attributes included, as JSON")),
        )
        .subcommand(
            peer(Command::new("bench").about("Put a load on a running server: how fast, how late, and whether the laws held"))
                .after_help(BENCH_HELP)
                .arg(option("publishers", "N", "Streams that publish [default: 1]"))
                .arg(option("consumers", "N", "Streams that consume [default: 1]"))
                .arg(
                    option("subscription", "NAME", "The subscription; given again, each gets its share of the consumers [default: demo]")
                        .action(ArgAction::Append),
                )
                .arg(option("connections", "N", "Connections that carry the streams [default: one for each stream, at most 64]"))
                .arg(option("rate", "N", "Messages a second, of all publishers together [default: as fast as it goes]"))
                .arg(option("payload", "SIZE", "Bytes of each message; latencies need 16 [default: 128B]"))
                .arg(option("batch", "N", "Messages in a frame [default: each in a frame of its own]"))
                .arg(option("window", "N", "Messages that a consumer may have outstanding [default: 1000 more than --hold]"))
                .arg(option("hold", "N", "A consumer acks a message only when it holds so many later ones [default: 0]"))
                .arg(option("ack-delay", "TIME", "Ack so long after the delivery [default: 0s]"))
                .arg(option("drop-rate", "SHARE", "Never ack this share of the deliveries, 0 to 1 [default: 0]"))
                .arg(option("duration", "TIME", "How long to publish or, without publishers, to consume [default: 10s]"))
                .arg(
                    option("count", "N", "Instead of a duration: messages to publish or, without publishers, to consume")
                        .conflicts_with("duration"),
                )
                .arg(option("metrics", "HOST:PORT", "Where the server has its metrics, or \"off\" [default: localhost:9464]"))
                .arg(switch("json", "Report in JSON")),
        )
        .subcommand(
            Command::new("completions").about("Print a script that completes commands and options in a shell").arg(
                Arg::new("shell").value_name("SHELL").required(true).value_parser(clap::value_parser!(Shell)),
            ),
        )
}

/// What becomes of lines.
/// The longest time that an option takes: beyond it clocks overflow.
const LONGEST_TIME: std::time::Duration = std::time::Duration::from_hours(365 * 24);

const PUBLISH_HELP: &str = "\
    What finds a backlog full is published again until there is room, and so is what had no answer when a stream broke: the last line \
    says how many may therefore be stored twice.\n\n\
    In JSON a message is {\"payload\": TEXT} or {\"payload_base64\": BASE64}, and may have {\"attributes\": {NAME: VALUE}}.\n\n\
    Exit codes: 0 all is published; 1 some lines are not, each is told by its number; 64 wrong usage, no such topic, or the server \
    does not let this client; 66 the file \
    cannot be read; 69 no server.";

/// What a load is, and what is made of it.
const BENCH_HELP: &str = "\
    The publishers stop after the duration or the count, and the consumers when all that was accepted is acked or dropped, or when \
    nothing more has come for as long as it could come again, and 5 s. A message counts once, however often it comes. A subscription \
    that others consume too, or that has a backlog of its own, is no good one to measure: it consumes what it gets.\n\n\
    Ctrl-C stops the publishers, a second one the consumers, and a third one waits for nobody.\n\n\
    Exit codes: 0 all was accepted and delivered, and no law was seen broken; 1 not so; 64 wrong usage, or no such topic; 69 no server, \
    or a stream broke.";

/// The options of a command that talks to a server as any client does.
fn peer(command: Command) -> Command {
    command
        .arg(option("target", "HOST:PORT", "The server [default: localhost:50051]"))
        .arg(option("topic", "NAME", "The topic [default: demo]"))
        .arg(option("connect-timeout", "TIME", "How long to go on without a server [default: 30s]"))
        .args(credentials())
}

/// The options by which a client trusts a server and says who it is.
fn credentials() -> [Arg; 5] {
    [
        switch("tls", "Speak TLS, and trust whom this machine trusts"),
        option("tls-ca", "FILE", "Speak TLS, and trust the authorities in this file, in PEM"),
        option("tls-cert", "FILE", "Speak TLS, and show this certificate, in PEM"),
        option("tls-key", "FILE", "The private key of that certificate, in PEM, which others must not read"),
        option("token-file", "FILE", "A file with this client's token, which others must not read"),
    ]
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// A script that completes the whole command line in this shell.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "ackstream", &mut script);
    String::from_utf8(script).expect("the script is text")
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
        Some(("health", matches)) => (Wanted::Health(Values { matches, problems: &mut problems }.question()), matches),
        Some(("publish", matches)) => (Wanted::Publish(Values { matches, problems: &mut problems }.publish()), matches),
        Some(("consume", matches)) => (Wanted::Consume(Values { matches, problems: &mut problems }.consume()), matches),
        Some(("bench", matches)) => (Wanted::Bench(Values { matches, problems: &mut problems }.bench()), matches),
        Some(("completions", matches)) => {
            let shell = matches.get_one::<Shell>("shell").expect("clap asks for it");
            (Wanted::Completions(*shell), matches)
        }
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

/// The values of a command that talks to a server; what cannot be read is told with everything else.
struct Values<'a> {
    matches: &'a ArgMatches,
    problems: &'a mut Vec<Problem>,
}

impl Values<'_> {
    fn text(&self, name: &str) -> Option<String> {
        self.matches.get_one::<String>(name).cloned()
    }

    fn flag(&self, name: &str) -> bool {
        self.matches.get_flag(name)
    }

    fn read<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(name)?;
        read(&text).map_err(|must| self.wrong(name, &text, must)).ok()
    }

    fn duration(&mut self, name: &str) -> Option<Duration> {
        self.read(name, |text| {
            let length = humantime::parse_duration(text)
                .map_err(|_| "must be a length of time with its unit, such as \"2s\" or \"100ms\"".to_owned())?;
            if length > LONGEST_TIME {
                return Err("must be at most 365days".to_owned());
            }
            Ok(length)
        })
    }

    fn target(&mut self) -> Option<Target> {
        self.read("target", |text| text.parse().map_err(|error: NoTarget| error.to_string()))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    fn credentials(&mut self) -> Credentials {
        let (ca, cert, key) = (self.path("tls-ca"), self.path("tls-cert"), self.path("tls-key"));
        let speaks_tls = self.flag("tls") || ca.is_some() || cert.is_some() || key.is_some();
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some(Identity { cert, key }),
            (Some(cert), None) => {
                self.wrong("tls-cert", &cert.display().to_string(), "needs its private key: say --tls-key".to_owned());
                None
            }
            (None, Some(key)) => {
                self.wrong("tls-key", &key.display().to_string(), "needs its certificate: say --tls-cert".to_owned());
                None
            }
            (None, None) => None,
        };
        let trust = ca.map_or(Trust::System, Trust::Authorities);
        Credentials { tls: speaks_tls.then_some(Tls { trust, identity }), token_file: self.path("token-file") }
    }

    fn wrong(&mut self, name: &str, text: &str, must: String) {
        let (what, source) = (format!("{name} = {text:?}"), format!("flag --{name}"));
        self.problems.push(Problem { what, source, must });
    }

    fn question(mut self) -> Question {
        let timeout = self.duration("timeout").unwrap_or(HEALTH_WITHIN);
        let (target, service) = (self.target(), self.text("service").unwrap_or_default());
        Question { target, service, timeout, credentials: self.credentials() }
    }

    fn peer(&mut self) -> Peer {
        Peer {
            target: self.target().unwrap_or_else(|| DEFAULT_TARGET.parse().expect("it is a target")),
            credentials: self.credentials(),
            topic: self.text("topic").unwrap_or_else(|| DEFAULT_NAME.to_owned()),
            connect_timeout: self.duration("connect-timeout").unwrap_or(client::PATIENCE),
        }
    }

    fn publish(mut self) -> publish::Options {
        let mut attributes = BTreeMap::new();
        for attribute in self.matches.get_many::<String>("attribute").into_iter().flatten() {
            match attribute.split_once('=').filter(|(name, _)| !name.is_empty()) {
                Some((name, value)) => {
                    if attributes.insert(name.to_owned(), value.to_owned()).is_some() {
                        self.wrong("attribute", attribute, "gives this name a second value".to_owned());
                    }
                }
                None => self.wrong("attribute", attribute, "must be NAME=VALUE".to_owned()),
            }
        }
        let file = self.matches.get_one::<PathBuf>("file").cloned();
        publish::Options { peer: self.peer(), file, json: self.flag("json"), attributes }
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str, fits: impl FnOnce(&T) -> bool, must: &str) -> Option<T> {
        self.read(name, |text| text.parse().ok().filter(fits).ok_or_else(|| must.to_owned()))
    }

    /// A length of time that a load may have.
    fn bounded(&mut self, name: &str) -> Option<Duration> {
        let length = self.duration(name)?;
        if length > bench::LONGEST {
            let text = self.text(name).unwrap_or_default();
            self.wrong(name, &text, "must be at most 24h".to_owned());
            return None;
        }
        Some(length)
    }

    fn bench(mut self) -> bench::Options {
        const STREAMS: &str = "must be a whole number of streams, 0 to 10000";
        const MESSAGES: &str = "must be a whole number of messages, 0 to 10000000";
        let streams = |number: &u32| *number <= bench::MAX_STREAMS;
        let messages = |number: &u32| *number <= bench::MAX_HELD;
        let publishers = self.number("publishers", streams, STREAMS).unwrap_or(1);
        let consumers = self.number("consumers", streams, STREAMS).unwrap_or(1);
        if publishers + consumers == 0 {
            self.wrong("consumers", "0", "must be at least 1 where nobody publishes".to_owned());
        }
        let hold = self.number("hold", messages, MESSAGES).unwrap_or(0);
        let window = self.number("window", messages, MESSAGES).unwrap_or(bench::WINDOW + hold);
        if window <= hold {
            let must = format!("must be more than --hold ({hold}), or nothing would ever be acked");
            self.wrong("window", &window.to_string(), must);
        }
        let payload = self.read("payload", |text| match text.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() <= bench::MAX_PAYLOAD => {
                Ok(usize::try_from(size.as_u64()).expect("it is bounded"))
            }
            Ok(_) | Err(_) => {
                Err("must be a number of bytes with its unit, such as \"128B\" or \"1KiB\", at most 16MiB".to_owned())
            }
        });
        let mut subscriptions: Vec<String> =
            self.matches.get_many::<String>("subscription").into_iter().flatten().cloned().collect();
        if subscriptions.is_empty() {
            subscriptions.push(DEFAULT_NAME.to_owned());
        }
        if let Some(twice) = subscriptions.iter().enumerate().find(|(n, name)| subscriptions[..*n].contains(name)) {
            self.wrong("subscription", &twice.1.clone(), "is given twice".to_owned());
        }
        if (consumers as usize) < subscriptions.len() && consumers > 0 {
            let must = format!("must be at least the number of subscriptions, {}", subscriptions.len());
            self.wrong("consumers", &consumers.to_string(), must);
        }
        let metrics = match self.text("metrics").as_deref() {
            Some("off") => None,
            Some(_) => {
                self.read("metrics", |text| text.parse().map_err(|error: NoTarget| format!("{error}, or \"off\"")))
            }
            None => Some(DEFAULT_METRICS.parse().expect("it is a target")),
        };
        let is_rate = |rate: &f64| *rate > 0.0 && *rate <= bench::MAX_RATE;
        bench::Options {
            peer: self.peer(),
            subscriptions,
            publishers,
            consumers,
            connections: self
                .number(
                    "connections",
                    |number: &NonZeroU32| number.get() <= bench::MAX_STREAMS,
                    "must be a whole number, 1 to 10000",
                )
                .unwrap_or(bench::CONNECTIONS),
            rate: self.number(
                "rate",
                is_rate,
                "must be a number of messages a second, more than 0 and at most 1000000000",
            ),
            payload: payload.unwrap_or(bench::PAYLOAD),
            batch: self.number("batch", messages, MESSAGES).unwrap_or(0),
            window,
            hold,
            ack_delay: self.bounded("ack-delay").unwrap_or_default(),
            drop_rate: self
                .number("drop-rate", |share| (0.0..=1.0).contains(share), "must be a share, 0 to 1")
                .unwrap_or(0.0),
            duration: self.bounded("duration").unwrap_or(bench::DURATION),
            count: self.number("count", |count| *count > 0, "must be a whole number of messages, at least 1"),
            metrics,
            json: self.flag("json"),
        }
    }

    fn consume(mut self) -> consume::Options {
        let count = self.read("count", |text| match text.parse() {
            Ok(0) | Err(_) => Err("must be a whole number of messages, at least 1".to_owned()),
            Ok(count) => Ok(count),
        });
        consume::Options {
            peer: self.peer(),
            subscription: self.text("subscription").unwrap_or_else(|| DEFAULT_NAME.to_owned()),
            count,
            wait: self.duration("wait"),
            no_ack: self.flag("no-ack"),
            json: self.flag("json"),
        }
    }
}
