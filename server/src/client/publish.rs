//! The command `publish`: each line of a file, or of the standard input, is a message.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use super::input::{self, Form, Line};
use super::link::{Link, LinkError, Stream, is_final};
use super::publications::{Left, Publications, Refusal, bounded_size};
use super::{Peer, say};
use crate::exit::Exit;
use crate::process::Signals;
use crate::proto::stream_message::Kind;
use crate::proto::{AckBatch, AckMessage, Nack, Open, StreamMessage};

/// Answers in one frame.
const MAX_BATCH: u32 = 1_000;
/// While a backlog is full, publishes are tried again after this long, and then after twice as long,
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long whoever interrupts waits for answers.
const INTERRUPTED_WITHIN: Duration = Duration::from_secs(2);
/// How long the server may take to end the stream when all is answered.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// How often the bar moves.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// So many refused lines are told one by one.
const TOLD_ONE_BY_ONE: u64 = 20;

/// What to publish, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The server and the topic.
    pub peer: Peer,
    /// The file to read; `None` or "-" = the standard input.
    pub file: Option<PathBuf>,
    /// Each line is a message in JSON, as `consume --json` prints it.
    pub json: bool,
    /// Attributes that every message gets.
    pub attributes: BTreeMap<String, String>,
}

/// Publishes every line, says what became of them on the standard error, and returns how the process ends.
pub async fn run(options: Options) -> Exit {
    let Options { peer, file, json, attributes } = options;
    let (reader, length) = match open(file.as_deref()) {
        Ok(opened) => opened,
        Err(why) => {
            say(&why);
            return Exit::NoInput;
        }
    };
    let mut signals = match Signals::take_over() {
        Ok(signals) => signals,
        Err(error) => {
            say(&format!("cannot wait for signals: {error}"));
            return Exit::Unavailable;
        }
    };
    let read_bytes = Arc::new(AtomicU64::new(0));
    let from_stdin = length.is_none();
    let input = Input::Unread(reader, Form { json, attributes }, Arc::clone(&read_bytes));

    let open = Open {
        topic: peer.topic.clone(),
        client_id: "ackstream publish".to_owned(),
        publish_only: true,
        max_batch_messages: MAX_BATCH,
        ..Open::default()
    };
    let mut publisher = Publisher {
        topic: peer.topic.clone(),
        publications: Publications::default(),
        input,
        is_pipe: from_stdin && !io::stdin().is_terminal(),
        unreadable: None,
        interrupted: None,
        refused: 0,
        reconnects: 0,
        told_to_wait: false,
        pause: None,
        bar: Bar::new(length, read_bytes, from_stdin),
    };
    let failed = publisher.run(&mut Link::new(peer, open), &mut signals).await.err();
    publisher.conclude(failed.as_ref())
}

