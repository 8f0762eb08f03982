//! What `publish` publishes: each line of a file or of the standard input, read by a thread of its own.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::json;
use crate::proto::DataMessage;

/// The longest line of text: no server takes a larger message.
const LONGEST_TEXT: usize = 16 << 20;
/// The longest line of JSON: base64 and escapes make a message larger.
const LONGEST_JSON: usize = 64 << 20;
/// Lines are handed on in batches of at most so many lines,
const BATCH_LINES: usize = 256;
/// or of about so many bytes.
const BATCH_BYTES: usize = 1 << 20;

/// One line.
#[derive(Debug, PartialEq)]
pub(super) struct Line {
    /// Its number, from 1.
    pub(super) number: u64,
    /// What it says, or what is wrong with it.
    pub(super) message: Result<DataMessage, String>,
}

/// How lines become messages.
#[derive(Clone, Debug)]
pub(super) struct Form {
    /// Each line is a message in JSON; else it is the payload.
    pub(super) json: bool,
    /// Attributes of all messages; a message's own go before.
    pub(super) attributes: BTreeMap<String, String>,
}

/// Reads to the end, as fast as batches are taken. The last thing sent is an error where the input cannot be read on. `read_bytes`
/// shows how far it has come.
pub(super) fn read(
    mut input: BufReader<impl Read>,
    form: &Form,
    batches: &mpsc::Sender<io::Result<Vec<Line>>>,
    read_bytes: &Arc<AtomicU64>,
) {
    let longest = if form.json { LONGEST_JSON } else { LONGEST_TEXT };
    let (mut number, mut batch, mut bytes) = (0, Vec::new(), 0);
    loop {
        let read = read_line(&mut input, longest);
        let at_end = !matches!(read, Ok(Some(_)));
        let failure = match read {
            Ok(Some(text)) => {
                number += 1;
                bytes += text.len();
                read_bytes.fetch_add(text.bytes_read, Ordering::Relaxed);
                if !(form.json && text.is_blank()) {
                    batch.push(Line { number, message: form.message(text) });
                }
                None
            }
            Ok(None) => None,
            Err(error) => Some(error),
        };
        // A batch also goes where the next line may take its time: somebody types.
        let full = batch.len() >= BATCH_LINES || bytes >= BATCH_BYTES || input.buffer().is_empty();
        if (at_end || full) && !batch.is_empty() {
            bytes = 0;
            if batches.blocking_send(Ok(std::mem::take(&mut batch))).is_err() {
                return; // nobody publishes any more
            }
        }
        if let Some(error) = failure {
            let _ = batches.blocking_send(Err(error));
        }
        if at_end {
            return;
        }
    }
}

/// A line without its end.
#[derive(Debug, PartialEq)]
struct Text {
    /// `None`: it is too long.
    bytes: Option<Vec<u8>>,
    /// With its end, and with what was left out.
    bytes_read: u64,
}

impl Text {
    fn len(&self) -> usize {
        self.bytes.as_ref().map_or(0, Vec::len)
    }

    fn is_blank(&self) -> bool {
        self.bytes.as_ref().is_some_and(|bytes| bytes.iter().all(u8::is_ascii_whitespace))
    }
}

impl Form {
    fn message(&self, text: Text) -> Result<DataMessage, String> {
        let Some(line) = text.bytes else {
            return Err(format!("it has {} bytes, and no server takes as many", text.bytes_read));
        };
        let mut message = if self.json {
            json::read(&line)?
        } else {
            DataMessage { payload: Bytes::from(line), ..DataMessage::default() }
        };
        for (name, value) in &self.attributes {
            message.attributes.entry(name.clone()).or_insert_with(|| value.clone());
        }
        Ok(message)
    }
}

