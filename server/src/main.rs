//! The binary `ackstream`: reads the configuration, opens the port, serves until it is done or told to stop, and says what became of
//! every message.

use std::process::ExitCode;
use std::time::Duration;

use ackstream::cli::{self, Invocation, Wanted};
use ackstream::config::{Config, Layers};
use ackstream::exchange::Ending;
use ackstream::server::Server;
use ackstream::telemetry::Environment;
use ackstream::{generator, listener, logging};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// Wrong usage or configuration; nothing was opened.
const EX_USAGE: u8 = 64;
/// The port cannot be had.
const EX_UNAVAILABLE: u8 = 69;
/// A bug of ours.
const EX_SOFTWARE: i32 = 70;
/// How long the collector may take for the last traces.
const FLUSH_GRACE: Duration = Duration::from_secs(2);
/// How long clients may take to read the end of their streams.
const CLOSING_GRACE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let Invocation { command, file, flags, mut problems } = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(answer) => {
            let _ = answer.print(); // a closed output has nobody to tell
            return if answer.use_stderr() { EX_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let config = Config::load(&Layers::read(file, std::env::vars_os(), flags));
    let environment = Environment::read(std::env::vars_os());
    let (config, ignored) = match (config, environment) {
        (Ok(mut config), Ok(environment)) if problems.is_empty() => {
            config.settings.traces = environment.traces;
            (config, environment.ignored)
        }
        (config, environment) => {
            problems.extend(config.err().into_iter().flatten());
            problems.extend(environment.err().into_iter().flatten());
            for problem in problems {
                eprintln!("ackstream: {problem}");
            }
            return EX_USAGE.into();
        }
    };
    if command == Wanted::Config {
        return print(&config);
    }
    fail_stop();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_or_else(
        |error| unavailable(&format!("cannot start a runtime: {error}")),
        |runtime| runtime.block_on(run(command, config, &ignored)),
    )
}

async fn run(command: Wanted, config: Config, ignored: &[String]) -> ExitCode {
    let log = logging::start(config.log_format, config.log_level);
    let bound = config.listen.bind().and_then(|listener| listener.local_addr().map(|address| (listener, address)));
    let (listener, address) = match bound {
        Ok(bound) => bound,
        Err(error) => {
            let listen = config.listen;
            return unavailable(&format!("cannot listen on {listen}: {error}; is another server running? (--listen)"));
        }
    };
    let server = match Server::start(&config.settings).await {
        Ok(server) => server,
        Err(error) => return unavailable(&format!("the system has no random numbers: {error}")),
    };
    info!("Starting gRPC server on {address}");
    if !ignored.is_empty() {
        warn!("Set, but not supported by this server: {}", ignored.join(", "));
    }
    let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
    connections.spawn(listener::accept(listener, server.routes(), stop.clone(), connections.clone()));
    connections.close();

    let ending = tokio::select! {
        () = serve(command, &config, &server) => Ending::Completed,
        () = signal() => Ending::Stopping,
    };
    tokio::select! {
        () = close(ending, &config, &server, &stop, &connections) => {}
        () = signal() => info!("Stopping at once"), // whoever asks twice does not want to wait
    }
    server.say_summary();
    if log.lost_lines() > 0 {
        warn!("{} log lines were lost: the output did not take them in time", log.lost_lines());
    }
    ExitCode::SUCCESS
}

/// Lets outstanding messages settle where the server was told to stop, ends the streams, and waits until the clients have read that.
async fn close(ending: Ending, config: &Config, server: &Server, stop: &CancellationToken, connections: &TaskTracker) {
    if ending == Ending::Stopping {
        info!("Stopping: waiting up to {} for outstanding messages", humantime::format_duration(config.drain_timeout));
        if !server.drain(config.drain_timeout).await {
            warn!("outstanding messages were not settled in time (--drain-timeout)");
        }
    }
    server.end_streams(ending);
    stop.cancel();
    if tokio::time::timeout(CLOSING_GRACE, connections.wait()).await.is_err() {
        info!("Closing {} connections whose clients did not read to the end", connections.len());
    }
    server.flush_traces(FLUSH_GRACE).await;
}

/// Returns when there is nothing more to do: for a demo with an end, when all of its messages are settled.
async fn serve(command: Wanted, config: &Config, server: &Server) {
    if command == Wanted::Demo {
        let (plan, interval) = (config.plan, humantime::format_duration(config.plan.interval));
        let every = if plan.interval == Duration::from_secs(1) { "1-second".to_owned() } else { interval.to_string() };
        let messages = plan.count.map_or("messages without end".to_owned(), |count| format!("{count} messages"));
        info!("Will send {messages} at {every} intervals");
        let topic = server.broker().topic("demo").expect("every server has this topic");
        if let Err(refused) = generator::run(plan, topic, server.progress()).await {
            info!("The generator stops: {refused}");
            return std::future::pending().await; // the server is stopping
        }
        info!("All messages completed, stopping retry handler");
        if !config.keep_serving {
            return;
        }
        info!("Still serving (--keep-serving)");
    }
    std::future::pending::<()>().await;
}

/// SIGINT or, where there is such a thing, SIGTERM.
async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
        let mut int = signal(SignalKind::interrupt()).expect("SIGINT can be handled");
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await.expect("Ctrl-C can be handled");
}

/// A panic is a bug of ours, and what it interrupted is in no known state: the process ends.
fn fail_stop() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        eprintln!("ackstream: this is a bug of ours; please report it with the lines above");
        std::process::exit(EX_SOFTWARE);
    }));
}

fn unavailable(why: &str) -> ExitCode {
    eprintln!("ackstream: {why}");
    EX_UNAVAILABLE.into()
}

fn print(config: &Config) -> ExitCode {
    use std::io::Write as _;
    let _ = write!(std::io::stdout(), "{config}"); // a closed output has nobody to tell
    ExitCode::SUCCESS
}
