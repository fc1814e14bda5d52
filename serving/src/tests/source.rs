//! Which version and which snapshot go together.

use std::sync::Arc;

use anabranch_exchange::snapshot::{Snapshot, Snapshots};
use anabranch_exchange::version::{Published, Version, Versions};
use anabranch_log::position::Positions;
use tokio::sync::watch;

use super::support::{Event, event, hop, partition, snapshot, version, view};
use crate::source::{LayerStore, Mode, Sources};

#[test]
fn what_was_read_before_a_rebuild_is_not_added_to_what_is_read_since() {
    let folder = tempfile::tempdir().expect("a folder");
    let view = view("v", Some(hop()), true, None);
    let events: Vec<Event> = (0..100).map(|i| event(i * 3, "a", i)).collect();
    let (shows, shown) = watch::channel(Arc::new(Snapshot::default()));
    let (publishes, published) = watch::channel(None);
    let snapshots = Snapshots([(view.id.clone(), shown)].into());
    let store = LayerStore::new(snapshots, Versions([(view.id.clone(), published)].into(), Default::default()));
    let publish = |number: u64, rebuilds: u64, is_stale: bool| {
        let Version { root, published, .. } = Version::clone(&version(folder.path(), &view, number, &events[..40]));
        let published = Published { rebuilds, ..published };
        publishes.send_replace(Some(Arc::new(Version::new(root, published, is_stale))));
        store.get(&view);
    };
    let show = |base: Option<u64>, rebuilds: u64, from: usize| {
        let snapshot = snapshot(&view, &events, base, &[from, 100]);
        shows.send_replace(Arc::new(Snapshot { rebuilds, ..snapshot }));
    };
    let sources = || {
        let sources = Sources::choose(&view, Mode::Merged, &store.get(&view), &Positions::from([(partition(0), 100)]));
        let version = sources.version.as_ref().map(|version| version.published.version);
        (version, sources.chunks.len(), sources.missing.of("posts").to_string())
    };
    show(Some(1), 0, 40);
    assert_eq!(
        sources(),
        (None, 1, "{0: [0, 40)}".to_owned()),
        "no version is at hand, as the newest is of another definition"
    );
    publish(1, 0, false);
    show(Some(1), 0, 40);
    assert_eq!(sources(), (Some(1), 1, "{}".to_owned()));
    // The speed layer is ahead: the version that it stands on isn't known here yet, and covers as much as the old one.
    show(Some(2), 1, 40);
    assert_eq!(sources(), (None, 1, "{0: [0, 40)}".to_owned()));
    // It has folded everything anew.
    show(None, 1, 0);
    assert_eq!(sources(), (None, 1, "{}".to_owned()));
    // It is behind.
    publish(2, 1, false);
    show(Some(1), 0, 40);
    assert_eq!(sources(), (Some(2), 0, "{0: [40, 100)}".to_owned()));
    show(Some(2), 1, 40);
    assert_eq!(sources(), (Some(2), 1, "{}".to_owned()));
    // The archive was rebuilt, and nothing is computed from it yet.
    publish(2, 1, true);
    assert_eq!(sources(), (None, 1, "{0: [0, 40)}".to_owned()));
}
