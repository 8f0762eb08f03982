//! From text to values, and what can be wrong with them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use figment::Figment;
use figment::value::{Dict, Value};
use tracing_subscriber::filter::LevelFilter;

use super::keys::KEYS;
use super::layers::DEFAULT;
use super::security::{self, ACCESS};
use super::topics::{self, TOPICS};
use super::{Effective, Layers, Problem};
use crate::address::{Listen, NoAddress};
use crate::logging::LogFormat;

/// The values of all layers, and the problems found with them so far.
pub(super) struct Values<'a> {
    figment: &'a Figment,
    problems: Vec<Problem>,
    /// Keys whose text could not be read: they are told once.
    unreadable: BTreeSet<&'static str>,
}

impl<'a> Values<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        let mut values =
            Self { figment: &layers.figment, problems: layers.problems.clone(), unreadable: BTreeSet::new() };
        values.find_unknown();
        values
    }

    /// The value of a key. One that cannot be read is a problem, told once, and its default goes on in its place.
    pub(super) fn get<T>(&mut self, key: &'static str, read: fn(&str) -> Result<T, String>) -> T {
        let value = self.value(key);
        let read_value = if self.unreadable.contains(key) { None } else { self.read(key, &value, read) };
        read_value.unwrap_or_else(|| {
            self.unreadable.insert(key);
            default(key, read)
        })
    }

    /// A value that stands at `path`. `None`: it cannot be read, which is a problem.
    pub(super) fn read<T>(
        &mut self,
        path: &str,
        value: &Value,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let read_value = text(value).and_then(|text| read(&text));
        read_value.map_err(|must| self.wrong(path, value, &must)).ok()
    }

    /// The table at the top level that has this name; `None` where there is none.
    pub(super) fn table(&self, name: &str) -> Option<Dict> {
        self.figment.find_value(name).ok().and_then(Value::into_dict)
    }

    /// Something is wrong with the value at `path`.
    pub(super) fn wrong(&mut self, path: &str, value: &Value, must: &str) {
        let is_shown = value.as_dict().is_none() && !security::may_be_secret(path, value);
        let what = if is_shown { format!("{path} = {}", show(value)) } else { path.to_owned() };
        // A table is of the file; its tag is that of no single value.
        let source = self.source(&innermost(value));
        self.problems.push(Problem { what, source, must: must.to_owned() });
    }

    /// A number that must not be zero.
    pub(super) fn at_least_one<T: Default + PartialEq>(
        &mut self,
        key: &'static str,
        read: fn(&str) -> Result<T, String>,
    ) -> T {
        let value = self.get(key, read);
        if value == T::default() {
            self.must(key, "at least 1");
        }
        value
    }

    /// A length of time, from the shortest to the longest that makes sense.
    pub(super) fn between(&mut self, key: &'static str, least: Duration, most: Duration) -> Duration {
        let value = self.get(key, duration);
        if !(least..=most).contains(&value) {
            let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
            self.must(key, &format!("between {least} and {most}"));
        }
        value
    }

    /// A number of bytes, from the fewest to the most that make sense.
    pub(super) fn size_between(&mut self, key: &'static str, least: u32, most: u32) -> u32 {
        let value = self.get(key, bytes);
        u32::try_from(value).ok().filter(|value| (least..=most).contains(value)).unwrap_or_else(|| {
            self.must(key, &format!("between {} and {}", ByteSize(least.into()), ByteSize(most.into())));
            least
        })
    }

    /// The value of a key is out of its bounds.
    pub(super) fn must(&mut self, key: &'static str, must: &str) {
        if !self.unreadable.contains(key) {
            let value = self.value(key);
            self.wrong(key, &value, &format!("must be {must}"));
        }
    }

    /// The value of a key is wrong; the sentence says it whole.
    pub(super) fn wrong_key(&mut self, key: &str, sentence: &str) {
        let value = self.value(key);
        self.wrong(key, &value, sentence);
    }

    /// Where the value of a key came from.
    pub(super) fn source_of(&self, key: &str) -> String {
        self.source(&self.value(key))
    }

    /// Whether nobody has set this key.
    pub(super) fn is_default(&self, key: &str) -> bool {
        self.source_of(key) == DEFAULT
    }

    /// Every key with its value and source.
    pub(super) fn effective(&self) -> Vec<Effective> {
        let of = |key: &super::Key| {
            let value = self.value(key.name);
            let (table, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
            Effective { table: table.to_owned(), key: name, value: show(&value), source: self.source(&value) }
        };
        let mut effective: Vec<_> = KEYS.iter().map(of).collect();
        effective.sort_by(|one, other| one.table.cmp(&other.table)); // values without a table come first
        effective.extend(topics::effective(self));
        effective.extend(security::effective(self));
        effective
    }

    /// # Errors
    ///
    /// All problems, where there are any.
    pub(super) fn finish(self) -> Result<(), Vec<Problem>> {
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems) }
    }

    fn value(&self, key: &str) -> Value {
        // A table where a value is expected, or the other way round, hides the key.
        self.figment.find_value(key).unwrap_or_else(|_| Value::from(default_text(key)))
    }

    /// Where a value came from.
    pub(super) fn source(&self, value: &Value) -> String {
        self.figment.get_metadata(value.tag()).map_or_else(|| DEFAULT.to_owned(), |metadata| metadata.name.to_string())
    }

    fn find_unknown(&mut self) {
        let all = self.figment.find_value("").ok().and_then(Value::into_dict).unwrap_or_default();
        let mut leaves = Vec::new();
        for (name, value) in all {
            let table = [(TOPICS, "[topics.T.subscriptions.S]"), (ACCESS, "[access.CLIENT]")];
            if let Some((name, form)) = table.into_iter().find(|(table, _)| *table == name) {
                if value.as_dict().is_none() {
                    self.wrong(name, &value, &format!("must be a table: write {form}"));
                }
                continue; // looked at where it is read
            }
            collect_leaves(name, value, &mut leaves);
        }
        let problems = leaves.iter().filter_map(|(key, value)| unknown(key, &self.source(value)));
        let problems: Vec<_> = problems.collect();
        self.problems.extend(problems);
    }
}

