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
