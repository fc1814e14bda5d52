use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::{Change, ColumnType, Commit, DataFile, DeltaTable, Layout, Sweeper, TableError, commits};

fn layout(columns: &[(&str, ColumnType)]) -> Layout {
    let columns = columns.iter().map(|&(name, data_type)| (name.to_owned(), data_type)).collect();
    Layout { columns, partition_by: vec!["day".into()] }
}

const COLUMNS: [(&str, ColumnType); 3] =
    [("user", ColumnType::Text), ("ts", ColumnType::Timestamp), ("day", ColumnType::Date)];

async fn create(root: &Path) -> DeltaTable {
    DeltaTable::open_or_create(root, &layout(&COLUMNS)).await.expect("create")
}

fn file(path: &str, rows: u64) -> DataFile {
    DataFile {
        path: format!("day=2024-01-15/{path}"),
        size: 10,
        rows: Some(rows),
        partition: [("day".to_owned(), Some("2024-01-15".to_owned()))].into(),
        modified_ms: 1_700_000_000_000,
        stats: Some(format!("{{\"numRecords\":{rows}}}")),
        sha256: Some(format!("{rows:064x}")),
    }
}

fn adding(path: &str, offset: i64) -> Change {
    Change {
        add: vec![file(path, 3)],
        transactions: vec![("app".into(), offset)],
        note: json!({"coverage": {"0": [0, offset]}}),
        ..Change::default()
    }
}

#[tokio::test]
async fn a_commit_is_read_back_with_its_files_its_note_and_its_transaction() {
    let dir = tempfile::tempdir().expect("directory");
    let root = dir.path().join("a table");
    assert!(DeltaTable::open(&root).await.expect("open").is_none());
    let mut table = create(&root).await;
    assert_eq!(table.note::<Value>().await.expect("note"), None);
    assert_eq!(table.commit(adding("one", 5)).await.expect("commit"), 1);
    table.commit(adding("two", 9)).await.expect("commit");
    let table = DeltaTable::open(&root).await.expect("open").expect("table");
    assert_eq!((table.version(), table.layout().expect("layout")), (2, layout(&COLUMNS)));
    assert_eq!(table.files(), [file("one", 3), file("two", 3)]);
    assert_eq!(table.note::<Value>().await.expect("note"), Some((2, json!({"coverage": {"0": [0, 9]}}))));
    assert_eq!(table.transaction("app").await.expect("transaction"), Some(9));
    let before = table.at(1).await.expect("at");
    assert_eq!((before.files().len(), before.transaction("app").await.expect("transaction")), (1, Some(5)));
}

#[tokio::test]
async fn a_table_may_be_in_a_folder_of_any_name() {
    let dir = tempfile::tempdir().expect("directory");
    for name in ["a b", "a%20b%zz", "a\\b", "x/../y", "#a?b", "a=b", "[a]*{b}", "ü"] {
        let root = dir.path().join(name);
        std::fs::create_dir_all(dir.path().join("x")).expect("a folder");
        let mut table = create(&root).await;
        table.commit(adding("one", 5)).await.expect("commit");
        let table = DeltaTable::open(&root).await.expect("open").expect("table");
        assert_eq!((table.version(), table.files()), (1, vec![file("one", 3)]), "{name}");
        assert!(root.join("_delta_log/00000000000000000001.json").is_file(), "{name}");
    }
}

#[tokio::test]
async fn of_two_writers_one_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let (mut one, mut other) = (create(dir.path()).await, create(dir.path()).await);
    assert!(!other.is_superseded().await.expect("look"));
    one.commit(adding("one", 5)).await.expect("commit");
    assert!(other.is_superseded().await.expect("look"));
    let refused = other.commit(adding("two", 5)).await.expect_err("refused");
    assert!(matches!(refused, TableError::Superseded { version: 0, .. }), "{refused}");
    assert!(!refused.is_transient());
    other.refresh().await.expect("refresh");
    assert_eq!(other.files(), [file("one", 3)]);
    assert_eq!(other.commit(adding("two", 9)).await.expect("commit"), 2);
}

#[tokio::test]
async fn a_rearrangement_and_a_foreign_commit_keep_the_note() {
    let dir = tempfile::tempdir().expect("directory");
    let mut table = create(dir.path()).await;
    table.commit(adding("one", 5)).await.expect("commit");
    let mut rewritten = adding("whole", 5);
    rewritten.remove.push(file("one", 3));
    rewritten.is_rearrangement = true;
    table.commit(rewritten).await.expect("commit");
    assert_eq!(table.files(), [file("whole", 3)]);
    // Another program's commit has no note.
    let foreign = json!({"commitInfo": {"timestamp": 0, "operation": "OPTIMIZE"}}).to_string();
    std::fs::write(dir.path().join("_delta_log/00000000000000000003.json"), foreign).expect("write");
    table.refresh().await.expect("refresh");
    assert_eq!(table.version(), 3);
    assert_eq!(table.note::<Value>().await.expect("note").map(|(version, _)| version), Some(2));
}

