//! The command `consume`: prints the payload of each message, or the whole of it as JSON, and acks what is printed.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::holdings::{Holdings, Verdict};
use super::link::{Link, LinkError, Stream, is_final};
use super::output::{self, Output, Page, Printed};
use super::{Peer, json, say};
use crate::exit::Exit;
use crate::process::Signals;
use crate::proto::stream_message::Kind;
use crate::proto::{AckBatch, DataBatch, DataMessage, ExtendBatch, Open, StreamMessage};

/// At most so many messages are outstanding while they are printed; others get the rest.
const WINDOW: u64 = 1_000;
/// Whoever only looks holds what it has seen.
const WINDOW_OF_LOOKERS: u64 = 1_000_000;
/// Bytes of them, at most: so much may wait to be printed.
const BYTES_OF_LOOKERS: u64 = 256 << 20;
/// Deliveries in a frame: they are printed and acked together.
const MAX_BATCH: u32 = 256;
/// What only is looked at must not expire, as that would cost a retry: it is held for as long as a delivery may last,
const HOLD_FOR: Duration = ackstream_core::MAX_DELIVERY;
/// and given back before.
const LOOK_FOR: Duration = Duration::from_mins(55);
/// How long the server may take to read the last acks.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// Deadlines are moved this many times before they pass.
const EXTENSIONS_IN_A_DEADLINE: u32 = 3;

/// What to consume, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The server and the topic.
    pub peer: Peer,
    /// The subscription.
    pub subscription: String,
    /// End after so many messages; `None` = go on.
    pub count: Option<u64>,
    /// End when no message has come for so long; `None` = go on.
    pub wait: Option<Duration>,
    /// Only look: ack nothing, and give everything back at the end, at no cost in retries.
    pub no_ack: bool,
    /// Print whole messages as JSON.
    pub json: bool,
}

/// Prints until there is a reason to end, and returns how the process ends.
pub async fn run(options: Options) -> Exit {
    if output::is_closed() {
        return Exit::Done; // what cannot be printed is not consumed
    }
    let mut signals = match Signals::take_over() {
        Ok(signals) => signals,
        Err(error) => {
            say(&format!("cannot wait for signals: {error}"));
            return Exit::Unavailable;
        }
    };
    let window = if options.no_ack { WINDOW_OF_LOOKERS } else { WINDOW };
    let window = options.count.unwrap_or(window).clamp(1, window);
    let open = Open {
        topic: options.peer.topic.clone(),
        subscription: options.subscription.clone(),
        client_id: "ackstream consume".to_owned(),
        max_outstanding_messages: u32::try_from(window).expect("it is at most the larger window"),
        max_outstanding_bytes: if options.no_ack { BYTES_OF_LOOKERS } else { 0 },
        max_batch_messages: MAX_BATCH,
        max_concurrent_handlers: 1, // what is printed is not what breaks a stream
        ..Open::default()
    };
    let mut link = Link::new(options.peer.clone(), open);
    let now = Instant::now();
    let holdings = Holdings::new(options.count);
    let mut consumer = Consumer { options, holdings, output: Output::start(), last_printed: now, first: None };
    consumer.run(&mut link, &mut signals).await
}

struct Consumer {
    options: Options,
    holdings: Holdings,
    output: Output,
    last_printed: Instant,
    /// When the first message came that is still held by whoever only looks.
    first: Option<Instant>,
}

/// How a conversation went.
enum Ended {
    /// There is a reason to end.
    Finished(Exit),
    /// The stream broke.
    Broke(String),
}

impl Consumer {
    async fn run(&mut self, link: &mut Link, signals: &mut Signals) -> Exit {
        loop {
            let stream = tokio::select! {
                stream = link.open() => stream,
                () = signals.next() => return Exit::Done,
            };
            let ended = match stream {
                Ok(stream) => self.converse(stream, signals).await,
                Err(error) => Err(error),
            };
            match ended {
                Ok(Ended::Finished(exit)) => return exit,
                Ok(Ended::Broke(why)) => say(&format!("the stream broke ({why}): connecting again")),
                Err(error) => {
                    say(&error.to_string());
                    return match error {
                        LinkError::Unreachable { .. } => Exit::Unavailable,
                        LinkError::Refused(_) => Exit::Usage,
                    };
                }
            }
        }
    }

    async fn converse(&mut self, mut stream: Stream, signals: &mut Signals) -> Result<Ended, LinkError> {
        self.holdings.opened(stream.opened.epoch);
        self.first = None;
        let deadline = stream.opened.ack_deadline.and_then(|length| Duration::try_from(length).ok());
        let every = deadline.unwrap_or(Duration::from_secs(2)) / EXTENSIONS_IN_A_DEADLINE;
        let mut extensions = tokio::time::interval(every);
        loop {
            if let Some(exit) = self.reason_to_end() {
                return self.leave(stream, exit).await;
            }
            let end = self.next_reason_by_time();
            tokio::select! {
                frame = stream.frames.message() => match frame {
                    Ok(Some(frame)) => self.hear(frame, &stream).await,
                    Ok(None) => return Ok(Ended::Finished(self.print_the_rest().await)), // the server has finished
                    Err(status) if is_final(status.code()) => return Err(LinkError::Refused(status)),
                    Err(status) => return Ok(Ended::Broke(status.message().to_owned())),
                },
                printed = self.output.printed.recv() => match printed {
                    Some(Ok(printed)) => self.printed(printed, &stream).await,
                    Some(Err(error)) => return self.leave(stream, exit_of(&error)).await,
                    None => unreachable!("the thread tells of its end"),
                },
                _ = extensions.tick() => {
                    let held: Vec<u64> = self.holdings.held().iter().copied().collect();
                    extend(&stream, held, None).await;
                }
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {}
                () = signals.next() => return self.leave(stream, Exit::Done).await,
            }
        }
    }

