//! Single flipped bits in whatever is stored: no answer is wrong and marked exact, and nothing crashes.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use proptest::test_runner::{RngAlgorithm, TestRng};
use rand::RngExt;
use serde_json::{Value, json};

use crate::support::{Project, Server, anabranch, copy};

const SQL: &str = "
CREATE TABLE events (user_id TEXT, amount BIGINT, ts TIMESTAMP NOT NULL) WITH (topic = 'events', event_time = 'ts');
CREATE MATERIALIZED VIEW per_user AS
SELECT window_start, window_end, user_id, count(*) AS n, sum(amount) AS amount
FROM TUMBLE(events, ts, INTERVAL '1 day') GROUP BY window_start, window_end, user_id;
CREATE MATERIALIZED VIEW ever AS SELECT count(*) AS n, sum(amount) AS amount FROM events;
";

const SETTINGS: &str = "[batch]\nscheduler = false\n[archive]\ninterval = '50 ms'\n";

/// How many processes are looked at side by side.
const AT_ONCE: usize = 4;

/// Events that are in versions, and those that only the speed layer and the log hold when the bit flips.
const ARCHIVED: i64 = 60;
const ALL: i64 = 75;

/// How long a process gets to settle on what it finds, or to say why it doesn't.
const SETTLES: Duration = Duration::from_secs(60);

fn event(i: i64) -> String {
    json!({"user_id": format!("u{}", i % 3), "amount": i * i, "ts": format!("2024-01-{:02}T10:00:{:02}Z", 15 + i / 40, i % 60)})
        .to_string()
}

/// Count and sum of events.
fn ever(events: Range<i64>) -> (i64, i64) {
    (events.end - events.start, events.map(|i| i * i).sum())
}

/// The same by day and user.
fn per_user(events: Range<i64>) -> BTreeMap<(String, String), (i64, i64)> {
    let mut rows = BTreeMap::new();
    for i in events {
        let row: &mut (i64, i64) =
            rows.entry((format!("2024-01-{:02}T00:00:00Z", 15 + i / 40), format!("u{}", i % 3))).or_default();
        *row = (row.0 + 1, row.1 + i * i);
    }
    rows
}

/// Fails if an answer that is marked exact isn't right; the events it is of, if it is marked so.
fn checked(answer: &Value) -> Option<Range<i64>> {
    if answer["exact"] != true {
        return None;
    }
    let offsets = |layer: &str| {
        let offset = |i: usize| answer["sources"][layer]["offsets"]["events"]["0"][i].as_i64();
        Some(offset(0)?..offset(1)?)
    };
    let events = match (offsets("batch"), offsets("speed")) {
        (Some(batch), Some(speed)) => batch.start..batch.end.max(speed.end),
        (batch, speed) => batch.or(speed).unwrap_or(0..0),
    };
    let number = |row: &Value, name: &str| row[name].as_i64().unwrap_or(0);
    let rows = answer["rows"].as_array().expect("rows");
    if answer["view"] == "ever" {
        assert_eq!((number(&rows[0], "n"), number(&rows[0], "amount")), ever(events.clone()), "{answer}");
        return Some(events);
    }
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let found: BTreeMap<_, _> = rows
        .iter()
        .map(|row| ((text(row, "window_start"), text(row, "user_id")), (number(row, "n"), number(row, "amount"))))
        .collect();
    assert_eq!(found, per_user(events.clone()), "{answer}");
    Some(events)
}

fn answers(server: &Server) -> Vec<Value> {
    let mut answers = Vec::new();
    for mode in ["batch", "speed", "merged"] {
        let range = "from=2024-01-01T00:00:00Z&to=2024-02-01T00:00:00Z";
        for path in [format!("ever/rows?mode={mode}"), format!("per_user/rows?mode={mode}&{range}")] {
            let response = server.try_get(&format!("/v1/views/{path}")).expect("the server answers");
            if response.status().is_success() {
                answers.push(response.json().expect("JSON"));
            }
        }
    }
    answers
}

