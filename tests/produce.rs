//! `anabranch produce`, and whom the command line takes for its project's server.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Project, Server, anabranch, data, kafka};

const SQL: &str = "
CREATE TABLE taps (id BIGINT, ts TIMESTAMP NOT NULL) WITH (topic = 'taps', event_time = 'ts', partitions = 2);
CREATE MATERIALIZED VIEW ever AS SELECT count(*) AS n, sum(id) AS ids FROM taps;
";

fn tap(id: usize) -> String {
    json!({"id": id, "ts": "2024-01-15T10:30:45Z"}).to_string()
}

fn taps(count: usize) -> String {
    (1..=count).map(|id| tap(id) + "\n").collect()
}

fn produce(project: &Project, arguments: &[&str]) -> Command {
    let mut command = anabranch();
    command.args(["produce", "taps", "--output", "json", "--project"]).arg(project.path()).args(arguments);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn outcome(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON on stdout: {}", stderr(output)))
}

/// How many events there are, and the sum of their ids.
fn stored(server: &Server) -> (Value, Value) {
    server.settle("ever");
    let row = server.get("/v1/views/ever/rows")["rows"][0].clone();
    (row["n"].clone(), row["ids"].clone())
}

fn write(folder: &Path, text: &str) -> String {
    let path = folder.join("taps.ndjson");
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_file_is_sent_and_what_became_of_it_is_said() {
    let project = Project::example("social");
    let server = Server::start(&project);
    let output = anabranch()
        .args(["produce", "tweets", "--output", "json", "--project"])
        .args([project.path(), &data("tweets.ndjson")])
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let receipt: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    assert_eq!(receipt["accepted"], 12_118);
    assert_eq!(receipt["offsets"], json!({"0": [0, 12_118]}));
    server.settle("trending_hashtags");
    server.stop();
    // Without a server the command runs the project itself.
    let mut child = anabranch()
        .args(["produce", "tweets", "--project"])
        .arg(project.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let line = r#"{"user_id":"a","text":"x","timestamp":"2017-08-27T00:00:00Z"}"#;
    writeln!(child.stdin.take().expect("stdin"), "{line}\n{{\"text\":1}}").expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(3), "some records were rejected");
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 2"));
    let server = Server::start(&project);
    assert_eq!(server.settle("trending_hashtags")["log_end"], json!({"tweets": {"0": 12_119}}));
}

#[test]
fn a_file_that_was_cut_off_goes_on_and_nothing_is_stored_twice() {
    const LINES: usize = 4_000;
    let check = |project: Project, crash: &str| {
        // The server takes parts of a piece only, and dies with one of them stored and not answered.
        let settings = std::fs::read_to_string(project.path().join("anabranch.toml")).expect("readable");
        project.write("anabranch.toml", &format!("[server]\nmax_body = '16 KiB'\n{settings}"));
        let mut text: Vec<String> = (1..=LINES).map(tap).collect();
        text[2_499] = "nonsense".to_owned();
        let file = write(project.path(), &text.join("\n"));
        let server = Server::start_with(&project, &[("ANABRANCH_CRASH_AT", crash)]).expect("it starts");
        let output = produce(&project, &[&file, "--timeout", "10 s"]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let accepted = outcome(&output)["accepted"].as_u64().expect("a count");
        assert!((1..LINES as u64).contains(&accepted), "{}", stderr(&output));
        let said = stderr(&output);
        assert!(said.contains(&format!("line {}: {}", accepted + 1, server.url)), "{said}");
        assert!(said.contains(&format!("lines 1 to {accepted} are done, {accepted} events of them stored")), "{said}");
        assert!(said.contains("the same command goes on from there"), "{said}");
        server.kill();
        let server = Server::start(&project);
        let output = produce(&project, &[&file]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(stderr(&output).contains("line 2500: not JSON"), "{}", stderr(&output));
        let outcome = outcome(&output);
        assert_eq!((&outcome["accepted"], &outcome["rejected_count"]), (&json!(LINES - 1), &json!(1)));
        assert!(outcome["repeated"].as_u64().expect("a count") > accepted, "the last was stored unseen: {outcome}");
        let ids = LINES * (LINES + 1) / 2 - 2_500;
        assert_eq!(stored(&server), (json!(LINES - 1), json!(ids)));
        assert_eq!(server.get("/v1/rejects")["total"], 1);
    };
    check(Project::with_sql(SQL), "log::after_commit:9");
    if let Some(brokers) = kafka() {
        check(Project::with_sql(SQL).on_kafka(&brokers), "kafka::after_commit:4");
    }
}

#[test]
fn a_file_is_stored_once_unless_it_is_to_be_again() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    let file = write(project.path(), &taps(10));
    let send = |arguments: &[&str]| produce(&project, arguments).output().expect("it runs");
    assert_eq!(outcome(&send(&[&file]))["repeated"], 0);
    let again = send(&[&file]);
    assert_eq!((&outcome(&again)["accepted"], &outcome(&again)["repeated"]), (&json!(10), &json!(10)));
    assert!(stderr(&again).contains("10 events were stored before"), "{}", stderr(&again));
    assert_eq!(stored(&server).0, 10);
    assert_eq!(outcome(&send(&[&file, "--again"]))["repeated"], 0);
    assert_eq!(stored(&server).0, 20);
    let copy = project.path().join("copy.ndjson");
    std::fs::copy(&file, &copy).expect("copied");
    send(&[copy.to_str().expect("UTF-8")]);
    assert_eq!(stored(&server).0, 30, "another file is another file");
    for _ in 0..2 {
        let mut child = produce(&project, &[]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
        child.stdin.take().expect("stdin").write_all(taps(1).as_bytes()).expect("written");
        assert!(child.wait().expect("it ends").success());
    }
    assert_eq!(stored(&server).0, 32, "what comes from elsewhere is new");
}

#[test]
fn a_quiet_input_is_sent_before_it_ends() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    let mut child = produce(&project, &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut stdin = child.stdin.take().expect("stdin");
    let until_stored = |count: u64| {
        server.until("ever", |detail| {
            let ends = detail["log_end"]["taps"].as_object().expect("ends").values();
            ends.map(|end| end.as_u64().expect("an offset")).sum::<u64>() == count
        })
    };
    write!(stdin, "{}\n{{\"id\":", tap(1)).expect("written");
    stdin.flush().expect("written");
    until_stored(1);
    writeln!(stdin, "2,\"ts\":\"2024-01-15T10:30:45Z\"}}").expect("written");
    stdin.flush().expect("written");
    until_stored(2);
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), &outcome(&output)["accepted"]), (Some(0), &json!(2)));
}

#[test]
fn a_line_that_is_too_long_is_passed_over_and_named() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    let long = |bytes: usize| format!("{{\"id\":1,\"text\":\"{}\"}}\n", "x".repeat(bytes));
    let text = [taps(1), long(5 << 20), taps(1), long(2 << 20), taps(1)].concat();
    let file = write(project.path(), &text);
    let output = produce(&project, &[&file]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("line 2: 5242898 bytes long, which is too long: it was passed over"), "{said}");
    assert!(said.contains("line 4: 2097170 bytes long, but at most 1048576 are taken"), "{said}");
    assert_eq!((&outcome(&output)["accepted"], stored(&server).0), (&json!(3), json!(3)));
}

