//! A message as one line of JSON: what `consume --json` prints, and `publish --json` takes as it is.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::proto::DataMessage;

/// What some editors put at the beginning of a file in UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A delivery, as it is printed. A payload that is text is shown as text, any other in base64.
#[derive(Serialize)]
struct Printed<'a> {
    id: u64,
    timestamp: Option<String>,
    delivery_attempt: u32,
    attributes: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

/// A publish, as it is read. What only a delivery has may be there and is not looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    #[serde(default, rename = "id")]
    _id: Option<IgnoredAny>,
    #[serde(default, rename = "timestamp")]
    _timestamp: Option<IgnoredAny>,
    #[serde(default, rename = "delivery_attempt")]
    _delivery_attempt: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "unique")]
    attributes: BTreeMap<String, String>,
    payload: Option<String>,
    payload_base64: Option<String>,
}

/// Attributes, each with one value.
fn unique<'de, D: Deserializer<'de>>(attributes: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Unique;
    impl<'de> Visitor<'de> for Unique {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of names and texts")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((name, value)) = entries.next_entry::<String, String>()? {
                if all.insert(name.clone(), value).is_some() {
                    return Err(de::Error::custom(format_args!("attribute {name:?} is there twice")));
                }
            }
            Ok(all)
        }
    }
    attributes.deserialize_map(Unique)
}

/// A delivery as a line, with its end.
pub(super) fn print(message: &DataMessage) -> Vec<u8> {
    let text = std::str::from_utf8(&message.payload).ok();
    let printed = Printed {
        id: message.id,
        timestamp: message.timestamp.as_ref().map(ToString::to_string),
        delivery_attempt: message.delivery_attempt,
        attributes: &message.attributes,
        payload: text,
        payload_base64: text.is_none().then(|| STANDARD.encode(&message.payload)),
    };
    let mut line = serde_json::to_vec(&printed).expect("names and values are text");
    line.push(b'\n');
    line
}

/// A line as a publish.
///
/// # Errors
///
/// What is wrong with it, as a sentence.
pub(super) fn read(line: &[u8]) -> Result<DataMessage, String> {
    if line.starts_with(BYTE_ORDER_MARK) {
        return Err("it begins with a byte order mark (BOM): save the file as UTF-8 without one".into());
    }
    if line.trim_ascii_start().first() == Some(&b'[') {
        return Err(
            "it is an array, and no message: write an object such as {\"payload\": \"text\"} on each line".into()
        );
    }
    let Read { attributes, payload, payload_base64, .. } = serde_json::from_slice(line).map_err(|error| {
        let (column, text) = (error.column(), error.to_string());
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what); // there is but one line
        format!("it is no message in JSON: {what} (column {column})")
    })?;
    let payload = match (payload, payload_base64) {
        (Some(text), None) => Bytes::from(text),
        (None, Some(text)) => {
            STANDARD.decode(text).map_err(|error| format!("its payload_base64 is no base64: {error}"))?.into()
        }
        (None, None) => return Err("it has no \"payload\" and no \"payload_base64\"".into()),
        (Some(_), Some(_)) => return Err("it has \"payload\" and \"payload_base64\"; one is enough".into()),
    };
    Ok(DataMessage { payload, attributes, ..DataMessage::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &'static [u8]) -> DataMessage {
        let attributes = BTreeMap::from([("kind".to_owned(), "new \"one\"\n".to_owned())]);
        let timestamp = Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 250_000_000 });
        let (id, delivery_attempt) = (7, 2);
        DataMessage { id, timestamp, payload: payload.into(), delivery_attempt, attributes, ..DataMessage::default() }
    }

    #[test]
    fn text_is_shown_as_text() {
        let line = String::from_utf8(print(&message("Grüße\n".as_bytes()))).unwrap();
        assert_eq!(
            line,
            "{\"id\":7,\"timestamp\":\"2023-11-14T22:13:20.250Z\",\"delivery_attempt\":2,\
             \"attributes\":{\"kind\":\"new \\\"one\\\"\\n\"},\"payload\":\"Grüße\\n\"}\n"
        );
    }

    #[test]
    fn what_is_printed_can_be_published_as_it_was() {
        for payload in [&b"text"[..], b"", b"\xff\x00\xfe", b"line\nline"] {
            let printed = print(&message(payload));
            let read = read(&printed).unwrap();
            assert_eq!((read.payload, read.attributes), (payload.into(), message(payload).attributes));
        }
    }

    #[test]
    fn a_payload_is_enough() {
        assert_eq!(read(b"{\"payload\":\"x\"}").unwrap().payload, "x");
        assert_eq!(read(b" {\"payload_base64\":\"/w==\"} ").unwrap().payload, &b"\xff"[..]);
    }

    #[test]
    fn what_is_no_message_is_told_with_its_reason() {
        let cases = [
            ("{\"payload\":", "it is no message in JSON: EOF while parsing a value (column 11)"),
            ("hello", "it is no message in JSON: expected value (column 1)"),
            ("{\"payload\":\"x\",\"atributes\":{}}", "it is no message in JSON: unknown field `atributes`"),
            ("{\"payload\":5}", "it is no message in JSON: invalid type: integer `5`, expected a string (column 12)"),
            ("{\"payload\":\"x\",\"attributes\":{\"a\":1}}", "it is no message in JSON: invalid type: integer `1`"),
            ("[1,\"x\",3,{}]", "it is an array, and no message: write an object"),
            ("\u{feff}{\"payload\":\"x\"}", "it begins with a byte order mark (BOM)"),
            (
                "{\"payload\":\"x\",\"attributes\":{\"k\":\"1\",\"k\":\"2\"}}",
                "it is no message in JSON: attribute \"k\" is there twice",
            ),
            ("{}", "it has no \"payload\" and no \"payload_base64\""),
            ("{\"payload\":\"\",\"payload_base64\":\"\"}", "it has \"payload\" and \"payload_base64\"; one is enough"),
            ("{\"payload_base64\":\"%\"}", "its payload_base64 is no base64: Invalid symbol 37, offset 0."),
        ];
        for (line, reason) in cases {
            let found = read(line.as_bytes()).unwrap_err();
            assert!(found.starts_with(reason), "{line}: {found}");
        }
    }
}