/// What a flip came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Nothing noticed it, and nothing was wrong.
    Harmless,
    /// The process said what is wrong, and answers that it concerned weren't marked exact; or it was mended.
    Noticed,
    /// The process didn't start and said why.
    Refused,
}

/// Starts a process on a folder with a damaged file of a kind, looks at its answers, and has it compute all anew.
fn look(project: &Project, kind: &str) -> Outcome {
    let server = match Server::start_with(project, &[]) {
        Ok(server) => server,
        Err(said) => {
            assert!(!said.contains("panicked") && !said.trim().is_empty(), "it crashed: {said}");
            let folder = project.data().join("log").display().to_string();
            assert!(
                kind != "log" || (said.contains(&folder) && said.contains("`anabranch log adopt TABLE`")),
                "{said}"
            );
            return Outcome::Refused;
        }
    };
    let started = Instant::now();
    // A log that opens has all that was acknowledged.
    assert_eq!(server.get("/v1/views/ever")["log_end"], json!({"events": {"0": ALL}}));
    let settled = loop {
        let answers = answers(&server);
        let exact = answers.iter().filter_map(checked).filter(|events| *events == (0..ALL)).count();
        // Of both views merged, and of both by the speed layer alone only if it has all.
        if exact >= 2 && server.get("/v1/views/ever")["lag"] == 0 && server.get("/v1/views/per_user")["lag"] == 0 {
            break true;
        }
        let readiness = server.try_get("/readyz").expect("an answer").text().expect("a body");
        let reasons = serde_json::from_str::<Value>(&readiness).expect("JSON");
        let has_reason = answers.iter().any(|answer| answer["reason"].is_string());
        let is_stopped = reasons["reasons"].to_string().contains("stopped");
        if has_reason || is_stopped {
            break false;
        }
        assert!(started.elapsed() < SETTLES, "events are missing, and nothing says why: {answers:?}, {readiness}");
        std::thread::sleep(Duration::from_millis(10));
    };
    let ended = server.run_job(&json!({"kind": "batch", "full": true}));
    let of_batch: Vec<Range<i64>> = answers(&server).iter().filter_map(checked).collect();
    let is_mended = ended["state"] == "succeeded";
    assert!(is_mended || ended["error"].is_string(), "{ended}");
    assert!(!is_mended || of_batch.contains(&(0..ALL)), "a run succeeded, and nothing is exact: {of_batch:?}");
    if settled && is_mended { Outcome::Harmless } else { Outcome::Noticed }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        match entry.path() {
            path if path.is_dir() => files(&path, found),
            path => found.push(path),
        }
    }
}

/// What kind of file it is: the first folder below the data, and the log of a table apart from its files.
fn kind(path: &str) -> String {
    let first = path.split('/').next().unwrap_or(path);
    let of_table = ["_delta_log", "_panes"].into_iter().find(|part| path.contains(part));
    of_table.map_or_else(|| first.to_owned(), |part| format!("{first}/{part}"))
}

