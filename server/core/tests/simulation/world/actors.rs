//! What the consumers of a world do, each in its manner.

use std::time::Duration;

use ackstream_core::{ConsumerId, Delivery, Leave, Nack};

use super::{Actor, Lane, MEMORY, World};
use crate::checked::{Answer, Input};
use crate::plan::{Manner, pick};
use crate::told::Body;

impl World {
    pub(super) fn act(&mut self, lane: usize, actor: usize) {
        let Actor { id, manner, .. } = self.lanes[lane].actors[actor];
        let speaks = match manner {
            Manner::Honest | Manner::Slow => true,
            Manner::Nacker | Manner::Extender | Manner::Careless => self.rng.bool(),
            Manner::Silent | Manner::Absent => false,
        };
        if speaks {
            self.apply(lane, &Input::Heard(id));
        }
        match manner {
            Manner::Honest => {
                self.ask_for_many(lane, id);
                while let Some((message, attempt)) = self.lanes[lane].actors[actor].remembers.pop() {
                    let attempt = pick(&mut self.rng, &[None, Some(attempt)]);
                    self.apply(lane, &Input::Ack { id: message, attempt });
                }
            }
            Manner::Slow => {
                self.ask(lane, id);
                self.say_something(lane, actor, &[Input::Ack { id: 0, attempt: None }]);
            }
            Manner::Silent => self.ask_for_many(lane, id),
            Manner::Absent => {
                if self.rng.u32(0..20) == 0 {
                    self.ask(lane, id);
                }
            }
            Manner::Nacker => {
                self.ask_for_many(lane, id);
                for _ in 0..self.rng.u32(0..4) {
                    let input = self.any_nack(lane, id);
                    self.say_something(lane, actor, &[input]);
                }
            }
            Manner::Extender => {
                self.ask_for_many(lane, id);
                for _ in 0..self.rng.u32(0..4) {
                    let input = self.any_extension(lane, id);
                    self.say_something(lane, actor, &[input]);
                }
                self.say_something(lane, actor, &[Input::Ack { id: 0, attempt: None }]);
            }
            Manner::Careless => {
                self.ask_for_many(lane, id);
                for _ in 0..self.rng.u32(0..4) {
                    let nack = self.any_nack(lane, id);
                    let extension = self.any_extension(lane, id);
                    let ack = Input::Ack { id: 0, attempt: None };
                    self.say_something(lane, actor, &[ack.clone(), ack, nack, extension]);
                }
            }
        }
    }

    /// Any consumer, attached or not, says anything about any message, or asks, or leaves again.
    pub(super) fn meddle(&mut self, lane: usize) {
        let Lane { actors, departed, checked, .. } = &self.lanes[lane];
        let mut strangers: Vec<_> = actors.iter().map(|actor| actor.id).collect();
        let gone = self.rng.u32(0..4) == 0 && !departed.is_empty();
        if gone || strangers.is_empty() {
            strangers.clone_from(departed);
        }
        if strangers.is_empty() {
            return;
        }
        let consumer = pick(&mut self.rng, &strangers);
        if !actors.iter().any(|actor| actor.id == consumer) {
            self.statistics.count("inputs of consumers that had left");
        }
        let model = checked.model();
        let mut unsettled: Vec<_> = model.unsettled().collect();
        if self.rng.bool() {
            unsettled.retain(|&id| model.outstanding(id).is_some());
        }
        let last = self.published;
        let id = match self.rng.u32(0..10) {
            0 => pick(&mut self.rng, &[0, last + 1, last + 65, u64::MAX]),
            1..4 => self.rng.u64(0..=last),
            _ if unsettled.is_empty() => last,
            _ => pick(&mut self.rng, &unsettled),
        };
        let outstanding = model.outstanding(id);
        let right = outstanding.map_or(1, |(_, attempt)| attempt);
        let attempts =
            [None, None, Some(0), Some(right), Some(right), Some(right - 1), Some(right + 1), Some(u32::MAX)];
        let attempt = pick(&mut self.rng, &attempts);
        // Half of the time the one who may.
        let owner = outstanding.map(|(owner, _)| owner).filter(|_| self.rng.bool());
        let consumer = owner.unwrap_or(consumer);
        let input = match self.rng.u32(0..8) {
            0..3 => Input::Ack { id, attempt },
            3..5 => with_subject(self.any_nack(lane, consumer), id, attempt),
            5..7 => with_subject(self.any_extension(lane, consumer), id, attempt),
            _ if gone => {
                let until = self.clock + 1_000_000_000;
                let inputs = [
                    Input::Ask(consumer),
                    Input::Detach(consumer, Leave::Broken),
                    Input::Suspend(consumer, Leave::Broken, until),
                    Input::Resume(consumer, self.plan.attachment(&mut self.rng), [1].into()),
                    Input::Heard(consumer),
                ];
                pick(&mut self.rng, &inputs)
            }
            _ => Input::Ack { id, attempt: None },
        };
        self.apply(lane, &input);
    }

