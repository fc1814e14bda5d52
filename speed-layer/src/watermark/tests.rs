use super::*;
use crate::tests::kit::{delays, partition};

const DELAY: Micros = 5;

/// Feeds one partition event by event; the watermark after each.
fn after_each(tracker: &mut Tracker, number: Partition, times: &[Micros]) -> Vec<Option<Micros>> {
    let after = times.iter().map(|&time| {
        tracker.begin(&partition(number), 0);
        tracker.end(&partition(number), time);
        tracker.watermark()
    });
    after.collect()
}

#[test]
fn the_watermark_is_the_newest_event_less_the_delay() {
    let mut tracker = Tracker::new(delays(DELAY), [0].map(partition), 0);
    let after = after_each(&mut tracker, 0, &[1, 3, 2, 5, 4, 7, 6, 9]);
    assert_eq!(after, [-4, -2, -2, 0, 0, 2, 2, 4].map(Some));
}

#[test]
fn records_of_one_batch_meet_what_they_would_meet_one_by_one() {
    let times = [1, 3, 2, 5, 4, 7, 6, 9];
    let mut one_by_one = Tracker::new(delays(DELAY), [0].map(partition), 0);
    let before: Vec<Micros> = times
        .iter()
        .map(|&time| {
            let met = one_by_one.begin(&partition(0), 0).each(&[time], DELAY)[0];
            one_by_one.end(&partition(0), time);
            met
        })
        .collect();
    let met = Tracker::new(delays(DELAY), [0].map(partition), 0).begin(&partition(0), 0).each(&times, DELAY);
    assert_eq!(met, before);
    assert_eq!(met, [NONE, -4, -2, -2, 0, 0, 2, 2]);
}

#[test]
fn a_clock_that_is_set_back_is_not_waited_for() {
    const YEAR: i64 = 1_000_000;
    let mut tracker = Tracker::new(delays(DELAY), [0, 1].map(partition), YEAR);
    after_each(&mut tracker, 0, &[10, 20]);
    tracker.begin(&partition(0), YEAR);
    for at in [0, 150, 199] {
        tracker.caught_up(&[0, 1].map(partition), at, 100);
        assert_eq!(tracker.watermark(), None, "it isn't idle at once");
    }
    tracker.begin(&partition(0), 199);
    tracker.caught_up(&[0, 1].map(partition), 200, 100);
    assert_eq!(tracker.watermark(), Some(15));
}

#[test]
fn a_partition_without_events_holds_back_until_it_is_idle() {
    let mut tracker = Tracker::new(delays(DELAY), [0, 1].map(partition), 0);
    assert_eq!(after_each(&mut tracker, 0, &[10, 20]), [None, None]);
    tracker.caught_up(&[0, 1].map(partition), 99, 100);
    assert_eq!(tracker.watermark(), None, "not still for long enough");
    tracker.begin(&partition(0), 50);
    tracker.caught_up(&[0, 1].map(partition), 100, 100);
    assert_eq!(tracker.watermark(), Some(15), "partition 1 is idle, partition 0 had records at 50");
}

#[test]
fn a_partition_with_unread_records_is_never_idle() {
    let mut tracker = Tracker::new(delays(DELAY), [0, 1].map(partition), 0);
    after_each(&mut tracker, 0, &[10]);
    after_each(&mut tracker, 1, &[30]);
    assert_eq!(tracker.watermark(), Some(5));
    tracker.caught_up(&[1].map(partition), 1_000, 100);
    assert_eq!(tracker.watermark(), Some(5), "partition 0 isn't caught up, however long it has been still");
    tracker.caught_up(&[0].map(partition), 1_000, 100);
    assert_eq!(tracker.watermark(), Some(5), "now every partition is idle, and the watermark stays");
    tracker.begin(&partition(1), 1_001);
    tracker.end(&partition(1), 40);
    assert_eq!(tracker.watermark(), Some(35), "partition 0 is left out");
}

#[test]
fn the_watermark_never_moves_back() {
    let mut tracker = Tracker::new(delays(DELAY), [0, 1].map(partition), 0);
    after_each(&mut tracker, 0, &[100]);
    tracker.caught_up(&[1].map(partition), 1_000, 100);
    assert_eq!(tracker.watermark(), Some(95));
    let met = tracker.begin(&partition(1), 1_001);
    assert_eq!(met.each(&[20, 21], DELAY), [95, 95], "an old event meets the watermark that there is");
    tracker.end(&partition(1), 21);
    assert_eq!(tracker.watermark(), Some(95));
    tracker.add(partition(2), 1_001);
    after_each(&mut tracker, 0, &[200]);
    assert_eq!(tracker.watermark(), Some(95), "a new partition holds it where it is");
}

#[test]
fn a_restored_tracker_goes_on_where_it_was() {
    let mut tracker = Tracker::new(delays(DELAY), [0, 1].map(partition), 7);
    after_each(&mut tracker, 0, &[100]);
    tracker.caught_up(&[1].map(partition), 1_000, 100);
    let json = serde_json::to_string(&tracker).expect("json");
    let mut restored: Tracker = serde_json::from_str(&json).expect("back");
    restored.resume(5_000, |_| false);
    assert_eq!(restored.watermark(), Some(95));
    assert_eq!(restored.begin(&partition(0), 5_000), tracker.begin(&partition(0), 5_000), "partition 1 is idle still");
    restored.resume(5_000, |of| *of == partition(1));
    assert_eq!(restored.begin(&partition(0), 5_000).others, NONE, "it has unread records, so it isn't idle");
}

#[test]
fn a_tracker_of_two_topics_is_stored_by_topic() {
    let [clicks, tweets] = ["clicks", "tweets"].map(|topic| TopicPartition::new(topic, 3));
    let both = Delays::from([("clicks".into(), DELAY), ("tweets".into(), 3)]);
    let mut tracker = Tracker::new(both, [clicks.clone(), tweets.clone()], 0);
    tracker.seed(&clicks, 50);
    assert_eq!(tracker.watermark(), None, "each topic holds the watermark back");
    tracker.seed(&tweets, 40);
    let json = serde_json::to_value(&tracker).expect("json");
    let of_topic = |delay, newest| serde_json::json!({"delay": delay, "merged": 37, "partitions": {"3": {"newest": newest, "idle": false}}});
    assert_eq!(json, serde_json::json!({"clicks": of_topic(DELAY, 50), "tweets": of_topic(3, 40)}));
    assert_eq!(serde_json::from_value::<Tracker>(json).expect("back"), tracker);
}

#[test]
fn a_version_seeds_the_watermark() {
    let mut tracker = Tracker::new(delays(DELAY), [0].map(partition), 0);
    tracker.seed(&partition(0), 50);
    assert_eq!(tracker.watermark(), Some(45));
    assert_eq!(tracker.begin(&partition(0), 0), Met { before: 50, others: Micros::MAX, floor: 45 });
}
