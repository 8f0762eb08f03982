//! What one seed is about. Each seed mixes the kinds of trouble in its own proportions, as a mixture that is the same everywhere
//! never has much of anything.

use std::time::Duration;

use ackstream_core::{Attachment, Backoff, Policy, Window};
use fastrand::Rng;

/// What may happen in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A publisher publishes some messages.
    Publish,
    /// A consumer connects.
    Connect,
    /// A consumer leaves, or its stream breaks.
    Leave,
    /// A consumer whose stream broke is back.
    Resume,
    /// A consumer does what is its manner.
    Act,
    /// Anybody says anything about any message.
    Meddle,
    /// Time passes.
    Wait,
    /// Much time passes at once.
    Jump,
    /// The timer fires, whether it is time or not.
    Advance,
    /// More deliveries expire together than one pass applies.
    Storm,
    /// A subscription drains.
    Drain,
}

/// How a consumer behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Takes what there is and acks it at once.
    Honest,
    /// Takes one and acks an old one.
    Slow,
    /// Takes what there is and never answers.
    Silent,
    /// Does not come when it is woken, and asks rarely.
    Absent,
    /// Takes some and nacks them in all ways.
    Nacker,
    /// Takes some and moves their deadlines.
    Extender,
    /// Answers late, twice, and in the name of attempts that it never had.
    Careless,
}

/// How punctual the timer is that drives the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Punctuality {
    /// It fires at each instant that `next_due` names.
    InTime,
    /// It fires once, when all the time has passed.
    Late,
    /// It does not fire: the next input finds that time has passed.
    Never,
}

/// What one seed is about.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) policies: Vec<Policy>,
    pub(crate) steps: u64,
    actions: Vec<(Action, u32)>,
    manners: Vec<Manner>,
    punctualities: Vec<Punctuality>,
    sizes: Vec<u32>,
    pub(crate) windows: Vec<Window>,
    /// At most so many messages are published in one step.
    pub(crate) burst: u64,
    /// At most so many deliveries does a consumer take in one step.
    pub(crate) greed: u64,
    pub(crate) max_consumers: usize,
    /// Of 100 inputs, so many carry a time that has passed.
    pub(crate) from_the_past: u32,
    /// Of 100 offers, the dead-letter topic refuses so many.
    pub(crate) dead_letters_refused: u32,
    /// No wait is longer.
    pub(crate) longest_wait: Duration,
}

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);

impl Plan {
    /// The plan of a seed: mostly a short one, sometimes a long one, sometimes thousands of deliveries that expire together, and
    /// sometimes a few messages that nobody ever acks.
    pub(crate) fn draw(seed: u64, rng: &mut Rng) -> Self {
        let mut plan = Self::draw_short(rng);
        match seed % 40 {
            7 => plan.steps = 4_000,
            17 => plan.make_massive(rng),
            27 | 37 => plan.make_stubborn(rng),
            _ => {}
        }
        plan
    }

    /// What goes on hour after hour around a subscription with the default policy: consumers of all manners come, hang, break and
    /// leave, but time passes only as the timer is more or less punctual, and nobody drains.
    pub(crate) fn everyday() -> Self {
        Self {
            policies: vec![Policy { dead_letters: true, max_backlog_messages: 300, ..Policy::default() }],
            steps: 0,
            actions: vec![
                (Action::Publish, 100),
                (Action::Connect, 60),
                (Action::Leave, 50),
                (Action::Resume, 30),
                (Action::Act, 600),
                (Action::Meddle, 60),
                (Action::Wait, 120),
                (Action::Advance, 20),
            ],
            manners: vec![
                Manner::Honest,
                Manner::Honest,
                Manner::Slow,
                Manner::Silent,
                Manner::Absent,
                Manner::Nacker,
                Manner::Extender,
                Manner::Careless,
            ],
            punctualities: vec![Punctuality::InTime, Punctuality::Late, Punctuality::Never],
            sizes: vec![0, 1, 100, 1_000],
            windows: vec![
                Window { max_messages: 1, max_bytes: 1 << 26 },
                Window { max_messages: 1_000, max_bytes: 1_000 },
                Window { max_messages: 1_000, max_bytes: 1 << 26 },
            ],
            burst: 5,
            greed: 10,
            max_consumers: 8,
            from_the_past: 2,
            dead_letters_refused: 30,
            longest_wait: SECOND * 4,
        }
    }

