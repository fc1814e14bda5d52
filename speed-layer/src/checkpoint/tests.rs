use anabranch_engine::operator::State;
use anabranch_log::lineage::Mark;
use anabranch_plan::window::Window;
use anabranch_store::storage::Location;
use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde_json::Value;

use super::*;
use crate::error::{SpeedError, reason};
use crate::micro_batch::MicroBatch;
use crate::state::ViewState;
use crate::tests::kit::{SECOND, checkpoints, delays, event, micro_batch, named, partition, rows, sums, table, with};

fn image(events: u64) -> (Kept, Image) {
    let table = table(0);
    let view = sums(&table, Some(Window::sliding(10 * SECOND, 5 * SECOND)), 0);
    let mut tracker = Tracker::new(delays(0), [0].map(partition), 0);
    let mut state = ViewState::new(view.clone(), Some(3), &Positions::from([(partition(0), 7)]), None, 0);
    for i in 0..events {
        let batch = micro_batch(0, 7 + i, &[event(i as i64 * 3 % 40, if i % 2 == 0 { "a" } else { "b" }, 1)]);
        let mut early = Early::default();
        if i % 3 == 0 {
            early.add(partition(0), 7 + i..8 + i, i as i64 * SECOND);
        }
        let batch = MicroBatch { early, ..batch };
        let met = tracker.begin(&partition(0), 0);
        state.apply(&batch, met, &met.each(&batch.times, 0)).expect("folded");
        tracker.end(&partition(0), batch.newest().expect("events"));
        if i % 5 == 4 {
            state.close_chunk(0, 0, 0, &tracker).expect("closed");
        }
    }
    let (chunks, coverage) = (state.chunks().expect("chunks"), state.coverage());
    let image = ViewImage { base: Some(3), late: state.late, coverage, tracker: None, chunks, across: None };
    let views = [(view.id.clone(), image)];
    (
        view,
        Image {
            tracker,
            positions: Positions::from([(partition(0), 7 + events)]),
            editions: [("clicks".to_owned(), Editions::default())].into(),
            parts: None,
            views: views.into(),
            log: [("clicks".to_owned(), Mark::new("embedded:one"))].into(),
            tails: [(partition(0), Tail { offset: 6 + events, log_time: 5 })].into(),
        },
    )
}

fn encoded(image: &Image) -> Bytes {
    image.encode("clicks").expect("bytes").into()
}

fn chunks<'a>(image: &'a Image, view: &Kept) -> impl Iterator<Item = &'a Chunk> + use<'a> {
    image.views[&view.id].chunks.iter().map(|closed| &*closed.chunk)
}

#[test]
fn a_checkpoint_is_read_as_it_was_written() {
    for events in [0, 1, 23] {
        let (view, image) = image(events);
        let read = Image::decode(&encoded(&image), "clicks", &["clicks"], std::slice::from_ref(&view)).expect("read");
        assert_eq!((&read.tracker, &read.positions), (&image.tracker, &image.positions));
        assert_eq!((&read.log, &read.tails), (&image.log, &image.tails));
        let (one, other) = (&read.views[&view.id], &image.views[&view.id]);
        assert_eq!((one.base, one.late, &one.coverage), (other.base, other.late, &other.coverage));
        assert_eq!(rows(chunks(&read, &view)), rows(chunks(&image, &view)));
        assert_eq!(chunks(&read, &view).any(|chunk| !chunk.early.is_empty()), events > 0);
        for (one, other) in one.chunks.iter().zip(&other.chunks) {
            assert_eq!((&one.journal, &one.chunk.coverage), (&other.journal, &other.chunk.coverage));
            assert_eq!(one.chunk.early, other.chunk.early);
            assert!(one.chunk.panes.keys().eq(other.chunk.panes.keys()));
            assert!(one.chunk.panes.values().zip(other.chunk.panes.values()).all(|(a, b)| a.late == b.late));
        }
    }
}

#[test]
fn two_generations_of_a_view_come_back_each_with_its_own_state() {
    let ((view, mut image), (_, other)) = (image(5), image(23));
    let views = [named(&view, "sums", "sha256:other"), view];
    image.views.extend(other.views.into_values().map(|of_other| (views[0].id.clone(), of_other)));
    let read = Image::decode(&encoded(&image), "clicks", &["clicks"], &views).expect("read");
    for (view, end) in views.iter().zip([30, 12]) {
        assert_eq!(read.views[&view.id].coverage.ends(), Positions::from([(partition(0), end)]));
        assert_eq!(rows(chunks(&read, view)), rows(chunks(&image, view)));
    }
}

#[test]
fn a_view_of_another_definition_is_left_out() {
    let (view, image) = image(5);
    let other = named(&view, "sums", "sha256:other");
    let read = Image::decode(&encoded(&image), "clicks", &["clicks"], &[other]).expect("read");
    assert!(read.views.is_empty());
}