    fn reason_to_end(&self) -> Option<Exit> {
        let timed_out = self.next_reason_by_time().is_some_and(|end| end <= Instant::now());
        (self.holdings.is_complete() || timed_out).then_some(Exit::Done)
    }

    /// When nothing has come for too long, or what is looked at would expire.
    fn next_reason_by_time(&self) -> Option<Instant> {
        let nothing_came = self.options.wait.filter(|_| self.holdings.is_idle()).map(|wait| self.last_printed + wait);
        let looked = self.first.map(|first| first + LOOK_FOR);
        nothing_came.into_iter().chain(looked).min()
    }

    /// Takes what the server says.
    async fn hear(&mut self, frame: StreamMessage, stream: &Stream) {
        match frame.kind {
            Some(Kind::Data(data)) => self.delivered(&[data], stream).await,
            Some(Kind::DataBatch(DataBatch { messages })) => self.delivered(&messages, stream).await,
            // Answers come to publishers alone, and what a later version says is ignored.
            Some(
                Kind::Open(_)
                | Kind::Opened(_)
                | Kind::Ack(_)
                | Kind::Nack(_)
                | Kind::Extend(_)
                | Kind::AckBatch(_)
                | Kind::ExtendBatch(_),
            )
            | None => {}
        }
    }

    async fn delivered(&mut self, messages: &[DataMessage], stream: &Stream) {
        let mut page = Page { epoch: self.holdings.epoch(), ids: Vec::new(), text: Vec::new() };
        let mut printed_before = Vec::new();
        for message in messages {
            match self.holdings.deliver(message.id) {
                Verdict::Print => {
                    page.ids.push(message.id);
                    if self.options.json {
                        page.text.extend(json::print(message));
                    } else {
                        page.text.extend_from_slice(&message.payload);
                        page.text.push(b'\n');
                    }
                }
                Verdict::Printed => printed_before.push(message.id),
                Verdict::Leave => {}
            }
        }
        if !page.ids.is_empty() {
            self.first = self.first.or_else(|| self.options.no_ack.then(Instant::now));
            let _ = self.output.pages.send(page); // its error is on the way
        }
        if !printed_before.is_empty() {
            self.answer(printed_before, stream).await;
        }
    }

    async fn printed(&mut self, Printed { epoch, ids }: Printed, stream: &Stream) {
        self.last_printed = Instant::now();
        if self.holdings.printed(epoch, &ids) {
            self.answer(ids, stream).await;
        }
    }

    /// Says of what is printed that it is done or, by whoever only looks, that it is still held.
    async fn answer(&self, ids: Vec<u64>, stream: &Stream) {
        if self.options.no_ack {
            extend(stream, ids, Some(HOLD_FOR)).await;
        } else {
            tell(stream, Kind::AckBatch(AckBatch { ack_ids: ids, ..AckBatch::default() })).await;
        }
    }

    /// Half-closes: what is held goes to others, at no cost in retries.
    async fn leave(&self, stream: Stream, exit: Exit) -> Result<Ended, LinkError> {
        if let Err(status) = stream.leave(LEAVE_WITHIN).await {
            say(&format!("the server may not have read the last acks: {}", status.message()));
        }
        Ok(Ended::Finished(exit))
    }

    /// What was delivered before the server finished is printed, though it can be acked no more.
    async fn print_the_rest(&mut self) -> Exit {
        while !self.holdings.is_idle() {
            match self.output.printed.recv().await {
                Some(Ok(Printed { epoch, ids })) => _ = self.holdings.printed(epoch, &ids),
                Some(Err(error)) => return exit_of(&error),
                None => unreachable!("the thread tells of its end"),
            }
        }
        Exit::Done
    }
}

/// A reader that has had enough is no error; any other output that fails is told.
fn exit_of(error: &io::Error) -> Exit {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Exit::Done;
    }
    say(&format!("cannot print: {error}; what was not printed is not acked"));
    Exit::Refused
}

async fn extend(stream: &Stream, ids: Vec<u64>, length: Option<Duration>) {
    if !ids.is_empty() {
        let ack_deadline = length.map(|length| length.try_into().expect("an hour fits"));
        tell(stream, Kind::ExtendBatch(ExtendBatch { ack_ids: ids, ack_deadline })).await;
    }
}

/// Says something to the server. Where the stream has ended, that is read next.
async fn tell(stream: &Stream, kind: Kind) {
    let _ = stream.say.send(StreamMessage { kind: Some(kind) }).await;
}
