//! The world around one topic: publishers, consumers of all manners, a clock, and timers that are more or less punctual.

mod actors;

use std::cell::Cell;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::rc::Rc;

use ackstream_core::{Attachment, ConsumerId, Leave, MessageId, Refused, Time, Topic, Window};
use fastrand::Rng;

use crate::checked::{Answer, Checked, Input};
use crate::model::{Nanos, nanos};
use crate::plan::{Action, Manner, Plan, Punctuality, pick};
use crate::statistics::Statistics;
use crate::told::Body;

/// How consumers leave.
const LEAVES: [Leave; 3] = [Leave::Clean, Leave::Closed, Leave::Broken];
/// Autumn 2023, to the nanosecond: no instant of the simulation is round.
const BEGINNING: Nanos = 1_700_000_000_123_456_789;
const SECOND: Nanos = 1_000_000_000;
const HOUR: Nanos = 3_600 * SECOND;

/// After the faults have stopped: the longest delivery expires, and its message is delayed for the longest time.
const ALL_IS_SETTLED_WITHIN: Nanos = 25 * HOUR + SECOND;
/// In one stretch of time, a punctual timer fires at most so often; then it is late.
const MAX_PUNCTUAL: u32 = 200;
/// A consumer remembers so many of its deliveries, and a subscription those who have left.
const MEMORY: usize = 8_000;

/// What came of one seed.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Of everything that was told, handed over and woken.
    pub(crate) digest: u64,
    pub(crate) statistics: Statistics,
}

/// A topic with its subscriptions and everybody around them.
pub(crate) struct World {
    rng: Rng,
    plan: Plan,
    clock: Nanos,
    topic: Topic,
    published: u64,
    lanes: Vec<Lane>,
    /// Consumers that were woken and are about to come.
    coming: VecDeque<(usize, ConsumerId)>,
    step: Rc<Cell<u64>>,
    talks: bool,
    statistics: Statistics,
}

/// One subscription and its consumers.
struct Lane {
    checked: Checked,
    actors: Vec<Actor>,
    departed: Vec<ConsumerId>,
    /// Consumers whose stream broke and who may be back.
    suspended: Vec<Actor>,
}

struct Actor {
    id: ConsumerId,
    manner: Manner,
    /// Deliveries that it got and has not forgotten.
    remembers: Vec<(u64, u32)>,
}

impl World {
    /// The world of a seed. `step` shows how far it has come.
    pub(crate) fn new(seed: u64, step: Rc<Cell<u64>>, talks: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::draw(seed, &mut rng);
        Self::of(plan, rng, step, talks)
    }

    /// The same world hour after hour, with a policy as most have it.
    pub(crate) fn everyday(seed: u64, step: Rc<Cell<u64>>) -> Self {
        Self::of(Plan::everyday(), Rng::with_seed(seed), step, false)
    }

    fn of(plan: Plan, rng: Rng, step: Rc<Cell<u64>>, talks: bool) -> Self {
        if talks {
            println!("{plan:#?}");
        }
        let lanes = plan
            .policies
            .iter()
            .map(|policy| {
                let mut checked = Checked::new(policy.clone());
                checked.talks = talks;
                Lane { checked, actors: Vec::new(), departed: Vec::new(), suspended: Vec::new() }
            })
            .collect();
        Self {
            rng,
            plan,
            clock: BEGINNING,
            topic: Topic::new(),
            published: 0,
            lanes,
            coming: VecDeque::new(),
            step,
            talks,
            statistics: Statistics::default(),
        }
    }

    /// Lives through the plan.
    pub(crate) fn run(mut self) -> Outcome {
        for _ in 0..self.plan.steps {
            self.take_a_step();
        }
        self.end()
    }

    /// Lives for another hour.
    pub(crate) fn live_an_hour(&mut self) {
        let end = self.clock + HOUR;
        while self.clock < end {
            self.take_a_step();
        }
    }

    fn take_a_step(&mut self) {
        self.step.set(self.step.get() + 1);
        self.statistics.count("steps");
        let action = self.plan.action(&mut self.rng);
        self.perform(action);
        self.let_the_woken_come();
    }

    /// Stops all faults and sees everything settled.
    pub(crate) fn end(mut self) -> Outcome {
        for lane in 0..self.lanes.len() {
            self.step.set(self.step.get() + 1);
            if self.lanes[lane].checked.model().is_draining() {
                self.come_to_an_end(lane);
            } else {
                self.come_to_rest(lane);
            }
        }
        let mut digest = DefaultHasher::new();
        for lane in &self.lanes {
            lane.checked.history.finish().hash(&mut digest);
            self.statistics.merge(&lane.checked.statistics);
        }
        Outcome { digest: digest.finish(), statistics: self.statistics }
    }

