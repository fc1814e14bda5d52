//! The speed layer end to end, beside reading the log alone and decoding alone.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::failure::Failure;
use anabranch_engine::decode::Decoder;
use anabranch_engine::partial::{self, Part, Scope};
use anabranch_exchange::snapshot::Snapshot;
use anabranch_log::clock::SystemClock;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::kafka::{KafkaLog, KafkaOptions};
use anabranch_log::position::Positions;
use anabranch_log::{Log, ReadLimit};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use anabranch_speed_layer::Memory;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::stream::{Tweets, catalog};
use super::{in_folder, millions, per_second, report, speed_context, timed};

const LIMIT: ReadLimit = ReadLimit { records: 65_536, bytes: 32 << 20 };

/// Measures the embedded log and prints.
pub fn run(events: u64) -> Result<(), Failure> {
    in_folder(|folder| {
        let options = EmbeddedOptions::default();
        let log = EmbeddedLog::open(folder.join("log"), options, Arc::new(SystemClock))?;
        measure("embedded log", Arc::new(log), 1, events, folder, Ok)
    })
}

/// Measures a Kafka cluster and prints.
pub fn run_kafka(brokers: &str, events: u64) -> Result<(), Failure> {
    in_folder(|folder| {
        let prefix = format!("anabranch-bench-{}-", std::process::id());
        let options = KafkaOptions { topic_prefix: prefix.clone(), ..KafkaOptions::new(brokers) };
        let log = KafkaLog::open(options, Arc::new(SystemClock))?;
        measure("Kafka", Arc::new(log), 4, events, folder, |_| {
            let bare = read_and_drop(brokers, &format!("{prefix}tweets"), 4, events)?;
            report("rdkafka: read and drop", millions(bare), "");
            Ok(bare)
        })
    })
}

/// Events a second of rdkafka alone, with the same settings of the client.
fn read_and_drop(brokers: &str, topic: &str, partitions: i32, events: u64) -> Result<f64, Failure> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "anabranch.bench").set("enable.auto.commit", "false");
    config.set("fetch.queue.backoff.ms", "5").set("max.partition.fetch.bytes", "8388608");
    config.set("queued.max.messages.kbytes", "131072").set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = config.create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let started = Instant::now();
    let mut read = 0;
    while read < events {
        if let Some(message) = consumer.poll(Duration::from_secs(10)) {
            std::hint::black_box(message?.payload());
            read += 1;
        }
    }
    Ok(per_second(events, started.elapsed()))
}

/// `peer` gives the rate that ours is compared to, from our own bare read.
fn measure(
    name: &str,
    log: Arc<dyn Log>,
    partitions: u32,
    events: u64,
    folder: &Path,
    peer: impl FnOnce(f64) -> Result<f64, Failure>,
) -> Result<(), Failure> {
    let catalog = catalog()?;
    log.create_topic("tweets", partitions)?;
    let ((), took) = timed(|| Tweets::fill(&*log, "tweets", partitions, events))?;
    report(&format!("{name}: generate and append, acknowledged"), millions(per_second(events, took)), "");

    let from: Positions = (0..partitions).map(|partition| (partition, 0)).collect();
    let (bytes, read) = timed(|| {
        let mut reader = log.reader("tweets", &from)?;
        let mut bytes = 0;
        while let Some(batch) = reader.poll(LIMIT, Duration::ZERO)? {
            bytes += batch.payloads.bytes().len();
        }
        Ok(bytes)
    })?;
    let bare = per_second(events, read);
    report(&format!("{name}: our reader alone"), millions(bare), &format!("{} bytes an event", bytes as u64 / events));
    let bare = peer(bare)?;

    let ((), decoded) = timed(|| {
        let mut reader = log.reader("tweets", &from)?;
        let mut decoder = Decoder::new(Arc::clone(&catalog.tables["tweets"]));
        while let Some(batch) = reader.poll(LIMIT, Duration::ZERO)? {
            std::hint::black_box(decoder.decode(&batch.payloads, &batch.log_times));
        }
        Ok(())
    })?;
    report("read and decode, one thread", millions(per_second(events, decoded)), "");

    let context = speed_context(folder, log, &catalog, Memory::new(usize::MAX))?;
    let shutdown = CancellationToken::new();
    let started = Instant::now();
    let layer = anabranch_speed_layer::run(&context, &shutdown)?;
    let view = &catalog.kept_view("trending_hashtags").ok_or_else(|| Failure::new("no such view"))?;
    let snapshots = layer.snapshots();
    let mut receiver = snapshots.0[&view.id].clone();
    let mut answers = 0;
    let runtime = tokio::runtime::Handle::current();
    // A reader asks for the newest window's first hundred each time that there is something new.
    let (took, with_all, rows) = loop {
        runtime.block_on(receiver.changed())?;
        let snapshot = receiver.borrow_and_update().clone();
        if let Some(reason) = &snapshot.stopped {
            return Err(Failure::new(reason.clone()));
        }
        answers += usize::from(newest_window(view, &snapshot)? > 0);
        if snapshot.coverage.len() == events {
            let took = started.elapsed();
            // A stream processor ranks every window once: to compare with one, that is done at the end.
            let rows = ranked(view, &snapshot, Scope::All, Micros::MIN..Micros::MAX)?;
            break (took, started.elapsed(), rows);
        }
    };
    layer.stop();
    let rate = per_second(events, took);
    let beside = format!("{:.0} % of reading alone; {answers} top-100 answers meanwhile", rate / bare * 100.0);
    report("speed layer: read to top-100, checkpoints on", millions(rate), &beside);
    let beside = format!("{rows} rows");
    report("the same, and every window's top-100 at the end", millions(per_second(events, with_all)), &beside);
    Ok(())
}

/// The rows of the first hundred of the newest window.
fn newest_window(view: &Kept, snapshot: &Snapshot) -> Result<usize, Failure> {
    let window = view.aggregation().window.expect("the benchmark's view has windows");
    let Some(last) = snapshot.chunks.iter().filter_map(|chunk| chunk.panes.keys().next_back()).max() else {
        return Ok(0);
    };
    let start = window.first_start(*last);
    ranked(view, snapshot, Scope::One(start), start..window.end_of(start))
}

/// How many rows some windows have, whose panes start in a range.
fn ranked(view: &Kept, snapshot: &Snapshot, scope: Scope, panes: Range<Micros>) -> Result<usize, Failure> {
    let panes = snapshot.chunks.iter().flat_map(|chunk| chunk.panes.range(panes.clone()));
    let parts: Vec<_> = panes
        .map(|(&start, pane)| Part { partials: pane.partials.clone(), slack: pane.slack.map(|slack| (start, slack)) })
        .collect();
    Ok(partial::windows(view.aggregation(), &parts, scope)?.rows.height())
}
