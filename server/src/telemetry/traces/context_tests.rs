use std::collections::{BTreeMap, BTreeSet};

use super::{Contexts, Message, MessageId, Sampler, TRACEPARENT, parent_in};

const PUBLISHED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn published(traceparent: &str) -> Message {
    Message::new(b"", &BTreeMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]))
}

fn contexts(ratio: f64, parent_based: bool) -> Contexts {
    Contexts::new(7, "demo", Sampler::new(ratio, parent_based))
}

#[test]
fn a_frame_carries_a_version_00_traceparent() {
    let none = Message::new(b"", &BTreeMap::new());
    for id in 1..1_000 {
        let samples = contexts(0.5, false).samples(MessageId(id), &none);
        let text = contexts(0.5, false).traceparent(MessageId(id), 1, &none, samples);
        let parsed = parent_in(&published(&text)).expect("well-formed").expect("there");
        let trace = contexts(0.5, false).trace(MessageId(id), &none);
        assert_eq!((parsed.trace, parsed.span, parsed.sampled), (trace.id, trace.push_span(1), samples));
        assert_eq!(&text[52..], if samples { "-01" } else { "-00" });
    }
}

#[test]
fn a_publishers_trace_goes_on() {
    let text = contexts(1.0, true).traceparent(MessageId(1), 1, &published(PUBLISHED), true);
    assert_eq!(text[..35], PUBLISHED[..35]);
    assert_ne!(text[36..52], PUBLISHED[36..52]);
}

#[test]
fn all_ids_differ_also_within_one_trace() {
    let mut seen = BTreeSet::new();
    let (published, none) = (published(PUBLISHED), Message::new(b"", &BTreeMap::new()));
    for subscription in ["demo", "audit"] {
        let contexts = Contexts::new(7, subscription, Sampler::new(1.0, true));
        for id in 1..100 {
            for (id, message) in [(id, &published), (id + 100, &none)] {
                let trace = contexts.trace(MessageId(id), message);
                for attempt in 0..10 {
                    assert!(seen.insert(trace.push_span(attempt)), "{subscription} {id} {attempt}");
                }
            }
        }
    }
    let trace = |epoch| Contexts::new(epoch, "demo", Sampler::new(1.0, true)).trace(MessageId(1), &none).id;
    assert_ne!(trace(1), trace(2), "another epoch is another message");
}

#[test]
fn a_sampler_takes_its_share() {
    let none = Message::new(b"", &BTreeMap::new());
    for (ratio, low, high) in [(0.0, 0, 0), (1.0, 10_000, 10_000), (0.25, 2_300, 2_700)] {
        for parent_based in [false, true] {
            let contexts = contexts(ratio, parent_based);
            let count = (1..=10_000).filter(|&id| contexts.samples(MessageId(id), &none)).count();
            assert!((low..=high).contains(&count), "{ratio}: {count}");
        }
    }
}

#[test]
fn a_parent_based_sampler_follows_the_publisher_and_another_does_not() {
    let unsampled = PUBLISHED.replace("-01", "-00");
    for (ratio, parent_based, of_sampled, of_unsampled) in
        [(0.0, true, true, false), (1.0, true, true, false), (0.0, false, false, false), (1.0, false, true, true)]
    {
        let of = |text: &str| contexts(ratio, parent_based).samples(MessageId(1), &published(text));
        assert_eq!((of(PUBLISHED), of(&unsampled)), (of_sampled, of_unsampled), "{ratio} {parent_based}");
    }
}

#[test]
fn a_context_of_a_later_version_is_read_as_far_as_it_is_known() {
    for text in [
        "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-09-what-comes",
    ] {
        let parent = parent_in(&published(text)).expect("well-formed").expect("there");
        assert_eq!((parent.span, parent.sampled), (0xb7ad_6b71_6920_3331, true));
    }
}

#[test]
fn malformed_and_hostile_contexts_are_none() {
    let long = format!("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-{}", "x".repeat(4_000));
    let cases = [
        "",
        "00",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
        "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c8031é-b7ad6b7169203331-01",
        "\u{0}\u{0}-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        long.as_str(),
    ];
    for text in cases {
        assert!(parent_in(&published(text)).is_err(), "{text:?}");
        let own = contexts(1.0, true).traceparent(MessageId(1), 1, &published(text), true);
        assert_eq!(
            own,
            contexts(1.0, true).traceparent(MessageId(1), 1, &Message::new(b"", &BTreeMap::new()), true),
            "{text:?}"
        );
    }
}
