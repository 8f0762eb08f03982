//! What the two halves of one stream share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Waker};
use std::time::Duration;

use ackstream_core::{ConsumerId, Leave};
use tokio::sync::Notify;

use crate::exchange::codec::Frame;
use crate::exchange::frames::{self, Answer};
use crate::exchange::status::Refused;
use crate::proto::Opened;
use crate::proto::stream_message::Kind;
use crate::subscription::Subscription;

/// At most so many answers to publishes wait for the client to read them.
const MAX_UNSENT_ANSWERS: usize = 10_000;
/// A publisher that reads none of them for so long, while it goes on publishing, loses its stream.
const ANSWERS_READ_WITHIN: Duration = Duration::from_secs(5);

/// The state of one stream, between the task that reads it and the stream that tonic polls.
pub(super) struct Session {
    state: Mutex<State>,
    /// Whether there is something that goes before deliveries; moved under the lock of the state.
    news: AtomicBool,
    /// Whether the stream was polled or a frame has come since that was last asked.
    moved: AtomicBool,
    /// Rings when the client has been sent answers.
    answers_sent: Notify,
    /// Rings when another stream has taken the client's session over.
    taken_over: Notify,
}

#[derive(Default)]
struct State {
    opened: Option<Opened>,
    answers: VecDeque<Answer>,
    max_batch: usize,
    receiver: Option<Receiver>,
    end: Option<Result<(), Refused>>,
    /// The client is gone: nobody polls any more, and nothing may attach.
    gone: bool,
    waker: Option<Waker>,
}

/// A consumer of a subscription.
#[derive(Clone)]
pub(super) struct Receiver {
    pub(super) subscription: Arc<Subscription>,
    pub(super) consumer: ConsumerId,
    /// Which of the consumer's streams this is.
    pub(super) stream: u64,
    /// How long the consumer may take to resume once its stream has broken; `None`: it has no session.
    pub(super) grace: Option<Duration>,
    pub(super) auto_ack: bool,
    /// At most so many deliveries in a frame; 0 = each in a frame of its own.
    pub(super) max_batch: usize,
}

/// What tonic's next poll gets from the session, before any delivery.
pub(super) enum Turn {
    /// A frame.
    Frame(Frame),
    /// The stream's end.
    End(Result<(), Refused>),
    /// Nothing; the next delivery, where the stream consumes.
    Delivery(Option<Receiver>),
}

impl Session {
    pub(super) fn new() -> Self {
        let (news, moved) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { state: Mutex::default(), news, moved, answers_sent: Notify::new(), taken_over: Notify::new() }
    }

    /// Opens the stream: the answer to `open`, and who receives on it, as `attach` says.
    pub(super) fn open(
        &self,
        max_batch: usize,
        attach: impl FnOnce() -> (Opened, Option<Receiver>),
    ) -> Option<Receiver> {
        let mut state = self.lock();
        if state.gone {
            return None;
        }
        let (opened, receiver) = attach();
        state.receiver.clone_from(&receiver);
        state.opened = Some(opened);
        self.news.store(true, Ordering::Release);
        state.max_batch = max_batch;
        state.wake();
        receiver
    }

    /// Waits until one more answer may wait. To be called before a publish is stored, so that none is stored whose answer is lost.
    ///
    /// # Errors
    ///
    /// Where the client does not read.
    pub(super) async fn room_for_answer(&self) -> Result<(), Refused> {
        while self.lock().answers.len() >= MAX_UNSENT_ANSWERS {
            let sent = tokio::time::timeout(ANSWERS_READ_WITHIN, self.answers_sent.notified()).await;
            sent.map_err(|_| Refused::AnswersNotRead { unsent: MAX_UNSENT_ANSWERS })?;
        }
        Ok(())
    }

    /// An answer for the client.
    pub(super) fn answer(&self, answer: Answer) {
        let mut state = self.lock();
        state.answers.push_back(answer);
        self.news.store(true, Ordering::Release);
        state.wake();
    }

    /// The stream ends, once the answers are out. Its consumer leaves at once, or may resume.
    pub(super) fn end(&self, leave: Leave, may_resume: bool, how: Result<(), Refused>) {
        let mut state = self.lock();
        state.leave(leave, may_resume);
        state.end = Some(how);
        self.news.store(true, Ordering::Release);
        state.wake();
    }

    /// Another stream takes the client's session over.
    pub(super) fn take_over(&self) {
        self.taken_over.notify_one();
    }

    /// Waits until another stream has taken the client's session over.
    pub(super) async fn taken_over(&self) {
        self.taken_over.notified().await;
    }

    /// Nobody polls the stream any more. Unless it had ended, it broke.
    pub(super) fn gone(&self) {
        let mut state = self.lock();
        state.gone = true;
        state.waker = None;
        state.leave(Leave::Broken, true);
        state.answers = VecDeque::new();
    }

    /// Whether something goes before the next delivery.
    pub(super) fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    /// The stream was polled, or a frame has come.
    pub(super) fn moved(&self) {
        self.moved.store(true, Ordering::Relaxed);
    }

    /// Whether either has happened since this was last asked.
    pub(super) fn has_moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    /// Whether a delivery is due to the consumer that it does not come for.
    pub(super) fn is_awaited(&self) -> bool {
        let receiver = self.lock().receiver.clone();
        receiver.is_some_and(|receiver| receiver.subscription.lock().is_awaited(receiver.consumer))
    }

    /// What comes before any delivery. Whoever asks is woken when that may change.
    pub(super) fn turn(&self, context: &Context<'_>) -> Turn {
        let mut state = self.lock();
        let state = &mut *state;
        if let Some(opened) = state.opened.take() {
            return Turn::Frame(frames::frame(Kind::Opened(opened)));
        }
        if let Some(answers) = frames::next_answers(&mut state.answers, state.max_batch) {
            self.answers_sent.notify_one();
            return Turn::Frame(answers);
        }
        if let Some(end) = state.end.take() {
            return Turn::End(end);
        }
        self.news.store(false, Ordering::Release);
        match &mut state.waker {
            Some(known) => known.clone_from(context.waker()), // costs nothing where it is the same
            place @ None => *place = Some(context.waker().clone()),
        }
        Turn::Delivery(state.receiver.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic ends the process")
    }
}

impl State {
    fn leave(&mut self, leave: Leave, may_resume: bool) {
        if let Some(Receiver { subscription, consumer, stream, grace, .. }) = self.receiver.take() {
            let mut locked = subscription.lock();
            let until = grace.filter(|_| may_resume).map(|grace| locked.now.plus(grace));
            locked.stream_ends(consumer, stream, leave, until);
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_attaches_for_a_client_that_is_gone() {
        let session = Session::new();
        session.gone();

        let receiver = session.open(0, || unreachable!("it would attach"));

        assert!(receiver.is_none());
    }
}
