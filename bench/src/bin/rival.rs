//! Rivals at the same work: so many stored messages, one consumer, every message acked by itself.
//!
//! It prints how many seconds storing took, waits for a line on its standard input, and prints how many seconds consuming took. The
//! server runs already, and is empty.

use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use futures_util::{StreamExt as _, TryStreamExt as _};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures a rival.
#[derive(Parser)]
struct Options {
    /// Which.
    rival: Rival,
    /// Its port on this machine.
    #[arg(long)]
    port: u16,
    /// Messages.
    #[arg(long)]
    count: u64,
    /// Bytes of payload.
    #[arg(long, default_value_t = 128)]
    payload: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rival {
    /// NATS JetStream, in memory, a pull consumer with explicit acks.
    Nats,
    /// A Redis stream with a consumer group; XACKs go through a pipeline, one for each message.
    Redis,
    /// A RabbitMQ queue, an ack for each delivery.
    Rabbitmq,
}

/// As many messages are outstanding as in `bench/run` with ackstream.
const WINDOW: usize = 10_000;
/// Publishes that wait for their answer; the client of NATS allows no more than some thousand.
const UNANSWERED: usize = 1_000;
/// Redis has no window: of so many messages is a batch that is read while the acks of the one before are on their way.
const BATCH: usize = WINDOW / 2;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let Options { rival, port, count, payload } = Options::parse();
    let payload = vec![b'.'; payload];
    let consumed = match rival {
        Rival::Nats => nats(port, count, payload).await?,
        Rival::Redis => redis(port, count, payload).await?,
        Rival::Rabbitmq => rabbitmq(port, count, payload).await?,
    };
    println!("{}", consumed.as_secs_f64());
    Ok(())
}

/// Tells how long storing took, and waits to be told to go on.
fn stored(took: Duration) -> std::io::Result<()> {
    println!("{}", took.as_secs_f64());
    std::io::stdin().read_line(&mut String::new()).map(drop)
}

async fn nats(port: u16, count: u64, payload: Vec<u8>) -> Result<Duration, Failure> {
    use async_nats::jetstream::{self, consumer, stream};
    let client = async_nats::connect(format!("127.0.0.1:{port}")).await?;
    let context = jetstream::new(client);
    let config = stream::Config {
        name: "bench".into(),
        subjects: vec!["bench".into()],
        storage: stream::StorageType::Memory,
        retention: stream::RetentionPolicy::WorkQueue,
        ..stream::Config::default()
    };
    let mut stream = context.create_stream(config).await?;
    let payload = bytes::Bytes::from(payload);
    let began = Instant::now();
    let mut answers = futures_util::stream::FuturesUnordered::new();
    for _ in 0..count {
        answers.push(context.publish("bench", payload.clone()).await?.into_future());
        while answers.len() >= UNANSWERED {
            answers.try_next().await?;
        }
    }
    answers.try_for_each(|_| async { Ok(()) }).await?;
    stored(began.elapsed())?;
    let config = consumer::pull::Config {
        durable_name: Some("bench".into()),
        ack_policy: consumer::AckPolicy::Explicit,
        max_ack_pending: WINDOW as i64,
        ..consumer::pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let began = Instant::now();
    let mut messages = consumer.stream().max_messages_per_batch(WINDOW).messages().await?;
    for _ in 0..count {
        let message = messages.next().await.ok_or("the stream ended")??;
        message.ack().await?;
    }
    while stream.info().await?.state.messages > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(began.elapsed())
}

async fn redis(port: u16, count: u64, payload: Vec<u8>) -> Result<Duration, Failure> {
    use redis::streams::{StreamReadOptions, StreamReadReply};
    use redis::{AsyncCommands as _, pipe};
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let () = connection.xgroup_create_mkstream("bench", "bench", "0").await?;
    let began = Instant::now();
    for first in (0..count).step_by(UNANSWERED) {
        let mut commands = pipe();
        for _ in first..(first + UNANSWERED as u64).min(count) {
            commands.xadd("bench", "*", &[("payload", payload.as_slice())]).ignore();
        }
        let () = commands.query_async(&mut connection).await?;
    }
    stored(began.elapsed())?;
    let began = Instant::now();
    let options = StreamReadOptions::default().group("bench", "bench").count(BATCH);
    let mut acking = connection.clone();
    let mut acked = 0;
    let mut acks = pipe();
    acks.cmd("PING").ignore(); // nothing is to be acked yet, and an empty pipeline is an error
    while acked < count {
        let read = connection.xread_options(&["bench"], &[">"], &options);
        let (reply, ()): (StreamReadReply, ()) = futures_util::try_join!(read, acks.query_async(&mut acking))?;
        acks = pipe();
        for message in reply.keys.iter().flat_map(|key| &key.ids) {
            acks.xack("bench", "bench", &[message.id.as_str()]).ignore();
            acked += 1;
        }
    }
    let () = acks.query_async(&mut acking).await?;
    Ok(began.elapsed())
}

async fn rabbitmq(port: u16, count: u64, payload: Vec<u8>) -> Result<Duration, Failure> {
    use lapin::options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions,
    };
    use lapin::types::FieldTable;
    use lapin::{BasicProperties, Connection, ConnectionProperties};
    let uri = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.queue_declare("bench".into(), QueueDeclareOptions::default(), FieldTable::default()).await?;
    channel.confirm_select(Default::default()).await?;
    let began = Instant::now();
    let mut confirms = std::collections::VecDeque::new();
    for _ in 0..count {
        let options = BasicPublishOptions::default();
        confirms.push_back(
            channel.basic_publish("".into(), "bench".into(), options, &payload, BasicProperties::default()).await?,
        );
        if confirms.len() >= UNANSWERED
            && let Some(confirm) = confirms.pop_front()
        {
            confirm.await?;
        }
    }
    for confirm in confirms {
        confirm.await?;
    }
    stored(began.elapsed())?;
    channel.basic_qos(WINDOW as u16, BasicQosOptions::default()).await?;
    let began = Instant::now();
    let mut deliveries = channel
        .basic_consume("bench".into(), "bench".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    for _ in 0..count {
        let delivery = deliveries.next().await.ok_or("the stream ended")??;
        delivery.ack(BasicAckOptions::default()).await?;
    }
    // Answered once everything before it is done.
    let left = channel
        .queue_declare(
            "bench".into(),
            QueueDeclareOptions { passive: true, ..Default::default() },
            FieldTable::default(),
        )
        .await?;
    assert_eq!(left.message_count(), 0);
    Ok(began.elapsed())
}
