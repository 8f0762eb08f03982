//! Which trace a message belongs to, without storing it: ids are fixed mixes, and the sampler is a function of the trace id, so that
//! the hand-over of a delivery and the settling of its message come to the same answer.

use ackstream_core::MessageId;

use crate::message::Message;

/// The attribute in which a publisher hands over its trace context (W3C Trace Context, level 1).
pub const TRACEPARENT: &str = "traceparent";
/// The length of a version 00 `traceparent`.
pub(crate) const LENGTH: usize = 55;
/// A `traceparent` of a later version may be longer, but nobody needs so much.
const LONGEST: usize = 512;

/// Which clean messages are traced: the standard samplers, as far as they look at nothing but the trace id and the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Trace ids whose low 63 bits are below it are sampled.
    below: u64,
    /// A publisher's own decision goes before.
    parent_based: bool,
}

impl Sampler {
    /// Samples the share `ratio`, 0 to 1, of all traces: those that every SDK which counts in the low 63 bits samples too. Where it is
    /// `parent_based`, a message with a publisher's context follows that.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "clamped")]
    pub fn new(ratio: f64, parent_based: bool) -> Self {
        let all = 1_u64 << 63;
        let below = if ratio >= 1.0 { all } else { (ratio.max(0.0) * all as f64) as u64 };
        Self { below, parent_based }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    const fn samples(self, trace: &Trace) -> bool {
        match trace.parent {
            Some(Parent { sampled, .. }) if self.parent_based => sampled,
            Some(_) | None => (trace.id as u64) >> 1 < self.below,
        }
    }
}

/// Knows the trace of each message of one subscription.
#[derive(Clone, Copy, Debug)]
pub struct Contexts {
    /// The first half of every trace id that is not a publisher's; never 0.
    seed: u64,
    seed_digits: [u64; 2],
    sampler: Sampler,
}

/// The trace of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) id: u128,
    pub(super) parent: Option<Parent>,
    /// A number of the message's own, mixed: several messages may have one publisher's trace.
    message: u64,
}

/// A publisher's span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    trace: u128,
    pub(super) span: u64,
    sampled: bool,
}

impl Contexts {
    /// Of the subscription with this name, of a topic with this epoch.
    pub fn new(epoch: u64, subscription: &str, sampler: Sampler) -> Self {
        let seed = subscription.bytes().fold(mix(epoch), |seed, byte| mix(seed ^ u64::from(byte))).max(1);
        Self { seed, seed_digits: hex(seed), sampler }
    }

    /// The `traceparent` of a delivery attempt, as text.
    pub fn traceparent(&self, id: MessageId, attempt: u32, message: &Message, sampled: bool) -> String {
        let text = self.encoded_traceparent(id, attempt, message, sampled);
        std::str::from_utf8(&text).expect("digits are ASCII").to_owned()
    }

    /// The `traceparent` of a delivery attempt, for its frame, which says whether it is `sampled`.
    #[expect(clippy::cast_possible_truncation, reason = "one half at a time")]
    pub(crate) fn encoded_traceparent(
        &self,
        id: MessageId,
        attempt: u32,
        message: &Message,
        sampled: bool,
    ) -> [u8; LENGTH] {
        let trace = self.trace(id, message);
        let high = trace.parent.map_or(self.seed_digits, |parent| hex((parent.trace >> 64) as u64));
        let (low, span) = (hex(trace.id as u64), hex(trace.push_span(attempt)));
        // "00-" high low "-" span "-00" as words.
        let words = [
            word(b"00-") | high[0] >> 24,
            high[0] << 40 | high[1] >> 24,
            high[1] << 40 | low[0] >> 24,
            low[0] << 40 | low[1] >> 24,
            low[1] << 40 | word(b"\0\0\0-") | span[0] >> 32,
            span[0] << 32 | span[1] >> 32,
            span[1] << 32 | word(b"\0\0\0\0-00") | u64::from(sampled) << 8,
        ];
        *words.map(u64::to_be_bytes).as_flattened().first_chunk().expect("it is one byte longer")
    }