#[test]
fn partials_of_another_format_are_refused_with_their_view() {
    let (view, image) = image(5);
    let narrow = with(&view, |kept| {
        kept.aggregates.truncate(1);
        kept.columns.truncate(2);
    });
    let refused = Image::decode(&encoded(&image), "clicks", &["clicks"], &[narrow]).expect_err("other columns");
    assert!(refused.to_string().contains("partials of view `sums` are of another format"), "{refused}");
}

#[test]
fn damage_is_refused_wherever_it_is() {
    let (view, image) = image(23);
    let bytes = encoded(&image);
    for at in (0..bytes.len()).step_by(bytes.len() / 97 + 1) {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 0x10;
        assert!(Image::decode(&damaged, "clicks", &["clicks"], std::slice::from_ref(&view)).is_err(), "byte {at}");
        assert!(
            Image::decode(&bytes[..at], "clicks", &["clicks"], std::slice::from_ref(&view)).is_err(),
            "cut at {at}"
        );
    }
    let of_others = |name: &str, topics: &[&str]| {
        let decoded = Image::decode(&bytes, name, topics, std::slice::from_ref(&view));
        decoded.expect_err("refused").to_string()
    };
    assert_eq!(of_others("others", &["clicks"]), "it is of `clicks`");
    let wanted = r#"it is of the topics ["clicks"], and ["clicks", "others"] are wanted"#;
    assert_eq!(of_others("clicks", &["clicks", "others"]), wanted);
}

/// The bucket of the S3 server that `scripts/with-s3` has started; none on a machine that has none, but never in CI.
fn bucket() -> Option<String> {
    let bucket = std::env::var("ANABRANCH_TEST_S3").ok();
    if bucket.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI runs the tests with an S3 server: use scripts/with-s3");
        eprintln!("\n*** NOT TESTED: no S3 server. Run the tests with `scripts/with-s3 cargo test`. ***\n");
    }
    bucket
}

fn at(location: String) -> Checkpoints {
    checkpoints(Location::try_from(location).expect("a place"))
}

/// Checkpoints in a folder, and on S3 under a prefix of their own.
fn on_each_storage(test: impl Fn(&Checkpoints)) {
    let folder = tempfile::tempdir().expect("a folder");
    test(&at(folder.path().display().to_string()));
    if let Some(bucket) = bucket() {
        test(&at(format!("{bucket}{}", folder.path().display())));
    }
}

fn store(to: &Checkpoints, epoch: u64, bytes: &[u8]) -> Path {
    to.block_on(to.store("clicks", epoch, bytes.to_vec().into())).expect("stored")
}

fn load(from: &Checkpoints, table: &str, views: &[Kept]) -> Option<Positions<TopicPartition>> {
    from.block_on(from.load((table, &["clicks"]), views)).expect("read").map(|image| image.positions)
}

fn damage(checkpoints: &Checkpoints, path: &Path, bytes: &'static [u8]) {
    checkpoints.block_on(checkpoints.storage.objects.put(path, bytes.into())).expect("damaged");
}

#[test]
fn the_one_before_is_kept_and_used_if_the_newest_is_damaged() {
    on_each_storage(|all| {
        let mut view = None;
        for events in 1..=3 {
            let (of, image) = image(events);
            store(all, 7, &encoded(&image));
            view = Some(of);
        }
        let views = [view.expect("a view")];
        let found = all.block_on(all.list("clicks")).expect("listed");
        assert_eq!(found.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [(7, 3), (7, 2)]);
        assert_eq!(load(all, "clicks", &views), Some(Positions::from([(partition(0), 10)])), "the newest");
        let late = store(all, 6, b"by whoever had the table before");
        assert_eq!(load(all, "clicks", &views), Some(Positions::from([(partition(0), 10)])), "still the newest");
        all.block_on(all.storage.objects.delete(&late)).expect("removed");
        damage(all, &found[0].1, b"half a checkpoi");
        assert_eq!(load(all, "clicks", &views), Some(Positions::from([(partition(0), 9)])), "the one before");
        let aside = Path::from(found[0].1.as_ref().replace("checkpoint", "damaged"));
        let aside = all.block_on(async { all.storage.objects.get(&aside).await?.bytes().await });
        assert_eq!(aside.expect("set aside, not deleted"), &b"half a checkpoi"[..]);
        damage(all, &found[1].1, b"");
        assert_eq!(load(all, "clicks", &views), None);
        assert_eq!(load(all, "unknown", &views), None);
    });
}

#[test]
fn of_many_under_one_name_the_first_is_stored_and_the_others_are_told() {
    on_each_storage(|all| {
        let put = |writer: u8| (writer, all.block_on(all.put("clicks", (7, 1), vec![writer; 100_000].into())));
        let done: Vec<_> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8).map(|writer| scope.spawn(move || put(writer))).collect();
            writers.into_iter().map(|writer| writer.join().expect("ended")).collect()
        });
        let (stored, refused): (Vec<_>, Vec<_>) = done.into_iter().partition(|(_, put)| put.is_ok());
        let [(writer, Ok(path))] = &stored[..] else { panic!("{stored:?}, {refused:?}") };
        for (_, put) in &refused {
            assert!(matches!(put, Err(SpeedError::CheckpointTaken { .. })), "{put:?}");
        }
        let held = all.block_on(async { all.storage.objects.get(path).await?.bytes().await }).expect("read");
        assert_eq!(held, vec![*writer; 100_000]);
        // Whoever was refused looks again, and is stored beside it.
        assert_ne!(store(all, 7, b"another"), *path);
        assert_eq!(all.block_on(all.list("clicks")).expect("listed").len(), 2);
    });
}

