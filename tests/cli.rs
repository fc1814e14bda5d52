//! The command line: a newcomer's first minutes, and wrong input.

use serde_json::Value;

use crate::support::{Project, Server, anabranch, data, lines};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn init_writes_a_project_that_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let project = folder.path().join("mine");
    let output = anabranch().arg("init").arg(&project).output().expect("it runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = anabranch().args(["views", "check"]).arg(&project).output().expect("it runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = anabranch().args(["views", "list", "--output", "json"]).arg(&project).output().expect("it runs");
    let views: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let view = views["views"][0]["name"].as_str().expect("a view").to_owned();
    let output = anabranch().args(["views", "explain", &view, "--project"]).arg(&project).output().expect("it runs");
    assert!(output.status.success() && !output.stdout.is_empty(), "{}", text(&output.stderr));
    let again = anabranch().arg("init").arg(&project).output().expect("it runs");
    assert_eq!(again.status.code(), Some(2), "it doesn't overwrite: {}", text(&again.stderr));
}

#[test]
fn rows_and_batch_run_from_the_command_line() {
    let project = Project::example("social");
    let server = Server::start(&project);
    server.post_lines("tweets", &lines(&data("tweets.ndjson"))[..2_000]);
    server.settle("trending_hashtags");
    let run = |arguments: &[&str]| {
        let output = anabranch().args(arguments).arg("--project").arg(project.path()).output().expect("it runs");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let job: Value =
        serde_json::from_str(&run(&["batch", "run", "trending_hashtags", "--output", "json"])).expect("JSON");
    assert_eq!(job["versions"]["trending_hashtags"], 1);
    assert_eq!(job["trigger"], "cli");
    assert!(run(&["batch", "history"]).contains("succeeded"));
    let table = run(&["rows", "trending_hashtags", "--limit", "5"]);
    assert!(table.contains("mentions") && table.contains('#'), "{table}");
    let csv = run(&["rows", "trending_hashtags", "--limit", "5", "--output", "csv"]);
    assert_eq!(csv.lines().count(), 6, "{csv}");
    server.stop();
    assert_eq!(run(&["rows", "trending_hashtags", "--limit", "5", "--output", "csv"]), csv, "without a server too");
}

#[test]
fn a_wrong_command_or_setting_is_answered_with_what_is_right() {
    let project = Project::example("social");
    project.write("anabranch.toml", "[sped]\nbatch_records = 1\n");
    let output = anabranch().args(["config", "show"]).arg(project.path()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("speed"), "{}", text(&output.stderr));
    project.write("anabranch.toml", "");
    let mut command = anabranch();
    let output =
        command.args(["config", "show"]).arg(project.path()).env("ANABRANCH__SPEED__BATCH_RECORDS", "77").output();
    assert!(text(&output.expect("it runs").stdout).contains("77"));
    let nowhere = anabranch().args(["views", "check", "/nowhere/at/all"]).output().expect("it runs");
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(text(&nowhere.stderr).contains("/nowhere/at/all"));
    let unknown = anabranch().args(["rows", "nothing", "--project"]).arg(project.path()).output().expect("it runs");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("trending_hashtags"), "{}", text(&unknown.stderr));
}

const CLICKS: &str = "
CREATE TABLE clicks (who TEXT, value {type}, ts TIMESTAMP NOT NULL) WITH (topic = 'clicks', event_time = 'ts');
CREATE MATERIALIZED VIEW by_who AS SELECT who, count(*) AS n, count(value) AS valued FROM clicks GROUP BY who;
";

#[test]
fn what_a_change_of_a_column_does_is_said_before_and_after() {
    let project = Project::with_sql(&CLICKS.replace("{type}", "BIGINT"));
    let run = |arguments: &[&str]| {
        let output = anabranch().args(arguments).output().expect("it runs");
        (output.status.code(), text(&output.stderr))
    };
    let folder = project.path().to_str().expect("a path").to_owned();
    let rebuild = ["archive", "rebuild", "clicks", "--project", &folder];
    assert_eq!(run(&["views", "check", &folder]), (Some(0), "1 tables, 1 views and 0 outputs are right\n".to_owned()));
    assert_eq!(run(&rebuild), (Some(0), "nothing of table `clicks` is archived yet\n".to_owned()));
    let server = Server::start(&project);
    let event = |who: &str, second: u32| format!(r#"{{"who":"{who}","value":1,"ts":"2024-01-15T10:00:{second:02}Z"}}"#);
    server.post("clicks", [event("a", 1), event("b", 2), event("a", 3)].join("\n"));
    server.batch("by_who");
    server.stop();

    project.write("views/views.sql", &CLICKS.replace("{type}", "DOUBLE"));
    let (code, said) = run(&["views", "check", &folder]);
    let expected = [
        "table `clicks`: its new definition begins at offset 3 of partition 0; records before that were read by the old one",
        "  column `value` is DOUBLE and was BIGINT: it is null in them, and the archive keeps the old values",
        "1 tables, 1 views and 0 outputs are right",
    ];
    assert_eq!((code, said.lines().collect::<Vec<_>>()), (Some(0), expected.to_vec()));
    let valued = |server: &Server| {
        server.settle("by_who");
        let answer = server.get("/v1/views/by_who/rows");
        assert_eq!((&answer["exact"], &answer["rows"][0]["who"]), (&true.into(), &"a".into()), "{answer}");
        (answer["rows"][0]["n"].clone(), answer["rows"][0]["valued"].clone())
    };
    let server = Server::start(&project);
    server.post("clicks", event("a", 4));
    assert_eq!(valued(&server), (3.into(), 1.into()), "as it was said");
    // The running process has the log.
    let (code, said) = run(&rebuild);
    assert_eq!(code, Some(1), "{said}");
    server.batch("by_who");
    server.stop();

    let (code, plan) = run(&[&rebuild[..], &["--dry-run"]].concat());
    assert_eq!(code, Some(0), "{plan}");
    assert!(plan.contains("table `clicks`: partition 0: offsets 0 to 4 are archived anew\n"), "{plan}");
    assert!(plan.contains("view `by_who`: a version is computed from it"), "{plan}");
    let (code, said) = run(&rebuild);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        said.strip_prefix(&*plan),
        Some("view `by_who`: version 3 is computed from it\ntable `clicks` is archived anew\n")
    );
    let server = Server::start(&project);
    assert_eq!(valued(&server), (3.into(), 3.into()));
    assert_eq!(server.get("/v1/views/by_who/rows")["sources"]["batch"]["version"], 3);
    server.stop();
    let (code, said) = run(&["archive", "rebuild", "nothing", "--project", &folder]);
    assert_eq!(code, Some(2));
    assert!(said.contains("no table named `nothing`; there are [\"clicks\"]"), "{said}");
}
