//! How a message's deliveries ended, as far as something went wrong.

use thin_vec::ThinVec;

use crate::event::Attempt;

/// At most so many of a message's deliveries are remembered: the first half of it and the last.
pub const HISTORY: usize = 32;

/// The deliveries of one message that failed or were interrupted, oldest first. A clean message pays one word and no allocation; others
/// one allocation of what they keep, at most [`HISTORY`] times 32 bytes.
#[derive(Default)]
pub(crate) struct History(ThinVec<Attempt>);

impl History {
    pub(crate) fn attempts(&self) -> &[Attempt] {
        &self.0
    }

    /// Adds the delivery that just ended. Of too many, the oldest of the last half is forgotten.
    pub(crate) fn push(&mut self, attempt: Attempt) {
        if self.0.len() < HISTORY {
            self.0.reserve_exact(1); // most messages fail once, and memory follows the backlog
            self.0.push(attempt);
        } else {
            let last = &mut self.0[HISTORY / 2..];
            last.rotate_left(1);
            last[HISTORY / 2 - 1] = attempt;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Attempt;
    use crate::messages::Slot;
    use crate::slab::Entry;

    #[test]
    fn an_attempt_costs_32_bytes() {
        assert_eq!(size_of::<Attempt>(), 32);
    }

    #[test]
    fn an_unacked_message_costs_at_most_88_bytes_besides_its_body() {
        // The body is a pointer. To the slab's entry comes a key in the index, and for 64 of them an entry in its table, half full.
        let bytes =
            size_of::<Entry<Slot<Box<()>>>>() + size_of::<u32>() + 2 * size_of::<(u64, usize, u64)>().div_ceil(64);
        assert!(bytes <= 88, "{bytes}");
    }
}
