//! A subscription beside its model: each input goes to both, and whatever can be seen of the two must be the same.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _};
use std::time::Duration;

use ackstream_core::{
    Attachment, ConsumerId, Delivery, Leave, MAX_DELAY, MAX_DELIVERY, MessageId, Nack, Outcome, Policy, Refusal,
    Subscription, Time, WAKE_PATIENCE,
};

use crate::model::{Found, Model, Nanos, nanos};
use crate::statistics::Statistics;
use crate::told::{Body, Recorder, Told, What};

/// All that can be done to a subscription but publishing, which goes through its topic.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Attach(Attachment),
    Detach(ConsumerId, Leave),
    Suspend(ConsumerId, Leave, Nanos),
    Resume(ConsumerId, Attachment, BTreeSet<u64>),
    Heard(ConsumerId),
    Ask(ConsumerId),
    Ack {
        id: u64,
        attempt: Option<u32>,
    },
    Nack {
        consumer: ConsumerId,
        id: u64,
        attempt: Option<u32>,
        nack: Nack,
    },
    Extend {
        consumer: ConsumerId,
        id: u64,
        attempt: Option<u32>,
        length: Duration,
    },
    Drain,
    Advance,
    /// The dead-letter topic is offered a message, and takes it or not.
    Offer {
        takes: bool,
    },
}

/// What an input answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Nothing,
    Attached(ConsumerId),
    Resumed(bool),
    Asked(Option<Delivery<Body>>),
}

/// What a consumer is doing, as far as its subscription can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    /// It has not asked, or was served and has not asked again.
    Busy,
    /// It asked in vain and was not woken since. It has a turn where nothing was on offer, and none where its window was full.
    Waiting { turn: Option<u64> },
    /// It was woken and has not come.
    Woken,
}

/// The core, its model, and what is known of the wakes.
pub(crate) struct Checked {
    core: Subscription<Body, Recorder>,
    recorder: Recorder,
    model: Model,
    demands: BTreeMap<ConsumerId, Demand>,
    next_turn: u64,
    /// Every consumer that ever attached.
    attached: BTreeSet<ConsumerId>,
    /// When somebody was woken, or a message was handed over, for the last time.
    moved_at: Nanos,
    /// Since when a message is on offer to a consumer that waits for it, and nobody was woken and nothing was handed over.
    stalled_since: Option<Nanos>,
    /// Who was woken by the last call.
    woken: Vec<ConsumerId>,
    pub(crate) history: DefaultHasher,
    pub(crate) statistics: Statistics,
    /// Whether to print each event.
    pub(crate) talks: bool,
}

impl Checked {
    pub(crate) fn new(policy: Policy) -> Self {
        let recorder = Recorder::default();
        Self {
            core: Subscription::new(policy.clone(), recorder.clone()),
            recorder,
            model: Model::new(policy),
            demands: BTreeMap::new(),
            next_turn: 0,
            attached: BTreeSet::new(),
            moved_at: 0,
            stalled_since: None,
            woken: Vec::new(),
            history: DefaultHasher::new(),
            statistics: Statistics::default(),
            talks: false,
        }
    }

    // ---- inputs