    // ---- actions

    fn perform(&mut self, action: Action) {
        let lane = self.rng.usize(0..self.lanes.len());
        match action {
            Action::Publish => {
                let most = self.plan.burst;
                for _ in 0..self.rng.u64(most / 2..=most).max(1) {
                    self.publish();
                }
            }
            Action::Connect => {
                if self.lanes[lane].actors.len() < self.plan.max_consumers {
                    let attachment = self.plan.attachment(&mut self.rng);
                    let manner = self.plan.manner(&mut self.rng);
                    self.connect(lane, attachment, manner);
                }
            }
            Action::Leave => {
                if let Some(actor) = self.any_actor(lane) {
                    let actor = self.lanes[lane].actors.remove(actor);
                    let leave = pick(&mut self.rng, &LEAVES);
                    if leave != Leave::Clean && self.rng.bool() {
                        let grace = pick(&mut self.rng, &[0, 1, SECOND / 10, 2 * SECOND, HOUR]);
                        self.apply(lane, &Input::Suspend(actor.id, leave, self.clock + grace));
                        self.lanes[lane].suspended.push(actor);
                        return;
                    }
                    let departed = &mut self.lanes[lane].departed;
                    if departed.len() >= MEMORY {
                        departed.swap_remove(self.rng.usize(0..MEMORY));
                    }
                    departed.push(actor.id);
                    self.apply(lane, &Input::Detach(actor.id, leave));
                }
            }
            Action::Resume => self.resume(lane),
            Action::Act => {
                if let Some(actor) = self.any_actor(lane) {
                    self.act(lane, actor);
                }
            }
            Action::Meddle => self.meddle(lane),
            Action::Wait => {
                let length = self.any_length(lane);
                let punctuality = self.plan.punctuality(&mut self.rng);
                self.wait(length, punctuality);
            }
            Action::Jump => {
                self.statistics.count("clock jumps");
                let length = pick(&mut self.rng, &[7 * SECOND, HOUR, 25 * HOUR]);
                let punctuality = self.plan.punctuality(&mut self.rng);
                self.wait(length, punctuality);
            }
            Action::Advance => self.advance(lane),
            Action::Storm => self.storm(lane),
            Action::Drain => _ = self.apply(lane, &Input::Drain),
        }
    }

    fn publish(&mut self) {
        let (now, size) = (self.input_time(), self.plan.size(&mut self.rng));
        let body: Body = (self.published + 1) * 7_919;
        let mut asked = 0;
        let mut expected = Ok(MessageId(self.published + 1));
        for (subscription, lane) in self.lanes.iter_mut().enumerate() {
            asked += 1;
            if let Err(refusal) = lane.checked.expect_publish(size, now) {
                lane.checked.statistics.count_refusal(refusal);
                expected = Err(Refused { subscription, refusal });
                break;
            }
        }
        let mut subscriptions: Vec<_> = self.lanes.iter_mut().map(|lane| lane.checked.core()).collect();
        let answer = self.topic.publish(&mut subscriptions, &body, size, Time::from_nanos(now));
        if self.talks {
            println!("{} publish {size} bytes at {now}: {answer:?}", self.step.get());
        }
        assert_eq!(answer, expected, "what a publisher is answered (core | model)");
        let accepted = answer.ok().map(|id| (id.0, body, size));
        self.published += u64::from(accepted.is_some());
        self.statistics.add("fan-outs refused", u64::from(accepted.is_none() && self.lanes.len() > 1));
        for lane in 0..asked {
            self.lanes[lane].checked.publish_ended(accepted, now);
            self.hear_wakes(lane);
        }
    }

    fn connect(&mut self, lane: usize, attachment: Attachment, manner: Manner) -> ConsumerId {
        let Answer::Attached(id) = self.apply(lane, &Input::Attach(attachment)) else {
            unreachable!("a consumer that attaches is attached")
        };
        self.lanes[lane].actors.push(Actor { id, manner, remembers: Vec::new() });
        if self.rng.u32(0..5) > 0 {
            self.ask(lane, id);
        }
        id
    }

