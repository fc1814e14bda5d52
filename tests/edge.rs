//! The edge of the process: connections without end, few open files, and folders of any name.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Project, Server, anabranch, until};

const SQL: &str = "
CREATE TABLE clicks (page TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
CREATE MATERIALIZED VIEW per_page AS SELECT page, count(*) AS n FROM clicks GROUP BY page;
";

fn click(page: &str) -> String {
    json!({"page": page, "ts": "2024-01-15T10:00:30Z"}).to_string()
}

/// How many clicks each page has.
fn counts(answer: &Value) -> Value {
    let rows = answer["rows"].as_array().expect("rows").iter();
    rows.map(|row| (row["page"].as_str().expect("a page").to_owned(), row["n"].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// A server that may open so many files and no more.
fn with_files(project: &Project, files: u32) -> Server {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {files} && exec \"$@\""), "sh"]);
    command.arg(anabranch().get_program()).args(["up", "--listen", "127.0.0.1:0"]).arg(project.path());
    Server::run("up", command).unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
}

#[test]
fn as_many_idle_connections_as_open_files_leave_the_layers_at_work() {
    let project = Project::with_sql(SQL);
    let server = with_files(&project, 512);
    // What needs files of its own to start has them before any connection can take them.
    let threads = server.threads();
    for kind in ["polars-", "async-executor-"] {
        assert!(threads.iter().any(|thread| thread.starts_with(kind)), "{kind} is not among {threads:?}");
    }
    let address: SocketAddr = server.url.trim_start_matches("http://").parse().expect("an address");
    let _idle: Vec<TcpStream> = (0..600).map(|_| TcpStream::connect(address).expect("connected")).collect();
    // From another address there is room still.
    let client = reqwest::blocking::Client::builder().local_address(Some("127.0.0.2".parse().expect("an address")));
    let client = client.build().expect("a client");
    let get = |path: &str| -> Value {
        client.get(format!("{}{path}", server.url)).send().expect("an answer").json().expect("JSON")
    };
    let sent = client.post(format!("{}/v1/topics/clicks/events", server.url)).body(click("/")).send();
    assert_eq!(sent.expect("an answer").status(), 200);
    until("the view is caught up", || get("/v1/views/per_page")["lag"] == 0);
    let job = client.post(format!("{}/v1/jobs", server.url)).json(&json!({"kind": "batch"})).send().expect("an answer");
    let id = job.json::<Value>().expect("a job")["id"].as_str().expect("an id").to_owned();
    until("the run ends", || {
        let job = get(&format!("/v1/jobs/{id}"));
        assert_ne!(job["state"], "failed", "{job}");
        job["state"] == "succeeded"
    });
    assert_eq!(counts(&get("/v1/views/per_page/rows")), json!({"/": 1}));
    assert_eq!(get("/readyz"), json!({"ready": true, "reasons": []}));
    let metrics =
        client.get(format!("{}/metrics", server.url)).send().and_then(|answer| answer.text()).expect("metrics");
    let refused = metrics.lines().find_map(|line| line.strip_prefix("anabranch_connections_refused_total "));
    assert!(refused.is_some_and(|refused| refused.parse::<f64>().expect("a number") > 300.0), "{refused:?}");
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_it_goes() {
    let project = Project::with_sql(SQL);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 64 && exec \"$@\"", "sh"]);
    command.arg(anabranch().get_program()).args(["up", "--listen", "127.0.0.1:0"]).arg(project.path());
    let server = Server::run("up", command).unwrap_or_else(|log| panic!("the server did not start:\n{log}"));
    assert!(server.open_files() > 64, "{}", server.open_files());
}

/// A project at work, stopped and started again: events, a batch version, and rows by both layers.
fn works(folder: &Path, from: &Path, named: &[&str]) {
    let run = |arguments: &[&str]| {
        let output = anabranch().current_dir(from).args(arguments).output().expect("it runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let start = || {
        let mut command = anabranch();
        command.current_dir(from).args(["up", "--listen", "127.0.0.1:0"]).args(named);
        Server::run("up", command).unwrap_or_else(|log| panic!("{folder:?} did not start:\n{log}"))
    };
    let project = named.iter().rfind(|name| **name != "--project").copied().unwrap_or(".");
    let server = start();
    server.post("clicks", click("/a"));
    server.batch("per_page");
    server.post("clicks", click("/b"));
    server.settle("per_page");
    assert_eq!(counts(&server.get("/v1/views/per_page/rows")), json!({"/a": 1, "/b": 1}));
    server.stop();
    let server = start();
    server.settle("per_page");
    let answer = server.get("/v1/views/per_page/rows");
    assert_eq!((counts(&answer), &answer["exact"]), (json!({"/a": 1, "/b": 1}), &json!(true)), "{answer}");
    assert_eq!(server.batch("per_page"), 2);
    assert!(run(&["rows", "per_page", "--project", project, "--output", "csv"]).contains("/a,1"));
    server.stop();
    assert!(run(&["rows", "per_page", "--project", project, "--output", "csv"]).contains("/b,1"));
    assert!(run(&["batch", "run", "--project", project]).contains('2'), "without a server too");
    assert!(folder.join(".anabranch/archive/clicks/_delta_log").is_dir(), "the archive is where the project is");
}

#[test]
fn a_project_runs_in_a_folder_of_any_name() {
    for name in ["a b", "per%20cent%zz", "back\\slash", "a=b", "[x]*?{y}", "ü#q?x&y;z", "s3:c", ".hidden", "~"] {
        let folder = tempfile::tempdir().expect("a folder");
        let project = folder.path().join(name);
        std::fs::create_dir_all(project.join("views")).expect("made");
        std::fs::write(project.join("views/views.sql"), SQL).expect("written");
        std::fs::write(project.join("anabranch.toml"), "[batch]\nscheduler = false\n").expect("written");
        works(&project, folder.path(), &[name]);
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(left, [name], "nothing is written beside it");
    }
}

#[test]
fn a_project_runs_by_any_path_to_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mine, other) = (folder.path().join("mine"), folder.path().join("other"));
    std::fs::create_dir_all(&other).expect("made");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&mine, &link).expect("linked");
    let linked = link.to_str().expect("text");
    for (from, named) in [
        (&other, &["../mine"][..]),
        (&other, &["--project", "../mine/./../mine/"]),
        (&mine.join("views"), &["--project", ".."]),
        (&mine, &[]),
        (&other, &[linked]),
    ] {
        std::fs::create_dir_all(mine.join("views")).expect("made");
        std::fs::write(mine.join("views/views.sql"), SQL).expect("written");
        std::fs::write(mine.join("anabranch.toml"), "[batch]\nscheduler = false\n").expect("written");
        works(&mine, from, named);
        std::fs::remove_dir_all(mine.join(".anabranch")).expect("removed");
    }
}
