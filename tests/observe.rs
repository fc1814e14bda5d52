//! What `/metrics` shows: all that the Grafana dashboard asks for and `docs/metrics.md` names, and a partition that stalls.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kafka::topic;
use crate::support::{Metrics, Project, Server, kafka, repository};

const SQL: &str = "
CREATE TABLE events (id BIGINT, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts', partitions = 2);
CREATE MATERIALIZED VIEW ever WITH (batch = '0 0 1 1 *', sink = 'kafka', topic = 'totals') AS SELECT count(*) AS n, sum(id) AS ids FROM events;
";

const SETTINGS: &str = "
[speed]
checkpoint_interval = '100 ms'
[archive]
interval = '100 ms'
";

fn project() -> Project {
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", SETTINGS);
    project
}

fn events(ids: std::ops::Range<u32>) -> String {
    ids.map(|id| json!({"id": id, "ts": "2024-01-15T10:00:00Z"}).to_string()).collect::<Vec<_>>().join("\n")
}

/// A metric that the dashboard asks for.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    name: String,
    /// Whose it has to be, if that is said.
    role: Option<String>,
    /// What it has to be of.
    labels: BTreeSet<String>,
}

/// The labels that Prometheus adds to a series.
const ADDED: [&str; 2] = ["job", "role"];

/// The names between a pair of parentheses or braces that begins at the text's start.
fn list(text: &str) -> Vec<&str> {
    let end = text.find([')', '}']).unwrap_or(text.len());
    text[1..end].split(',').map(str::trim).collect()
}

/// The metrics of an expression, each with the labels that it is chosen and added up by.
fn wanted(expression: &str) -> Vec<Wanted> {
    let by: Vec<&str> = expression.match_indices(" by (").flat_map(|(at, _)| list(&expression[at + 4..])).collect();
    let each = expression.match_indices("anabranch_").map(|(at, _)| {
        let name: String = expression[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let rest = &expression[at + name.len()..];
        let selected = if rest.starts_with('{') { list(rest) } else { Vec::new() };
        let selected: Vec<(&str, &str)> = selected.iter().filter_map(|one| one.split_once('=')).collect();
        let role = selected.iter().find(|(label, _)| *label == "role");
        let labels = by.iter().copied().chain(selected.iter().map(|(label, _)| *label));
        Wanted {
            role: role.map(|(_, value)| value.trim_matches('"').to_owned()),
            labels: labels.filter(|label| !ADDED.contains(label)).map(str::to_owned).collect(),
            name,
        }
    });
    each.collect()
}

fn dashboard() -> BTreeSet<Wanted> {
    let path = repository().join("docker/grafana/dashboards/anabranch.json");
    let text = std::fs::read_to_string(path).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("targets"));
    targets.flat_map(|target| wanted(target["expr"].as_str().expect("an expression"))).collect()
}

fn exposes(metrics: &Metrics, wanted: &Wanted) -> bool {
    let is_it = |sample: &crate::support::Sample| {
        sample.name == wanted.name && wanted.labels.iter().all(|label| sample.labels.contains_key(label))
    };
    metrics.0.iter().any(is_it)
}