    /// A consumer whose stream broke is back, if it is not too late, and holds some of what it held.
    fn resume(&mut self, lane: usize) {
        let suspended = self.lanes[lane].suspended.len();
        if suspended == 0 {
            return;
        }
        let mut actor = self.lanes[lane].suspended.swap_remove(self.rng.usize(0..suspended));
        let loses = pick(&mut self.rng, &[0, 0, 20, 100]);
        let held = self.lanes[lane].checked.model().held_by(actor.id).into_iter();
        let held = held.filter(|_| self.rng.u32(0..100) >= loses).collect();
        let attachment = self.plan.attachment(&mut self.rng);
        match self.apply(lane, &Input::Resume(actor.id, attachment, held)) {
            Answer::Resumed(true) => {
                let id = actor.id;
                self.lanes[lane].actors.push(actor);
                self.ask(lane, id);
            }
            Answer::Resumed(false) => {
                // It begins anew, and still says what it remembers.
                let remembers = std::mem::take(&mut actor.remembers);
                let id = self.connect(lane, attachment, actor.manner);
                let actors = &mut self.lanes[lane].actors;
                actors.iter_mut().find(|actor| actor.id == id).expect("it is connected").remembers.extend(remembers);
            }
            Answer::Nothing | Answer::Attached(_) | Answer::Asked(_) => unreachable!("it is told whether it resumed"),
        }
    }

    /// One consumer hoards, another has just taken some more when all that was hoarded expires together. The timer does not come; the
    /// other consumer does.
    fn storm(&mut self, lane: usize) {
        let window = Window { max_messages: u32::MAX, max_bytes: u64::MAX };
        let attachment = Attachment { window, handlers: 0, auto_ack: false };
        let half = nanos(self.plan.policies[lane].ack_deadline) / 2;
        let hoarder = self.connect(lane, attachment, Manner::Silent);
        for _ in 0..self.plan.burst {
            self.publish();
        }
        while self.ask(lane, hoarder).is_some() {}
        self.clock += half;
        let other = self.connect(lane, attachment, Manner::Careless);
        let first = self.lanes[lane].actors.len() - 2;
        for _ in 0..10 {
            self.publish();
            self.ask(lane, other);
        }
        self.clock += half;
        for _ in 0..3 {
            let actor = self.rng.usize(first..first + 2);
            let speaker = self.lanes[lane].actors[actor].id;
            let nack = self.any_nack(lane, speaker);
            let extension = self.any_extension(lane, speaker);
            self.say_something(lane, actor, &[nack.clone(), nack, extension, Input::Ack { id: 0, attempt: None }]);
        }
        if self.rng.bool() {
            self.lanes[lane].actors.pop();
            let leave = pick(&mut self.rng, &LEAVES);
            self.apply(lane, &Input::Detach(other, leave));
        }
        while self.rng.u32(0..3_000) > 0 && self.ask(lane, hoarder).is_some() {}
    }

    // ---- time

    fn wait(&mut self, length: Nanos, punctuality: Punctuality) {
        let end = self.clock + length;
        match punctuality {
            Punctuality::Never => {}
            Punctuality::Late => {
                self.clock = end;
                for lane in 0..self.lanes.len() {
                    self.advance(lane);
                }
            }
            Punctuality::InTime => {
                for _ in 0..MAX_PUNCTUAL {
                    let next =
                        (0..self.lanes.len()).filter_map(|lane| Some((self.lanes[lane].checked.next_due()?, lane)));
                    let Some((due, lane)) = next.min().filter(|&(due, _)| due <= end) else { break };
                    self.clock = self.clock.max(due);
                    self.advance(lane);
                    self.let_the_woken_come();
                }
            }
        }
        self.clock = end;
    }

    fn advance(&mut self, lane: usize) {
        match self.lanes[lane].checked.next_due() {
            Some(due) if due == self.clock => self.statistics.count("advanced in time"),
            Some(due) if due < self.clock => self.statistics.count("advanced late"),
            Some(_) | None => self.statistics.count("advanced for nothing"),
        }
        self.apply(lane, &Input::Advance);
        while self.lanes[lane].checked.has_dead_letter() && self.rng.u32(0..20) > 0 {
            let takes = self.rng.u32(0..100) >= self.plan.dead_letters_refused;
            self.apply(lane, &Input::Offer { takes });
        }
    }

    /// A length of time that may matter to somebody.
    fn any_length(&mut self, lane: usize) -> Nanos {
        let deadline = nanos(self.plan.policies[lane].ack_deadline);
        let until_due = self.lanes[lane].checked.next_due().unwrap_or_default().saturating_sub(self.clock);
        let lengths = [0, 1, 1_000, 1_000_000, 4_999_999, 5_000_000, deadline / 2, deadline, deadline * 2, until_due];
        let length = match self.rng.u32(0..4) {
            0 => self.rng.u64(0..deadline * 2),
            _ => pick(&mut self.rng, &lengths) + self.rng.u64(0..2),
        };
        length.min(self.plan.longest_wait.as_nanos().try_into().unwrap_or(Nanos::MAX))
    }

