use std::path::Path;

use anabranch_log::lineage::Mark;
use anabranch_log::position::named;
use anabranch_plan::rows::Rows;
use anabranch_plan::schema::Table;
use anabranch_plan::view::{View, ViewId};
use serde_json::Value;

use super::*;

/// `SELECT window_start, window_end, k, count(*), sum(v)`, over a table whose name isn't its topic's.
fn view() -> Kept {
    generation("sha256:sums")
}

fn generation(definition: &str) -> Kept {
    let sql =
        "CREATE TABLE clicks (k TEXT, v BIGINT, ts TIMESTAMP NOT NULL) WITH (topic = 'events', event_time = 'ts');
        CREATE MATERIALIZED VIEW sums AS SELECT window_start, window_end, k, count(*) AS n, sum(v) AS total
        FROM TUMBLE(clicks, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, k;";
    let catalog = anabranch_plan::sql::plan(&[("views.sql".to_owned(), sql.to_owned())]).expect("a project");
    let id = ViewId { name: "sums".to_owned(), definition: definition.to_owned() };
    Kept::of(&Arc::new(View { id, ..View::clone(&catalog.views["sums"]) })).expect("it keeps an aggregation")
}

fn snapshot() -> Arc<Snapshot> {
    let view = view();
    let events =
        df!["k" => ["a", "b", "a"], "v" => [1_i64, 2, 3], "ts" => [0_i64, 1_000_000, 60_000_000]].expect("events");
    let partials = partial::partials(&view, events.lazy(), false).expect("partials");
    let pane =
        |partials| Arc::new(Pane { partials, late: [(1, 2)].into(), slack: Some(Slack { down: 1, up: 2, late: 3 }) });
    let panes =
        partial::by_pane(&partials).expect("panes").into_iter().map(|(start, partials)| (start, pane(partials)));
    let coverage = Coverage::from_iter([(0, 10..14)]).named("events");
    let early = Early { offsets: Coverage::from_iter([(0, 13..14)]).named("events"), from: Some(90_000_000) };
    let progress = Progress { watermark: Some(60_000_000), ..Progress::default() };
    Arc::new(Snapshot {
        base: Some(7),
        rebuilds: 1,
        coverage: coverage.clone(),
        chunks: vec![Arc::new(Chunk {
            coverage,
            panes: panes.collect(),
            early,
            unsure: Some((5, 7)),
            looked_up: Some(6),
        })],
        watermark: Some(60_000_000),
        partitions: named("events", [(0, progress)].into()),
        late: 2,
        parts: Some(3),
        log: [("events".to_owned(), Mark::new("kafka:one:two"))].into(),
        ..Snapshot::default()
    })
}

fn record() -> Vec<u8> {
    let records = Encoder::new(5).update(vec![(view(), snapshot())], true).encode().expect("encoded");
    assert_eq!(records.len(), 1);
    records.get(0).to_vec()
}

/// What a record says but for the panes' bytes, which Polars may write otherwise.
fn shape(record: &[u8]) -> Value {
    let (mut header, _) = KIND.open::<Value>(&record[HEADER..]).expect("opened");
    for pane in header["panes"].as_object_mut().expect("panes").values_mut() {
        pane["place"] = pane["place"].is_array().into();
    }
    header
}

/// A stored record. The first of a new format is stored by this test, which fails then.
fn fixture(version: u8, written: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/snapshot/wire/format-{version}.update"));
    if !path.exists() {
        std::fs::write(&path, written).expect("written");
        panic!("{} is new: look at it, and commit it", path.display());
    }
    std::fs::read(path).expect("read")
}

#[test]
fn an_update_of_this_format_is_read_and_written_as_the_stored_one() {
    let written = record();
    let stored = fixture(KIND.version, &written);
    assert_eq!(shape(&written), shape(&stored), "the format is another: raise its version");
    assert_eq!(stored[..HEADER + 9], written[..HEADER + 9], "also what stands around the header");
    let views = Decoder::default().take(6, &stored, &[view()]).expect("snapshots");
    let (got, expected) = (&views[&view().id], snapshot());
    assert_eq!((got.base, got.rebuilds, &got.coverage), (expected.base, expected.rebuilds, &expected.coverage));
    assert_eq!((got.watermark, &got.partitions, got.late), (expected.watermark, &expected.partitions, expected.late));
    assert_eq!((&got.log, &got.lost, &got.stopped), (&expected.log, &expected.lost, &expected.stopped));
    assert_eq!(got.parts, expected.parts);
    let (got, expected) = (&got.chunks[0], &expected.chunks[0]);
    assert_eq!((&got.coverage, &got.early), (&expected.coverage, &expected.early));
    assert_eq!((got.unsure, got.looked_up), (expected.unsure, expected.looked_up));
    assert!(got.panes.keys().eq(expected.panes.keys()));
    for (got, expected) in got.panes.values().zip(expected.panes.values()) {
        assert!(got.partials.equals_missing(&expected.partials), "{}", got.partials);
        assert_eq!((&got.late, got.slack), (&expected.late, expected.slack));
    }
}

#[test]
fn two_generations_of_a_view_come_each_with_its_own_state() {
    let (views, one) = ([view(), generation("sha256:other")], snapshot());
    let mut fewer = Chunk::clone(&one.chunks[0]);
    fewer.panes.pop_first().expect("a pane");
    let other = Arc::new(Snapshot { base: Some(8), chunks: vec![Arc::new(fewer)], ..Snapshot::clone(&one) });
    let told = [(views[0].clone(), one), (views[1].clone(), other)];
    let records = Encoder::new(5).update(told.to_vec(), true).encode().expect("encoded");
    let got = Decoder::default().take(6, records.get(0), &views).expect("snapshots");
    for (view, expected) in told {
        let got = &got[&view.id];
        assert_eq!(got.base, expected.base);
        assert!(got.chunks[0].panes.keys().eq(expected.chunks[0].panes.keys()), "{got:?}");
    }
}

#[test]
fn updates_of_other_formats_are_no_snapshots_and_that_is_said_once() {
    let sealed =
        Frames::default().seal(Kind { version: KIND.version + 1, ..KIND }, &"whatever it says").expect("sealed");
    let later = [header(5, 1, 0, 1), sealed.concat()].concat();
    let before = [
        include_bytes!("format-1.update").to_vec(),
        include_bytes!("format-2.update").to_vec(),
        include_bytes!("format-3.update").to_vec(),
    ];
    let views = [view()];
    for other in before.into_iter().chain([later]) {
        let mut decoder = Decoder::default();
        assert!(decoder.take(6, &other, &views).is_none());
        assert!(decoder.is_said);
        assert_eq!(decoder.epoch(), 5, "its owner is known");
        // An owner of this build takes over.
        assert!(decoder.take(7, claim().get(0), &views).is_none());
        assert!(!decoder.is_said, "of the next owner it would be said again");
        assert!(decoder.take(8, &other, &views).is_none() && !decoder.is_said, "of the owner before");
        let records = Encoder::new(7).update(vec![(view(), snapshot())], true).encode().expect("encoded");
        assert!(decoder.take(9, records.get(0), &views).is_some());
    }
}

#[test]
fn an_update_of_another_topic_is_no_snapshot() {
    let clicks = Table { topic: "clicks".to_owned(), ..Table::clone(view().table()) };
    let of_clicks = View { rows: Rows::Scan(Arc::new(clicks)), ..View::clone(&view()) };
    let of_clicks = Kept::of(&Arc::new(of_clicks)).expect("it keeps an aggregation");
    let mut decoder = Decoder::default();
    assert!(decoder.take(6, &record(), &[of_clicks]).is_none());
    assert!(decoder.is_said);
}