#[tokio::test]
async fn a_table_may_gain_columns() {
    let dir = tempfile::tempdir().expect("directory");
    let mut table = create(dir.path()).await;
    let wider = layout(&[COLUMNS[0], ("extra", ColumnType::BigInt), COLUMNS[1], COLUMNS[2]]);
    table.commit(Change { layout: Some(wider.clone()), ..Change::default() }).await.expect("commit");
    let table = DeltaTable::open(dir.path()).await.expect("open").expect("table");
    assert_eq!(table.layout().expect("layout"), wider);
}

#[tokio::test]
async fn a_table_outlives_its_checkpoints() {
    let dir = tempfile::tempdir().expect("directory");
    let mut table = create(dir.path()).await;
    for i in 1..=205 {
        table.commit(adding(&format!("{i:03}"), i)).await.expect("commit");
    }
    assert!(dir.path().join("_delta_log/_last_checkpoint").exists());
    let table = DeltaTable::open(dir.path()).await.expect("open").expect("table");
    assert_eq!((table.version(), table.files().len()), (205, 205));
    assert!(table.files().iter().all(|file| file.rows == Some(3)), "checkpoints keep the counts");
    assert!(table.files().iter().all(|file| file.sha256.is_some()), "and the digests");
    assert_eq!(table.transaction("app").await.expect("transaction"), Some(205));
}

/// Flips a bit of a file.
fn flip(path: &Path, bit: usize) {
    let mut content = std::fs::read(path).expect("read");
    content[bit / 8] ^= 1 << (bit % 8);
    std::fs::write(path, content).expect("write");
}

#[tokio::test]
async fn a_bit_flipped_in_a_commit_is_noticed_wherever_it_is() {
    let dir = tempfile::tempdir().expect("directory");
    let mut table = create(dir.path()).await;
    table.commit(adding("one", 5)).await.expect("commit");
    table.commit(adding("two", 9)).await.expect("commit");
    let read = async || {
        let table = DeltaTable::open(dir.path()).await?.expect("a table");
        Ok::<_, TableError>((
            table.files(),
            table.note::<Value>().await?,
            table.transaction("app").await?,
            table.layout()?,
        ))
    };
    let whole = read().await.expect("whole");
    for commit in 0..=2 {
        let path = dir.path().join(format!("_delta_log/{commit:020}.json"));
        let bits = std::fs::read(&path).expect("read").len() * 8;
        let mut harmless = 0;
        for bit in (0..bits).step_by(23) {
            flip(&path, bit);
            match read().await {
                Ok(found) => {
                    assert_eq!(found, whole, "commit {commit}, bit {bit}");
                    harmless += 1;
                }
                Err(error) => {
                    assert!(error.is_damage() && !error.is_transient(), "{error:?}");
                    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
                }
            }
            flip(&path, bit);
        }
        assert!(harmless < 10, "only in the name of the digest's field: {harmless}");
    }
}

#[tokio::test]
async fn an_empty_or_truncated_commit_is_named() {
    let dir = tempfile::tempdir().expect("directory");
    let mut table = create(dir.path()).await;
    table.commit(adding("one", 5)).await.expect("commit");
    let path = dir.path().join("_delta_log/00000000000000000001.json");
    let whole = std::fs::read(&path).expect("read");
    for length in [0, 1, 20, 60, 120, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).expect("write");
        let error = DeltaTable::open(dir.path()).await.expect_err("damaged");
        assert!(error.is_damage(), "{length}: {error:?}");
        let is_named = error.to_string().contains("00000000000000000001.json is damaged");
        assert!(length < 60 || is_named, "{length}: {error:?}");
    }
}

