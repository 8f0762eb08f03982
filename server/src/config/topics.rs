//! `[topics.T.subscriptions.S]`: the topics and subscriptions of a server, each with what its policy has of its own.

use std::collections::{BTreeMap, BTreeSet};

use ackstream_core::{Backoff, Policy};
use figment::value::{Dict, Value};

use super::values::{self, Values, quoted};
use crate::dead_letters::MAX_ORIGIN_BYTES;
use crate::exchange::DEFAULT_NAME;
use crate::server::{SubscriptionSettings, TopicSettings};

/// The table that they stand in.
pub(super) const TOPICS: &str = "topics";
/// The keys of a policy: at the top level they are for every subscription, in its table for one.
const POLICY: [&str; 7] = [
    "ack_deadline",
    "max_retries",
    "max_interruptions",
    "min_backoff",
    "max_backoff",
    "max_backlog_messages",
    "max_backlog_bytes",
];
/// The retries of a subscription whose dead letters have a topic, where nobody says otherwise: with the backoff some 20 minutes.
const RETRIES_BEFORE_A_DEAD_LETTER: u32 = 10;
/// The interruptions that a message alone may have, where nobody says otherwise and retries are allowed.
const INTERRUPTIONS: u32 = 3;
/// The key that says what becomes of what a subscription gives up.
const DEAD_LETTER_TOPIC: &str = "dead_letter_topic";
/// Its value for nothing: what is given up is discarded.
const DISCARD: &str = "discard";

/// The longest name of a topic or subscription, in bytes: that of Cloud Pub/Sub's.
const LONGEST_NAME: usize = 255;
/// The most topics of a server, and the most subscriptions on all of them: each subscription shows some 150 series to Prometheus.
const MOST: usize = 1_000;

/// The policy at the top level.
pub(super) fn default_policy(values: &mut Values<'_>) -> Policy {
    let policy = policy(values, "", &Dict::new(), false);
    for problem in policy.problems() {
        values.must(problem.key, problem.must);
    }
    policy
}

/// All topics; none where the configuration has none.
pub(super) fn topics(values: &mut Values<'_>, default: &Policy, max_message_bytes: u64) -> Vec<TopicSettings> {
    let Some(tables) = values.table(TOPICS) else { return Vec::new() };
    let mut reading = Reading { default, max_message_bytes, tables: BTreeMap::new() };
    let topics: Vec<_> = tables.iter().map(|(name, value)| reading.topic(values, name, value)).collect();
    reading.tables.insert(TOPICS.to_owned(), tables.into());
    reading.check_names(values, &topics);
    reading.check_dead_letters(values, &topics);
    reading.check_backlogs(values, &topics);
    topics
}

/// The policy at the top level, but for what `own` has, the table that stands at `path`. What nobody has set is as the product has it,
/// not the demo.
fn policy(values: &mut Values<'_>, path: &str, own: &Dict, has_dead_letters: bool) -> Policy {
    fn get<T>(
        values: &mut Values<'_>,
        (path, own): (&str, &Dict),
        key: &'static str,
        read: fn(&str) -> Result<T, String>,
    ) -> T {
        match own.get(key) {
            Some(value) => {
                values.read(&format!("{path}.{key}"), value, read).unwrap_or_else(|| values::default(key, read))
            }
            None if !path.is_empty() && values.is_default(key) => values::default(key, read),
            None => values.get(key, read),
        }
    }
    let table = (path, own);
    let max_retries = get(values, table, "max_retries", values::budget)
        .unless_auto(has_dead_letters.then_some(RETRIES_BEFORE_A_DEAD_LETTER));
    let max_interruptions = get(values, table, "max_interruptions", values::budget)
        .unless_auto(Some(if max_retries == Some(0) { 0 } else { INTERRUPTIONS }));
    Policy {
        ack_deadline: get(values, table, "ack_deadline", values::duration),
        max_retries,
        max_interruptions,
        backoff: Backoff {
            minimum: get(values, table, "min_backoff", values::duration),
            maximum: get(values, table, "max_backoff", values::duration),
        },
        max_backlog_messages: get(values, table, "max_backlog_messages", values::number),
        max_backlog_bytes: get(values, table, "max_backlog_bytes", values::bytes),
        dead_letters: false, // a server knows where they go
    }
}

/// Reads the topics, and remembers each table by the path at which it stands.
struct Reading<'a> {
    default: &'a Policy,
    max_message_bytes: u64,
    tables: BTreeMap<String, Value>,
}

fn path_of_topic(topic: &str) -> String {
    format!("{TOPICS}.{}", quoted(topic))
}