    /// Gives one input to both, and compares.
    pub(crate) fn apply(&mut self, input: &Input, now: Nanos) -> Answer {
        let stalled = self.stalled_since.filter(|_| matches!(input, Input::Advance));
        let at = Time::from_nanos(now);
        self.model.time_passes(now);
        let answer = match input.clone() {
            Input::Attach(attachment) => {
                let consumer = self.core.attach(attachment, at);
                assert!(self.attached.insert(consumer), "{consumer:?} was given twice");
                self.model.attach(consumer, attachment);
                self.demands.insert(consumer, Demand::Busy);
                Answer::Attached(consumer)
            }
            Input::Detach(consumer, leave) => {
                self.core.detach(consumer, leave, at);
                self.model.detach(consumer, leave);
                self.demands.remove(&consumer);
                Answer::Nothing
            }
            Input::Suspend(consumer, leave, until) => {
                self.core.suspend(consumer, leave, Time::from_nanos(until), at);
                self.model.suspend(consumer, leave, until);
                if self.model.is_suspended(consumer) {
                    self.demands.insert(consumer, Demand::Busy);
                    self.statistics.count("suspended");
                } else {
                    self.demands.remove(&consumer);
                }
                Answer::Nothing
            }
            Input::Resume(consumer, attachment, held) => {
                let resumed = self.core.resume(consumer, attachment, |id| held.contains(&id.0), at);
                assert_eq!(
                    resumed,
                    self.model.resume(consumer, attachment, &held),
                    "whether it resumed (core | model)"
                );
                self.statistics.count(if resumed { "resumed" } else { "resumed too late" });
                Answer::Resumed(resumed)
            }
            Input::Heard(consumer) => {
                self.core.heard(consumer, at);
                self.model.heard(consumer);
                self.statistics.count("said something");
                Answer::Nothing
            }
            Input::Ask(consumer) => Answer::Asked(self.ask(consumer, at)),
            Input::Ack { id, attempt } => {
                let was_given_up = self.model.ledger.is_given_up(id);
                self.core.ack(MessageId(id), attempt, at);
                self.model.ack(id, attempt);
                if was_given_up && !self.model.ledger.is_given_up(id) {
                    self.statistics.count("late acks of what was given up");
                }
                Answer::Nothing
            }
            Input::Nack { consumer, id, attempt, nack } => {
                self.core.nack(consumer, MessageId(id), attempt, nack, at);
                self.model.nack(consumer, id, attempt, nack);
                Answer::Nothing
            }
            Input::Extend { consumer, id, attempt, length } => {
                // No rule orders a deadline that is moved to this very instant among effects that were due now and are untold.
                let length = if self.model.is_behind() { length.max(Duration::from_nanos(1)) } else { length };
                self.core.extend(consumer, MessageId(id), attempt, length, at);
                self.model.extend(consumer, id, attempt, length);
                Answer::Nothing
            }
            Input::Drain => {
                self.core.drain(at);
                self.model.drain();
                Answer::Nothing
            }
            Input::Advance => {
                self.core.advance(at);
                Answer::Nothing
            }
            Input::Offer { takes } => {
                let mut offered = None;
                let taken = self.core.offer_dead_letter(at, |message, _| {
                    offered = Some(message.id.0);
                    takes
                });
                assert_eq!(offered, self.model.offer_dead_letter(takes), "the dead letter on offer (core | model)");
                assert_eq!(taken, offered.map(|_| takes), "what became of the dead letter");
                Answer::Nothing
            }
        };
        let moved_before = self.moved_at;
        self.demands.retain(|&consumer, _| self.model.attached().any(|attached| attached == consumer));
        let events = self.compare();
        if matches!(input, Input::Advance) {
            self.check_advance(events, moved_before, stalled);
        }
        answer
    }

    /// What the topic will find when it publishes here; to be called before it does.
    pub(crate) fn expect_publish(&mut self, size: u32, now: Nanos) -> Result<(), Refusal> {
        self.model.time_passes(now);
        self.model.check_room(size)
    }

    /// The core, for the topic.
    pub(crate) const fn core(&mut self) -> &mut Subscription<Body, Recorder> {
        &mut self.core
    }

    /// The topic has published here, or has asked and published nowhere.
    pub(crate) fn publish_ended(&mut self, accepted: Option<(u64, Body, u32)>, now: Nanos) {
        if let Some((id, body, size)) = accepted {
            self.model.time_passes(now);
            self.model.publish(id, body, size);
        }
        self.compare();
    }

    // ---- what can be asked

    pub(crate) const fn model(&self) -> &Model {
        &self.model
    }

    pub(crate) fn next_due(&self) -> Option<Nanos> {
        self.core.next_due().map(Time::as_nanos)
    }

    /// Whether a message is on offer to the dead-letter topic.
    pub(crate) const fn has_dead_letter(&self) -> bool {
        !self.model.ledger.on_offer_as_dead.is_empty()
    }

    /// Who was woken by the last call.
    pub(crate) fn woken(&self) -> Vec<ConsumerId> {
        self.woken.clone()
    }