    #[inline]
    pub(super) fn trace(&self, id: MessageId, message: &Message) -> Trace {
        let parent = parent_in(message).ok().flatten();
        let message = mix(self.seed ^ id.0);
        // One mix is enough: no two messages of a subscription have one number, and no two subscriptions one seed.
        let own = u128::from(self.seed) << 64 | u128::from(message);
        Trace { id: parent.map_or(own, |parent| parent.trace), parent, message }
    }

    /// Whether a message with which nothing goes wrong is to be traced.
    #[inline]
    pub(super) fn samples(&self, id: MessageId, message: &Message) -> bool {
        if self.sampler.below == 0 && (!message.has_attributes() || !self.sampler.parent_based) {
            return false; // whatever its trace is
        }
        self.sampler.samples(&self.trace(id, message))
    }
}

impl Trace {
    /// The id of the message's own span.
    pub(super) fn deliver_span(&self) -> u64 {
        self.push_span(0)
    }

    /// The id of the span of a delivery attempt.
    pub(super) fn push_span(&self, attempt: u32) -> u64 {
        // The number is mixed already; what the attempt adds is a constant for the first one, which is nearly every one.
        (self.message ^ mix(SPAN ^ u64::from(attempt))).max(1)
    }
}

/// A publisher's context that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The publisher's context, where there is one.
#[inline]
pub(super) fn parent_in(message: &Message) -> Result<Option<Parent>, Malformed> {
    // Most messages have no attributes at all.
    if message.has_attributes() { find_parent(message) } else { Ok(None) }
}

#[inline(never)]
fn find_parent(message: &Message) -> Result<Option<Parent>, Malformed> {
    message.attribute(TRACEPARENT).map(|text| parse(text).ok_or(Malformed)).transpose()
}

fn parse(text: &str) -> Option<Parent> {
    let bytes = text.as_bytes();
    if !(LENGTH..=LONGEST).contains(&bytes.len()) {
        return None;
    }
    let version = unhex(&bytes[..2])?;
    let ends_well = match version {
        0 => bytes.len() == LENGTH,
        0xff => false, // the one that is forbidden
        _ => bytes.get(LENGTH).is_none_or(|&next| next == b'-'),
    };
    if !ends_well || [2, 35, 52].iter().any(|&place| bytes[place] != b'-') {
        return None;
    }
    let (trace, span, flags) = (unhex(&bytes[3..35])?, unhex(&bytes[36..52])?, unhex(&bytes[53..55])?);
    let span = u64::try_from(span).expect("16 digits");
    (trace != 0 && span != 0).then_some(Parent { trace, span, sampled: flags & 1 == 1 })
}

fn unhex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| match digit {
        b'0'..=b'9' => Some(value << 4 | u128::from(digit - b'0')),
        b'a'..=b'f' => Some(value << 4 | u128::from(digit - b'a' + 10)), // upper case is not allowed
        _ => None,
    })
}

/// The sixteen digits of a number, as two words of text. Each half is spread so that a byte holds one digit, and all eight become text
/// at once, which takes a third of the time of a table.
const fn hex(number: u64) -> [u64; 2] {
    [digits(number >> 32), digits(number & u32::MAX as u64)]
}

const fn digits(half: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let quarters = (half | half << 16) & 0x0000_ffff_0000_ffff;
    let bytes = (quarters | quarters << 8) & 0x00ff_00ff_00ff_00ff;
    let digits = (bytes | bytes << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = (digits + EACH * 6) >> 4 & EACH; // 1 for a digit above 9
    digits + EACH * b'0' as u64 + letters * (b'a' - b'0' - 10) as u64
}

/// Up to eight characters as a word, the first one highest.
const fn word(text: &[u8]) -> u64 {
    let (mut word, mut place) = (0, 0);
    while place < text.len() {
        word |= (text[place] as u64) << (56 - 8 * place);
        place += 1;
    }
    word
}

/// What is mixed into span ids, so that they have nothing in common with trace ids: the first digits of the square root of 2.
const SPAN: u64 = 0x1414_2135_6237_3095;

/// Spreads a change of any bit over all bits: the finalizer of `SplitMix64` (Steele, Lea and Flood, 2014). No two inputs give one output.
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
#[path = "context_tests.rs"]
mod tests;
