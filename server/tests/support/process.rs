//! The binary as a child process.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use ackstream::proto::message_stream_client::MessageStreamClient;
use ackstream::proto::stream_message::Kind;
use ackstream::proto::{AckMessage, Open, StreamMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

pub(crate) fn ackstream(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ackstream"));
    command.args(arguments).current_dir(std::env::temp_dir()).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ACKSTREAM_") || name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command
}

/// A server on a port of its own, ended with the test.
pub(crate) struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
    #[allow(dead_code, reason = "not all tests scrape")]
    pub(crate) metrics: SocketAddr,
}

impl Process {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_at(arguments, "127.0.0.1:0")
    }

    /// On a port that another server had.
    pub(crate) fn start_at(arguments: &[&str], listen: &str) -> Self {
        Self::spawn(ackstream(arguments).args(["--listen", listen]))
    }

    /// What this command starts.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        if !command.get_args().any(|argument| argument == "--config") {
            // What most tests are about: a short story. Flags go before it.
            command.envs([
                ("ACKSTREAM_ACK_DEADLINE", "2s"),
                ("ACKSTREAM_MAX_RETRIES", "3"),
                ("ACKSTREAM_MIN_BACKOFF", "0s"),
                ("ACKSTREAM_MAX_BACKOFF", "0s"),
            ]);
        }
        let mut child =
            command.args(["--metrics-listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut address = |before: &str, after: [char; 2]| {
            let mut line = String::new();
            lines.read_line(&mut line).expect("a line");
            let address =
                line.split_once(before).map(|(_, rest)| rest.split(after).next().unwrap_or_default().trim_end());
            let address = address.and_then(|address| address.parse().ok());
            address.unwrap_or_else(|| panic!("the first lines name the addresses: {line:?}"))
        };
        let grpc = address("Starting gRPC server on ", ['"', '\n']);
        let metrics = address("Serving metrics on http://", ['"', '/']);
        Self { child, lines, address: grpc, metrics }
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.lines.read_line(&mut line).expect("UTF-8"), 0, "the process has ended");
        line.trim_end().to_owned()
    }

    /// The next line; where none comes in time, the process is killed and the test fails.
    #[allow(dead_code, reason = "not all tests wait for what may not come")]
    pub(crate) fn line_within(&mut self, patience: Duration) -> String {
        let process = self.child.id().to_string();
        let (done, waits) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if waits.recv_timeout(patience) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").args(["-KILL", &process]).status();
            }
        });
        let line = self.line();
        drop(done);
        watchdog.join().expect("it does nothing that can fail");
        line
    }

    #[allow(dead_code, reason = "not all tests send one")]
    pub(crate) fn signal(&self, name: &str) {
        let killed = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(killed.success());
    }

    /// Its memory in RAM, in bytes.
    #[allow(dead_code, reason = "not all tests look")]
    pub(crate) fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        kibibytes.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// The value of one series, with its labels as the page writes them.
    #[allow(dead_code, reason = "not all tests look")]
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let page = self.page();
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.expect("the page has the series").parse().expect("a whole number")
    }

    /// All metrics.
    #[allow(dead_code, reason = "not all tests look")]
    pub(crate) fn page(&self) -> String {
        let mut connection = std::net::TcpStream::connect(self.metrics).expect("it serves metrics");
        connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
        let mut page = String::new();
        connection.read_to_string(&mut page).expect("UTF-8");
        page
    }

    /// Its exit code, once it has ended, though nobody reads what it says.
    #[allow(dead_code, reason = "not all tests leave it unread")]
    pub(crate) fn ends_unread_within(&mut self, patience: Duration) -> Option<i32> {
        let began = std::time::Instant::now();
        while began.elapsed() < patience {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                return status.code();
            }
            std::thread::yield_now();
        }
        None
    }

    /// Everything that is left to read, and the exit code.
    #[allow(dead_code, reason = "not all tests read it")]
    pub(crate) fn end(mut self) -> (String, Option<i32>) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("UTF-8");
        (rest, self.child.wait().expect("it ends").code())
    }

    pub(crate) async fn open(&self, open: Open) -> (mpsc::Sender<StreamMessage>, Streaming<StreamMessage>) {
        let mut client = MessageStreamClient::new(
            tonic::transport::Endpoint::new(format!("http://{}", self.address)).unwrap().connect().await.unwrap(),
        );
        let (send, frames) = mpsc::channel(10);
        send.send(StreamMessage { kind: Some(Kind::Open(open)) }).await.unwrap();
        let mut receive = client.exchange(ReceiverStream::new(frames)).await.unwrap().into_inner();
        assert!(matches!(next(&mut receive).await, Ok(Some(Kind::Opened(_)))));
        (send, receive)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, unless the test failed
        let _ = self.child.wait();
    }
}

pub(crate) async fn next(receive: &mut Streaming<StreamMessage>) -> Result<Option<Kind>, Status> {
    receive.message().await.map(|frame| frame.and_then(|frame| frame.kind))
}

pub(crate) async fn ack(send: &mpsc::Sender<StreamMessage>, ack_id: u64) {
    let ack = Kind::Ack(AckMessage { ack_id, ..AckMessage::default() });
    send.send(StreamMessage { kind: Some(ack) }).await.unwrap();
}