/// The problem with a key that does not exist; it names the nearest one that does.
pub(super) fn unknown(key: &str, source: &str) -> Option<Problem> {
    if KEYS.iter().any(|known| known.name == key) {
        return None;
    }
    let nearest = nearest(key, KEYS.iter().map(|known| known.name).chain([TOPICS, ACCESS]));
    Some(Problem {
        what: if key.is_empty() { "a key without a name".to_owned() } else { key.to_owned() },
        source: source.to_owned(),
        must: format!("there is no such key; the nearest is {nearest}"),
    })
}

/// Which of the names that there are is most like this one.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> &'a str {
    let likeness = |known: &str| strsim::jaro_winkler(known, name);
    let nearest = known.into_iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    nearest.expect("there is something to choose from")
}

/// A value within a table, which knows its source; the value itself where it is none.
fn innermost(value: &Value) -> Value {
    match value.as_dict().and_then(|dict| dict.values().next()) {
        Some(inner) => innermost(inner),
        None => value.clone(),
    }
}

fn collect_leaves(name: String, value: Value, leaves: &mut Vec<(String, Value)>) {
    if let Value::Dict(_, dict) = &value
        && !dict.is_empty()
    {
        for (part, value) in dict {
            collect_leaves(format!("{name}.{part}"), value.clone(), leaves);
        }
    } else {
        leaves.push((name, value));
    }
}

/// The default of a key.
pub(super) fn default<T>(key: &str, read: fn(&str) -> Result<T, String>) -> T {
    read(default_text(key)).expect("every default can be read")
}

fn default_text(key: &str) -> &'static str {
    KEYS.iter().find(|known| known.name == key).expect("a key of the table").default
}

