use anabranch_log::clock::ManualClock;

use super::*;
use crate::ingest::tests::MemoryLog;

fn open(log: &MemoryLog) -> RejectLog {
    let clock = ManualClock::new(1_705_314_645_123_000);
    RejectLog::open(Arc::new(log.clone()), Arc::new(clock)).expect("open")
}

fn at(rejects: &RejectLog, topic: &str, partition: Partition, offset: Offset) -> Rejected {
    let reject = rejects.rejected(topic, "not JSON".to_owned(), b"{");
    Rejected { partition: Some(partition), offset: Some(offset), ..reject }
}

#[test]
fn what_is_in_the_log_is_recorded_once() {
    let log = MemoryLog::default();
    let rejects = open(&log);
    let found = [at(&rejects, "a", 0, 0), at(&rejects, "a", 0, 7), at(&rejects, "a", 1, 3), at(&rejects, "b", 0, 1)];
    rejects.record(&found[..2]).expect("recorded");
    rejects.record(&found).expect("recorded");
    let reopened = open(&log);
    reopened.record(&found).expect("recorded");
    rejects.record(&found).expect("recorded");
    reopened.record(&[at(&rejects, "a", 0, 8)]).expect("recorded");
    rejects.record(&[at(&rejects, "a", 0, 8)]).expect("recorded by the other");
    for rejects in [&rejects, &reopened] {
        assert_eq!(rejects.count(None).expect("count"), 5);
        assert_eq!(rejects.count(Some("a")).expect("count"), 4);
        assert_eq!(rejects.count(Some("c")).expect("count"), 0);
    }
    assert_eq!(
        log.records(TOPIC, 0)[1],
        r#"{"topic":"a","partition":0,"offset":7,"reason":"not JSON","record":"{","rejected_at":"2024-01-15T10:30:45.123Z"}"#
    );
}