fn path_of(topic: &str, subscription: &str) -> String {
    format!("{}.subscriptions.{}", path_of_topic(topic), quoted(subscription))
}

impl Reading<'_> {
    fn topic(&mut self, values: &mut Values<'_>, name: &str, value: &Value) -> TopicSettings {
        let path = path_of_topic(name);
        self.tables.insert(path.clone(), value.clone());
        let mut subscriptions = Vec::new();
        let Some(topic) = value.as_dict() else {
            values.wrong(&path, value, "must be a table: write [topics.T.subscriptions.S]");
            return TopicSettings { name: name.to_owned(), subscriptions };
        };
        for (key, value) in topic {
            match value.as_dict() {
                Some(tables) if key == "subscriptions" => {
                    for (subscription, value) in tables {
                        subscriptions.extend(self.subscription(values, name, subscription, value));
                    }
                }
                _ => {
                    values.wrong(&format!("{path}.{key}"), value, "there is no such key; the nearest is subscriptions");
                }
            }
        }
        if subscriptions.is_empty() {
            values.wrong(&path, value, &format!("has no subscription: add [{path}.subscriptions.NAME]"));
        }
        TopicSettings { name: name.to_owned(), subscriptions }
    }

    fn subscription(
        &mut self,
        values: &mut Values<'_>,
        topic: &str,
        name: &str,
        value: &Value,
    ) -> Option<SubscriptionSettings> {
        let path = path_of(topic, name);
        self.tables.insert(path.clone(), value.clone());
        let Some(own) = value.as_dict() else {
            values.wrong(&path, value, "must be a table: write [topics.T.subscriptions.S]");
            return None;
        };
        for (key, value) in own.iter().filter(|(key, _)| !is_known(key)) {
            let nearest = values::nearest(key, POLICY.into_iter().chain([DEAD_LETTER_TOPIC]));
            values.wrong(&format!("{path}.{key}"), value, &format!("there is no such key; the nearest is {nearest}"));
        }
        let has_dead_letters = own.get(DEAD_LETTER_TOPIC).and_then(Value::as_str).is_some_and(|to| to != DISCARD);
        let policy = policy(values, &path, own, has_dead_letters);
        let default = self.default.problems();
        for problem in policy.problems() {
            match own.get(problem.key) {
                Some(value) => {
                    values.wrong(&format!("{path}.{}", problem.key), value, &format!("must be {}", problem.must));
                }
                None if default.contains(&problem) => {} // told of the top level
                None => values.wrong(&path, value, &format!("{} must be {}", problem.key, problem.must)),
            }
        }
        let dead_letter_topic = if let Some(to) = own.get(DEAD_LETTER_TOPIC) {
            values.read(&format!("{path}.{DEAD_LETTER_TOPIC}"), to, |text| Ok(text.to_owned()))
        } else {
            let must = "must say what becomes of what it gives up: dead_letter_topic = \"NAME\", or \"discard\"";
            values.wrong(&path, value, must);
            None
        };
        let dead_letter_topic = dead_letter_topic.filter(|to| to != DISCARD);
        Some(SubscriptionSettings { name: name.to_owned(), policy, dead_letter_topic })
    }

    /// Something is wrong with the table that stands at `path`.
    fn wrong(&self, values: &mut Values<'_>, path: &str, must: &str) {
        values.wrong(path, &self.tables[path], must);
    }

    fn check_names(&self, values: &mut Values<'_>, topics: &[TopicSettings]) {
        let mut topic_of = BTreeMap::new();
        for topic in topics {
            let path = path_of_topic(&topic.name);
            if let Err(must) = check_name(&topic.name) {
                self.wrong(values, &path, &must);
            }
            if topic.name == DISCARD {
                self.wrong(values, &path, "no topic has this name: as a dead_letter_topic it stands for none");
            }
            for subscription in &topic.subscriptions {
                let path = path_of(&topic.name, &subscription.name);
                if let Err(must) = check_name(&subscription.name) {
                    self.wrong(values, &path, &must);
                }
                if let Some(other) = topic_of.insert(&subscription.name, &topic.name) {
                    let must =
                        format!("topic {other} has a subscription of this name, and names are unique on a server");
                    self.wrong(values, &path, &must);
                }
            }
        }
        if topics.len() > MOST || topic_of.len() > MOST {
            let (topics, subscriptions) = (topics.len(), topic_of.len());
            let must =
                format!("{topics} topics with {subscriptions} subscriptions, at most {MOST} of each are allowed");
            self.wrong(values, TOPICS, &must);
        }
    }

    fn check_dead_letters(&self, values: &mut Values<'_>, topics: &[TopicSettings]) {
        let names: BTreeSet<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
        for (topic, subscription, to) in dead_letter_topics(topics) {
            let must = if !names.contains(to) {
                let nearest = values::nearest(to, names.iter().copied());
                format!("there is no such topic; the nearest is {nearest}, and \"discard\" is for none")
            } else if let Some(circle) = circle(topic, to, topics) {
                format!("leads back to where it came from: {}", circle.join(" -> "))
            } else {
                continue;
            };
            let path = path_of(topic, subscription);
            let value = self.tables[&path].as_dict().and_then(|own| own.get(DEAD_LETTER_TOPIC));
            values.wrong(&format!("{path}.{DEAD_LETTER_TOPIC}"), value.expect("it was read there"), &must);
        }
    }

    /// The largest message fits every backlog. Where there are dead letters, so does the largest of them: it goes to its topic, and may be
    /// put back into any.
    fn check_backlogs(&self, values: &mut Values<'_>, topics: &[TopicSettings]) {
        let has_letters = dead_letter_topics(topics).next().is_some();
        let (more, what) = if has_letters {
            (MAX_ORIGIN_BYTES, " and 8KiB, or the largest dead letter")
        } else {
            (0, ", or the largest message")
        };
        for topic in topics {
            for subscription in &topic.subscriptions {
                let (path, max) = (path_of(&topic.name, &subscription.name), subscription.policy.max_backlog_bytes);
                let is_own = self.tables[&path].as_dict().is_some_and(|own| own.contains_key("max_backlog_bytes"));
                let told_of_the_policy = max == 0 || (!is_own && max < self.max_message_bytes);
                if max < self.max_message_bytes + more && !told_of_the_policy {
                    let must = format!("max_backlog_bytes must be at least max_message_bytes{what} never fits");
                    self.wrong(values, &path, &must);
                }
            }
        }
    }
}