    pub(crate) fn action(&self, rng: &mut Rng) -> Action {
        let sum = self.actions.iter().map(|(_, weight)| weight).sum();
        let mut place = rng.u32(0..sum);
        for &(action, weight) in &self.actions {
            match place.checked_sub(weight) {
                Some(rest) => place = rest,
                None => return action,
            }
        }
        unreachable!("a place below the sum of the weights is in one of them")
    }

    pub(crate) fn manner(&self, rng: &mut Rng) -> Manner {
        pick(rng, &self.manners)
    }

    pub(crate) fn punctuality(&self, rng: &mut Rng) -> Punctuality {
        pick(rng, &self.punctualities)
    }

    pub(crate) fn size(&self, rng: &mut Rng) -> u32 {
        pick(rng, &self.sizes)
    }

    pub(crate) fn attachment(&self, rng: &mut Rng) -> Attachment {
        let handlers = pick(rng, &[0, 1, 2, 16]);
        Attachment { window: pick(rng, &self.windows), handlers, auto_ack: rng.u32(0..12) == 0 }
    }

    fn draw_short(rng: &mut Rng) -> Self {
        let subscriptions = pick(rng, &[1, 1, 1, 1, 2, 3]);
        let drains = u32::from(rng.u32(0..4) == 0);
        let actions = vec![
            (Action::Publish, rng.u32(20..200)),
            (Action::Connect, rng.u32(20..100)),
            (Action::Leave, rng.u32(1..80)),
            (Action::Resume, rng.u32(0..40)),
            (Action::Act, rng.u32(200..800)),
            (Action::Meddle, rng.u32(0..200)),
            (Action::Wait, rng.u32(100..400)),
            (Action::Jump, rng.u32(0..15)),
            (Action::Advance, rng.u32(0..60)),
            (Action::Drain, drains),
        ];
        Self {
            policies: (0..subscriptions).map(|_| draw_policy(rng)).collect(),
            steps: rng.u64(40..400),
            actions,
            manners: some(
                rng,
                &[
                    Manner::Honest,
                    Manner::Slow,
                    Manner::Silent,
                    Manner::Absent,
                    Manner::Nacker,
                    Manner::Extender,
                    Manner::Careless,
                ],
            ),
            punctualities: some(rng, &[Punctuality::InTime, Punctuality::Late, Punctuality::Never]),
            sizes: some(rng, &[0, 1, 10, 50, 90, 100, 1_000, 5_000]),
            windows: some(
                rng,
                &[
                    Window { max_messages: 1, max_bytes: 1 << 26 },
                    Window { max_messages: 2, max_bytes: 100 },
                    Window { max_messages: 5, max_bytes: 1 << 26 },
                    Window { max_messages: 1_000, max_bytes: 1 },
                    Window { max_messages: 1_000, max_bytes: 100 },
                    Window { max_messages: 1_000, max_bytes: 1_000 },
                    Window { max_messages: 1_000, max_bytes: 1 << 26 },
                ],
            ),
            burst: pick(rng, &[1, 3, 20]),
            greed: pick(rng, &[1, 3, 30]),
            max_consumers: pick(rng, &[1, 2, 3, 8]),
            from_the_past: pick(rng, &[0, 0, 5, 30]),
            dead_letters_refused: pick(rng, &[0, 30, 90]),
            longest_wait: Duration::MAX,
        }
    }

