//! The binary `ackstream`: a command, and what it needs. A server opens its port, serves until it is done or told to stop, and says
//! what became of every message.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ackstream::address::Listen;
use ackstream::cli::{self, Invocation, Wanted};
use ackstream::client::{bench, consume, publish};
use ackstream::config::{Config, Defaults, Layers, Problem};
use ackstream::exchange::Ending;
use ackstream::exit::Exit;
use ackstream::process::{self, Signals};
use ackstream::security::exposure_of_metrics;
use ackstream::server::Server;
use ackstream::telemetry::Environment;
use ackstream::workers::Workers;
use ackstream::{generator, health, listener, logging};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// Gives memory back to the system once messages are settled, whichever thread they were accepted and settled on; the C library's
/// allocator keeps all of it after a peak (measured: 342 of 343 MB).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the collector may take for the last traces.
const FLUSH_GRACE: Duration = Duration::from_secs(2);
/// How long the server may take to end, besides the drain: an output that nobody reads, say, must not keep it.
const END_GRACE: Duration = Duration::from_secs(5);
/// How long clients may take to read the end of their streams.
const CLOSING_GRACE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(invocation) => perform(invocation).unwrap_or_else(|problems| wrong(&problems)).into(),
        Err(answer) => {
            let _ = answer.print(); // a closed output has nobody to tell
            if answer.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() }
        }
    }
}

/// Does what was asked for.
///
/// # Errors
///
/// Everything that is wrong with the command line and the configuration; nothing was done.
fn perform(invocation: Invocation) -> Result<Exit, Vec<Problem>> {
    let Invocation { command, file, flags, problems } = invocation;
    let usage = if problems.is_empty() { Ok(()) } else { Err(problems) };
    let defaults = if command == Wanted::Demo { Defaults::Demo } else { Defaults::Server };
    let config = || Config::load(&Layers::read(file, std::env::vars_os(), flags, defaults));
    process::fail_stop();
    Ok(match command {
        Wanted::Demo | Wanted::Serve => {
            let is_demo = command == Wanted::Demo;
            let config = config().and_then(|config| config.suits(is_demo)).and_then(Config::with_files);
            let environment = Environment::read(std::env::vars_os());
            let (((), mut config), Environment { traces, ignored }) = both(both(usage, config), environment)?;
            config.settings.traces = traces;
            block_on(Builder::new_current_thread(), run(is_demo, config, &ignored))
        }
        Wanted::Config => process::answer(&both(usage, config().and_then(Config::with_files))?.1.to_string()),
        Wanted::Health(question) => {
            let ((), config) = both(usage, config())?;
            let question = question.of_own_server(&config.security);
            question.credentials.check()?;
            block_on(Builder::new_current_thread(), ask(&question, &config))
        }
        Wanted::Publish(options) => {
            usage.and_then(|()| options.peer.credentials.check())?;
            block_on(Builder::new_current_thread(), publish::run(options))
        }
        Wanted::Consume(options) => {
            usage.and_then(|()| options.peer.credentials.check())?;
            block_on(Builder::new_current_thread(), consume::run(options))
        }
        Wanted::Bench(options) => {
            usage.and_then(|()| options.peer.credentials.check())?;
            block_on(Builder::new_current_thread(), bench::run(options))
        }
        Wanted::Completions(shell) => {
            usage?;
            process::answer(&cli::completions(shell))
        }
    })
}

/// Both, or all that is wrong with either.
fn both<A, B>(one: Result<A, Vec<Problem>>, other: Result<B, Vec<Problem>>) -> Result<(A, B), Vec<Problem>> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => Err(problems),
        (Err(problems), Err(more)) => Err([problems, more].concat()),
    }
}

fn wrong(problems: &[Problem]) -> Exit {
    for problem in problems {
        process::complain(problem);
    }
    Exit::Usage
}

fn block_on(mut runtime: Builder, task: impl Future<Output = Exit>) -> Exit {
    match runtime.enable_all().build() {
        Ok(runtime) => {
            let exit = runtime.block_on(task);
            runtime.shutdown_background(); // whatever still blocks must not keep the process
            exit
        }
        Err(error) => unavailable(&format!("cannot start a runtime: {error}")),
    }
}

