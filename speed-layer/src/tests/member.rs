//! A member of a consumer group, which is told of its partitions as the group would tell it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_exchange::snapshot::wire;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::kafka::group::Member;
use anabranch_log::position::{Partition, Positions};
use anabranch_log::{Append, Log};

use super::kit::event;
use super::pipeline::Rig;
use crate::{Context, SpeedMember};

#[test]
fn a_member_folds_the_partitions_that_it_has_and_tries_again_to_take_on_those_that_it_could_not() {
    let (folder, rig) = (tempfile::tempdir().expect("a folder"), Rig::new(2));
    let options = EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() };
    let log = Arc::new(EmbeddedLog::open(folder.path().join("log"), options, rig.clock.clone()).expect("a log"));
    log.create_topic("clicks", 2).expect("a topic");
    let records = [event(1, "a", 1).json()].iter().collect();
    log.append("clicks", Append { parts: vec![(1, records)], ..Append::default() }).expect("appended");

    let mut member = SpeedMember::new(Context { log: log.clone(), ..rig.context.clone() });
    let (numbers, outputs) = (member.metrics_reader(), member.outputs_reader());
    let folded = || numbers().into_iter().map(|(table, partition, _)| (table, partition)).collect::<Vec<_>>();
    member.gain("clicks", 1);
    member.gain("elsewhere", 0);
    assert_eq!(folded(), [], "there is no topic yet in which the partition could be claimed");
    log.create_topic(&wire::topic("clicks"), 2).expect("a topic");

    let done: Vec<(String, Positions)> = vec![("clicks".to_owned(), [(1, 1)].into())];
    let begun = Instant::now();
    while member.tick() != done {
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain: {:?}", member.tick());
        std::thread::yield_now();
    }
    let expected: [(String, Partition); 1] = [("clicks".to_owned(), 1)];
    assert_eq!((folded(), outputs().len()), (expected.to_vec(), 1));
    member.give_up("clicks", 1, false);
    assert_eq!((folded(), outputs().len(), member.tick()), (vec![], 0, vec![]));
}
