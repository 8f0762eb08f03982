//! Which trace a message belongs to, without storing it: ids are fixed mixes, and the sampler is a function of the trace id, so that
//! the hand-over of a delivery and the settling of its message come to the same answer.

use std::collections::BTreeMap;

use ackstream_core::MessageId;

/// The attribute in which a publisher hands over its trace context (W3C Trace Context, level 1).
pub const TRACEPARENT: &str = "traceparent";
/// The length of a version 00 `traceparent`.
const LENGTH: usize = 55;
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
    seed: u64,
    sampler: Sampler,
}

/// The trace of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) id: u128,
    pub(super) parent: Option<Parent>,
    /// Tells messages of one trace, and of one id in several subscriptions, from each other.
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
        Self { seed: subscription.bytes().fold(mix(epoch), |seed, byte| mix(seed ^ u64::from(byte))), sampler }
    }

    /// The `traceparent` of a delivery attempt, for its frame. Sampled are what the sampler says and, from attempt 2 on, all.
    pub fn traceparent(&self, id: MessageId, attempt: u32, attributes: &BTreeMap<String, String>) -> String {
        let trace = self.trace(id, attributes);
        let sampled = attempt > 1 || self.sampler.samples(&trace);
        let mut text = *b"00-________________________________-________________-00";
        hex(&mut text[3..35], trace.id.to_be_bytes());
        hex(&mut text[36..52], trace.push_span(attempt).to_be_bytes());
        text[54] += u8::from(sampled);
        String::from_utf8(text.to_vec()).expect("digits are ASCII")
    }

    pub(super) fn trace(&self, id: MessageId, attributes: &BTreeMap<String, String>) -> Trace {
        let message = mix(self.seed ^ id.0);
        let parent = parent_in(attributes).ok().flatten();
        let own = u128::from(mix(message ^ HIGH)) << 64 | u128::from(mix(message ^ LOW));
        Trace { id: parent.map_or(own.max(1), |parent| parent.trace), parent, message }
    }

    /// Whether a message of this trace is traced although nothing went wrong with it.
    pub(super) const fn samples(&self, trace: &Trace) -> bool {
        self.sampler.samples(trace)
    }
}

impl Trace {
    /// The id of the message's own span.
    pub(super) fn deliver_span(&self) -> u64 {
        self.push_span(0)
    }

    /// The id of the span of a delivery attempt.
    #[expect(clippy::cast_possible_truncation, reason = "the low half differs as well")]
    pub(super) fn push_span(&self, attempt: u32) -> u64 {
        mix(self.id as u64 ^ mix(self.message ^ SPAN ^ u64::from(attempt))).max(1)
    }
}

/// A publisher's context that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The publisher's context, where there is one.
pub(super) fn parent_in(attributes: &BTreeMap<String, String>) -> Result<Option<Parent>, Malformed> {
    if attributes.is_empty() {
        return Ok(None); // as most messages
    }
    attributes.get(TRACEPARENT).map(|text| parse(text).ok_or(Malformed)).transpose()
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

/// Both digits of each byte.
const DIGITS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
};

fn hex<const BYTES: usize>(text: &mut [u8], bytes: [u8; BYTES]) {
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&DIGITS[usize::from(byte)]);
    }
}

// What is mixed in, so that the ids of one message have nothing in common: the first digits of pi, e and the square root of 2.
const HIGH: u64 = 0x3141_5926_5358_9793;
const LOW: u64 = 0x2718_2818_2845_9045;
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
