//! What is published: one allocation, shared by all subscriptions, deliveries and redeliveries, that holds its content as it goes over
//! the wire. Sending a message copies it once, into the buffer of the connection.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use prost::bytes::Buf;
use prost::encoding::{decode_varint, encode_varint};
use triomphe::ThinArc;

use crate::proto::DataMessage;

/// The key of the field `attributes` of a `DataMessage`, and of an entry's name and value: fields 6, 1 and 2, each with a length.
pub(crate) const ATTRIBUTE: u8 = 6 << 3 | 2;
const NAME: u8 = 1 << 3 | 2;
const VALUE: u8 = 2 << 3 | 2;
const WELL_FORMED: &str = "the attributes were written here";

/// A message as every subscription of its topic shares it. Its id and its delivery state live in the core.
#[derive(Clone)]
pub struct Message(ThinArc<Head, u8>);

/// Goes before the payload and, behind it, the attributes as fields of a `DataMessage`.
#[derive(Clone, Copy)]
struct Head {
    payload: u32,
    /// Its number in the demo's run; 0 = none.
    number: u32,
}

impl Message {
    /// A message of this content.
    ///
    /// # Panics
    ///
    /// Where the payload has 4 GiB or more: no frame brings as much.
    pub fn new(payload: &[u8], attributes: &BTreeMap<String, String>) -> Self {
        Self::with_number(payload, attributes, 0)
    }

    /// A message of the demo, with its number in the run, from 1; all that are beyond 2^32 have one.
    pub fn numbered(payload: &[u8], number: u64) -> Self {
        Self::with_number(payload, &BTreeMap::new(), u32::try_from(number).unwrap_or(u32::MAX))
    }

    fn with_number(payload: &[u8], attributes: &BTreeMap<String, String>, number: u32) -> Self {
        let head = Head { payload: u32::try_from(payload.len()).expect("a payload fits a frame"), number };
        if attributes.is_empty() {
            return Self(ThinArc::from_header_and_slice(head, payload));
        }
        let mut content = payload.to_vec();
        let mut entry = Vec::new();
        for (name, value) in attributes {
            entry.clear();
            write_field(&mut entry, NAME, name.as_bytes());
            write_field(&mut entry, VALUE, value.as_bytes());
            write_field(&mut content, ATTRIBUTE, &entry);
        }
        Self(ThinArc::from_header_and_slice(head, &content))
    }

    /// The content.
    pub fn payload(&self) -> &[u8] {
        &self.0.slice[..self.0.header.header.payload as usize]
    }

    /// Its attributes, as fields of a `DataMessage` on the wire.
    pub(crate) fn encoded_attributes(&self) -> &[u8] {
        &self.0.slice[self.0.header.header.payload as usize..]
    }

    /// Whether it has any attributes.
    pub fn has_attributes(&self) -> bool {
        !self.encoded_attributes().is_empty()
    }

    /// Names and values of the publisher's choice, in the order of the names.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = self.encoded_attributes();
        std::iter::from_fn(move || {
            let mut entry = read_field(&mut rest)?;
            Some((text(read_field(&mut entry)?), text(read_field(&mut entry)?)))
        })
    }

    /// The value of one attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Its number in the demo's run, from 1; `None` for a message that a client published.
    pub fn number(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.0.header.header.number)
    }

    /// Bytes of payload and attributes together: what counts against every bound in bytes.
    pub fn size(&self) -> usize {
        self.payload().len() + self.attributes().map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }

    /// The bytes that it takes in a frame, besides a few for its payload's length.
    pub(crate) fn encoded_len(&self) -> usize {
        self.0.slice.len()
    }
}

/// A message as a client publishes it. Copied once: a slice would keep the whole receive buffer alive, 65 times its size (measured).
impl From<DataMessage> for Message {
    fn from(data: DataMessage) -> Self {
        Self::new(&data.payload, &data.attributes)
    }
}

impl AsRef<Self> for Message {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message of {} bytes", self.size()) // a payload is in no log
    }
}

fn write_field(out: &mut Vec<u8>, key: u8, content: &[u8]) {
    out.push(key);
    encode_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

/// The content of the next field; `None` at the end.
fn read_field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    if rest.is_empty() {
        return None;
    }
    rest.advance(1);
    let length = decode_varint(rest).expect(WELL_FORMED);
    let (content, after) = rest.split_at(usize::try_from(length).expect(WELL_FORMED));
    *rest = after;
    Some(content)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect(WELL_FORMED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_back_what_was_published() {
        let long = "v".repeat(300);
        let attributes: BTreeMap<String, String> = [("a", ""), ("kind", "new"), ("long", &long), ("ü", "ß")]
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        let message = Message::new(b"content", &attributes);
        let read: BTreeMap<String, String> =
            message.attributes().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!((message.payload(), read), (b"content".as_slice(), attributes));
        assert_eq!(
            (message.attribute("kind"), message.attribute("a"), message.attribute("none")),
            (Some("new"), Some(""), None)
        );
        assert_eq!(message.size(), 7 + 1 + 7 + 304 + 4);
        assert_eq!((message.number(), message.has_attributes()), (None, true));
    }

    #[test]
    fn it_may_be_empty() {
        let message = Message::from(DataMessage::default());
        assert_eq!((message.payload(), message.size(), message.has_attributes()), (b"".as_slice(), 0, false));
    }

    #[test]
    fn a_message_of_the_demo_has_its_number() {
        assert_eq!(Message::numbered(b"Message 7", 7).number().map(NonZeroU32::get), Some(7));
        assert_eq!(Message::numbered(b"", 1 << 40).number().map(NonZeroU32::get), Some(u32::MAX));
    }

    #[test]
    fn a_handle_costs_one_word_and_the_message_32_bytes_besides_its_content() {
        assert_eq!(size_of::<Option<Message>>(), 8);
        assert_eq!(
            size_of::<Head>(),
            8,
            "with the count of its handles, its length and the allocator's rounding to 16"
        );
    }
}