    /// Whether a consumer was woken and has not come.
    pub(crate) fn is_awaited(&self, consumer: ConsumerId) -> bool {
        self.demands.get(&consumer) == Some(&Demand::Woken)
    }

    // ---- comparing

    fn ask(&mut self, consumer: ConsumerId, at: Time) -> Option<Delivery<Body>> {
        let found = self.model.find(consumer);
        let delivery = self.core.next_delivery(consumer, at);
        let expected = self.model.next_delivery(consumer);
        assert_eq!(delivery, expected, "what is handed over to {consumer:?}, which finds {found:?} (core | model)");
        delivery.as_ref().map(|delivery| (delivery.id.0, delivery.attempt)).hash(&mut self.history);
        if let Some(demand) = self.demands.get_mut(&consumer) {
            *demand = match (found, *demand) {
                (Found::Message(_) | Found::Probe(_) | Found::Nobody, _) => Demand::Busy,
                (Found::Nothing | Found::OthersFirst, Demand::Waiting { turn }) => Demand::Waiting { turn },
                (Found::Full, _) => Demand::Waiting { turn: None },
                (Found::Nothing | Found::OthersFirst, Demand::Busy | Demand::Woken) => {
                    self.next_turn += 1;
                    Demand::Waiting { turn: Some(self.next_turn) }
                }
            };
        }
        match found {
            Found::Message(_) if delivery.as_ref().is_some_and(|delivery| delivery.interruptions >= 2) => {
                self.statistics.count("delivered alone after interruptions");
            }
            Found::Message(_) => {}
            Found::Probe(_) => self.statistics.count("probed"),
            Found::Nobody => self.statistics.count("asked while suspended or gone"),
            Found::OthersFirst => self.statistics.count("others first"),
            Found::Full => self.statistics.count("window full"),
            Found::Nothing if self.model.is_behind() => self.statistics.count("asked in vain while behind"),
            Found::Nothing if self.model.for_anybody() > 0 => self.statistics.count("passed what it gave back"),
            Found::Nothing => self.statistics.count("asked in vain"),
        }
        delivery
    }

    /// Everything that can be seen from outside after a call; returns how many events it told.
    fn compare(&mut self) -> usize {
        let reserved = self.model.reserved;
        let demands = &self.demands;
        self.model.reserve(|consumer| matches!(demands.get(&consumer), Some(Demand::Waiting { .. })));
        if self.model.reserved.is_some() && self.model.reserved != reserved {
            self.statistics.count("reserved");
        }
        let told = self.recorder.take();
        let expected = self.model.take_told();
        if self.talks {
            for event in &told {
                println!("        {event:?}");
            }
        }
        if let Some(place) = (0..told.len().max(expected.len())).find(|&place| told.get(place) != expected.get(place)) {
            panic!(
                "event {place} of {} (the model has {}):\n  core  {:?}\n  model {:?}",
                told.len(),
                expected.len(),
                told.get(place),
                expected.get(place)
            );
        }
        told.hash(&mut self.history);
        self.statistics.count_events(&told);
        self.count_bounds(&told);

        let ledger = &self.model.ledger;
        let (counts, backlog) = (self.core.counts(), self.core.backlog());
        assert_eq!(counts, ledger.counts, "counts (core | model)");
        assert_eq!(backlog, ledger.backlog, "backlog (core | model)");
        assert_eq!(self.core.oldest_accepted_at(), ledger.oldest_accepted_at(), "the oldest message (core | model)");
        assert_eq!(
            counts.published,
            counts.acked + counts.dropped + backlog.ready + backlog.delayed + backlog.outstanding,
            "the law of messages"
        );
        let ended = counts.ended;
        assert_eq!(
            counts.sent,
            ended.acked + ended.nacked + ended.expired + ended.interrupted + ended.released + backlog.outstanding,
            "the law of deliveries"
        );
        assert_eq!(self.core.consumers(), self.model.consumers(), "consumers (core | model)");
        for consumer in self.model.attached() {
            let size = self.model.size_on_offer(consumer);
            assert_eq!(self.core.next_size(consumer), size, "the next delivery's size for {consumer:?} (core | model)");
        }
        let drained = self.model.is_draining() && backlog.outstanding == 0;
        assert_eq!(self.core.is_drained(), drained, "whether it is drained (core | model)");

        let sent = told.iter().any(|event| matches!(event.what, What::Sent { .. }));
        self.compare_wakes(sent);
        let waiting = self.waiting().filter(|&consumer| !self.model.is_unresponsive(consumer)).count();
        let counts = self.core.consumer_counts();
        assert_eq!(counts.waiting + counts.full, waiting, "consumers that asked in vain (core | model)");
        assert_eq!(counts.unresponsive, self.model.unresponsive(), "unresponsive consumers (core | model)");
        self.compare_next_due();
        told.len()
    }