    /// Mostly now; sometimes an instant that has passed.
    fn input_time(&mut self) -> Nanos {
        if self.rng.u32(0..100) >= self.plan.from_the_past {
            return self.clock;
        }
        self.statistics.count("inputs from the past");
        let deepest = pick(&mut self.rng, &[1, SECOND, HOUR]);
        self.clock - self.rng.u64(1..=deepest)
    }

    // ---- what comes of it

    fn apply(&mut self, lane: usize, input: &Input) -> Answer {
        let now = self.input_time();
        if self.talks {
            println!("{} subscription {lane}: {input:?} at {now}", self.step.get());
        }
        let answer = self.lanes[lane].checked.apply(input, now);
        self.hear_wakes(lane);
        answer
    }

    /// Who was woken comes, as far as that is its manner. Some come much later, when they act.
    fn hear_wakes(&mut self, lane: usize) {
        for consumer in self.lanes[lane].checked.woken() {
            let woken = self.lanes[lane].actors.iter().find(|actor| actor.id == consumer);
            match woken.expect("only the attached are woken").manner {
                Manner::Absent => self.statistics.count("wakes lost"),
                Manner::Slow if self.rng.bool() => self.statistics.count("wakes followed late"),
                Manner::Honest
                | Manner::Slow
                | Manner::Silent
                | Manner::Nacker
                | Manner::Extender
                | Manner::Careless => self.coming.push_back((lane, consumer)),
            }
        }
    }

    fn let_the_woken_come(&mut self) {
        let unsettled: usize = self.lanes.iter().map(|lane| lane.checked.model().unsettled().count()).sum();
        let mut comings_left = 100 + 10 * unsettled;
        while let Some((lane, consumer)) = self.coming.pop_front() {
            assert!(comings_left > 0, "wakes without end: {consumer:?} is woken again and again");
            comings_left -= 1;
            if self.lanes[lane].checked.is_awaited(consumer) {
                self.ask(lane, consumer);
            }
        }
    }

    // ---- the end

    /// All faults stop. One honest consumer, which asks when it is woken and at no other time, sees every message settled, in bounded
    /// time and a bounded number of calls.
    fn come_to_rest(&mut self, lane: usize) {
        self.plan.from_the_past = 0;
        self.plan.dead_letters_refused = 0;
        self.coming.clear();
        if self.rng.bool() {
            while let Some(actor) = self.lanes[lane].actors.pop() {
                self.apply(lane, &Input::Detach(actor.id, Leave::Clean));
            }
        }
        for actor in &mut self.lanes[lane].actors {
            actor.manner = Manner::Absent;
        }
        let window = Window { max_messages: u32::MAX, max_bytes: u64::MAX };
        let honest = self.connect(lane, Attachment { window, handlers: 1, auto_ack: false }, Manner::Honest);
        self.take_and_ack(lane, honest);

        let began = self.clock;
        let mut calls_left = 1_000 + 50 * self.lanes[lane].checked.model().unsettled().count();
        while let Some(due) = self.lanes[lane].checked.next_due() {
            self.clock = self.clock.max(due);
            assert!(self.clock - began <= ALL_IS_SETTLED_WITHIN, "the next message is due only at {due}");
            assert!(calls_left > 0, "next_due keeps the timer busy");
            calls_left -= 1;
            self.advance(lane);
            if self.lanes[lane].checked.is_awaited(honest) {
                self.take_and_ack(lane, honest);
            }
        }
        let ledger = &self.lanes[lane].checked.model().ledger;
        assert_eq!(ledger.backlog.messages(), 0, "nothing is due any more, but a message is left");
        assert_eq!(ledger.counts.published, self.published, "every message was published here");
        assert_eq!(ledger.counts.published, ledger.counts.acked + ledger.counts.dropped, "each was acked or dropped");
    }

    fn take_and_ack(&mut self, lane: usize, consumer: ConsumerId) {
        while let Some(delivery) = self.ask(lane, consumer) {
            self.apply(lane, &Input::Heard(consumer));
            self.apply(lane, &Input::Ack { id: delivery.id.0, attempt: Some(delivery.attempt) });
        }
    }

    /// A subscription that drains: what is outstanding ends within the longest delivery, and what is left stays.
    fn come_to_an_end(&mut self, lane: usize) {
        self.plan.from_the_past = 0;
        self.clock += HOUR;
        let mut calls_left = 1_000 + 10 * self.lanes[lane].checked.model().unsettled().count();
        while self.lanes[lane].checked.next_due().is_some_and(|due| due <= self.clock) {
            assert!(calls_left > 0, "next_due keeps the timer busy");
            calls_left -= 1;
            self.advance(lane);
        }
        let ledger = &self.lanes[lane].checked.model().ledger;
        assert_eq!(ledger.backlog.outstanding, 0, "no delivery outlives the drain by more than an hour");
    }
}