/// A value as text, however it was written.
fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(_, text) => Ok(text.clone()),
        Value::Char(_, character) => Ok(character.to_string()),
        Value::Bool(_, flag) => Ok(flag.to_string()),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128(), number.to_f64()) {
            (Some(number), ..) => Ok(number.to_string()),
            (_, Some(number), _) => Ok(number.to_string()),
            (.., Some(number)) => Ok(number.to_string()),
            (None, None, None) => Err("must be a number".into()),
        },
        Value::Empty(..) | Value::Dict(..) | Value::Array(..) => Err("must be a single value".into()),
    }
}

/// A value as TOML shows it.
pub(super) fn show(value: &Value) -> String {
    match (value, text(value)) {
        (Value::String(..) | Value::Char(..), Ok(text)) => {
            let plain = text.parse::<u64>().is_ok() || matches!(text.as_str(), "true" | "false");
            if plain { text } else { format!("{text:?}") }
        }
        (_, Ok(text)) => text,
        (Value::Array(_, list), Err(_)) => format!("[{}]", list.iter().map(show).collect::<Vec<_>>().join(", ")),
        (_, Err(_)) => "(a table)".to_owned(),
    }
}

/// A name as a part of a TOML key.
pub(super) fn quoted(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { format!("{name:?}") }
}

// ---- one reader for each kind of value

pub(super) fn path_or_off(text: &str) -> Result<Option<PathBuf>, String> {
    match text {
        "" => Err("must be the path of a file, or \"off\"".to_owned()),
        "off" => Ok(None),
        path => Ok(Some(path.into())),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "must be a length of time with its unit, such as \"2s\" or \"100ms\"".into())
}

pub(super) fn duration_or_off(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" {
        return Ok(None);
    }
    duration(text).map(Some).map_err(|must| format!("{must}, or \"off\""))
}

/// No size needs to be larger (1 PiB); beyond it the parser rounds without a word.
const LARGEST_SIZE: u64 = 1 << 50;

pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let size: Result<ByteSize, _> = text.parse();
    size.ok()
        .map(|size| size.as_u64())
        .filter(|size| *size <= LARGEST_SIZE)
        .ok_or_else(|| "must be a size such as \"4MiB\" or \"512B\", or a number of bytes, and at most 1PiB".into())
}

pub(super) fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("must be a whole number of at most {} bits", 8 * size_of::<T>()))
}

pub(super) fn count(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        "must be a whole number of messages; the commands are demo, serve, publish, consume, health, config and completions"
            .into()
    })
}

/// How often something may happen to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Budget {
    /// As follows from other keys.
    Auto,
    /// So often; `None` = without end.
    Most(Option<u32>),
}

impl Budget {
    /// How often; `auto` says what follows from other keys.
    pub(super) fn unless_auto(self, auto: Option<u32>) -> Option<u32> {
        match self {
            Self::Auto => auto,
            Self::Most(most) => most,
        }
    }
}

pub(super) fn budget(text: &str) -> Result<Budget, String> {
    if text == "auto" {
        return Ok(Budget::Auto);
    }
    number_or_unlimited(text).map(Budget::Most).map_err(|must| format!("{must}, or \"auto\""))
}

pub(super) fn number_or_unlimited(text: &str) -> Result<Option<u32>, String> {
    if text == "unlimited" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "must be a whole number from 0 to 1000, or \"unlimited\"".into())
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".into())
}

pub(super) fn listen(text: &str) -> Result<Listen, String> {
    text.parse().map_err(|error: NoAddress| error.to_string())
}

pub(super) fn listen_or_off(text: &str) -> Result<Option<Listen>, String> {
    if text == "off" {
        return Ok(None);
    }
    listen(text).map(Some).map_err(|must| format!("{must}, or \"off\""))
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be \"text\" or \"json\"".into()),
    }
}

pub(super) fn log_level(text: &str) -> Result<LevelFilter, String> {
    match text {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err("must be error, warn, info, debug or trace".into()),
    }
}