#[tokio::test]
async fn a_damaged_checkpoint_beside_whole_commits_is_passed_over() {
    let dir = tempfile::tempdir().expect("directory");
    let mut table = create(dir.path()).await;
    for i in 1..=102 {
        table.commit(adding(&format!("{i:03}"), i)).await.expect("commit");
    }
    let files = table.files();
    let log = dir.path().join("_delta_log");
    let checkpoint = std::fs::read_dir(&log).expect("list").flatten().map(|entry| entry.path());
    let checkpoint = checkpoint.into_iter().find(|path| path.extension().is_some_and(|it| it == "parquet"));
    let checkpoint = checkpoint.expect("a checkpoint");
    let bits = std::fs::metadata(&checkpoint).expect("size").len() as usize * 8;
    for bit in (0..bits).step_by(bits / 20) {
        flip(&checkpoint, bit);
        let mut read = DeltaTable::open(dir.path()).await.expect("open").expect("a table");
        assert_eq!((read.version(), read.files() == files), (102, true), "bit {bit}");
        assert_eq!(read.transaction("app").await.expect("transaction"), Some(102), "bit {bit}");
        read.refresh().await.expect("refresh");
        flip(&checkpoint, bit);
    }
    // By an earlier build, without a digest.
    std::fs::remove_file(checkpoint.with_extension("parquet.sha256")).expect("a digest");
    std::fs::write(&checkpoint, "nothing").expect("write");
    let read = DeltaTable::open(dir.path()).await.expect("open").expect("a table");
    assert_eq!(read.files(), files);
    // Once the commits are gone, there is nothing to go by.
    std::fs::remove_file(log.join("00000000000000000007.json")).expect("a commit");
    assert!(DeltaTable::open(dir.path()).await.expect_err("damaged").is_damage());
}

/// A table's folder with a file that a version names and one that none does.
fn folder_to_sweep() -> (tempfile::TempDir, BTreeSet<String>) {
    let dir = tempfile::tempdir().expect("directory");
    for path in ["day=1/kept", "day=1/left", "_delta_log/0.json"] {
        super::write_file::<_, std::io::Error>(&dir.path().join(path), |_| Ok(())).expect("write");
    }
    (dir, ["day=1/kept".to_owned()].into())
}

#[test]
fn files_are_swept_once_they_have_been_without_a_reference_long_enough() {
    let (dir, referenced) = folder_to_sweep();
    // What a crash left of a commit that was being written.
    std::fs::write(dir.path().join("_delta_log/1.json#123"), "torn").expect("write");
    let mut sweeper = Sweeper::default();
    let mut sweep = |referenced, now| sweeper.sweep(dir.path(), referenced, now, 10).expect("sweep");
    assert_eq!(sweep(&referenced, 100), 0);
    // A reference that comes later ends the count.
    let both = ["day=1/kept".to_owned(), "day=1/left".to_owned()].into();
    assert_eq!(sweep(&both, 105), 0);
    assert_eq!(sweep(&referenced, 110), 1, "the torn one");
    assert_eq!(sweep(&referenced, 115), 0);
    assert_eq!(sweep(&referenced, 120), 1);
    assert!(dir.path().join("day=1/kept").exists() && dir.path().join("_delta_log/0.json").exists());
    assert!(!dir.path().join("day=1/left").exists());
}

#[test]
fn the_sweepers_clock_lasts_over_restarts() {
    let (dir, referenced) = folder_to_sweep();
    let swept: Vec<usize> =
        (0..12).map(|life| Sweeper::default().sweep(dir.path(), &referenced, 100 + life, 10).expect("sweep")).collect();
    assert_eq!(swept.iter().position(|&swept| swept > 0), Some(10), "{swept:?}");
}

#[test]
fn no_jump_of_the_clock_has_a_file_swept_early_or_never() {
    let (dir, referenced) = folder_to_sweep();
    let mut sweeper = Sweeper::default();
    let mut sweep = |now| sweeper.sweep(dir.path(), &referenced, now, 10).expect("sweep");
    const YEAR: i64 = 1_000_000;
    assert_eq!(sweep(100), 0);
    assert_eq!(sweep(YEAR), 0, "however far the clock jumps, half of the while has passed at most");
    assert_eq!(sweep(101), 0, "it is set back");
    assert_eq!([102, 103, 104, 105].map(&mut sweep), [0, 0, 0, 0]);
    assert_eq!(sweep(106), 1);
}

#[test]
fn a_table_without_loose_files_has_nothing_written_down() {
    let (dir, mut referenced) = folder_to_sweep();
    referenced.insert("day=1/left".to_owned());
    assert_eq!(Sweeper::default().sweep(dir.path(), &referenced, 100, 10).expect("sweep"), 0);
    assert!(!dir.path().join("_sweep.json").exists());
}