    pub(super) fn ask(&mut self, lane: usize, consumer: ConsumerId) -> Option<Delivery<Body>> {
        let Answer::Asked(delivery) = self.apply(lane, &Input::Ask(consumer)) else {
            unreachable!("who asks is answered")
        };
        let delivered = delivery?;
        let Lane { checked, actors, .. } = &mut self.lanes[lane];
        if checked.model().outstanding(delivered.id.0).is_none() {
            checked.statistics.count("acked by auto_ack");
        } else if checked.model().is_larger_than_window(consumer, delivered.id.0) {
            checked.statistics.count("delivered alone, larger than the window");
        }
        let actor = actors.iter_mut().find(|actor| actor.id == consumer).expect("only the attached are served");
        if actor.remembers.len() < MEMORY {
            actor.remembers.push((delivered.id.0, delivered.attempt));
        }
        Some(delivered)
    }

    fn ask_for_many(&mut self, lane: usize, consumer: ConsumerId) {
        for _ in 0..self.rng.u64(0..=self.plan.greed) {
            if self.ask(lane, consumer).is_none() {
                break;
            }
        }
    }

    /// The actor says one of `inputs` about a delivery that it remembers, which it may forget by that.
    pub(super) fn say_something(&mut self, lane: usize, actor: usize, inputs: &[Input]) {
        let Actor { remembers, .. } = &mut self.lanes[lane].actors[actor];
        if remembers.is_empty() {
            return;
        }
        let place = if self.rng.bool() { self.rng.usize(0..remembers.len()) } else { remembers.len() - 1 };
        let (id, attempt) = remembers[place];
        if self.rng.u32(0..3) > 0 {
            remembers.swap_remove(place);
        }
        let attempt = match self.rng.u32(0..12) {
            0 => Some(attempt - 1),
            1 => Some(attempt + 1),
            2..7 => None,
            _ => Some(attempt),
        };
        let input = with_subject(pick(&mut self.rng, inputs), id, attempt);
        self.apply(lane, &input);
    }

    pub(super) fn any_nack(&mut self, lane: usize, consumer: ConsumerId) -> Input {
        let deadline = self.plan.policies[lane].ack_deadline;
        let delay = match self.rng.u32(0..4) {
            0 => None,
            1 => Some(Duration::ZERO),
            _ => Some(pick(
                &mut self.rng,
                &[
                    Duration::from_nanos(1),
                    Duration::from_millis(1),
                    deadline,
                    Duration::from_hours(24),
                    Duration::from_hours(48),
                ],
            )),
        };
        let nack = Nack { delay, drop: self.rng.u32(0..5) == 0, release: self.rng.u32(0..4) == 0 };
        Input::Nack { consumer, id: 0, attempt: None, nack }
    }

    pub(super) fn any_extension(&mut self, lane: usize, consumer: ConsumerId) -> Input {
        let deadline = self.plan.policies[lane].ack_deadline;
        let length = pick(
            &mut self.rng,
            &[
                Duration::ZERO,
                Duration::from_nanos(1),
                Duration::from_millis(1),
                deadline / 2,
                deadline,
                deadline * 3,
                Duration::from_mins(59),
                Duration::from_hours(48),
            ],
        );
        Input::Extend { consumer, id: 0, attempt: None, length }
    }

    pub(super) fn any_actor(&mut self, lane: usize) -> Option<usize> {
        let actors = self.lanes[lane].actors.len();
        (actors > 0).then(|| self.rng.usize(0..actors))
    }
}

/// The same input about another delivery.
fn with_subject(input: Input, id: u64, attempt: Option<u32>) -> Input {
    match input {
        Input::Ack { .. } => Input::Ack { id, attempt },
        Input::Nack { consumer, nack, .. } => Input::Nack { consumer, id, attempt, nack },
        Input::Extend { consumer, length, .. } => Input::Extend { consumer, id, attempt, length },
        Input::Attach(_)
        | Input::Detach(..)
        | Input::Suspend(..)
        | Input::Resume(..)
        | Input::Heard(_)
        | Input::Ask(_)
        | Input::Drain
        | Input::Advance
        | Input::Offer { .. } => input,
    }
}