#[test]
fn no_bit_that_flips_in_a_stored_file_makes_a_wrong_answer_that_is_marked_exact_or_a_crash() {
    let flips = std::env::var("ANABRANCH_TEST_FLIPS").map_or(300, |text| text.parse().expect("a number"));
    let seed = std::env::var("ANABRANCH_TEST_SEED").map_or(77, |text| text.parse().expect("a number"));
    eprintln!("{flips} flips by ANABRANCH_TEST_SEED={seed}");
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", SETTINGS);
    let server = Server::start(&project);
    let lines = |range: Range<i64>| range.map(event).collect::<Vec<_>>().join("\n");
    for range in [0..ARCHIVED / 2, ARCHIVED / 2..ARCHIVED] {
        server.post("events", lines(range));
        server.batch_all(&["per_user", "ever"]);
    }
    server.post("events", lines(ARCHIVED..ALL));
    server.settle("per_user");
    server.settle("ever");
    assert_eq!(answers(&server).iter().filter_map(checked).filter(|events| *events == (0..ALL)).count(), 2);
    server.stop();

    let mut stored = Vec::new();
    files(&project.data(), &mut stored);
    // Where the server was is forgotten with it, and the locks are empty.
    stored.retain(|path| !path.ends_with("server.json") && fs::metadata(path).expect("there").len() > 0);
    stored.sort();
    let mut by_kind: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in stored {
        let path = path.strip_prefix(project.data()).expect("below").to_owned();
        by_kind.entry(kind(path.to_str().expect("a name"))).or_default().push(path);
    }
    let kinds: Vec<&String> = by_kind.keys().collect();
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[u64::to_le_bytes(seed); 4].concat());
    let flips: Vec<(&str, &PathBuf, usize)> = (0..flips)
        .map(|flip: usize| {
            let kind = kinds[flip % kinds.len()];
            let path = &by_kind[kind][random.random_range(0..by_kind[kind].len())];
            let content = fs::read(project.data().join(path)).expect("read");
            // Files are made larger beforehand: what was written ends where the zeros begin.
            let written = content.iter().rposition(|&byte| byte != 0).map_or(content.len(), |last| last + 1);
            (kind.as_str(), path, random.random_range(0..written * 8))
        })
        .collect();
    let outcomes: Mutex<BTreeMap<(&str, Outcome), usize>> = Mutex::default();
    std::thread::scope(|scope| {
        for share in 0..AT_ONCE {
            let (flips, outcomes, project) = (&flips, &outcomes, &project);
            scope.spawn(move || {
                for (kind, path, bit) in flips.iter().skip(share).step_by(AT_ONCE) {
                    let damaged = Project::with_sql(SQL);
                    damaged.write("anabranch.toml", SETTINGS);
                    copy(&project.data(), &damaged.data());
                    let file = damaged.data().join(path);
                    let mut content = fs::read(&file).expect("read");
                    content[bit / 8] ^= 1 << (bit % 8);
                    fs::write(&file, content).expect("written");
                    eprintln!("bit {bit} of {}, in {}", path.display(), damaged.path().display());
                    let outcome = look(&damaged, kind);
                    *outcomes.lock().expect("no panic").entry((kind, outcome)).or_default() += 1;
                }
            });
        }
    });
    eprintln!("{:#?}", outcomes.lock().expect("no panic"));
}

#[test]
fn a_check_names_damaged_files_and_the_way_out_and_a_rebuild_mends_them() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    server.post("events", (0..ARCHIVED).map(event).collect::<Vec<_>>().join("\n"));
    server.batch_all(&["per_user", "ever"]);
    server.stop();
    let run = |arguments: &[&str]| {
        let output = anabranch().arg("archive").args(arguments).arg("--project").arg(project.path()).output();
        let output = output.expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).expect("text"))
    };
    let (is_whole, said) = run(&["check"]);
    assert!(is_whole && said.contains("table `events`: 2 files; 0 files are damaged"), "{said}");
    let mut stored = Vec::new();
    files(&project.data(), &mut stored);
    let is_damaged = |path: &&PathBuf| {
        let path = path.to_string_lossy();
        path.ends_with(".parquet") && (path.contains("archive/events") || path.contains("per_user/_panes"))
    };
    let damaged: Vec<&PathBuf> = stored.iter().filter(is_damaged).collect();
    assert_eq!(damaged.len(), 4);
    for path in &damaged {
        let mut content = fs::read(path).expect("read");
        let middle = content.len() / 2;
        content[middle] ^= 1;
        fs::write(path, content).expect("written");
    }
    let (is_whole, said) = run(&["check", "events"]);
    assert!(!is_whole && damaged.iter().all(|path| said.contains(path.to_str().expect("a name"))), "{said}");
    assert!(
        said.contains("anabranch archive rebuild events") && said.contains("anabranch batch run per_user"),
        "{said}"
    );
    let (is_done, said) = run(&["rebuild", "events"]);
    assert!(is_done && said.contains("rows are archived anew"), "{said}");
    assert!(run(&["check"]).0);
    let server = Server::start(&project);
    server.settle("ever");
    let answers = answers(&server);
    assert!(answers.iter().filter_map(checked).filter(|events| *events == (0..ARCHIVED)).count() >= 2, "{answers:?}");
}