    /// Who is woken was waiting, may be served if it comes, and is woken in its turn; as many are awake as there are messages to take.
    fn compare_wakes(&mut self, sent: bool) {
        self.woken.clear();
        while let Some(consumer) = self.core.next_wake() {
            let Some(Demand::Waiting { turn }) = self.demands.insert(consumer, Demand::Woken) else {
                panic!("{consumer:?} is woken, but did not wait");
            };
            self.check_turn(consumer, turn);
            self.woken.push(consumer);
        }
        self.woken.hash(&mut self.history);
        self.statistics.add("woken", self.woken.len() as u64);
        let ready = self.model.ledger.backlog.ready;
        assert!(self.woken.len() as u64 <= ready, "{:?} woken for {ready} messages", self.woken);

        let now = self.model.now();
        let moved = sent || !self.woken.is_empty();
        if moved {
            self.moved_at = now;
        }
        if let Some((reserved, _)) = self.model.reserved {
            let idle = self.model.ledger.held(reserved).messages == 0;
            let waits = self.waiting().any(|consumer| consumer == reserved);
            assert!(!idle || !waits, "{reserved:?} is reserved and empty, and is not woken");
        }
        let for_anybody = self.model.for_anybody();
        let served = |consumer: &ConsumerId| matches!(self.model.find(*consumer), Found::Message(_));
        // A message alone is only for whoever is reserved.
        let Some(consumer) = self.waiting().find(served).filter(|_| for_anybody > 0) else {
            self.stalled_since = None;
            return;
        };
        let awake = self.awake();
        assert!(
            awake >= for_anybody,
            "{for_anybody} messages are ready, {consumer:?} waits and finds {:?}, but {awake} are awake",
            self.model.find(consumer)
        );
        self.stalled_since = if moved { Some(now) } else { self.stalled_since.or(Some(now)) };
    }

    fn check_turn(&self, consumer: ConsumerId, turn: Option<u64>) {
        let found = self.model.find(consumer);
        let is_unresponsive = self.model.is_unresponsive(consumer);
        let may_be_served = match found {
            Found::Message(_) | Found::Probe(_) | Found::Full => true,
            Found::OthersFirst => is_unresponsive, // its time to be probed has come, but no probe
            Found::Nothing | Found::Nobody => false,
        };
        assert!(may_be_served, "{consumer:?} is woken, but finds {found:?}");
        if is_unresponsive || self.model.reserved.is_some_and(|(reserved, _)| reserved == consumer) {
            return;
        }
        let earlier = self.demands.iter().find(|&(&other, demand)| match (demand, turn) {
            (Demand::Waiting { turn: Some(earlier) }, Some(turn)) => {
                *earlier < turn && !self.model.is_unresponsive(other) && self.model.find(other) != Found::Nothing
            }
            (Demand::Busy | Demand::Waiting { .. } | Demand::Woken, _) => false,
        });
        assert!(earlier.is_none(), "{consumer:?} is woken, but it was the turn of {earlier:?}");
    }

