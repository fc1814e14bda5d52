//! Readers that aren't ours: Python's deltalake, Polars and pandas-style Arrow read the archive and the views.

use std::process::Command;

use serde_json::Value;

use crate::support::{Project, Server, data, lines, repository};

#[test]
fn python_reads_the_archive_and_the_views_and_counts_the_same_rows() {
    let python = repository().join(".tools/python/bin/python");
    if !python.is_file() {
        assert!(std::env::var_os("CI").is_none(), "{} is missing: run scripts/tools test", python.display());
        eprintln!("SKIPPED: no {}; run scripts/tools test to install the Python readers", python.display());
        return;
    }
    let events = lines(&data("tweets.ndjson"));
    let project = Project::example("social");
    let server = Server::start(&project);
    server.post_lines("tweets", &events[..5_000]);
    server.batch("trending_hashtags");
    server.post_lines("tweets", &events[5_000..]);
    server.batch("trending_hashtags");
    let (rows, _) = server.range("trending_hashtags", "2017-08-26T00:00:00Z", "2017-08-28T00:00:00Z", "batch");
    let output = Command::new(python)
        .arg(repository().join("tests/python/read_tables.py"))
        .args([project.data().join("archive/tweets"), project.data().join("views/trending_hashtags")])
        .output()
        .expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for reader in ["deltalake", "polars"] {
        assert_eq!(read[reader]["archive_rows"], events.len(), "{read}");
        assert_eq!(read[reader]["distinct_offsets"], events.len(), "{read}");
        assert_eq!(read[reader]["view_rows"], rows.len(), "{read}");
        let mentions: i64 = rows.iter().map(|row| row["mentions"].as_i64().expect("mentions")).sum();
        assert_eq!(read[reader]["mentions"], mentions, "{read}");
    }
    assert_eq!(read["coverage"], serde_json::json!({"0": [0, events.len()]}), "the commit says what it covers: {read}");
}