#[tokio::test]
async fn newer_versions_are_found_although_the_commits_between_were_deleted() {
    let dir = tempfile::tempdir().expect("directory");
    let mut table = create(dir.path()).await;
    let mut known = super::notes::Notes::<Value>::of(dir.path().to_owned());
    known.look().await.expect("look");
    let early = table.clone();
    for offset in 1..102 {
        table.commit(Change { note: json!(offset), ..Change::default() }).await.expect("commit");
    }
    for version in 0..100 {
        std::fs::remove_file(dir.path().join(format!("_delta_log/{version:020}.json"))).expect("deleted");
    }
    assert!(early.is_superseded().await.expect("look"));
    let mut anew = super::notes::Notes::<Value>::of(dir.path().to_owned());
    for notes in [&mut known, &mut anew] {
        notes.look().await.expect("look");
        assert_eq!(notes.newest(), Some(&json!(101)));
    }
    assert!(!table.is_superseded().await.expect("look"));
}

#[tokio::test]
async fn a_table_that_takes_the_place_of_one_that_was_moved_away_is_noticed() {
    let dir = tempfile::tempdir().expect("directory");
    let root = dir.path().join("table");
    let mut table = create(&root).await;
    for offset in 1..5 {
        table.commit(Change { note: json!(offset), ..Change::default() }).await.expect("commit");
    }
    let mut notes = super::notes::Notes::<Value>::of(root.clone());
    notes.look().await.expect("look");
    std::fs::rename(&root, dir.path().join("aside")).expect("moved");
    notes.look().await.expect("look");
    assert_eq!(notes.newest(), Some(&json!(4)));
    let mut other = create(&root).await;
    other.commit(Change { note: json!("anew"), ..Change::default() }).await.expect("commit");
    notes.look().await.expect("look");
    assert_eq!(notes.newest(), Some(&json!("anew")));
    assert!(table.is_superseded().await.expect("look") && table.id() != other.id());
}

#[tokio::test]
async fn what_other_programs_have_committed_is_told_by_commit() {
    let dir = tempfile::tempdir().expect("directory");
    let mut table = create(dir.path()).await;
    table.commit(adding("one", 5)).await.expect("commit");
    let log = dir.path().join("_delta_log");
    let removed = |data_change: bool| json!({"remove": {"path": "day=2024-01-15/one", "dataChange": data_change}});
    for (version, operation, data_change) in [(2, "OPTIMIZE", false), (3, "DELETE", true)] {
        let info = json!({"commitInfo": {"operation": operation}});
        std::fs::write(log.join(format!("{version:020}.json")), format!("{info}\n{}", removed(data_change)))
            .expect("write");
    }
    let day = || ["2024-01-15".to_owned()].into();
    let told = commits(dir.path(), 1..4).await.expect("read").expect("all are there");
    assert_eq!((told[0].is_ours, &told[0].added, told[0].removed.len()), (true, &day(), 0));
    let optimized = Commit { version: 2, operation: "OPTIMIZE".into(), ..Commit::default() };
    let deleted = Commit { version: 3, operation: "DELETE".into(), removed: day(), ..Commit::default() };
    assert_eq!(told[1..], [optimized, deleted]);
    std::fs::remove_file(log.join(format!("{:020}.json", 1))).expect("deleted");
    assert_eq!(commits(dir.path(), 1..4).await.expect("read"), None);
}

#[tokio::test]
async fn a_table_whose_files_do_not_say_all_is_refused() {
    let vector = json!({"storageType": "u", "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^", "offset": 4, "sizeInBytes": 40, "cardinality": 1});
    let with_vector = json!({"add": {"path": "day=2024-01-15/one", "dataChange": true, "modificationTime": 0, "size": 10,
        "partitionValues": {"day": "2024-01-15"}, "deletionVector": vector}});
    let features = |features: &[&str]| json!({"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}});
    for (actions, refused) in [
        (vec![features(&["deletionVectors", "v2Checkpoint"])], None),
        (vec![features(&["deletionVectors"]), with_vector], Some("its file day=2024-01-15/one has a deletion vector")),
        (vec![features(&["typeWidening"])], Some("the feature `typeWidening`")),
    ] {
        let dir = tempfile::tempdir().expect("directory");
        let mut table = create(dir.path()).await;
        let lines: Vec<String> = actions.iter().map(Value::to_string).collect();
        std::fs::write(dir.path().join("_delta_log/00000000000000000001.json"), lines.join("\n")).expect("write");
        let outcomes = [DeltaTable::open(dir.path()).await.map(drop), table.refresh().await];
        for outcome in outcomes {
            match refused {
                None => outcome.expect("readable"),
                Some(what) => {
                    let error = outcome.expect_err("refused");
                    assert!(
                        matches!(error, TableError::Unsupported { .. }) && error.to_string().contains(what),
                        "{error}"
                    );
                }
            }
        }
    }
}
