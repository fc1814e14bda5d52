//! Readers that aren't ours: Python's deltalake, Polars and pandas-style Arrow read the archive and the views, and Apache
//! DataSketches' package for Python reads the sketches.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Project, Server, data, lines, repository};

/// Python with the readers; none on a machine that has none, but never in CI.
pub fn python() -> Option<PathBuf> {
    let python = repository().join(".tools/python/bin/python");
    if !python.is_file() {
        assert!(std::env::var_os("CI").is_none(), "{} is missing: run scripts/tools test", python.display());
        eprintln!("SKIPPED: no {}; run scripts/tools test to install the Python readers", python.display());
        return None;
    }
    Some(python)
}

#[test]
fn the_api_is_described_by_the_rules_and_answers_as_it_is_described() {
    let Some(python) = python() else { return };
    let project = Project::example("clicks");
    let server = Server::start(&project);
    server.post_lines("page_views", &lines(&data("page_views.ndjson"))[..1_000]);
    server.post("page_views", "no event");
    server.batch("clicks_per_url");
    let checked = run(&python, "check_openapi.py", &[server.url.clone().into(), "clicks_per_url".into()]);
    assert!(checked["answers"].as_array().is_some_and(|answers| answers.len() > 10), "{checked}");
    assert_eq!(checked["errors"], json!([]));
}

/// What a script prints, as JSON.
pub fn run(python: &Path, script: &str, arguments: &[PathBuf]) -> Value {
    let script = repository().join("tests/python").join(script);
    let output = Command::new(python).arg(script).args(arguments).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn python_reads_the_archive_and_the_views_and_counts_the_same_rows() {
    let Some(python) = python() else { return };
    let events = lines(&data("tweets.ndjson"));
    let project = Project::example("social");
    let server = Server::start(&project);
    server.post_lines("tweets", &events[..5_000]);
    server.batch("trending_hashtags");
    server.post_lines("tweets", &events[5_000..]);
    server.batch("trending_hashtags");
    let (rows, _) = server.range("trending_hashtags", "2017-08-26T00:00:00Z", "2017-08-28T00:00:00Z", "batch");
    let tables = [project.data().join("archive/tweets"), project.data().join("views/trending_hashtags")];
    let read = run(&python, "read_tables.py", &tables);
    for reader in ["deltalake", "polars"] {
        assert_eq!(read[reader]["archive_rows"], events.len(), "{read}");
        assert_eq!(read[reader]["distinct_offsets"], events.len(), "{read}");
        assert_eq!(read[reader]["view_rows"], rows.len(), "{read}");
        let mentions: i64 = rows.iter().map(|row| row["mentions"].as_i64().expect("mentions")).sum();
        assert_eq!(read[reader]["mentions"], mentions, "{read}");
    }
    assert_eq!(read["coverage"], json!({"tweets": {"0": [0, events.len()]}}), "the commit says what it covers: {read}");
}

#[test]
fn python_s_datasketches_say_of_our_sketches_what_the_answer_says() {
    let Some(python) = python() else { return };
    let project = Project::with_sql(
        "CREATE TABLE visits (page TEXT NOT NULL, user_id TEXT NOT NULL, ms DOUBLE NOT NULL, ts TIMESTAMP NOT NULL)
         WITH (topic = 'visits', event_time = 'ts');
         CREATE MATERIALIZED VIEW pages AS
         SELECT page, approx_count_distinct(user_id) AS users, approx_percentile(ms, 0.9) AS slow FROM visits GROUP BY page;",
    );
    project.write("anabranch.toml", "[speed]\nchunk_interval = '1 day'\n[batch]\nscheduler = false\n");
    // Of page p there are 2,000 × p users, and its times are the numbers from 0 on, shuffled.
    let visits = |page: u64| {
        let visit = move |i: u64| {
            let (user, ms) = (i % (2_000 * page), i * 7_919 % 20_000);
            json!({"page": format!("p{page}"), "user_id": format!("user_{user}"), "ms": ms, "ts": "2024-01-15T10:00:00Z"})
        };
        (0..20_000).map(move |i| visit(i).to_string())
    };
    let server = Server::start(&project);
    server.post_lines("visits", &(1..4).flat_map(visits).collect::<Vec<_>>());
    server.settle("pages");
    server.stop();
    let checkpoints = project.data().join("checkpoints/visits");
    let read = run(&python, "read_sketches.py", &[checkpoints, "pages".into(), "0.9".into()]);
    // What is served now comes from that checkpoint.
    let server = Server::start(&project);
    server.settle("pages");
    let answer = server.get("/v1/views/pages/rows?mode=speed");
    assert_eq!((&answer["exact"], &answer["confidence"]), (&json!(false), &json!(0.99)), "{answer}");
    let rows = answer["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 3, "{answer}");
    for (page, row) in (1..).zip(rows) {
        let read = &read[row["page"].as_str().expect("a page")];
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {row} and {read}"));
        assert_eq!((&read["rows"], &read["quantile"]["n"]), (&json!(1), &json!(20_000)));
        let distinct = ["estimate", "lower", "upper"].map(|name| number(&read["distinct"][name]));
        let said = ["users", "users_lower", "users_upper"].map(|name| number(&row[name]));
        assert_eq!(said, [distinct[0].round(), distinct[1].floor(), distinct[2].ceil()], "{row}, but {read}");
        assert!(said[1] <= 2_000.0 * f64::from(page) && 2_000.0 * f64::from(page) <= said[2], "{row}");
        let quantile = ["value", "lower", "upper"].map(|name| number(&read["quantile"][name]));
        let said = ["slow", "slow_lower", "slow_upper"].map(|name| number(&row[name]));
        assert_eq!(said, quantile, "{row}, but {read}");
        assert!(said[1] <= 17_999.0 && 17_999.0 <= said[2], "{row}");
    }
}
