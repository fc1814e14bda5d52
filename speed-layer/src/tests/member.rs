//! A member of a consumer group, which is told of its partitions as the group would tell it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_exchange::snapshot::wire;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::kafka::group::Member;
use anabranch_log::key::by_key;
use anabranch_log::position::{Partition, Positions};
use anabranch_log::{Append, Log, ReadLimit};
use anabranch_plan::sql;
use tokio_util::sync::CancellationToken;

use super::kit::event;
use super::pipeline::Rig;
use crate::publish::claim;
use crate::{Context, SpeedMember, run_partition};

#[test]
fn a_member_folds_the_partitions_that_it_has_and_tries_again_to_take_on_those_that_it_could_not() {
    let (folder, rig) = (tempfile::tempdir().expect("a folder"), Rig::new(2));
    let options = EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() };
    let log = Arc::new(EmbeddedLog::open(folder.path().join("log"), options, rig.clock.clone()).expect("a log"));

    let mut member = SpeedMember::new(Context { log: log.clone(), ..rig.context.clone() });
    let (numbers, outputs) = (member.metrics_reader(), member.outputs_reader());
    let folded = || numbers().into_iter().map(|(table, partition, _)| (table, partition)).collect::<Vec<_>>();
    member.gain("clicks", 1);
    member.gain("elsewhere", 0);
    assert_eq!(folded(), [], "there is no topic yet");
    log.create_topic("clicks", 2).expect("a topic");
    let records = [event(1, "a", 1).json()].iter().collect();
    log.append("clicks", Append { parts: vec![(1, records)], ..Append::default() }).expect("appended");

    let done: Vec<(String, Positions)> = vec![("clicks".to_owned(), [(1, 1)].into())];
    let begun = Instant::now();
    while member.tick() != done {
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain: {:?}", member.tick());
        std::thread::yield_now();
    }
    let expected: [(String, Partition); 1] = [("clicks".to_owned(), 1)];
    assert_eq!((folded(), outputs().len()), (expected.to_vec(), 1));
    // Somebody claims the partition who had it before, and is only told later that it is lost.
    let stale = claim(&*log, "clicks", 1).expect("claimed");
    let views: Vec<_> = rig.context.catalog.kept().collect();
    let told = || {
        let mut reader = log.reader(&wire::topic("clicks"), &[(1, stale)].into()).expect("a reader");
        let (limit, mut decoder) = (ReadLimit { records: 1_000, bytes: 64 << 20 }, wire::Decoder::default());
        let mut told = None;
        while let Ok(Some(batch)) = reader.poll(limit, Duration::from_millis(10)) {
            for (&offset, record) in batch.offsets.iter().zip(batch.payloads.iter()) {
                told = decoder.take(offset, record, &views).map(|_| decoder.epoch()).or(told);
            }
        }
        told
    };
    let begun = Instant::now();
    while told().is_none_or(|epoch| epoch <= stale) {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody hears the one who has it: {:?}", member.tick());
        member.tick();
    }
    member.give_up("clicks", 1, false);
    assert_eq!((folded(), outputs().len(), member.tick()), (vec![], 0, vec![]));
}

