//! Exactly once, whatever dies: kills at every failpoint of outputs and at random instants, and pauses, while events come in.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand::{Rng, RngExt};
use serde_json::json;

use super::{PARTITIONS, PATIENCE, Source, console_consumer, expected, project};
use crate::kafka::topic;
use crate::support::{Server, kafka};

/// The failpoints of outputs: a new one has to be added here.
const FAILPOINTS: [&str; 5] =
    ["output::opened", "output::after_read", "output::produced", "output::before_commit", "output::after_commit"];

/// One process that writes all partitions is killed so often, and so often one of two that share them.
const KILLS_ALONE: usize = 30;
const KILLS_OF_TWO: usize = 20;

/// So often one of two is paused for longer than its session.
const PAUSES: usize = 4;

/// A process that hasn't met its failpoint by then is killed where it is.
const LIFE: Duration = Duration::from_secs(2);

/// Tells the producer to end when dropped.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Where a process is to die: at a failpoint, or at a random instant.
struct Deaths<R> {
    random: R,
    turn: usize,
    fired: BTreeMap<&'static str, usize>,
}

impl<R: Rng> Deaths<R> {
    /// The next one's failpoint, if it has one, and what sets it.
    fn next(&mut self) -> (Option<&'static str>, String) {
        self.turn += 1;
        let failpoint = FAILPOINTS.get(self.turn % (FAILPOINTS.len() + 1)).copied();
        let most = if failpoint == Some("output::opened") { PARTITIONS as usize + 1 } else { 16 };
        (failpoint, format!("{}:{}", failpoint.unwrap_or("none"), self.random.random_range(1..most)))
    }

    /// Waits until the process has died, or kills it when its time has come.
    fn of(&mut self, mut process: Server, failpoint: Option<&'static str>) {
        let time = if failpoint.is_some() { LIFE } else { LIFE.mul_f64(self.random.random_range(0.0..1.0)) };
        let begun = Instant::now();
        while begun.elapsed() < time && !process.has_ended() {
            std::thread::sleep(Duration::from_millis(10));
        }
        if process.has_ended() {
            let status = process.wait();
            assert_eq!(status.signal(), Some(6), "it ended only because it was told to: {status}");
            *self.fired.entry(failpoint.expect("it had one")).or_default() += 1;
        } else {
            process.kill();
        }
    }
}

/// How many partitions a worker writes.
fn written_by(worker: &Server) -> usize {
    worker.metrics().0.iter().filter(|sample| sample.name == "anabranch_output_records_total").count()
}

fn until(wanted: impl Fn() -> bool) {
    let begun = Instant::now();
    while !wanted() {
        assert!(begun.elapsed() < PATIENCE, "it never came to that");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn fifty_kills_leave_each_record_once_and_in_order() {
    let Some(brokers) = kafka() else { return };
    let project = project(&brokers, "exactly_once");
    Server::start(&project).stop();
    let (events, big) = (topic(&project, "events"), topic(&project, "big"));
    let random =
        TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha)).new_rng();
    let mut deaths = Deaths { random, turn: 0, fired: BTreeMap::new() };
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let source = std::thread::scope(|scope| {
        // Also if something fails: the scope waits for its threads.
        let end = Ending(&stop);
        let producing = scope.spawn(|| {
            let mut source = Source::new(&brokers, events);
            while !stop.load(Ordering::SeqCst) {
                source.write(25);
                std::thread::sleep(Duration::from_millis(100));
            }
            source
        });
        for _ in 0..KILLS_ALONE {
            let (failpoint, crash) = deaths.next();
            match Server::start_with(&project, &[("ANABRANCH_CRASH_AT", &crash)]) {
                Ok(process) => deaths.of(process, failpoint),
                // It met its failpoint before it listened.
                Err(_) => *deaths.fired.entry(failpoint.expect("it had one")).or_default() += 1,
            }
        }
        let start = |crash: &str| {
            let worker = Server::start_role("speed", &project, &[("ANABRANCH_CRASH_AT", crash)]);
            worker.unwrap_or_else(|said| panic!("it has no partitions before it listens, but:\n{said}"))
        };
        // Each takes over what the one before it leaves, and so on.
        let (mut failpoint, mut crash) = deaths.next();
        let mut older = start(&crash);
        for _ in 0..KILLS_OF_TWO {
            let next = deaths.next();
            let younger = start(&next.1);
            deaths.of(std::mem::replace(&mut older, younger), failpoint);
            (failpoint, crash) = next;
        }
        eprintln!("the last one would have died at {crash}");
        older.kill();
        let (mut one, mut other) = (start("none:1"), start("none:1"));
        for _ in 0..PAUSES {
            until(|| (written_by(&one), written_by(&other)) == (2, 2));
            one.signal("STOP");
            until(|| written_by(&other) == 4);
            // It goes on in the middle of what it was at, and finds itself fenced off.
            one.signal("CONT");
            std::mem::swap(&mut one, &mut other);
        }
        drop(end);
        producing.join().expect("it produced")
    });
    let server = Server::start(&project);
    let detail = server.settle("big");
    assert_eq!(detail["stopped"], json!({}), "{detail}");
    let records = console_consumer(&brokers, &big, "read_committed");
    for partition in 0..PARTITIONS {
        let (found, expected) = (&records[&partition], expected(partition, source.written));
        let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert_eq!((differs, found.len()), (None, expected.len()), "partition {partition}: each once, in order");
    }
    let count = |records: &BTreeMap<i32, Vec<String>>| records.values().map(Vec::len).sum::<usize>();
    let aborted = count(&console_consumer(&brokers, &big, "read_uncommitted")) - count(&records);
    eprintln!(
        "{} kills in {:.0?}; {} records, and {aborted} of transactions that came to nothing; failpoints that fired: {:?}",
        KILLS_ALONE + KILLS_OF_TWO,
        begun.elapsed(),
        count(&records),
        deaths.fired
    );
    assert!(aborted > 0, "no kill was in the middle of a transaction");
    let silent: Vec<_> = FAILPOINTS.iter().filter(|name| !deaths.fired.contains_key(**name)).collect();
    assert!(silent.is_empty(), "these failpoints never fired: {silent:?}");
}
