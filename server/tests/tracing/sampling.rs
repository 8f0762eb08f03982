use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{Nack, Open};
use ackstream::telemetry::Sampler;

use crate::collector::{Collector, Mood, hex};
use crate::support::Memory;

const FLUSH: Duration = Duration::from_secs(30);

/// Publishes and acks so many messages, and nacks those of `nacked` once. Returns the contexts of each message's deliveries.
async fn run(memory: &Memory, count: u64, nacked: &[u64]) -> BTreeMap<u64, Vec<String>> {
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(count).await;
    let mut contexts: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for _ in 0..count + nacked.len() as u64 {
        let data = consumer.delivery().await;
        contexts.entry(data.id).or_default().push(data.trace_context);
        if data.delivery_attempt == 1 && nacked.contains(&data.id) {
            let nack = Nack { ack_id: data.id, delay: Some(prost_types::Duration::default()), ..Nack::default() };
            consumer.send(Kind::Nack(nack)).await;
        } else {
            consumer.ack_message(data.id).await;
        }
    }
    consumer.half_close();
    consumer.ends_ok().await;
    memory.server.flush_traces(FLUSH).await;
    contexts
}

async fn memory(collector: &Collector, sampler: Sampler, traces_per_second: u32) -> Memory {
    Memory::with(|settings| {
        settings.traces = Some(collector.settings());
        settings.traces.as_mut().unwrap().sampler = sampler;
        settings.traces_per_second = traces_per_second;
    })
    .await
}

#[tokio::test]
async fn with_sampling_at_0_clean_messages_export_nothing_and_a_retried_one_is_there_whole() {
    let collector = Collector::start(Mood::Takes).await;
    let memory = memory(&collector, Sampler::new(0.0, true), 100).await;

    let contexts = run(&memory, 50, &[7]).await;

    let traces = collector.traces();
    let names: Vec<Vec<&str>> =
        traces.values().map(|spans| spans.iter().map(|span| span.name.as_str()).collect()).collect();
    assert_eq!(names, [["deliver demo", "push demo", "push demo"]]);
    for (id, contexts) in contexts {
        let flags: Vec<&str> = contexts.iter().map(|context| &context[52..]).collect();
        assert_eq!(flags, if id == 7 { &["-00", "-01"][..] } else { &["-00"] });
        let spans = traces.values().flatten().filter(|span| hex(&span.trace_id) == contexts[0][3..35]);
        assert_eq!(spans.count(), if id == 7 { 3 } else { 0 });
    }
    assert_eq!(memory.server.trace_counts().spans_dropped(), 0, "what was not asked for is not lost");
}

#[tokio::test]
async fn the_frame_says_which_clean_messages_the_sampler_takes() {
    for (ratio, low, high) in [(1.0, 200, 200), (0.5, 60, 140)] {
        let collector = Collector::start(Mood::Takes).await;
        let memory = memory(&collector, Sampler::new(ratio, true), 1_000).await;

        let contexts = run(&memory, 200, &[]).await;

        let said: BTreeSet<String> = contexts
            .values()
            .filter(|contexts| contexts[0].ends_with("-01"))
            .map(|contexts| contexts[0][3..35].to_owned())
            .collect();
        assert_eq!(collector.traces().into_keys().collect::<BTreeSet<_>>(), said);
        assert!((low..=high).contains(&said.len()), "{} of 200", said.len());
    }
}

#[tokio::test]
async fn each_kind_has_at_most_its_traces_a_second_and_a_frame_promises_nothing_beyond() {
    let collector = Collector::start(Mood::Takes).await;
    let memory = memory(&collector, Sampler::new(1.0, true), 5).await;

    let contexts = run(&memory, 60, &(1..=20).collect::<Vec<_>>()).await;

    let mut per_second: BTreeMap<(u64, usize), u32> = BTreeMap::new();
    let traces = collector.traces();
    for contexts in contexts.values() {
        let promised = contexts.iter().position(|context| context.ends_with("-01"));
        let trace = traces.get(&contexts[0][3..35]);
        assert_eq!(trace.map(Vec::len), promised.map(|_| 1 + contexts.len()), "whole, or not at all: {contexts:?}");
        if let Some((trace, promised)) = trace.zip(promised) {
            assert!(contexts[promised..].iter().all(|context| context.ends_with("-01")), "{contexts:?}");
            let second = trace[1 + promised].start_time_unix_nano / 1_000_000_000;
            *per_second.entry((second, promised)).or_default() += 1;
        }
    }
    assert!(per_second.values().all(|&traces| traces <= 5), "{per_second:?}");
    for kind in [0, 1] {
        assert!(per_second.iter().any(|(of, &traces)| of.1 == kind && traces == 5), "{per_second:?}");
    }
    let all = 40 * 2 + 20 * 3;
    assert_eq!(collector.spans().len() as u64 + memory.server.trace_counts().rate_limited(), all);
    assert_eq!(memory.server.trace_counts().spans_dropped(), memory.server.trace_counts().rate_limited());
}

#[tokio::test]
async fn beyond_the_cap_a_dropped_message_is_still_whole_since_its_client_recorded_every_attempt() {
    let collector = Collector::start(Mood::Takes).await;
    let memory = memory(&collector, Sampler::new(0.0, true), 1).await;
    let mut consumer = memory.consume(Open::default()).await;
    memory.publish(2).await;
    let mut frames = Vec::new();
    for _ in 0..4 {
        let data = consumer.delivery().await;
        let (first, delay) = (data.delivery_attempt == 1, Some(prost_types::Duration::default()));
        consumer.send(Kind::Nack(Nack { ack_id: data.id, delay, drop: !first, ..Nack::default() })).await;
        frames.push(data.trace_context);
    }
    consumer.half_close();
    consumer.ends_ok().await;
    memory.server.flush_traces(FLUSH).await;

    let promised = frames.iter().filter(|context| context.ends_with("-01")).count();
    assert!((1..=2).contains(&promised), "one of them, or both where a second ended between: {frames:?}");
    assert_eq!(collector.traces().values().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
    assert_eq!(memory.server.trace_counts().spans_dropped(), 0);
}