/// The next line; `None` at the end. Of one that is too long no more than the bound is kept in memory.
fn read_line(input: &mut impl BufRead, longest: usize) -> io::Result<Option<Text>> {
    let (mut line, mut bytes_read) = (Vec::new(), 0);
    loop {
        let available = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        let end = available.iter().position(|&byte| byte == b'\n');
        let (content, used) = end.map_or((available, available.len()), |end| (&available[..end], end + 1));
        let room = (longest + 1).saturating_sub(line.len());
        line.extend_from_slice(&content[..content.len().min(room)]);
        input.consume(used);
        bytes_read += used as u64;
        if end.is_some() || (used == 0 && bytes_read > 0) {
            let bytes = (line.len() <= longest).then_some(line);
            return Ok(Some(Text { bytes, bytes_read }));
        }
        if used == 0 {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Form {
        Form { json: false, attributes: BTreeMap::new() }
    }

    /// All lines, whatever the batches.
    fn read_all(input: impl Read + Send + 'static, form: Form) -> Vec<io::Result<Line>> {
        let (send, mut batches) = mpsc::channel(4);
        std::thread::spawn(move || read(BufReader::new(input), &form, &send, &Arc::default()));
        let mut lines = Vec::new();
        while let Some(batch) = batches.blocking_recv() {
            match batch {
                Ok(batch) => lines.extend(batch.into_iter().map(Ok)),
                Err(error) => lines.push(Err(error)),
            }
        }
        lines
    }

    fn payloads(input: &'static [u8]) -> Vec<(u64, Bytes)> {
        let lines = read_all(input, text()).into_iter().map(|line| line.expect("readable"));
        lines.map(|line| (line.number, line.message.expect("no line is too long").payload)).collect()
    }

    #[test]
    fn each_line_is_a_message_an_empty_one_too() {
        let expected: Vec<_> = (1..).zip([&b"a"[..], b"", b"b \r", b"c"].map(Bytes::from_static)).collect();
        assert_eq!(payloads(b"a\n\nb \r\nc"), expected);
        assert_eq!(payloads(b"a\n\nb \r\nc\n"), expected, "a last end makes no further line");
        assert_eq!(payloads(b""), []);
    }

    #[test]
    fn many_lines_come_in_their_order() {
        let input = (0..100_000).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
        let lines = read_all(io::Cursor::new(input), text());
        assert_eq!(lines.len(), 100_000);
        for (n, line) in (0..).zip(lines) {
            let line = line.unwrap();
            assert_eq!((line.number, line.message.unwrap().payload), (n + 1, Bytes::from(n.to_string())));
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_told_by_its_number_and_the_next_one_is_read() {
        let long = io::repeat(b'x').take(3 * LONGEST_TEXT as u64).chain(&b"\nshort"[..]);
        let lines: Vec<_> = read_all(long, text()).into_iter().map(|line| line.unwrap()).collect();
        assert_eq!(lines[0].number, 1);
        assert_eq!(lines[0].message, Err("it has 50331649 bytes, and no server takes as many".to_owned()));
        assert_eq!((lines[1].number, lines[1].message.as_ref().unwrap().payload.as_ref()), (2, &b"short"[..]));
    }

    #[test]
    fn a_line_may_be_as_long_as_the_largest_message() {
        let lines = read_all(io::repeat(b'x').take(LONGEST_TEXT as u64), text());
        assert_eq!(lines[0].as_ref().unwrap().message.as_ref().unwrap().payload.len(), LONGEST_TEXT);
    }

    #[test]
    fn json_lines_are_messages_and_blank_ones_are_none() {
        let form = Form { json: true, ..text() };
        let lines = read_all(&b"{\"payload\":\"a\"}\n  \n{]\n{\"payload\":\"b\"}"[..], form);
        let told: Vec<_> =
            lines.iter().map(|line| line.as_ref().unwrap()).map(|line| (line.number, line.message.is_ok())).collect();
        assert_eq!(told, [(1, true), (3, false), (4, true)]);
    }

    #[test]
    fn attributes_of_the_command_are_given_to_all_but_a_messages_own_go_before() {
        let given = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let form = Form { json: true, attributes: given.clone() };
        let lines = read_all(&b"{\"payload\":\"\",\"attributes\":{\"b\":\"own\"}}\n{\"payload\":\"\"}"[..], form);
        let of = |place: usize| lines[place].as_ref().unwrap().message.as_ref().unwrap().attributes.clone();
        assert_eq!(of(0), BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "own".to_owned())]));
        assert_eq!(of(1), given);
    }

    #[test]
    fn an_input_that_breaks_off_is_told_after_its_lines() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the disk is gone"))
            }
        }
        let lines = read_all((&b"a\nb"[..]).chain(Broken), text());
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].as_ref().unwrap().number, 1);
        assert_eq!(lines[1].as_ref().unwrap_err().to_string(), "the disk is gone");
    }
}