    /// More deliveries expire together than one pass applies, and inputs come while passes are behind.
    fn make_massive(&mut self, rng: &mut Rng) {
        self.steps = 60;
        self.policies.truncate(1);
        self.policies[0].max_backlog_messages = 6_000;
        self.policies[0].max_backlog_bytes = 1 << 30;
        self.actions = vec![
            (Action::Publish, 10),
            (Action::Connect, 10),
            (Action::Leave, 8),
            (Action::Resume, 4),
            (Action::Act, 40),
            (Action::Meddle, 40),
            (Action::Wait, 10),
            (Action::Jump, 3),
            (Action::Storm, 10),
        ];
        self.manners = vec![Manner::Silent, Manner::Silent, Manner::Nacker, Manner::Extender, Manner::Careless];
        self.punctualities = vec![Punctuality::InTime, Punctuality::Never, Punctuality::Never];
        self.sizes = vec![1, 10];
        self.windows = vec![
            Window { max_messages: 10_000, max_bytes: 1 << 26 },
            Window { max_messages: 10_000, max_bytes: 1 << 26 },
            Window { max_messages: 10_000, max_bytes: 5_000 },
            Window { max_messages: 5, max_bytes: 1 << 26 },
        ];
        self.burst = rng.u64(1_500..4_500);
        self.greed = 4_000;
        self.max_consumers = 4;
    }

    /// Nobody acks, and retries are plenty: attempts go far and delays grow long.
    fn make_stubborn(&mut self, rng: &mut Rng) {
        self.policies.truncate(1);
        let policy = &mut self.policies[0];
        policy.max_retries = pick(rng, &[Some(60), None]);
        let minimum = pick(rng, &[Duration::from_nanos(1), Duration::from_micros(10)]);
        policy.backoff = Backoff { minimum, maximum: HOUR * 24 };
        policy.ack_deadline = MILLISECOND * 10;
        policy.max_backlog_messages = 3;
        self.steps = 600;
        self.actions =
            vec![(Action::Publish, 1), (Action::Connect, 4), (Action::Act, 20), (Action::Wait, 10), (Action::Jump, 5)];
        self.manners = vec![Manner::Silent];
        self.punctualities = vec![Punctuality::InTime];
        self.max_consumers = 1;
    }
}

fn draw_policy(rng: &mut Rng) -> Policy {
    Policy {
        ack_deadline: pick(rng, &[MILLISECOND * 10, MILLISECOND * 50, SECOND * 2, SECOND * 30, SECOND * 600, HOUR]),
        max_retries: pick(rng, &[Some(0), Some(1), Some(2), Some(3), Some(3), Some(1_000), None]),
        max_interruptions: pick(rng, &[Some(0), Some(1), Some(3), Some(3), None]),
        backoff: pick(
            rng,
            &[
                Backoff::default(),
                Backoff::default(),
                Backoff { minimum: Duration::ZERO, maximum: SECOND },
                Backoff { minimum: MILLISECOND * 100, maximum: SECOND },
                Backoff { minimum: SECOND * 10, maximum: SECOND * 60 },
                Backoff { minimum: SECOND * 7, maximum: HOUR * 24 },
            ],
        ),
        max_backlog_messages: pick(rng, &[1, 5, 50, 300]),
        max_backlog_bytes: pick(rng, &[1, 1_000, 100_000, 1 << 30, 1 << 30]),
        dead_letters: rng.bool(),
    }
}

/// Any one of several.
pub(crate) fn pick<T: Clone>(rng: &mut Rng, several: &[T]) -> T {
    several[rng.usize(0..several.len())].clone()
}

/// Some of several, at least one.
fn some<T: Clone>(rng: &mut Rng, several: &[T]) -> Vec<T> {
    let mut some = several.to_vec();
    rng.shuffle(&mut some);
    some.truncate(rng.usize(1..=several.len()));
    some
}