/// The archive finds bad records long after the speed layer has found late events behind them, or long before.
#[test]
fn what_is_late_and_what_is_bad_are_recorded_each_in_its_own_order() {
    let log = MemoryLog::default();
    let rejects = open(&log);
    let late = |view: &str, offset| {
        let reject = at(&rejects, "a", 0, offset);
        Rejected { view: Some(view.to_owned()), behind_ms: Some(1_500), reason: "late".to_owned(), ..reject }
    };
    rejects.record(&[late("v", 2), late("v", 9)]).expect("recorded");
    rejects.record(&[at(&rejects, "a", 0, 3), at(&rejects, "a", 0, 9)]).expect("recorded");
    rejects.record(&[late("w", 2)]).expect("recorded");
    let again = [late("v", 2), at(&rejects, "a", 0, 3), late("v", 9), at(&rejects, "a", 0, 9), late("w", 2)];
    open(&log).record(&[&again[..], &[late("v", 10)]].concat()).expect("recorded");
    for rejects in [&rejects, &open(&log)] {
        // Only what is no row counts as rejected.
        assert_eq!((rejects.count(Some("a")).expect("count"), rejects.total(None).expect("total")), (2, 6));
    }
    let listed = rejects.list(None, None, 10).expect("page").rejects;
    let listed = listed.iter().map(|reject| (reject.offset, reject.view.as_deref())).collect::<Vec<_>>();
    let (v, w) = (Some("v"), Some("w"));
    assert_eq!(listed, [(Some(10), v), (Some(2), w), (Some(9), None), (Some(3), None), (Some(9), v), (Some(2), v)]);
    assert!(log.records(TOPIC, 0)[0].contains(r#""view":"v","behind_ms":1500,"reason":"late""#));
}

#[test]
fn what_was_appended_here_is_counted_without_being_read() {
    let log = MemoryLog::default();
    let (rejects, other) = (open(&log), open(&log));
    let sent = |count| std::iter::repeat_with(|| rejects.rejected("a", "not JSON".to_owned(), b"{")).take(count);
    rejects.record_sent(sent(2_500), None).expect("recorded");
    let reads = log.reads();
    assert_eq!(rejects.count(None).expect("count"), 2_500);
    assert_eq!(log.reads(), reads, "nothing was read");
    // What another process has recorded in between is read, and ours behind it is not.
    other.record_sent(sent(10), None).expect("recorded");
    rejects.record_sent(sent(1_500), None).expect("recorded");
    assert_eq!((rejects.count(None).expect("count"), log.reads()), (4_010, reads + 1));
    assert_eq!(other.count(None).expect("count"), 4_010);
}

#[test]
fn a_count_reads_what_others_recorded_bit_by_bit() {
    let log = MemoryLog::default();
    let (rejects, other) = (open(&log), open(&log));
    let sent = std::iter::repeat_with(|| rejects.rejected("a", "not JSON".to_owned(), b"{"));
    rejects.record_sent(sent.take(2 * COUNTED_AT_ONCE as usize + 1), None).expect("recorded");
    let counts: Vec<u64> = (0..3).map(|_| other.count(None).expect("count")).collect();
    assert_eq!(counts, [COUNTED_AT_ONCE, 2 * COUNTED_AT_ONCE, 2 * COUNTED_AT_ONCE + 1]);
}

#[test]
fn nobody_waits_for_a_client_whose_rejects_are_recorded() {
    let log = MemoryLog::default();
    let rejects = open(&log);
    let (mut begun, mut ended) = (false, false);
    // A client's rejects are recorded while they are made, so what is asked here is asked in the midst of it.
    let sent = (0..2_500).map(|i| {
        if i == 1_500 {
            begun = rejects.count(None).expect("count") == 1_000;
            rejects.record(&[at(&rejects, "a", 0, 1)]).expect("recorded");
            rejects.record_sent([rejects.rejected("b", String::new(), b"")], None).expect("recorded");
            ended = rejects.count(None).expect("count") == 1_002;
        }
        rejects.rejected("a", "not JSON".to_owned(), b"{")
    });
    rejects.record_sent(sent, None).expect("recorded");
    assert!(begun && ended);
    assert_eq!(rejects.count(None).expect("count"), 2_502);
}

#[test]
fn old_rejects_are_deleted_and_the_count_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Arc::new(ManualClock::new(0));
    let options = anabranch_log::embedded::EmbeddedOptions { reserve_bytes: 0, ..Default::default() };
    let log = anabranch_log::embedded::EmbeddedLog::open(folder.path(), options, clock.clone()).expect("a log");
    let rejects = RejectLog::open(Arc::new(log), clock.clone()).expect("open");
    let record = |text: &[u8]| rejects.record_sent([rejects.rejected("a", String::new(), text)], None);
    record(b"old").expect("recorded");
    clock.set(60_000_000);
    record(b"new").expect("recorded");
    let age = Some(Duration::from_secs(30));
    rejects.retain(Retention { age, bytes: None }).expect("retained");
    let listed = rejects.list(None, None, 10).expect("page").rejects;
    assert_eq!(listed.iter().map(|reject| reject.record.as_str()).collect::<Vec<_>>(), ["new"]);
    rejects.retain(Retention { age: None, bytes: Some(10) }).expect("retained");
    assert_eq!(rejects.list(None, None, 10).expect("page"), Page::default());
    record(b"newer").expect("recorded");
    assert_eq!(rejects.count(None).expect("count"), 3, "since it was opened");
}

#[test]
fn pages_go_from_new_to_old() {
    let log = MemoryLog::default();
    let rejects = open(&log);
    assert_eq!(rejects.list(None, None, 10).expect("page"), Page::default());
    let all = (0..2_500).map(|i| at(&rejects, if i % 5 == 0 { "a" } else { "b" }, 0, i)).collect::<Vec<_>>();
    rejects.record(&all).expect("recorded");
    let (mut listed, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = rejects.list(Some("a"), cursor, 125).expect("page");
        listed.extend(page.rejects.iter().map(|reject| reject.offset.expect("an offset")));
        pages += 1;
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, 4, "no empty page at the end");
    assert_eq!(listed, (0..500).rev().map(|i| i * 5).collect::<Vec<_>>());
}

#[test]
fn long_records_are_cut_and_stay_text() {
    let rejects = open(&MemoryLog::default());
    let kept = |record: &[u8]| rejects.rejected("a", String::new(), record).record;
    assert_eq!(kept("😀".repeat(2_000).as_bytes()), "😀".repeat(1_024));
    assert_eq!(kept(format!("x{}", "😀".repeat(2_000)).as_bytes()), format!("x{}", "😀".repeat(1_023)));
    assert_eq!(kept(b"a\xffb"), "a\u{fffd}b");
    assert!(kept(&[0xff; 5_000]).len() <= MAX_RECORD_BYTES);
}
