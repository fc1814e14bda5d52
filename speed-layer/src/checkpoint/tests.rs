use anabranch_shared::window::Window;

use super::*;
use crate::state::ViewState;
use crate::tests::kit::{SECOND, event, micro_batch, rows, sums, table};

fn image(events: u64) -> (Arc<View>, Image) {
    let table = table(0);
    let view = Arc::new(sums(&table, Some(Window::sliding(10 * SECOND, 5 * SECOND)), 0));
    let mut tracker = Tracker::new(0, [0], 0);
    let mut state = ViewState::new(view.clone(), Some(3), &Positions::from([(0, 7)]), 0);
    for i in 0..events {
        let batch = micro_batch(0, 7 + i, &[event(i as i64 * 3 % 40, if i % 2 == 0 { "a" } else { "b" }, 1)]);
        let met = tracker.begin(0, 0);
        state.apply(&batch, met, &met.each(&batch.times, 0)).expect("folded");
        tracker.end(0, batch.newest().expect("events"));
        if i % 5 == 4 {
            state.close_chunk(0, 0, 0).expect("closed");
        }
    }
    let (chunks, coverage) = (state.chunks().expect("chunks"), state.coverage());
    let definition = view.definition.clone();
    let views = [("sums".to_owned(), ViewImage { definition, base: Some(3), late: state.late, coverage, chunks })];
    (view, Image { tracker, positions: Positions::from([(0, 7 + events)]), views: views.into() })
}

fn chunks(image: &Image) -> impl Iterator<Item = &Chunk> {
    image.views["sums"].chunks.iter().map(|closed| &*closed.chunk)
}

#[test]
fn a_checkpoint_is_read_as_it_was_written() {
    for events in [0, 1, 23] {
        let (view, image) = image(events);
        let read = Image::decode(&image.encode("clicks").expect("bytes"), "clicks", &[view]).expect("read");
        assert_eq!((&read.tracker, &read.positions), (&image.tracker, &image.positions));
        let (one, other) = (&read.views["sums"], &image.views["sums"]);
        assert_eq!((one.base, one.late, &one.coverage), (other.base, other.late, &other.coverage));
        assert_eq!(rows(chunks(&read)), rows(chunks(&image)));
        for (one, other) in one.chunks.iter().zip(&other.chunks) {
            assert_eq!((&one.journal, &one.chunk.coverage), (&other.journal, &other.chunk.coverage));
            assert!(one.chunk.panes.keys().eq(other.chunk.panes.keys()));
            assert!(one.chunk.panes.values().zip(other.chunk.panes.values()).all(|(a, b)| a.late == b.late));
        }
    }
}

#[test]
fn a_view_of_another_definition_is_left_out() {
    let (view, image) = image(5);
    let other = Arc::new(View { definition: "sha256:other".to_owned(), ..View::clone(&view) });
    let read = Image::decode(&image.encode("clicks").expect("bytes"), "clicks", &[other]).expect("read");
    assert!(read.views.is_empty());
}

#[test]
fn damage_is_refused_wherever_it_is() {
    let (view, image) = image(23);
    let bytes = image.encode("clicks").expect("bytes");
    for at in (0..bytes.len()).step_by(bytes.len() / 97 + 1) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(Image::decode(&damaged, "clicks", std::slice::from_ref(&view)).is_err(), "byte {at}");
        assert!(Image::decode(&bytes[..at], "clicks", std::slice::from_ref(&view)).is_err(), "cut at {at}");
    }
    assert!(Image::decode(&bytes, "others", &[view]).is_err(), "of another table");
}

#[test]
fn the_one_before_is_kept_and_used_if_the_newest_is_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Checkpoints::new(folder.path());
    let mut view = None;
    for events in 1..=3 {
        let (of, image) = image(events);
        store.store("clicks", 7, &image.encode("clicks").expect("bytes")).expect("stored");
        view = Some(of);
    }
    let views = [view.expect("a view")];
    let files = store.list("clicks");
    assert_eq!(files.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [(7, 3), (7, 2)]);
    assert_eq!(store.load("clicks", &views).expect("the newest").positions, Positions::from([(0, 10)]));
    let late = store.store("clicks", 6, b"by whoever had the table before").expect("stored");
    assert_eq!(store.load("clicks", &views).expect("still the newest").positions, Positions::from([(0, 10)]));
    fs::remove_file(late).expect("removed");
    fs::write(&files[0].1, b"half a checkpoi").expect("damaged");
    assert_eq!(store.load("clicks", &views).expect("the one before").positions, Positions::from([(0, 9)]));
    assert!(files[0].1.with_extension("damaged").exists(), "set aside, not deleted");
    fs::write(&files[1].1, b"").expect("damaged");
    assert!(store.load("clicks", &views).is_none());
    assert!(store.load("unknown", &views).is_none());
}