const JOINED: &str = "
CREATE TABLE buys (u TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts', partition_by = 'u');
CREATE TABLE clicks (u TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts', partition_by = 'u');
CREATE MATERIALIZED VIEW pairs AS SELECT count(*) AS n FROM clicks c JOIN buys b ON b.u = c.u AND b.ts = c.ts;
";

/// Three workers, whom the group has given partitions of the two tables as it likes.
#[test]
fn whoever_has_a_partition_of_the_first_table_folds_that_of_those_it_is_joined_with() {
    let (folder, rig) = (tempfile::tempdir().expect("a folder"), Rig::new(2));
    let options = EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() };
    let log = Arc::new(EmbeddedLog::open(folder.path().join("log"), options, rig.clock.clone()).expect("a log"));
    let catalog = Arc::new(sql::plan(&[("v.sql".to_owned(), JOINED.to_owned())]).expect("a project"));
    let unit = catalog.units().remove(0);
    log.create_topic("buys", 3).expect("a topic");
    log.create_topic("clicks", 2).expect("a topic");
    let context = Context { log: log.clone(), catalog, ..rig.context.clone() };
    let error = run_partition(&context, "buys", 0, &CancellationToken::new()).expect_err("refused");
    assert!(error.to_string().contains("other numbers of partitions: `buys` has 3, `clicks` has 2; "), "{error}");
    log.create_topic("clicks", 3).expect("a partition more");

    let mut ends: BTreeMap<Partition, u64> = (0..3).map(|partition| (partition, 0)).collect();
    for user in 0..30 {
        let partition = by_key(user.to_string().as_bytes(), 3);
        let record = format!("{{\"u\":\"{user}\",\"ts\":\"1970-01-01T00:00:01Z\"}}");
        for topic in ["buys", "clicks"] {
            let parts = vec![(partition, [&record].into_iter().collect())];
            log.append(topic, Append { parts, ..Append::default() }).expect("appended");
        }
        *ends.entry(partition).or_default() += 1;
    }
    let mut members: Vec<_> = (0..3).map(|_| SpeedMember::new(context.clone())).collect();
    for (partition, member) in (0..).zip(&mut members) {
        member.gain("buys", partition);
        member.gain("clicks", (partition + 1) % 3);
    }
    for (partition, member) in (0..).zip(&mut members) {
        let own = Positions::from([(partition, ends[&partition])]);
        let done = vec![("buys".to_owned(), own.clone()), ("clicks".to_owned(), own)];
        let begun = Instant::now();
        while member.tick() != done {
            assert!(begun.elapsed() < Duration::from_secs(60), "in vain: {:?}", member.tick());
            std::thread::yield_now();
        }
        // What each has told is its part of the pairs. It deletes what it has told before.
        let topic = wire::topic(&unit.name());
        let pairs = |views: &wire::Views| -> i64 {
            let chunks = views.values().flat_map(|snapshot| &snapshot.chunks);
            let panes = chunks.flat_map(|chunk| chunk.panes.values());
            panes
                .map(|pane| {
                    pane.partials.column("a0").expect("a count").as_materialized_series().sum::<i64>().expect("a sum")
                })
                .sum()
        };
        let (begun, mut told) = (Instant::now(), None);
        while told != Some(ends[&partition] as i64) {
            assert!(begun.elapsed() < Duration::from_secs(60), "partition {partition} tells of {told:?} pairs");
            let start = log.bounds(&topic).expect("bounds")[&partition].start;
            let mut reader = log.reader(&topic, &[(partition, start)].into()).expect("a reader");
            let (limit, mut decoder) = (ReadLimit { records: 1_000, bytes: 64 << 20 }, wire::Decoder::default());
            while let Ok(Some(batch)) = reader.poll(limit, Duration::from_millis(10)) {
                for (&offset, record) in batch.offsets.iter().zip(batch.payloads.iter()) {
                    let views = decoder.take(offset, record, &unit.views);
                    told = views.as_ref().map(pairs).or(told);
                }
            }
        }
    }
    // The topics get more partitions: what was begun among three begins anew, and finds records that belong elsewhere now.
    log.create_topic("buys", 4).expect("a partition more");
    assert!(members[0].tick().is_empty(), "while one topic has fewer nobody goes on");
    log.create_topic("clicks", 4).expect("a partition more");
    let topic = wire::topic(&unit.name());
    members.iter_mut().for_each(|member| drop(member.tick()));
    let is_told = |partition: Partition| {
        let start = log.bounds(&topic).expect("bounds")[&partition].start;
        let mut reader = log.reader(&topic, &[(partition, start)].into()).expect("a reader");
        let (limit, mut decoder) = (ReadLimit { records: 1_000, bytes: 64 << 20 }, wire::Decoder::default());
        let mut newest = None;
        while let Ok(Some(batch)) = reader.poll(limit, Duration::from_millis(10)) {
            for (&offset, record) in batch.offsets.iter().zip(batch.payloads.iter()) {
                newest = decoder.take(offset, record, &unit.views).or(newest);
            }
        }
        let snapshot = newest.and_then(|views| views.into_values().next());
        snapshot.is_some_and(|it| {
            it.parts == Some(4) && it.stopped.as_ref().is_some_and(|why| why.contains("its place among 4 is"))
        })
    };
    let begun = Instant::now();
    while !(0..3).all(is_told) {
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain");
        std::thread::yield_now();
    }
    for (partition, member) in (0..).zip(&mut members) {
        member.give_up("buys", partition, false);
        assert_eq!(member.tick(), vec![], "nothing is folded for the other table alone");
    }
}