#[test]
fn a_bucket_that_isnt_there_is_an_error_and_not_empty() {
    if bucket().is_none() {
        return;
    }
    let nowhere = at("s3://nowhere/x".to_owned());
    let loaded = nowhere.block_on(nowhere.load(("clicks", &["clicks"]), &[])).map(|image| image.is_some());
    let stored = nowhere.block_on(nowhere.store("clicks", 7, vec![].into())).map(|_| true);
    for done in [loaded, stored] {
        let error = done.expect_err("no such bucket");
        assert_eq!(error.to_string(), "checkpoint `s3://nowhere/x/clicks`: listing failed");
        assert!(error.may_pass() && reason(&error).contains("NoSuchBucket"), "{}", reason(&error));
    }
}

#[test]
fn checkpoints_of_the_formats_before_are_passed_over_and_stay_where_they_are() {
    let (view, image) = image(23);
    let views = [view];
    let before = [
        (1, &include_bytes!("format-1.checkpoint")[..]),
        (2, include_bytes!("format-2.checkpoint")),
        (3, include_bytes!("format-3.checkpoint")),
    ];
    for (format, before) in before {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = Image::decode(before, "clicks", &["clicks"], &views).expect_err("of another format");
        assert_eq!(refused.to_string(), format!("it is of format {format}, and this build reads format 4"));
        let all = at(folder.path().display().to_string());
        let path = store(&all, 7, before);
        assert_eq!(load(&all, "clicks", &views), None);
        let newer = store(&all, 7, &encoded(&image));
        assert_eq!(load(&all, "clicks", &views).as_ref(), Some(&image.positions));
        damage(&all, &newer, b"half a checkpoi");
        assert_eq!(load(&all, "clicks", &views), None);
        assert!(folder.path().join(path.as_ref()).exists(), "an earlier build may go on from it");
    }
}

/// What operators keep.
fn across() -> AcrossImage {
    let frame = df!("k" => [Some("a"), None], "__o0" => [1_i64, 2]).expect("a frame");
    let frames = vec![frame.clone(), frame.clear()];
    AcrossImage { state: State { horizon: 7, frames }, settled: Some(9), unsure: Some((3, 4)) }
}

/// What a checkpoint says but for the bytes of its frames, which Polars may write otherwise.
fn shape(bytes: &[u8]) -> Value {
    let (mut header, _) = KIND.open::<Value>(bytes).expect("opened");
    for view in header["views"].as_array_mut().expect("views") {
        for chunk in view["chunks"].as_array_mut().expect("chunks") {
            chunk["frame"] = chunk["frame"].is_array().into();
        }
        if let Some(frames) = view["across"]["state"]["frames"].as_array_mut() {
            frames.iter_mut().for_each(|frame| *frame = frame.is_array().into());
        }
    }
    header
}

/// A stored checkpoint. The first of a new format is stored by this test, which fails then.
fn fixture(version: u8, written: &[u8]) -> Vec<u8> {
    let name = format!("src/checkpoint/format-{version}.checkpoint");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if !path.exists() {
        std::fs::write(&path, written).expect("written");
        panic!("{} is new: look at it, and commit it", path.display());
    }
    std::fs::read(path).expect("read")
}

#[test]
fn a_checkpoint_of_this_format_is_read_and_written_as_the_stored_one() {
    let ((view, mut expected), (_, other)) = (image(23), image(1));
    let joined = named(&view, "joined", "sha256:joined");
    for of_other in other.views.into_values() {
        expected.views.insert(joined.id.clone(), ViewImage { across: Some(across()), ..of_other });
    }
    let written = encoded(&expected);
    let stored = fixture(KIND.version, &written);
    assert_eq!(shape(&written), shape(&stored), "the format is another: raise its version");
    let read = Image::decode(&stored, "clicks", &["clicks"], &[view.clone(), joined.clone()]).expect("read");
    assert_eq!((&read.tracker, &read.positions), (&expected.tracker, &expected.positions));
    assert_eq!(rows(chunks(&read, &view)), rows(chunks(&expected, &view)));
    let (kept, wanted) = (read.views[&joined.id].across.as_ref().expect("operators"), across());
    assert_eq!((kept.settled, kept.unsure), (wanted.settled, wanted.unsure));
    assert_eq!(kept.state.horizon, wanted.state.horizon);
    assert!(kept.state.frames.iter().zip(&wanted.state.frames).all(|(one, other)| one.equals_missing(other)));
}