/// Each topic and subscription that sends its dead letters to a topic, with that topic.
fn dead_letter_topics(topics: &[TopicSettings]) -> impl Iterator<Item = (&str, &str, &str)> {
    let all = topics.iter().flat_map(|topic| topic.subscriptions.iter().map(move |one| (topic, one)));
    all.filter_map(|(topic, one)| Some((topic.name.as_str(), one.name.as_str(), one.dead_letter_topic.as_deref()?)))
}

fn is_known(key: &str) -> bool {
    POLICY.contains(&key) || key == DEAD_LETTER_TOPIC
}

/// The way from `from` by `to` back to `from`, where there is one. A circle that `from` only leads to is told of its own topics.
fn circle<'a>(from: &'a str, to: &'a str, topics: &'a [TopicSettings]) -> Option<Vec<&'a str>> {
    let mut seen = BTreeSet::new();
    let mut ways = vec![vec![from, to]];
    while let Some(way) = ways.pop() {
        let last = *way.last().expect("a way has two ends");
        if last == from {
            return Some(way);
        }
        if !seen.insert(last) {
            continue;
        }
        let subscriptions = topics.iter().filter(|topic| topic.name == last).flat_map(|topic| &topic.subscriptions);
        for next in subscriptions.filter_map(|subscription| subscription.dead_letter_topic.as_deref()) {
            ways.push(way.iter().copied().chain([next]).collect());
        }
    }
    None
}

fn check_name(name: &str) -> Result<(), String> {
    let begins = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if begins && name.chars().all(allowed) && name.len() <= LONGEST_NAME {
        return Ok(());
    }
    Err(format!("a name has 1 to {LONGEST_NAME} letters, digits, '-', '_' and '.', and begins with a letter or digit"))
}

/// Every value of the subscriptions' own, with its table, key and source; for a server without topics, of the one that it has by itself.
pub(super) fn effective(values: &Values<'_>) -> Vec<super::Effective> {
    let Some(topics) = values.table(TOPICS) else {
        return vec![super::Effective {
            table: path_of(DEFAULT_NAME, DEFAULT_NAME),
            key: DEAD_LETTER_TOPIC,
            value: format!("{DISCARD:?}"),
            source: super::layers::DEFAULT.to_owned(),
        }];
    };
    let mut all = Vec::new();
    for (topic, value) in &topics {
        let subscriptions = value.as_dict().and_then(|topic| topic.get("subscriptions")).and_then(Value::as_dict);
        for (subscription, value) in subscriptions.into_iter().flatten() {
            let table = path_of(topic, subscription);
            let Some(own) = value.as_dict() else { continue };
            for key in POLICY.into_iter().chain([DEAD_LETTER_TOPIC]) {
                let Some(value) = own.get(key) else { continue };
                let (table, source) = (table.clone(), values.source(value));
                all.push(super::Effective { table, key, value: values::show(value), source });
            }
        }
    }
    all
}