#[test]
fn the_server_of_another_project_is_not_taken_for_ones_own() {
    let (mine, other) = (Project::with_sql(SQL), Project::with_sql(SQL));
    let server = Server::start(&mine);
    let named = |project: &Project| project.data().join("server.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(named(&mine)).expect("readable")).expect("JSON");
    server.kill();
    // By now another project's server has the port that this one had.
    let others = Server::start(&other);
    file["url"] = others.url.clone().into();
    std::fs::write(named(&mine), file.to_string()).expect("written");
    let path = write(mine.path(), &taps(5));
    let output = produce(&mine, &[&path]).output().expect("it runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stored(&others).0, 0);
    // A copy of a project has the name of the server that runs the other, and isn't run by it.
    let copy = Project::with_sql(SQL);
    std::fs::create_dir_all(copy.data()).expect("a folder");
    for name in ["server.json", "project"] {
        std::fs::copy(other.data().join(name), copy.data().join(name)).expect("copied");
    }
    let output = produce(&copy, &[&path]).output().expect("it runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stored(&others).0, 0);
    let server = Server::start(&mine);
    assert_eq!(stored(&server).0, 5, "it went to this project's own log");
    let output = produce(&mine, &[&path, "--again"]).output().expect("it runs");
    assert!(!stderr(&output).contains("no server runs"), "{}", stderr(&output));
    assert_eq!(stored(&server).0, 10, "its own server is found");
}

#[test]
fn a_paused_server_is_given_up_after_the_timeout() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    server.signal("STOP");
    let run = |arguments: &[&str]| {
        let output =
            anabranch().args(["rows", "ever", "--timeout", "300 ms"]).args(arguments).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        stderr(&output)
    };
    let said = run(&["--project", project.path().to_str().expect("UTF-8")]);
    assert!(said.contains("doesn't answer within 0.3 s") && said.contains(&server.url), "{said}");
    let said = run(&["--server", &server.url]);
    assert!(said.contains(&format!("{} doesn't answer in time", server.url)), "{said}");
    server.signal("CONT");
    server.stop();
}

#[test]
fn a_cluster_that_is_not_there_is_named_with_its_setting() {
    let project = Project::with_sql(SQL).on_kafka("127.0.0.1:1");
    let Err(said) = Server::start_with(&project, &[]) else { panic!("it started") };
    assert!(said.contains("the Kafka cluster at `127.0.0.1:1` can't be reached: listing the topics"), "{said}");
    assert!(said.contains("set `brokers` under [kafka] in anabranch.toml"), "{said}");
}