    /// The core is called in time for whatever happens next, and for nothing else.
    fn compare_next_due(&self) {
        let due = self.next_due();
        if let Some(stalled) = self.stalled_since {
            let at_the_latest = stalled + nanos(WAKE_PATIENCE);
            assert!(
                due.is_some_and(|due| due <= at_the_latest),
                "next_due is {due:?}, but somebody else must be woken at {at_the_latest}"
            );
        }
        let dead = self.model.ledger.on_offer_as_dead.first().map(|(_, since)| since.as_nanos());
        let effect = self.model.next_effect().into_iter().chain(dead).min();
        let counts_on_somebody = self.model.for_anybody() > 0 && self.awake() > 0 && self.waiting().next().is_some();
        let patience = counts_on_somebody.then(|| self.moved_at + nanos(WAKE_PATIENCE));
        let others = self.model.other_instants();
        let is_known = due == effect || due == patience || due.is_some_and(|due| others.contains(&due));
        let in_time = effect.is_none_or(|effect| due.is_some_and(|due| due <= effect));
        assert!(
            is_known && in_time,
            "next_due is {due:?}, but an effect is due at {effect:?}, patience ends at {patience:?}, others at {others:?}"
        );
        let must = |instant: Option<Nanos>, what: &str| {
            let kept = instant.is_none_or(|instant| due.is_some_and(|due| due <= instant));
            assert!(kept, "next_due is {due:?}, but {what} at {instant:?}");
        };
        must(self.model.reserved.map(|(_, until)| until), "it is the next one's turn to become empty");
        let for_messages = self.waiting().filter(|who| matches!(self.demands[who], Demand::Waiting { turn: Some(_) }));
        for consumer in for_messages {
            let found = self.model.find(consumer);
            if found == Found::Nothing && self.model.for_anybody() > 0 {
                must(self.model.bar_ends(consumer), "a consumer may have again what it gave back");
            }
            if found == Found::OthersFirst && self.awake() == 0 {
                must(self.model.others_first_until(), "unresponsive consumers may come");
            }
        }
    }

    fn awake(&self) -> u64 {
        self.demands.values().filter(|&&demand| demand == Demand::Woken).count() as u64
    }

    fn waiting(&self) -> impl Iterator<Item = ConsumerId> {
        let waiting = self.demands.iter().filter(|(_, demand)| matches!(demand, Demand::Waiting { .. }));
        waiting.map(|(&consumer, _)| consumer)
    }

    /// The timer has fired: what was due has happened, and who waits for too long is woken, but not earlier.
    fn check_advance(&mut self, events: usize, moved_before: Nanos, stalled: Option<Nanos>) {
        let now = self.model.now();
        let patience = nanos(WAKE_PATIENCE);
        let due = self.next_due();
        let asks_again = self.model.is_behind() || self.has_dead_letter();
        assert!(asks_again || due.is_none_or(|due| due > now), "next_due is {due:?} after advance({now})");
        if events == 0 && !self.woken.is_empty() && self.model.other_instants().is_empty() && !self.model.has_alone() {
            assert!(now >= moved_before + patience, "{:?} are woken without patience", self.woken);
        }
        if stalled.is_some_and(|since| now >= since + patience) && !self.model.has_alone() {
            let helped = !self.woken.is_empty() || self.stalled_since.is_none();
            assert!(helped, "nobody came since {stalled:?}, but advance({now}) wakes nobody else");
            self.statistics.count("impatient wakes");
        }
    }

    fn count_bounds(&mut self, told: &[Told]) {
        if self.model.is_behind() {
            self.statistics.count("mass expiries");
            let given_back = told.windows(2).filter(|pair| {
                matches!(pair[0].what, What::Ended { outcome: Outcome::Nacked | Outcome::Released(_), .. })
                    && matches!(pair[1].what, What::Requeued { delay: Duration::ZERO, .. })
            });
            self.statistics.add("given back while behind", given_back.count() as u64);
        }
        for event in told {
            if let What::Extended { deadline, message } = &event.what
                && self
                    .model
                    .sent_at(message.id)
                    .is_some_and(|sent_at| deadline.as_nanos() == sent_at + nanos(MAX_DELIVERY))
            {
                self.statistics.count("extended up to the cap");
            }
            if matches!(event.what, What::Requeued { delay: MAX_DELAY, .. }) {
                self.statistics.count("delayed up to the cap");
            }
        }
    }
}
