//! What is published.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use bytes::Bytes;

/// A message as every subscription of its topic shares it. Its id and its delivery state live in the core.
#[derive(Debug, Default)]
pub struct Message {
    /// The content.
    pub payload: Bytes,
    /// Names and values of the publisher's choice.
    pub attributes: BTreeMap<String, String>,
    /// Its number in the demo's run, from 1; `None` for a message that a client published.
    pub number: Option<NonZeroU64>,
}

impl Message {
    /// Bytes of payload and attributes together: what counts against every bound in bytes.
    pub fn size(&self) -> usize {
        self.payload.len() + self.attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }
}