/// Waits until everything that the dashboard asks for is there, each from whom it is asked of; returns all that is.
fn until_whole(servers: &BTreeMap<&str, Server>, mut wanted: BTreeSet<Wanted>) -> BTreeSet<String> {
    let started = Instant::now();
    loop {
        let all: BTreeMap<&str, Metrics> = servers.iter().map(|(name, server)| (*name, server.metrics())).collect();
        wanted.retain(|one| {
            let mut asked = all.iter().filter(|(name, _)| one.role.as_deref().is_none_or(|role| role == **name));
            !asked.any(|(_, metrics)| exposes(metrics, one))
        });
        if wanted.is_empty() {
            return all.values().flat_map(|metrics| &metrics.0).map(|sample| sample.name.clone()).collect();
        }
        assert!(started.elapsed() < Duration::from_secs(60), "nobody exposes these: {wanted:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What is exposed is described, and the other way round but for what only trouble or an audit brings about.
fn check_documented(exposed: &BTreeSet<String>, is_all: bool) {
    let text = std::fs::read_to_string(repository().join("docs/metrics.md")).expect("the description");
    let documented: BTreeSet<&str> = text.split('`').filter(|word| word.starts_with("anabranch_")).collect();
    let base = |name: &str| {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        histogram.unwrap_or(name).to_owned()
    };
    let exposed: BTreeSet<String> = exposed.iter().map(|name| base(name)).collect();
    let missing: Vec<_> = exposed.iter().filter(|name| !documented.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks {missing:?}");
    if is_all {
        let comes_later = |name: &str| name.ends_with("_lost_offsets") || name.starts_with("anabranch_audit_");
        let unknown = |name: &&&str| !exposed.contains(**name) && !comes_later(name);
        let unknown: Vec<_> = documented.iter().filter(unknown).collect();
        assert!(unknown.is_empty(), "docs/metrics.md names {unknown:?}, which nobody exposes");
    }
}

#[test]
fn what_the_dashboard_asks_for_is_what_a_process_exposes() {
    let project = project();
    let server = Server::start(&project);
    server.post("events", events(0..10));
    server.batch("ever");
    let mut wanted = dashboard();
    assert!(wanted.len() >= 20, "{wanted:?}");
    // The embedded log knows no stalls.
    wanted.retain(|one| !one.name.starts_with("anabranch_stall"));
    let whole = wanted.into_iter().map(|one| Wanted { role: None, ..one }).collect();
    let exposed = until_whole(&BTreeMap::from([("up", server)]), whole);
    check_documented(&exposed, false);
}

#[test]
fn what_the_dashboard_asks_for_is_what_the_roles_expose() {
    let Some(brokers) = kafka() else { return };
    let project = project().on_kafka(&brokers);
    let output = "CREATE MATERIALIZED VIEW copy WITH (sink = 'kafka') AS SELECT id FROM events;";
    project.write("views/output.sql", output);
    let role = |name| (name, Server::start_role(name, &project, &[]).unwrap_or_else(|said| panic!("{name}: {said}")));
    let servers = BTreeMap::from(["ingest", "speed", "archive", "batch", "serve"].map(role));
    servers["ingest"].post("events", events(0..10));
    servers["serve"].settle("ever");
    servers["serve"].batch("ever");
    let exposed = until_whole(&servers, dashboard());
    check_documented(&exposed, true);

    let metrics = servers["speed"].until_metrics("each event was shown", |metrics| {
        metrics.sum("anabranch_speed_freshness_seconds_count", &[("table", "events")]) == Some(10.0)
    });
    let sum = metrics.sum("anabranch_speed_freshness_seconds_sum", &[]).expect("a sum");
    assert!(sum > 0.0, "{sum}");
    let run = [("view", "ever"), ("state", "succeeded")];
    assert_eq!(servers["batch"].metrics().sum("anabranch_run_seconds_count", &run), Some(1.0));
    assert!(servers["batch"].metrics().sum("anabranch_run_seconds_sum", &run) > Some(0.0));
    servers["archive"].until_metrics("all is archived", |metrics| {
        metrics.sum("anabranch_archive_rows_total", &[("table", "events")]) == Some(10.0)
            && metrics.sum("anabranch_archive_lag_records", &[("table", "events")]) == Some(0.0)
    });
}

#[test]
fn a_partition_that_stalls_is_shown_by_name_by_those_that_serve() {
    let Some(brokers) = kafka() else { return };
    let project = Project::with_sql(SQL).on_kafka(&brokers);
    let left_out = format!("kafka::assign {}/0=return", topic(&project, "events"));
    let stall = [("ANABRANCH__KAFKA__STALL", "1 s"), ("ANABRANCH_FAIL_AT", left_out.as_str())];
    let start = |role, settings: &[(&str, &str)]| Server::start_role(role, &project, settings).expect("started");
    let (ingest, serve) = (start("ingest", &[]), start("serve", &[]));
    ingest.post("events", events(0..100));
    let _speed = start("speed", &stall);
    let detail = serve.until("ever", |detail| {
        let [stalls, goes_on] = [0, 1].map(|p| &detail["partitions"][p]);
        stalls["stalled"] == true && goes_on["watermark"] == "2024-01-15T10:00:00Z"
    });
    let [stalls, goes_on] = [0, 1].map(|p| &detail["partitions"][p]);
    let expected = json!({"partition": 0, "watermark": null, "idle": false, "stalled": true, "holds_back": true});
    assert_eq!(stalls, &expected, "{detail}");
    assert_eq!((&goes_on["stalled"], &detail["watermark"]), (&json!(false), &Value::Null), "{detail}");
}

#[test]
fn a_partition_that_stalls_is_counted_and_goes_on_from_its_position() {
    let Some(brokers) = kafka() else { return };
    let project = Project::with_sql(SQL).on_kafka(&brokers);
    let name = topic(&project, "events");
    let left_out_twice = format!("kafka::assign {name}/0=2*return");
    let settings = [("ANABRANCH__KAFKA__STALL", "1 s"), ("ANABRANCH_FAIL_AT", left_out_twice.as_str())];
    let server = Server::start_with(&project, &settings).unwrap_or_else(|said| panic!("{said}"));
    server.post("events", events(0..100));
    let stalled = [("topic", "events"), ("partition", "0")];
    server.until_metrics("it stalled twice and delivers again", |metrics| {
        metrics.sum("anabranch_stalls_total", &stalled) == Some(2.0)
            && metrics.sum("anabranch_stalled", &stalled) == Some(0.0)
    });
    assert_eq!(server.metrics().sum("anabranch_stalls_total", &[("topic", "events"), ("partition", "1")]), Some(0.0));
    server.settle("ever");
    let answer = server.get("/v1/views/ever/rows");
    assert_eq!((&answer["rows"][0]["n"], &answer["rows"][0]["ids"]), (&json!(100), &json!(4_950)), "{answer}");
}
