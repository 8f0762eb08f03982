//! A subscription of the core, made shareable: one lock, the wakers of its consumers, and the task that calls it when time is due.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};
use std::task::Waker;

use ackstream_core::{Attachment, ConsumerId, Leave, MessageId, Policy, Time};
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::dead_letters::DeadLetters;
use crate::message::Message;
use crate::telemetry::{Contexts, Watch};

/// The core's subscription, of shared messages, watched by the server's telemetry.
pub type Core = ackstream_core::Subscription<Message, Watch>;

/// One subscription and what it needs to live in a server.
pub struct Subscription {
    name: String,
    clock: Clock,
    contexts: Option<Contexts>,
    dead_letters: Option<DeadLetters>,
    state: Mutex<State>,
    /// Rings when the driver must look again before the time for which it has set its alarm.
    earlier: Notify,
}

struct State {
    core: Core,
    /// For each consumer, by its index, who polls its stream.
    streams: Vec<Stream>,
    /// The time for which the driver has set its alarm.
    alarm: Option<Time>,
}

/// The stream of a consumer.
#[derive(Default)]
struct Stream {
    /// Which of those that the consumer had.
    number: u64,
    /// Who polls it.
    waker: Option<Waker>,
}

impl Subscription {
    /// An empty subscription; what it gives up is discarded unless `dead_letters` says where it goes. Its deadlines pass only while
    /// [`drive`](Self::drive) runs.
    pub fn new(name: String, policy: &Policy, dead_letters: Option<DeadLetters>, watch: Watch, clock: Clock) -> Self {
        let policy = Policy { dead_letters: dead_letters.is_some(), ..policy.clone() };
        let contexts = watch.contexts();
        let core = Core::new(policy, watch);
        let state = State { core, streams: Vec::new(), alarm: None };
        Self { name, clock, contexts, dead_letters, state: Mutex::new(state), earlier: Notify::new() }
    }

    /// Its name, unique on a server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which trace each message belongs to; `None` where nothing is traced.
    pub const fn contexts(&self) -> Option<&Contexts> {
        self.contexts.as_ref()
    }

    /// Locks the subscription. When the guard goes, whoever the core wants awake is woken, after the lock is released.
    pub fn lock(&self) -> Locked<'_> {
        let state = self.state.lock().expect("a panic ends the process");
        Locked { now: self.clock.now(), subscription: self, state: Some(state) }
    }

    /// Calls the core, and the log, whenever time is due. Never ends.
    pub async fn drive(&self) {
        loop {
            let alarm = {
                let mut locked = self.lock();
                let now = locked.now;
                locked.advance(now);
                if let Some(dead_letters) = &self.dead_letters {
                    dead_letters.hand_over(&mut locked);
                }
                locked.observer_mut().lines_mut().advance(now);
                let state = locked.state_mut();
                state.alarm = state.next_due();
                state.alarm
            };
            match alarm {
                None => self.earlier.notified().await,
                Some(time) if time <= self.clock.now() => tokio::task::yield_now().await, // one pass was not enough
                Some(time) => tokio::select! {
                    () = tokio::time::sleep_until(self.clock.instant_of(time)) => {}
                    () = self.earlier.notified() => {}
                },
            }
        }
    }
}

impl State {
    /// When the driver must come.
    fn next_due(&self) -> Option<Time> {
        let summary = self.core.observer().lines().next_due();
        [self.core.next_due(), summary].into_iter().flatten().min()
    }
}

/// A locked subscription: the core, and the moment at which it was locked.
pub struct Locked<'a> {
    /// The time for every input under this lock.
    pub now: Time,
    subscription: &'a Subscription,
    /// `Some` until the guard is dropped.
    state: Option<MutexGuard<'a, State>>,
}

impl Locked<'_> {
    /// Attaches a consumer. Returns it, and the number of its stream.
    pub fn join(&mut self, attachment: Attachment) -> (ConsumerId, u64) {
        let now = self.now;
        let consumer = self.attach(attachment, now);
        (consumer, self.new_stream(consumer))
    }

    /// A consumer is back over another stream, whatever became of the one before. Returns the number of its stream; `None`: it is too
    /// late.
    pub fn rejoin(
        &mut self,
        consumer: ConsumerId,
        attachment: Attachment,
        holds: impl Fn(MessageId) -> bool,
    ) -> Option<u64> {
        let now = self.now;
        self.suspend(consumer, Leave::Closed, Time::MAX, now); // where its stream is still open
        if !self.resume(consumer, attachment, holds, now) {
            return None;
        }
        self.heard(consumer, now);
        Some(self.new_stream(consumer))
    }

    fn new_stream(&mut self, consumer: ConsumerId) -> u64 {
        let streams = &mut self.state_mut().streams;
        if streams.len() <= consumer.index() {
            streams.resize_with(consumer.index() + 1, Stream::default);
        }
        let stream = &mut streams[consumer.index()];
        *stream = Stream { number: stream.number + 1, waker: None };
        stream.number
    }

    /// Whether this is the stream of a consumer that is attached. Remembers who polls it.
    pub fn polls(&mut self, consumer: ConsumerId, stream: u64, waker: &Waker) -> bool {
        let known = self.state_mut().streams.get_mut(consumer.index()).filter(|known| known.number == stream);
        let Some(known) = known else { return false };
        match &mut known.waker {
            Some(known) => known.clone_from(waker), // costs nothing where it is the same
            place @ None => *place = Some(waker.clone()),
        }
        true
    }

    /// The stream of a consumer is gone. It leaves, or it may resume until then. Nothing happens where the consumer has another stream.
    pub fn stream_ends(&mut self, consumer: ConsumerId, stream: u64, leave: Leave, until: Option<Time>) {
        let now = self.now;
        let Some(known) = self.state_mut().streams.get_mut(consumer.index()).filter(|known| known.number == stream)
        else {
            return;
        };
        *known = Stream { number: stream + 1, waker: None };
        match until {
            Some(until) => self.suspend(consumer, leave, until, now),
            None => self.detach(consumer, leave, now),
        }
    }

    fn state_mut(&mut self) -> &mut State {
        self.state.as_mut().expect("held until drop")
    }
}

impl Deref for Locked<'_> {
    type Target = Core;
    fn deref(&self) -> &Core {
        &self.state.as_ref().expect("held until drop").core
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.state_mut().core
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.state.take() else { return };
        let mut woken: SmallVec<[Waker; 4]> = SmallVec::new();
        while let Some(consumer) = state.core.next_wake() {
            woken.extend(state.streams.get(consumer.index()).and_then(|stream| stream.waker.clone()));
        }
        let due = state.next_due();
        let earlier = due.is_some_and(|due| state.alarm.is_none_or(|alarm| due < alarm));
        if earlier {
            state.alarm = due;
        }
        drop(state);
        if earlier {
            self.subscription.earlier.notify_one();
        }
        for waker in woken {
            waker.wake();
        }
    }
}
