//! Outputs on a real broker, which `scripts/with-kafka` starts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::version::Versions;
use anabranch_log::clock::{ManualClock, SystemClock};
use anabranch_log::kafka::{KafkaLog, KafkaOptions};
use anabranch_log::position::{Partition, Positions};
use anabranch_log::{Append, Log, ReadLimit, Retention};
use anabranch_plan::sql;
use anabranch_plan::view::Sent;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use tokio_util::sync::CancellationToken;

use super::kit::{SECOND, event};
use crate::{Context, Memory, OutputStatus, Settings, SpeedLayer, ends_within, run, run_partition};

const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    options: KafkaOptions,
    log: Arc<KafkaLog>,
    clock: Arc<ManualClock>,
    context: Context,
}

/// A cluster with a topic of clicks, and this view of them; and how many partitions the two have.
fn rig(view: &str, partitions: u32, written: u32) -> Option<Rig> {
    let Ok(brokers) = std::env::var("ANABRANCH_TEST_KAFKA") else {
        assert!(std::env::var_os("CI").is_none(), "CI runs the tests with a broker: use scripts/with-kafka");
        eprintln!("\n*** NOT TESTED: no Kafka broker. Run the tests with `scripts/with-kafka cargo test`. ***\n");
        return None;
    };
    let name = tempfile::tempdir().expect("a folder");
    let name = name.path().file_name().expect("a name").to_string_lossy().replace('.', "");
    let options = KafkaOptions { topic_prefix: format!("{name}-"), ..KafkaOptions::new(&*brokers) };
    let log = Arc::new(KafkaLog::open(options.clone(), Arc::new(SystemClock)).expect("open"));
    log.create_topic("clicks", partitions).expect("create");
    log.create_topic("big", written).expect("create");
    let table = "CREATE TABLE clicks (k TEXT, v BIGINT, ts TIMESTAMP) WITH (event_time = 'ts');";
    let files = [("clicks.sql".to_owned(), table.to_owned()), ("big.sql".to_owned(), view.to_owned())];
    let catalog = sql::plan(&files).unwrap_or_else(|errors| panic!("{errors:?}"));
    let clock = Arc::new(ManualClock::new(0));
    let context = Context {
        log: log.clone(),
        catalog: Arc::new(catalog),
        versions: Versions::default(),
        readings: Default::default(),
        checkpoints: None,
        outlets: Some(log.outlets(&name)),
        rejects: Arc::new(RejectLog::open(log.clone(), clock.clone()).expect("rejects")),
        clock: clock.clone(),
        settings: Settings { idle_after: Duration::from_millis(200), ..Settings::default() },
        memory: Memory::new(usize::MAX),
    };
    Some(Rig { options, log, clock, context })
}

impl Rig {
    fn own(&self, partition: Partition) -> SpeedLayer {
        run_partition(&self.context, "clicks", partition, &CancellationToken::new()).expect("started")
    }

    fn append(&self, partition: Partition, records: impl IntoIterator<Item = String>) {
        let parts = vec![(partition, records.into_iter().collect())];
        self.log.append("clicks", Append { parts, ..Append::default() }).expect("appended");
    }

    fn output(&self) -> Sent {
        Sent::of(&self.context.catalog.views["big"]).expect("a view that sends its rows on")
    }

    /// The first so many records that are written, by partition.
    fn written(&self, partitions: u32, records: usize) -> BTreeMap<Partition, Vec<String>> {
        let limit = ReadLimit { records: 10_000, bytes: 64 << 20 };
        let starts: Positions = (0..partitions).map(|partition| (partition, 0)).collect();
        let mut reader = self.log.reader("big", &starts).expect("reader");
        let (mut all, mut count, begun) = (BTreeMap::<Partition, Vec<String>>::new(), 0, Instant::now());
        while count < records {
            assert!(begun.elapsed() < PATIENCE, "{count} of {records} records: {all:?}");
            let Some(batch) = reader.poll(limit, Duration::from_millis(100)).expect("poll") else { continue };
            count += batch.payloads.len();
            let text = |record: &[u8]| String::from_utf8_lossy(record).into_owned();
            all.entry(batch.partition).or_default().extend(batch.payloads.iter().map(text));
        }
        all
    }

