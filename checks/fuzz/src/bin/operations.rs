//! Sequences of operations on the core against the simulation's model: after each, everything that can be seen of the two is the same,
//! and both laws hold.

#![no_main]

#[path = "../../../../server/core/tests/simulation/checked.rs"]
#[allow(dead_code, reason = "shared with the simulation")]
mod checked;
#[path = "../../../../server/core/tests/simulation/model.rs"]
#[allow(dead_code, reason = "shared with the simulation")]
mod model;
#[path = "../../../../server/core/tests/simulation/statistics.rs"]
#[allow(dead_code, reason = "shared with the simulation")]
mod statistics;
#[path = "../../../../server/core/tests/simulation/told.rs"]
#[allow(dead_code, reason = "shared with the simulation")]
mod told;

use std::time::Duration;

use ackstream_core::{Attachment, Backoff, ConsumerId, Leave, MessageId, Nack, Policy, Time, Topic, Window};
use checked::{Answer, Checked, Input};
use libfuzzer_sys::fuzz_target;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// Lengths of time: of nothing, of what has rules, and of what has none.
const LENGTHS: [Duration; 8] = [
    Duration::ZERO,
    Duration::from_nanos(1),
    MILLISECOND,
    Duration::from_millis(5),
    Duration::from_millis(50),
    SECOND,
    Duration::from_mins(10),
    Duration::from_hours(25),
];
const LEAVES: [Leave; 3] = [Leave::Clean, Leave::Closed, Leave::Broken];
const SIZES: [u32; 4] = [0, 1, 100, 5_000];

/// The input, a byte at a time; 0 when it is at its end.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn byte(&mut self) -> usize {
        self.0.next().copied().unwrap_or_default().into()
    }

    fn pick<T: Copy>(&mut self, several: &[T]) -> T {
        several[self.byte() % several.len()]
    }

    fn policy(&mut self) -> Policy {
        Policy {
            ack_deadline: self.pick(&[MILLISECOND * 10, SECOND * 2, SECOND * 600]),
            max_retries: self.pick(&[Some(0), Some(1), Some(3), None]),
            max_interruptions: self.pick(&[Some(0), Some(1), Some(3), None]),
            backoff: Backoff {
                minimum: self.pick(&[Duration::ZERO, MILLISECOND * 100, SECOND * 7]),
                maximum: SECOND * 60,
            },
            max_backlog_messages: self.pick(&[1, 5, 300]),
            max_backlog_bytes: self.pick(&[1, 1_000, 1 << 30]),
            dead_letters: self.byte() % 2 == 1,
        }
    }

    fn attachment(&mut self) -> Attachment {
        let window = Window { max_messages: self.pick(&[1, 2, 1_000]), max_bytes: self.pick(&[1, 100, 1 << 26]) };
        Attachment { window, handlers: self.pick(&[0, 1, 2]), auto_ack: self.byte() % 4 == 3 }
    }

    fn attempt(&mut self) -> Option<u32> {
        self.pick(&[None, None, Some(0), Some(1), Some(2), Some(u32::MAX)])
    }

    fn id(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            id => id as u64,
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = Bytes(input.iter());
    let (mut topic, mut checked) = (Topic::new(), Checked::new(bytes.policy()));
    let mut now = 1_700_000_000_123_456_789;
    let (mut consumers, mut published): (Vec<ConsumerId>, u64) = (Vec::new(), 0);
    while !bytes.0.as_slice().is_empty() {
        let operation = bytes.byte() % 19;
        let consumer =
            |bytes: &mut Bytes<'_>| (!consumers.is_empty()).then(|| consumers[bytes.byte() % consumers.len()]);
        let input = match operation {
            0..=2 => {
                let (size, body) = (bytes.pick(&SIZES), (published + 1) * 7_919);
                let expected = checked.expect_publish(size, now);
                let answer = topic.publish(&mut [checked.core()], &body, size, Time::from_nanos(now));
                assert_eq!(answer.map_err(|refused| refused.refusal), expected.map(|()| MessageId(published + 1)));
                published += u64::from(answer.is_ok());
                checked.publish_ended(answer.ok().map(|id| (id.0, body, size)), now);
                continue;
            }
            3 => Some(Input::Attach(bytes.attachment())),
            4 => consumer(&mut bytes).map(|who| Input::Detach(who, bytes.pick(&LEAVES))),
            5..=7 => consumer(&mut bytes).map(Input::Ask),
            8 => Some(Input::Ack { id: bytes.id(), attempt: bytes.attempt() }),
            9 => consumer(&mut bytes).map(|consumer| Input::Nack {
                consumer,
                id: bytes.id(),
                attempt: bytes.attempt(),
                nack: Nack {
                    delay: (bytes.byte() % 2 == 1).then(|| bytes.pick(&LENGTHS)),
                    drop: bytes.byte() % 4 == 3,
                    release: bytes.byte() % 4 == 2,
                },
            }),
            10 => consumer(&mut bytes).map(|consumer| Input::Extend {
                consumer,
                id: bytes.id(),
                attempt: bytes.attempt(),
                length: bytes.pick(&LENGTHS),
            }),
            11 => Some(Input::Offer { takes: bytes.byte() % 2 == 1 }),
            12 => Some(Input::Advance),
            13 if bytes.byte() == 255 => Some(Input::Drain),
            14 => {
                // To the instant of the next effect, or just before it.
                let due = checked.next_due().unwrap_or(now).max(now);
                now = due - u64::from(bytes.byte() % 4 == 0 && due > now);
                Some(Input::Advance)
            }
            16 => consumer(&mut bytes).map(Input::Heard),
            17 => consumer(&mut bytes).map(|who| {
                let grace = bytes.pick(&LENGTHS).as_nanos() as u64;
                Input::Suspend(who, bytes.pick(&LEAVES), now + grace)
            }),
            18 => consumer(&mut bytes).map(|who| {
                let held = checked.model().held_by(who).into_iter().filter(|_| bytes.byte() % 4 > 0).collect();
                Input::Resume(who, bytes.attachment(), held)
            }),
            _ => {
                now += bytes.pick(&LENGTHS).as_nanos() as u64;
                None
            }
        };
        if let Some(input) = input
            && let Answer::Attached(id) = checked.apply(&input, now)
        {
            consumers.push(id);
        }
    }
});
