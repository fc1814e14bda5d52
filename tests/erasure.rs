//! Other programs change the archive while the server runs: after one run answers are of what the archive holds.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::python::{python, run};
use crate::support::{Project, Server, until};

const SQL: &str = "
CREATE TABLE events (name TEXT NOT NULL, ts TIMESTAMP NOT NULL) WITH (topic = 'events', event_time = 'ts', partitions = 2);
CREATE MATERIALIZED VIEW ever AS SELECT name, count(*) AS n FROM events GROUP BY name;
CREATE MATERIALIZED VIEW daily AS SELECT window_start, window_end, name, count(*) AS n
FROM TUMBLE(events, ts, INTERVAL '1 day') GROUP BY window_start, window_end, name;
";

/// How many events each name has by the archive, after an operation on it.
fn alter(python: &Path, project: &Project, arguments: &[&str]) -> (BTreeMap<String, i64>, Value) {
    let archive = project.data().join("archive/events");
    let arguments: Vec<_> = [archive].into_iter().chain(arguments.iter().map(Into::into)).collect();
    let read = run(python, "alter_archive.py", &arguments);
    assert_eq!(read["rows"], read["offsets"], "each event is there once: {read}");
    (serde_json::from_value(read["names"].clone()).expect("counts"), read)
}

fn counts(rows: &[Value]) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry(row["name"].as_str().expect("a name").to_owned()).or_default() += row["n"].as_i64().expect("n");
    }
    counts
}

/// What the views say of all events, merged and by batch alone.
fn answers(server: &Server) -> Vec<BTreeMap<String, i64>> {
    let all = |mode: &str| {
        let ever = server.get(&format!("/v1/views/ever/rows?mode={mode}"));
        let (daily, _) = server.range("daily", "2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z", mode);
        [counts(ever["rows"].as_array().expect("rows")), counts(&daily)]
    };
    ["merged", "batch"].into_iter().flat_map(all).collect()
}

/// How many files the archive's folder has.
fn files(project: &Project) -> usize {
    let days = std::fs::read_dir(project.data().join("archive/events")).expect("a folder");
    days.map(|day| std::fs::read_dir(day.expect("an entry").path()).map_or(0, Iterator::count)).sum()
}

fn post(server: &Server, names: &[&str], days: std::ops::Range<u32>) {
    let event = |day: u32, name: &&str| json!({"name": name, "ts": format!("2024-01-{day:02}T10:00:00Z")}).to_string();
    let events: Vec<String> = days.flat_map(|day| names.iter().map(move |name| event(day, name))).collect();
    server.post_lines("events", &events);
}

#[test]
fn answers_are_of_what_the_archive_holds_whatever_other_programs_do_to_it() {
    let Some(python) = python() else { return };
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", "[archive]\ninterval = '200 ms'\n[batch]\nscheduler = false\n");
    let mut server = Server::start(&project);
    let runs = |server: &Server| drop(server.batch_all(&["ever", "daily"]));
    // Two files a day, which are one after an OPTIMIZE.
    for names in [["ann", "bob"], ["cem", "ann"]] {
        post(&server, &names, 1..11);
        runs(&server);
    }
    let mut held = alter(&python, &project, &["read"]).0;
    assert_eq!(held, [("ann", 20), ("bob", 10), ("cem", 10)].map(|(name, n)| (name.to_owned(), n)).into());
    for (i, operation) in [
        &["delete", "name = 'bob' AND ts < '2024-01-06'"][..],
        &["delete", "day = '2024-01-08'"],
        &["update", "name = 'cem'"],
        &["optimize"],
        &["clean"],
        &["z-order"],
        &["restore"],
        &["vacuum"],
        &["clean"],
    ]
    .into_iter()
    .enumerate()
    {
        let what = operation.join(" ");
        if operation[0] == "restore" {
            let (_, read) = alter(&python, &project, &["read"]);
            alter(&python, &project, &["delete", "name = 'ann'"]);
            let version = read["version"].to_string();
            runs(&server);
            assert!(answers(&server).iter().all(|answer| !answer.contains_key("ann")), "{what}");
            held = alter(&python, &project, &["restore", &version]).0;
        } else {
            let (before, after) = (files(&project), alter(&python, &project, operation).0);
            held = after;
            let is_rewrite = ["optimize", "z-order"].contains(&operation[0]);
            assert!(!is_rewrite || files(&project) > before, "{what} has written files");
        }
        runs(&server);
        for answer in answers(&server) {
            assert_eq!(answer, held, "after {what}");
        }
        // Events that come afterwards are counted once, also after a restart.
        let day = 11 + 2 * u32::try_from(i).expect("few");
        post(&server, &["dan"], day..day + 2);
        *held.entry("dan".to_owned()).or_default() += 2;
        server.settle("ever");
        server.settle("daily");
        assert_eq!(answers(&server)[..2], [held.clone(), held.clone()], "events after {what}");
        if i % 3 == 2 {
            server.stop();
            server = Server::start(&project);
            server.settle("ever");
            server.settle("daily");
            assert_eq!(answers(&server)[..2], [held.clone(), held.clone()], "a restart after {what}");
        }
        runs(&server);
        assert_eq!(answers(&server), vec![held.clone(); 4], "a run after {what}");
    }
    // Of the first deletion.
    let corrections = server.get("/v1/views/ever/corrections?version=3");
    let expected = json!([{"key": {"name": "bob"}, "column": "n", "old": 10, "new": 5, "cause": "erased"}]);
    assert_eq!(corrections["corrections"], expected, "{corrections}");
}

#[test]
fn an_archive_whose_coverage_is_gone_stops_the_server_and_moving_it_away_is_the_way_out() {
    let Some(python) = python() else { return };
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", "[batch]\nscheduler = false\n");
    let server = Server::start(&project);
    post(&server, &["ann", "bob"], 1..6);
    server.batch_all(&["ever", "daily"]);
    server.stop();
    alter(&python, &project, &["optimize"]);
    alter(&python, &project, &["clean"]);
    let Err(said) = Server::start_with(&project, &[]) else { panic!("it started") };
    let archive = project.data().join("archive/events");
    assert!(said.contains(&archive.display().to_string()) && said.contains("_delta_log"), "{said}");
    std::fs::rename(&archive, project.path().join("aside")).expect("moved");
    let server = Server::start(&project);
    server.batch_all(&["ever", "daily"]);
    until("the archive is there again", || archive.exists());
    assert_eq!(answers(&server), vec![[("ann", 5), ("bob", 5)].map(|(name, n)| (name.to_owned(), n)).into(); 4]);
}
