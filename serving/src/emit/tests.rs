//! A topic after each step of the layers: what it holds are the rows of the newest answer, and each of its records has changed
//! something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anabranch_log::clock::ManualClock;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::{Append, Log, Payloads};
use anabranch_plan::expr::{BinaryOp, Expr, Literal};
use anabranch_plan::schema::DataType;
use anabranch_plan::window::Window;
use bytes::Bytes;
use tokio::sync::watch;

use super::*;
use crate::App;
use crate::merge::Ask;
use crate::source::HeldVersion;
use crate::tests::support::{self, *};

const OUT: &str = "counts";

/// A server over an embedded log, whose one view writes its rows.
struct Bench {
    server: Server,
    view: Kept,
    platform: Platform,
    /// Records of the topic that the view reads.
    posts: usize,
    _running: watch::Sender<bool>,
}

impl Bench {
    fn new(view: &Kept, emit: Emit) -> Self {
        let emission = Emission { topic: OUT.to_owned(), emit };
        let view = with(view, |kept| kept.emission = Some(emission));
        let platform = Platform::new(std::slice::from_ref(&view));
        let options = EmbeddedOptions { keyed: BTreeSet::from([OUT.to_owned()]), ..EmbeddedOptions::default() };
        let log = EmbeddedLog::open(platform.folder.path().join("log"), options, Arc::new(ManualClock::new(T0)));
        let log = Arc::new(log.expect("a log"));
        log.create_topic("posts", 1).expect("created");
        log.create_topic(OUT, 3).expect("created");
        let (running, shutdown) = watch::channel(false);
        let server = Server::new(App { log, ..platform.app.clone() }, Bytes::new(), shutdown);
        Self { server, view, platform, posts: 0, _running: running }
    }

    /// The topic of the view has so many records.
    fn reach(&mut self, records: usize) {
        let payloads: Payloads = (self.posts..records).map(|_| b"{}").collect();
        let append = Append { parts: vec![(0, payloads)], ..Append::default() };
        self.server.app.log.append("posts", append).expect("appended");
        self.posts = records;
    }

    fn open(&self) -> Writer {
        let emission = self.view.aggregation().emission.clone().expect("an emission");
        Writer::open(&self.server, None, self.view.clone(), emission).unwrap_or_else(|error| panic!("{error}"))
    }

    /// What the topic holds, in its order within each partition; a record that changes nothing fails.
    fn records(&self) -> Vec<(String, Option<String>)> {
        let mut records = Vec::new();
        let topic = Topic::open(
            &self.server.app.log,
            None,
            &self.view,
            &Emission { topic: OUT.to_owned(), emit: Emit::Changes },
            self.server.shutdown.clone(),
        );
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let read = topic.expect("opened").read(|key, row| records.push((text(key), row.map(text))));
        read.expect("read");
        records
    }

    fn held(&self) -> BTreeMap<String, String> {
        let mut held = BTreeMap::new();
        for (key, row) in self.records() {
            let before = match &row {
                Some(row) => held.insert(key.clone(), row.clone()),
                None => held.remove(&key),
            };
            assert_ne!(before, row, "{key}: a record that changes nothing");
        }
        held
    }

    /// What the layers have of events up to `cut`, of which a version has the first ones.
    fn layers(&self, events: &[Event], version: Option<(u64, usize)>, cut: usize) -> Layers {
        let number = version.map(|(number, _)| number);
        let frontier = version.map_or(0, |(_, frontier)| frontier);
        let middle = usize::midpoint(frontier, cut);
        let snapshot = snapshot(&self.view, events, number, &[frontier, middle, cut]);
        let of_version = version.map(|(number, frontier)| {
            let version = support::version(self.platform.folder.path(), &self.view, number, &events[..frontier]);
            Arc::new(HeldVersion::new(version))
        });
        Layers { snapshot: Some(Arc::new(snapshot)), versions: of_version.into_iter().collect(), ..Layers::default() }
    }

    /// All rows of the newest answer, by their keys.
    fn rows(&self, layers: &Layers) -> BTreeMap<String, String> {
        let sources = Sources::choose(&self.view, Mode::Merged, layers, &Positions::new());
        let ask = match self.view.aggregation().window {
            None => Ask::Latest,
            Some(_) => Ask::Range { from: T0 - 1_000 * MINUTE, to: T0 + 1_000 * MINUTE },
        };
        let rows = merge::answer(&self.view, &sources, ask).expect("an answer").rows;
        let rows = rows::rows(&self.view, rows, |_| false);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let each = rows.expect("rows").into_iter();
        each.map(|change| (text(&change.key), text(&change.row.expect("a row")))).collect()
    }
}

fn windows() -> [Option<Window>; 4] {
    [None, Some(Window::sliding(MINUTE, MINUTE)), Some(hop()), Some(Window::Session { gap: 40_000_000 })]
}