async fn run(is_demo: bool, config: Config, ignored: &[String]) -> Exit {
    process::raise_descriptor_limit();
    let log = logging::start(config.log_format, config.log_level);
    let mut signals = match Signals::take_over() {
        Ok(signals) => signals,
        Err(error) => return unavailable(&format!("cannot wait for signals: {error}")),
    };
    let bound = bind(config.listen, "--listen").and_then(|grpc| {
        let http = config.metrics_listen.map(|listen| bind(listen, "--metrics-listen")).transpose()?;
        Ok((grpc, http))
    });
    let ((listener, address), http) = match bound {
        Ok(bound) => bound,
        Err(why) => return unavailable(&why),
    };
    let workers = match Workers::start() {
        Ok(workers) => Arc::new(workers),
        Err(error) => return unavailable(&format!("cannot start the threads that serve connections: {error}")),
    };
    let server = match Server::start(&config.settings).await {
        Ok(server) => server,
        Err(error) => return unavailable(&format!("the system has no random numbers: {error}")),
    };
    info!("Starting gRPC server on {address}");
    let metrics_address = http.as_ref().map(|(_, address)| *address);
    if let Some((listener, address)) = http {
        info!("Serving metrics on http://{address}/metrics");
        tokio::spawn(server.endpoint().clone().serve(listener)); // to the very end: the last scrape is the truest
    }
    let security = &config.settings.security;
    for exposure in security.exposure(address).into_iter().chain(metrics_address.and_then(exposure_of_metrics)) {
        warn!("{exposure}");
    }
    security.warn_of_the_powerless();
    if !ignored.is_empty() {
        warn!("Set, but not supported by this server: {}", ignored.join(", "));
    }
    server.serving().await; // whoever has connected by now waits to be accepted
    let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
    connections.spawn(listener::accept(
        listener,
        server.connections().clone(),
        stop.clone(),
        connections.clone(),
        Arc::clone(&workers),
    ));
    connections.close();

    let ending = tokio::select! {
        () = serve(is_demo, &config, &server) => Ending::Completed,
        () = signals.next_for_a_server(|| hung_up(&config)) => Ending::Stopping,
    };
    process::end_within(config.drain_timeout + END_GRACE);
    tokio::select! {
        () = close(ending, &config, &server, &stop, &connections) => {}
        () = signals.next() => info!("Stopping at once"), // whoever asks twice does not want to wait
    }
    server.say_summary();
    if log.lost_lines() > 0 {
        warn!("{} log lines were lost: the output did not take them in time", log.lost_lines());
    }
    Exit::Done
}

/// Lets outstanding messages settle where the server was told to stop, ends the streams, and waits until the clients have read that.
async fn close(ending: Ending, config: &Config, server: &Server, stop: &CancellationToken, connections: &TaskTracker) {
    if ending == Ending::Stopping {
        info!("Stopping: waiting up to {} for outstanding messages", humantime::format_duration(config.drain_timeout));
        if !server.drain(config.drain_timeout).await {
            warn!("outstanding messages were not settled in time (--drain-timeout)");
        }
    }
    server.end_streams(ending).await;
    stop.cancel();
    if tokio::time::timeout(CLOSING_GRACE, connections.wait()).await.is_err() {
        info!("Closing {} connections whose clients did not read to the end", connections.len());
    }
    server.flush_traces(FLUSH_GRACE).await;
}

/// Returns when there is nothing more to do: for a demo with an end, when all of its messages are settled.
async fn serve(is_demo: bool, config: &Config, server: &Server) {
    if is_demo {
        let (plan, interval) = (config.plan, humantime::format_duration(config.plan.interval));
        let every = if plan.interval == Duration::from_secs(1) { "1-second".to_owned() } else { interval.to_string() };
        let messages = plan.count.map_or("messages without end".to_owned(), |count| format!("{count} messages"));
        info!("Will send {messages} at {every} intervals");
        let topic = server.broker().topic("demo").expect("the configuration was asked for it");
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

/// Opens a port; the error is a sentence. `flag` can name another.
fn bind(listen: Listen, flag: &str) -> Result<(TcpListener, SocketAddr), String> {
    let bound = listen.bind().and_then(|listener| listener.local_addr().map(|address| (listener, address)));
    bound.map_err(|error| format!("cannot listen on {listen}: {error}; is another server running? ({flag})"))
}

async fn ask(question: &health::Question, config: &Config) -> Exit {
    match health::ask(question, config.listen).await {
        Ok(()) => process::answer("SERVING\n"),
        Err(why) => {
            process::complain(why);
            Exit::Refused
        }
    }
}

fn unavailable(why: &str) -> Exit {
    process::complain(why);
    Exit::Unavailable
}

/// Nobody's terminal was closed: somebody asks a service to read its files anew.
fn hung_up(config: &Config) {
    let interval = humantime::format_duration(config.settings.security.reload_interval());
    info!("SIGHUP: going on; certificates and tokens are read anew every {interval} without it (--reload-interval)");
}