/// The input, and its length where that is known.
fn open(file: Option<&Path>) -> Result<(Box<dyn Read + Send>, Option<u64>), String> {
    let Some(path) = file.filter(|path| *path != Path::new("-")) else { return Ok((Box::new(io::stdin()), None)) };
    let cannot = |error: &io::Error| format!("{} cannot be read: {error}", path.display());
    let file = File::open(path).map_err(|error| cannot(&error))?;
    let metadata = file.metadata().map_err(|error| cannot(&error))?;
    if metadata.is_dir() {
        return Err(format!("{} cannot be read: it is a directory", path.display()));
    }
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

struct Publisher {
    topic: String,
    publications: Publications,
    input: Input,
    /// What is in a pipe is gone when nobody takes it: it is read to its end, also by whoever is interrupted.
    is_pipe: bool,
    /// The input broke off.
    unreadable: Option<io::Error>,
    /// When to give up, as somebody wants to end.
    interrupted: Option<Instant>,
    /// Lines that were not accepted, and never will be.
    refused: u64,
    reconnects: u64,
    /// Whether it was said that a backlog is full.
    told_to_wait: bool,
    /// A backlog is full: until when not to publish, and how long that is.
    pause: Option<(Instant, Duration)>,
    bar: Bar,
}

/// What is published.
enum Input {
    /// Nobody has read anything yet: what is not published shall stay where it is.
    Unread(Box<dyn Read + Send>, Form, Arc<AtomicU64>),
    /// It is being read.
    Lines(mpsc::Receiver<io::Result<Vec<Line>>>),
    /// It has ended.
    Ended,
    /// Somebody does not want the rest.
    Cut,
}

impl Input {
    /// Begins to read, in a thread that is not waited for: a read that blocks must not keep the process.
    fn begin(&mut self) {
        *self = match std::mem::replace(self, Self::Ended) {
            Self::Unread(reader, form, counter) => {
                let (send, lines) = mpsc::channel(4);
                let reader = BufReader::with_capacity(1 << 16, reader);
                std::thread::spawn(move || input::read(reader, &form, &send, &counter));
                Self::Lines(lines)
            }
            begun @ (Self::Lines(_) | Self::Ended | Self::Cut) => begun,
        };
    }

    /// The next lines; never where there are no more.
    async fn next(&mut self) -> Option<io::Result<Vec<Line>>> {
        match self {
            Self::Lines(lines) => lines.recv().await,
            Self::Unread(..) | Self::Ended | Self::Cut => std::future::pending().await,
        }
    }

    const fn is_over(&self) -> bool {
        matches!(self, Self::Ended | Self::Cut)
    }
}

/// How a conversation went.
enum Ended {
    /// Everything is answered, or nobody wants to wait any longer.
    Finished,
    /// The stream broke, or the server ended it.
    Broke(String),
}

impl Publisher {
    async fn run(&mut self, link: &mut Link, signals: &mut Signals) -> Result<(), LinkError> {
        loop {
            let stream = tokio::select! {
                stream = link.open() => stream?,
                () = signals.next() => return Ok(()),
            };
            match self.converse(stream, signals).await? {
                Ended::Finished => return Ok(()),
                Ended::Broke(why) => {
                    self.publications.stream_broke();
                    self.reconnects += 1;
                    self.bar.suspend(|| say(&format!("the stream broke ({why}): connecting again")));
                }
            }
        }
    }

    async fn converse(&mut self, mut stream: Stream, signals: &mut Signals) -> Result<Ended, LinkError> {
        let max_message_bytes = stream.opened.max_message_bytes;
        self.input.begin();
        let mut ticks = tokio::time::interval(BAR_EVERY);
        loop {
            if self.input.is_over() && self.publications.unanswered() == 0 {
                // All is answered: how the stream ends changes nothing.
                let _ = stream.leave(LEAVE_WITHIN).await;
                return Ok(Ended::Finished);
            }
            let paused = self.pause.map(|(until, _)| until).filter(|until| *until > Instant::now());
            while paused.is_none() && self.publications.has_next() {
                let Ok(permit) = stream.say.try_reserve() else { break };
                permit.send(self.publications.next().expect("there is one"));
            }
            let may_send = paused.is_none() && self.publications.has_next();
            let may_read = self.publications.has_room();
            tokio::select! {
                frame = stream.frames.message() => match frame {
                    Ok(Some(frame)) => self.hear(frame),
                    Ok(None) => return Ok(Ended::Broke("the server has ended it".to_owned())),
                    Err(status) if is_final(status.code()) => return Err(LinkError::Refused(status)),
                    Err(status) => return Ok(Ended::Broke(status.message().to_owned())),
                },
                permit = stream.say.reserve(), if may_send => if let Ok(permit) = permit {
                    permit.send(self.publications.next().expect("there is one"));
                } else {
                    return Ok(Ended::Broke("it takes no more".to_owned()));
                },
                lines = self.input.next(), if may_read => self.take(lines, max_message_bytes),
                () = sleep_until(paused.unwrap_or_else(Instant::now)), if paused.is_some() => {}
                () = sleep_until(self.interrupted.unwrap_or_else(Instant::now)), if self.interrupted.is_some() => {
                    return Ok(Ended::Finished);
                }
                () = signals.next() => {
                    if self.interrupted.is_some() {
                        return Ok(Ended::Finished);
                    }
                    if !self.is_pipe {
                        self.input = Input::Cut;
                    }
                    self.interrupted = Some(Instant::now() + INTERRUPTED_WITHIN);
                }
                _ = ticks.tick() => self.bar.show(&self.publications),
            }
        }
    }

    /// Takes what was read.
    fn take(&mut self, lines: Option<io::Result<Vec<Line>>>, max_message_bytes: u64) {
        match lines {
            Some(Ok(lines)) => {
                for Line { number, message } in lines {
                    match message {
                        Ok(data) if bounded_size(&data) as u64 > max_message_bytes => {
                            let bytes = bounded_size(&data);
                            self.refuse(
                                number,
                                &format!("it has {bytes} bytes, this server takes at most {max_message_bytes}"),
                            );
                        }
                        Ok(data) => self.publications.add(number, data),
                        Err(reason) => self.refuse(number, &reason),
                    }
                }
            }
            Some(Err(error)) => self.unreadable = Some(error),
            None => self.input = Input::Ended,
        }
    }

    /// Takes what the server says.
    fn hear(&mut self, frame: StreamMessage) {
        match frame.kind {
            Some(Kind::Ack(AckMessage { ack_id, .. })) => self.accepted(&[ack_id]),
            Some(Kind::AckBatch(AckBatch { ack_ids, .. })) => self.accepted(&ack_ids),
            Some(Kind::Nack(Nack { ack_id, code, reason, .. })) => {
                match self.publications.refuse(ack_id, Code::from_i32(code)) {
                    Refusal::ForGood => self.refuse(ack_id, &reason),
                    Refusal::ForNow => {
                        if !std::mem::replace(&mut self.told_to_wait, true) {
                            self.bar.suspend(|| say(&format!("{reason}: trying again until there is room")));
                        }
                        let (until, length) = self.pause.unwrap_or((Instant::now(), FIRST_PAUSE / 2));
                        if until <= Instant::now() {
                            let length = (length * 2).min(LONGEST_PAUSE); // one pause, however many were refused together
                            self.pause = Some((Instant::now() + length, length));
                        }
                    }
                    Refusal::Unknown => {}
                }
            }
            // Deliveries do not come to a publisher, and what a later version says is ignored.
            Some(
                Kind::Open(_)
                | Kind::Opened(_)
                | Kind::Data(_)
                | Kind::DataBatch(_)
                | Kind::Extend(_)
                | Kind::ExtendBatch(_),
            )
            | None => {}
        }
    }

    fn accepted(&mut self, numbers: &[u64]) {
        for &number in numbers {
            self.publications.accept(number);
        }
        if self.pause.is_some_and(|(until, _)| until <= Instant::now()) {
            self.pause = None; // there is room again
        }
    }

    fn refuse(&mut self, line: u64, reason: &str) {
        self.refused += 1;
        match self.refused {
            ..=TOLD_ONE_BY_ONE => self.bar.suspend(|| say(&format!("line {line} is not published: {reason}"))),
            refused if refused == TOLD_ONE_BY_ONE + 1 => {
                self.bar.suspend(|| say("further lines that are not published are counted"));
            }
            _ => {}
        }
    }

    /// Says what became of everything.
    fn conclude(self, failed: Option<&LinkError>) -> Exit {
        let Self { topic, publications, input, unreadable, refused, reconnects, bar, .. } = self;
        bar.clear();
        let (counts, Left { uncertain, unpublished }) = (publications.counts(), publications.left());
        if let Some(failed) = failed {
            say(&failed.to_string());
        }
        if let Some(error) = &unreadable {
            say(&format!("the input cannot be read to its end: {error}"));
        }
        let stopped = failed.is_none() && !matches!(input, Input::Ended);
        let twice = HumanCount(counts.perhaps_twice);
        let parts = [
            Some(format!("{} published to topic {topic}", HumanCount(counts.accepted))),
            (reconnects > 0).then(|| format!("{twice} of them perhaps stored twice ({reconnects} broken streams)")),
            (refused > 0).then(|| format!("{} refused", HumanCount(refused))),
            (uncertain > 0).then(|| format!("{} without an answer: they may be stored or not", HumanCount(uncertain))),
            (unpublished > 0).then(|| format!("{} read and not published", HumanCount(unpublished))),
            stopped.then(|| "interrupted: what was not read is not published".to_owned()),
        ];
        say(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
        match failed {
            Some(LinkError::Unreachable { .. }) => Exit::Unavailable,
            Some(LinkError::Refused(_)) => Exit::Usage,
            None if unreadable.is_some() => Exit::NoInput,
            None if refused > 0 || uncertain + unpublished > 0 || stopped => Exit::Refused,
            None => Exit::Done,
        }
    }
}

/// How far it has come, on a terminal.
struct Bar {
    drawn: ProgressBar,
    read_bytes: Arc<AtomicU64>,
    began: Instant,
}

impl Bar {
    /// For an input of `length` bytes. Where somebody types the input there is no bar.
    fn new(length: Option<u64>, read_bytes: Arc<AtomicU64>, from_stdin: bool) -> Self {
        let typed = from_stdin && io::stdin().is_terminal();
        let target = if typed { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let template = if length.is_some() { "{wide_bar} {percent:>3} %  {msg}" } else { "{spinner} {msg}" };
        let drawn = ProgressBar::with_draw_target(length, target)
            .with_style(ProgressStyle::with_template(template).expect("the template is right"));
        Self { drawn, read_bytes, began: Instant::now() }
    }

    fn show(&self, publications: &Publications) {
        if self.drawn.is_hidden() {
            return;
        }
        let (accepted, elapsed) = (publications.counts().accepted, self.began.elapsed());
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "for people"
        )]
        let rate = (accepted as f64 / elapsed.as_secs_f64().max(0.1)) as u64;
        self.drawn.set_position(self.read_bytes.load(Ordering::Relaxed));
        self.drawn.set_message(format!(
            "{} published, {}/s, {} without an answer, {}",
            HumanCount(accepted),
            HumanCount(rate),
            HumanCount(publications.unanswered() as u64),
            HumanDuration(elapsed)
        ));
    }

    fn suspend(&self, say: impl FnOnce()) {
        self.drawn.suspend(say);
    }

    fn clear(&self) {
        self.drawn.finish_and_clear();
    }
}