/// Steps of the layers: each a version, if there is one by then, and how far the speed layer is.
fn steps(random: &mut Random, events: usize) -> Vec<(Option<(u64, usize)>, usize)> {
    let (mut version, mut cut, mut steps) = (None, 0, Vec::new());
    while cut < events {
        cut = (cut + random.below(12) as usize).min(events);
        if random.below(4) == 0 {
            let (number, frontier) = version.unwrap_or((0, 0));
            version = Some((number + 1, frontier + random.below((cut - frontier + 1) as u64) as usize));
        }
        steps.push((version, cut));
    }
    steps
}

#[test]
fn a_topic_has_the_rows_of_the_newest_answer_after_each_step_and_no_record_for_nothing() {
    for seed in 0..3 {
        for window in windows() {
            for (limit, least) in [(None, None), (Some(2), None), (None, Some(3))] {
                let mut random = Random(seed);
                let events = random.events(80, 15);
                let count = Expr::Column("mentions".to_owned(), DataType::BigInt);
                let having = least.map(|least| {
                    let least = Expr::Literal(Literal::BigInt(least));
                    Expr::Binary(Box::new(count), BinaryOp::GreaterOrEqual, Box::new(least))
                });
                let view = with(&view("v", window, true, limit), |kept| kept.having = having);
                let mut bench = Bench::new(&view, Emit::Changes);
                let mut writer = bench.open();
                for (version, cut) in steps(&mut random, events.len()) {
                    bench.reach(cut);
                    if random.below(5) == 0 {
                        writer = bench.open();
                    }
                    let layers = bench.layers(&events, version, cut);
                    let written = writer.round(&layers, &Positions::new()).expect("written");
                    if layers.snapshot.as_ref().is_some_and(|snapshot| snapshot.coverage.is_empty()) && cut == 0 {
                        continue;
                    }
                    assert_eq!(written.waits, None, "{seed} {window:?} {version:?} {cut}");
                    let found = bench.held();
                    assert_eq!(found, bench.rows(&layers), "{seed} {window:?} {limit:?} {least:?} {version:?} {cut}");
                    let again = writer.round(&layers, &Positions::new()).expect("written");
                    assert_eq!(again.records, 0, "nothing has changed");
                }
            }
        }
    }
}

#[test]
fn each_final_window_is_written_once_and_in_order_whoever_writes_it() {
    for seed in 0..3 {
        for window in windows().into_iter().flatten() {
            let mut random = Random(seed);
            let events = random.events(80, 15);
            let mut bench = Bench::new(&view("v", Some(window), true, None), Emit::Final);
            let mut writer = bench.open();
            let (mut after, mut expected) = (Final::BEFORE_ALL, BTreeMap::<String, Vec<String>>::new());
            for (version, cut) in steps(&mut random, events.len()) {
                bench.reach(cut);
                if random.below(3) == 0 {
                    writer = bench.open();
                }
                let layers = bench.layers(&events, version, cut);
                writer.round(&layers, &Positions::new()).expect("written");
                let sources = Sources::choose(&bench.view, Mode::Merged, &layers, &Positions::new());
                while let Some(finals) = merge::finals(&bench.view, &sources, Some(after)).expect("finals")
                    && !finals.is_empty()
                {
                    for (window, answer) in finals {
                        let tags = answer.rows.column("tag").expect("tags").str().expect("texts").clone();
                        let counts = answer.rows.column("mentions").expect("counts").i64().expect("numbers").clone();
                        for (tag, count) in tags.iter().zip(counts.iter()) {
                            let (tag, count) = (tag.expect("a tag"), count.expect("a count"));
                            expected
                                .entry(tag.to_owned())
                                .or_default()
                                .push(format!("{} {count}", Final::name(window)));
                        }
                        after = window;
                    }
                }
                let mut found = BTreeMap::<String, Vec<String>>::new();
                for (_, row) in bench.records() {
                    let row: serde_json::Value = serde_json::from_str(&row.expect("a row")).expect("JSON");
                    let text = |name: &str| row[name].as_str().expect("a text");
                    let window = format!("{}/{}", text("window_start"), text("window_end"));
                    let tag = text("tag").to_owned();
                    found.entry(tag).or_default().push(format!("{window} {}", row["mentions"]));
                }
                // Windows of one tag may be of several partitions.
                let sorted = |all: &BTreeMap<String, Vec<String>>| {
                    let sort = |rows: &Vec<String>| rows.iter().cloned().collect::<BTreeSet<_>>();
                    let counted = |rows: &Vec<String>| rows.len();
                    all.iter().map(|(tag, rows)| (tag.clone(), sort(rows), counted(rows))).collect::<Vec<_>>()
                };
                assert_eq!(sorted(&found), sorted(&expected), "{seed} {window:?} {cut}");
            }
            assert!(expected.values().map(Vec::len).sum::<usize>() > 10, "{seed} {window:?}");
        }
    }
}