    /// Waits until it is said of a partition what is wanted.
    fn until(&self, layer: &SpeedLayer, wanted: impl Fn(&OutputStatus) -> bool) -> OutputStatus {
        let begun = Instant::now();
        loop {
            let state = layer.outputs().all().remove(&("big".to_owned(), 0)).unwrap_or_default();
            if wanted(&state) {
                return state;
            }
            assert!(begun.elapsed() < PATIENCE, "{state:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn clicks(values: std::ops::Range<i64>) -> Vec<String> {
    values.map(|value| event(value % 60, "k", value).json()).collect()
}

fn values(values: std::ops::Range<i64>) -> Vec<String> {
    values.map(|value| format!("{{\"v\":{value}}}")).collect()
}

const VALUES: &str = "CREATE MATERIALIZED VIEW big WITH (sink = 'kafka') AS SELECT v FROM clicks;";

#[test]
fn two_that_take_a_partition_for_theirs_write_each_record_once() {
    let Some(rig) = rig(VALUES, 1, 1) else { return };
    let owners = [rig.own(0), rig.own(0)];
    for piece in 0..30 {
        rig.append(0, clicks(piece * 50..(piece + 1) * 50));
        rig.written(1, (piece as usize + 1) * 50);
    }
    assert_eq!(rig.written(1, 1_500)[&0], values(0..1_500));
    let fenced: u64 = owners.iter().map(|layer| rig.until(layer, |_| true).failures).sum();
    assert!(fenced > 0, "they were in each other's way");
    let [one, other] = owners;
    one.stop();
    rig.append(0, clicks(1_500..1_600));
    assert_eq!(rig.written(1, 1_600)[&0], values(0..1_600), "the other goes on alone");
    other.stop();
    let bounds = rig.log.bounds("big").expect("bounds");
    let mut rest = rig.log.reader("big", &Positions::from([(0, 0)])).expect("reader");
    let mut count = 0;
    while let Some(batch) = rest.poll(ReadLimit { records: 10_000, bytes: 1 << 20 }, Duration::ZERO).expect("poll") {
        count += batch.payloads.len();
    }
    assert_eq!((count, rest.positions()[&0]), (1_600, bounds[&0].end), "and nothing comes after them");
}

#[test]
fn a_range_that_is_gone_stops_the_output_which_never_goes_on_elsewhere() {
    let Some(rig) = rig(VALUES, 1, 1) else { return };
    rig.append(0, clicks(0..5));
    let layer = rig.own(0);
    rig.until(&layer, |state| state.position == 5 && state.records == 5);
    layer.stop();
    rig.append(0, clicks(5..10));
    let all = Retention { age: Some(Duration::ZERO), bytes: None };
    rig.log.retain("clicks", all, &Positions::from([(0, 8)])).expect("retained");
    let layer = rig.own(0);
    let stopped = rig.until(&layer, |state| state.stopped.is_some()).stopped.expect("why");
    assert!(stopped.contains("offsets 5.. are wanted, but the log holds 8..10 only"), "{stopped}");
    layer.stop();
    assert_eq!(rig.written(1, 5)[&0], values(0..5));
}

#[test]
fn a_record_that_the_topic_does_not_take_stops_the_output() {
    let view = "CREATE MATERIALIZED VIEW big WITH (sink = 'kafka') AS SELECT k, k AS again FROM clicks;";
    let Some(rig) = rig(view, 1, 1) else { return };
    // Nothing that could be compressed.
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
    let random =
        std::iter::successors(Some(1_u64), |x| Some(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1)));
    let noise: String = random.take(700_000).map(|x| char::from(letters[(x >> 58) as usize])).collect();
    rig.append(0, [event(1, &noise, 1).json()]);
    let layer = rig.own(0);
    let stopped = rig.until(&layer, |state| state.stopped.is_some()).stopped.expect("why");
    assert!(stopped.contains("topic `big` doesn't take a record of 1400"), "{stopped}");
    layer.stop();
}

#[test]
fn a_position_is_not_forgotten_while_nothing_comes() {
    let Some(rig) = rig(VALUES, 1, 1) else { return };
    rig.append(0, clicks(0..5));
    let layer = rig.own(0);
    rig.until(&layer, |state| state.position == 5);
    let (output, outlets) = (rig.output(), rig.context.outlets.clone().expect("outlets"));
    assert_eq!(
        outlets.positions(&output.id.name, &output.table().topic).expect("positions"),
        Positions::from([(0, 5)])
    );
    // As brokers do with a group that nobody has spoken for in a week.
    let admin = ClientConfig::new()
        .set("bootstrap.servers", &rig.options.brokers)
        .create::<AdminClient<DefaultClientContext>>();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let group = outlets.group(&output.id.name);
    let deleted = runtime.block_on(admin.expect("a client").delete_groups(&[&group], &AdminOptions::new()));
    deleted.expect("answered").remove(0).expect("deleted");
    assert_eq!(outlets.positions(&output.id.name, &output.table().topic).expect("positions"), Positions::new());
    rig.clock.set(2 * 3_600 * SECOND);
    let begun = Instant::now();
    while outlets.positions(&output.id.name, &output.table().topic).expect("positions") != Positions::from([(0, 5)]) {
        assert!(begun.elapsed() < PATIENCE);
    }
    layer.stop();
}

#[test]
fn records_are_keyed_and_new_partitions_are_written_too() {
    let view = "CREATE MATERIALIZED VIEW big WITH (sink = 'kafka', partition_by = 'who') AS
        SELECT nullif(k, 'nobody') AS who, v FROM clicks;";
    let Some(mut rig) = rig(view, 2, 4) else { return };
    let layer = run(&rig.context, &CancellationToken::new()).expect("started");
    let keyed = |key: &str, value| event(1, key, value).json();
    rig.append(1, ["21", "abc", "nobody", "21"].into_iter().zip(0..).map(|(key, value)| keyed(key, value)));
    // As Kafka's own producers place them.
    let (of_21, of_abc) = (973_932_308_u32.wrapping_neg() & 0x7fff_ffff, 479_470_107);
    let mut expected = BTreeMap::<Partition, Vec<String>>::new();
    let mut expect = |partition: u32, record: &str| expected.entry(partition % 4).or_default().push(record.to_owned());
    expect(of_21, r#"{"who":"21","v":0}"#);
    expect(of_abc, r#"{"who":"abc","v":1}"#);
    expect(1, r#"{"who":null,"v":2}"#);
    expect(of_21, r#"{"who":"21","v":3}"#);
    assert_eq!(rig.written(4, 4), expected);
    rig.log.create_topic("clicks", 3).expect("grown");
    // The producer of this one doesn't know it yet.
    rig.log = Arc::new(KafkaLog::open(rig.options.clone(), Arc::new(SystemClock)).expect("open"));
    rig.append(2, [keyed("nobody", 4)]);
    let mut expect = |partition: u32, record: &str| expected.entry(partition % 4).or_default().push(record.to_owned());
    expect(2, r#"{"who":null,"v":4}"#);
    assert_eq!(rig.written(4, 5), expected);
    layer.stop();
}

#[test]
fn a_thread_that_doesnt_end_is_waited_for_no_longer_than_it_may_take() {
    let (go_on, told) = std::sync::mpsc::sync_channel::<()>(1);
    let thread = std::thread::spawn(move || told.recv().unwrap_or_default());
    assert!(!ends_within(&thread, Duration::from_millis(1)));
    drop(go_on);
    assert!(ends_within(&thread, Duration::from_secs(60)));
}