#[test]
fn an_answer_that_falls_back_behind_what_is_written_is_waited_for() {
    let events = Random(3).events(60, 15);
    let mut bench = Bench::new(&view("v", None, true, None), Emit::Changes);
    bench.reach(40);
    let mut writer = bench.open();
    let mut round = |bench: &Bench, version, cut| {
        let written = writer.round(&bench.layers(&events, version, cut), &Positions::new()).expect("written");
        (written.records, written.waits.is_some())
    };
    assert_eq!(round(&bench, None, 39), (0, true), "the log held more when the topic was opened");
    assert_eq!(round(&bench, None, 40), (4, false));
    let held = bench.held();
    bench.reach(60);
    assert!(round(&bench, Some((1, 30)), 60).0 > 0);
    assert_eq!(round(&bench, Some((1, 30)), 55), (0, true), "a worker goes on from an older checkpoint");
    assert_eq!(round(&bench, Some((1, 30)), 60), (0, false));
    assert_ne!(bench.held(), held);
}

#[test]
fn what_a_definition_before_has_left_is_deleted() {
    let events = Random(3).events(40, 15);
    let mut bench = Bench::new(&view("v", Some(hop()), true, None), Emit::Changes);
    let payloads = |text: &[&str]| text.iter().map(|text| text.as_bytes()).collect::<Payloads>();
    let append = Append {
        parts: vec![(1, payloads(&["{\"n\":1,\"n_lower\":1,\"n_upper\":1}"]))],
        keys: BTreeMap::from([(1, payloads(&["a key of before"]))]),
        idempotency: None,
    };
    bench.server.app.log.append(OUT, append).expect("appended");
    bench.reach(40);
    let layers = bench.layers(&events, None, 40);
    bench.open().round(&layers, &Positions::new()).expect("written");
    assert_eq!(bench.held(), bench.rows(&layers));
    assert!(bench.records().contains(&("a key of before".to_owned(), None)));
}

#[test]
fn a_topic_of_somebody_else_s_is_left_as_it_is() {
    for emit in Emit::ALL {
        let bench = Bench::new(&view("v", Some(hop()), true, None), emit);
        let payloads = |text: &str| [text.as_bytes()].iter().collect::<Payloads>();
        let append = Append {
            parts: vec![(1, payloads("{\"id\":\"ann\",\"plan\":\"pro\"}"))],
            keys: BTreeMap::from([(1, payloads("ann"))]),
            idempotency: None,
        };
        bench.server.app.log.append(OUT, append).expect("appended");
        let emission = Emission { topic: OUT.to_owned(), emit };
        let Err(error) = Writer::open(&bench.server, None, bench.view.clone(), emission) else { panic!("{emit:?}") };
        let expected = "topic `counts` holds records that no view has written, such as the one with the key `ann`; \
                        choose another topic, or empty this one";
        assert!(error.is_final() && error.to_string() == expected, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_written_while_it_is_this_process_s_and_says_what_it_waits_for() {
    let events = Random(3).events(40, 15);
    let mut bench = Bench::new(&view("v", None, true, None), Emit::Changes);
    bench.reach(40);
    let (owned, topics) = watch::channel(BTreeSet::new());
    let server = Arc::new(bench.server);
    let (view, emission) = (bench.view.clone(), Emission { topic: OUT.to_owned(), emit: Emit::Changes });
    let writer = tokio::spawn(run(Arc::clone(&server), view.clone(), emission, Emissions::new(None, topics)));
    let until = |is: fn(&EmissionStatus) -> bool| {
        let server = Arc::clone(&server);
        async move {
            while !is(&server.emissions["v"].lock()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    bench.platform.show(&view, snapshot(&view, &events, None, &[0, 30]));
    owned.send_replace(BTreeSet::from([OUT.to_owned()]));
    until(|state| state.waiting.is_some()).await;
    assert_eq!(server.emissions["v"].lock().records, 0);
    bench.platform.show(&view, snapshot(&view, &events, None, &[0, 40]));
    until(|state| state.records == 4).await;
    assert_eq!(server.emissions["v"].lock().waiting, None);
    owned.send_replace(BTreeSet::new());
    // Nobody writes it now, and whoever has it next goes on.
    bench.platform.show(&view, snapshot(&view, &events[..1], None, &[0, 1]));
    owned.send_replace(BTreeSet::from([OUT.to_owned()]));
    until(|state| state.waiting.is_some()).await;
    assert_eq!(server.emissions["v"].lock().records, 4);
    writer.abort();
}
