//! A real server on a project of its own, and what a client does with it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::contract;

/// How long anything may take before a test fails. It is never waited for in vain: every wait ends on a condition.
const PATIENCE: Duration = Duration::from_secs(120);

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of real events. They stand beside the project, not in it.
pub fn data(name: &str) -> PathBuf {
    let folder =
        std::env::var_os("ANABRANCH_TEST_DATA").map_or_else(|| repository().join("../shared/data"), PathBuf::from);
    let path = folder.join(name);
    assert!(path.is_file(), "{} is missing: set ANABRANCH_TEST_DATA to the folder that holds it", path.display());
    path
}

/// The files that a Delta table is made of, as a list in DuckDB's SQL; none if there are none yet. Beside them may be what an attempt has
/// written that was cut off before its commit.
pub fn committed_files(table: &Path) -> Option<String> {
    let commits = std::fs::read_dir(table.join("_delta_log")).ok()?.map(|entry| entry.expect("an entry").path());
    let mut commits: Vec<PathBuf> = commits.filter(|path| path.extension().is_some_and(|it| it == "json")).collect();
    commits.sort();
    let mut files = BTreeSet::new();
    for action in commits.iter().flat_map(|commit| lines(commit)) {
        let action: Value = serde_json::from_str(&action).expect("an action");
        let path = |kind: &str| action[kind]["path"].as_str().map(|path| format!("'{}'", table.join(path).display()));
        files.extend(path("add"));
        if let Some(path) = path("remove") {
            files.remove(&path);
        }
    }
    (!files.is_empty()).then(|| format!("[{}]", files.into_iter().collect::<Vec<_>>().join(", ")))
}

/// The events of an example's README, block by block: the topic, and the lines.
pub fn told(example: &str) -> Vec<(String, String)> {
    let readme = repository().join("examples").join(example).join("README.md");
    let readme = std::fs::read_to_string(readme).expect("the README");
    let mut blocks = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        let Some((_, topic)) = line.split_once("/v1/topics/") else { continue };
        let topic = topic.split('/').next().expect("a topic").to_owned();
        let events: Vec<&str> = lines.by_ref().map(str::trim).take_while(|line| *line != "END").collect();
        blocks.push((topic, events.join("\n")));
    }
    blocks
}

pub fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).expect("readable").lines().map(str::to_owned).collect()
}

/// A project folder that lasts as long as the test.
pub struct Project {
    folder: TempDir,
}

impl Project {
    /// A copy of one of the examples, without its schedules: tests start runs themselves.
    pub fn example(name: &str) -> Self {
        let views = repository().join("examples").join(name).join("views");
        let project = Self::empty();
        for entry in std::fs::read_dir(views).expect("the example's views") {
            let entry = entry.expect("an entry");
            let sql = std::fs::read_to_string(entry.path()).expect("readable");
            project.write(&format!("views/{}", entry.file_name().to_string_lossy()), &sql);
        }
        project
    }

    /// A project with this SQL.
    pub fn with_sql(sql: &str) -> Self {
        let project = Self::empty();
        project.write("views/views.sql", sql);
        project
    }

    fn empty() -> Self {
        let project = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        project.write("anabranch.toml", "[batch]\nscheduler = false\n");
        project
    }

    /// The same project with its log on a Kafka cluster, under topics of its own.
    pub fn on_kafka(self, brokers: &str) -> Self {
        let path = self.path().join("anabranch.toml");
        let settings = std::fs::read_to_string(&path).expect("readable");
        let prefix = self.path().file_name().expect("a name").to_string_lossy().replace('.', "");
        let kafka = format!("[kafka]\nbrokers = '{brokers}'\ntopic_prefix = '{prefix}-'\ngroup = '{prefix}'\n");
        self.write("anabranch.toml", &(settings + &kafka));
        self
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("written");
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn data(&self) -> PathBuf {
        self.path().join(".anabranch")
    }
}

pub fn anabranch() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anabranch"));
    command
        .env_remove("ANABRANCH_CRASH_AT")
        .env_remove("ANABRANCH_FAIL_AT")
        .env_remove("ANABRANCH_CLOCK_AHEAD")
        .env_remove("ANABRANCH_SERVER");
    command
}

/// A running `anabranch up`. Killed without mercy when dropped.
pub struct Server {
    child: Child,
    pub url: String,
    client: Client,
}

impl Server {
    pub fn start(project: &Project) -> Self {
        Self::start_with(project, &[]).unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    /// Starts it with more environment; gives what it wrote if it ended before it listened.
    pub fn start_with(project: &Project, environment: &[(&str, &str)]) -> Result<Self, String> {
        Self::start_role("up", project, environment)
    }

    /// Starts `up`, or one role by itself.
    pub fn start_role(role: &str, project: &Project, environment: &[(&str, &str)]) -> Result<Self, String> {
        let mut command = anabranch();
        command.args([role, "--listen", "127.0.0.1:0"]).arg(project.path()).envs(environment.iter().copied());
        Self::run(role, command)
    }

    /// Starts what a command line says.
    pub fn run(role: &str, mut command: Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut log = BufReader::new(child.stderr.take().expect("stderr"));
        let mut seen = String::new();
        let url = loop {
            let mut line = String::new();
            if log.read_line(&mut line).expect("readable") == 0 {
                let _ = child.wait();
                return Err(seen);
            }
            seen.push_str(&line);
            if let Some(at) = line.find("http://127.0.0.1:") {
                let url: String = line[at..].chars().take_while(|c| !c.is_whitespace() && *c != '\u{1b}').collect();
                break url.trim_end_matches('/').to_owned();
            }
        };
        // Whatever it says from now on is passed on, so that a failed test shows it.
        let name = if role == "up" { "server".to_owned() } else { format!("{role} {}", child.id()) };
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                eprintln!("  {name}: {line}");
            }
        });
        let client = Client::builder().timeout(PATIENCE).build().expect("a client");
        Ok(Self { child, url, client })
    }

    /// How many files it may have open.
    pub fn open_files(&self) -> u64 {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.child.id())).expect("it runs");
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the limit");
        line.split_whitespace().next().and_then(|soft| soft.parse().ok()).expect("a number")
    }

    /// The names of its threads.
    pub fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.map(|name| name.trim().to_owned()).collect()
    }

    /// Kills it as `kill -9` does.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends it a signal, such as `STOP`.
    pub fn signal(&self, signal: &str) {
        let asked = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status();
        assert!(asked.expect("kill").success());
    }

    /// The most memory that it has taken so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("readable");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// Asks it to end, as Ctrl-C does, and waits until it has.
    pub fn stop(mut self) {
        self.signal("INT");
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "the server ended with {status}");
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_some()
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("it ends")
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::blocking::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub fn try_get(&self, path: &str) -> reqwest::Result<Response> {
        self.request(Method::GET, path).send()
    }

    pub fn get(&self, path: &str) -> Value {
        ok(&Method::GET, self.try_get(path).expect("an answer"))
    }

    /// The status and body of an answer that is expected to be a problem.
    pub fn problem(&self, request: reqwest::blocking::RequestBuilder) -> (u16, Value) {
        let request = request.build().expect("a request");
        let method = request.method().clone();
        let response = self.client.execute(request).expect("an answer");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let (status, text) = declared(&method, response);
        let body: Value = serde_json::from_str(&text).expect("a problem in JSON");
        assert_eq!(body["status"], status, "{body}");
        (status, body)
    }

    pub fn try_post(&self, topic: &str, body: impl Into<reqwest::blocking::Body>) -> reqwest::Result<Response> {
        self.request(Method::POST, &format!("/v1/topics/{topic}/events")).body(body).send()
    }

    pub fn post(&self, topic: &str, body: impl Into<reqwest::blocking::Body>) -> Value {
        ok(&Method::POST, self.try_post(topic, body).expect("an answer"))
    }

    /// Posts lines in pieces of uneven size, so that no layer sees the boundaries that another saw.
    pub fn post_lines(&self, topic: &str, lines: &[String]) {
        let mut rest = lines;
        let mut size = 1;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(size.min(rest.len()));
            let receipt = self.post(topic, piece.join("\n"));
            assert_eq!(receipt["accepted"], piece.len(), "{receipt}");
            rest = tail;
            size = size % 1_931 * 3 + 1;
        }
    }

    /// The numbers of `/metrics`.
    pub fn metrics(&self) -> Metrics {
        let text = self.try_get("/metrics").and_then(Response::error_for_status).and_then(Response::text);
        Metrics(text.expect("metrics").lines().filter(|line| !line.starts_with('#')).map(Sample::parse).collect())
    }

    /// Waits until the metrics are as wanted.
    pub fn until_metrics(&self, what: &str, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
        look_until(|| {
            let metrics = self.metrics();
            if wanted(&metrics) { Ok(metrics) } else { Err(format!("{what}, that never was:\n{metrics:#?}")) }
        })
    }

    /// Waits until the process is ready.
    pub fn until_ready(&self) {
        until("it is ready", || self.try_get("/readyz").expect("an answer").status().is_success());
    }

    /// Waits until the process isn't ready for a reason that contains this.
    pub fn until_stopped(&self, why: &str) -> Value {
        look_until(|| {
            let (status, readiness) = declared(&Method::GET, self.try_get("/readyz").expect("an answer"));
            if status == 503 && readiness.contains(why) {
                return Ok(serde_json::from_str(&readiness).expect("JSON"));
            }
            Err(format!("ready, or for another reason than {why}: {readiness}"))
        })
    }

    /// Waits until a view covers the log to its end.
    pub fn settle(&self, view: &str) -> Value {
        self.until(view, |detail| detail["lag"] == 0)
    }

    /// Waits until a view's detail is as wanted.
    pub fn until(&self, view: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        look_until(|| {
            let detail = self.get(&format!("/v1/views/{view}"));
            if wanted(&detail) { Ok(detail) } else { Err(format!("{view} never got there: {detail}")) }
        })
    }

    /// Runs batch for a view, waits for the version, and for the merged answer to stand on it.
    pub fn batch(&self, view: &str) -> u64 {
        self.batch_all(&[view])[view].as_u64().expect("a version")
    }

    /// Has a job done, and says how it ended.
    pub fn run_job(&self, job: &Value) -> Value {
        let response = self.request(Method::POST, "/v1/jobs").json(job).send().expect("an answer");
        let job = ok(&Method::POST, response);
        let path = format!("/v1/jobs/{}", job["id"].as_str().expect("an id"));
        look_until(|| {
            let job = self.get(&path);
            if job["ended"].is_null() { Err(format!("it never ends: {job}")) } else { Ok(job) }
        })
    }

    /// Runs batch for views in one job, waits for the versions, and for the merged answers to stand on them.
    pub fn batch_all(&self, views: &[&str]) -> Value {
        let job = self.run_job(&json!({"kind": "batch", "views": views}));
        assert_eq!(job["state"], "succeeded", "the run failed: {job}");
        let versions = job["versions"].clone();
        for &view in views {
            let is_there = |rows: &Value| {
                let held = || self.get(&format!("/v1/views/{view}"))["coverage"]["batch"]["version"].clone();
                let is_empty = rows["rows"].as_array().is_some_and(Vec::is_empty);
                rows["sources"]["batch"]["version"] == versions[view] || (is_empty && held() == versions[view])
            };
            look_until(|| {
                let rows = self.get(&format!("/v1/views/{view}/rows?limit=1"));
                if is_there(&rows) {
                    Ok(())
                } else {
                    Err(format!("the merged answer never stood on its version: {rows}"))
                }
            });
        }
        versions
    }

    /// All rows of a range, page by page, with the parts of the answer that are the same on every page.
    pub fn range(&self, view: &str, from: &str, to: &str, mode: &str) -> (Vec<Value>, Value) {
        let mut rows = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/views/{view}/rows?from={from}&to={to}&mode={mode}&limit=20000{cursor}");
            let answer = self.get(&path);
            rows.extend(answer["rows"].as_array().expect("rows").iter().cloned());
            match answer["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return (rows, answer),
            }
        }
    }
}

/// A line of `/metrics`.
#[derive(Debug, Clone)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Sample {
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
        let labels = labels.split_terminator("\",").map(|label| {
            let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        });
        let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
        Self { name: name.to_owned(), labels: labels.collect(), value }
    }
}

/// What a process exposes.
#[derive(Debug, Clone)]
pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    /// The sum of the series with this name and these labels; none if there is no such series.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let is_it = |sample: &&Sample| {
            let has = |(label, value): &(&str, &str)| sample.labels.get(*label).is_some_and(|found| found == value);
            sample.name == name && labels.iter().all(has)
        };
        let found: Vec<f64> = self.0.iter().filter(is_it).map(|sample| sample.value).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }
}

/// The address of the Kafka broker that `scripts/with-kafka` has started; none on a machine that has none, but never in CI.
pub fn kafka() -> Option<String> {
    let brokers = std::env::var("ANABRANCH_TEST_KAFKA").ok();
    if brokers.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI runs the tests with a broker: use scripts/with-kafka");
        eprintln!("\n*** NOT TESTED: no Kafka broker. Run the tests with `scripts/with-kafka cargo test`. ***\n");
    }
    brokers
}

/// A bucket on the S3 server that `scripts/with-s3` has started, whose address and keys are in the environment; none on a
/// machine that has none, but never in CI.
pub fn s3() -> Option<String> {
    let bucket = std::env::var("ANABRANCH_TEST_S3").ok();
    if bucket.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI runs the tests with an S3 server: use scripts/with-s3");
        eprintln!("\n*** NOT TESTED: no S3 server. Run the tests with `scripts/with-s3 cargo test`. ***\n");
    }
    bucket
}

/// Waits until something is so.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    look_until(|| if is() { Ok(()) } else { Err(format!("in vain: {what}")) });
}

/// Looks again and again until there is what is wanted; why it isn't, as seen last, is the test's failure. Between two looks others
/// have the processor: looking without a pause would take it from the very process that is waited for.
fn look_until<T>(mut look: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) => assert!(started.elapsed() < PATIENCE, "{why}"),
        }
        std::thread::sleep(Duration::from_millis(4));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status and text of an answer, which is as the API's description declares it.
fn declared(method: &Method, response: Response) -> (u16, String) {
    let (status, path) = (response.status().as_u16(), response.url().path().to_owned());
    let content_type =
        response.headers().get("content-type").map_or("", |value| value.to_str().expect("text")).to_owned();
    let text = response.text().expect("a body");
    contract::check(method.as_str(), &path, status, &content_type, text.as_bytes());
    (status, text)
}

pub fn ok(method: &Method, response: Response) -> Value {
    let (status, text) = declared(method, response);
    assert!((200..300).contains(&status), "{status}: {text}");
    serde_json::from_str(&text).expect("JSON")
}

/// The sum of a numeric column over rows, by some key.
pub fn totals(rows: &[Value], key: impl Fn(&Value) -> String, column: &str) -> BTreeMap<String, i64> {
    let mut totals = BTreeMap::new();
    for row in rows {
        *totals.entry(key(row)).or_default() += row[column].as_i64().unwrap_or_else(|| panic!("{column} in {row}"));
    }
    totals
}

/// Copies what is in a folder, folders too.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let into = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &into);
        } else {
            std::fs::copy(entry.path(), into).expect("copied");
        }
    }
}

/// The first of so many free ports in a row. They are below those that connections get, as a server that is started anew has to find its
/// own again, and other ones for each test, also of other test runs.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(64);
    loop {
        let next = begin.wrapping_add(NEXT.fetch_add(u32::from(count), Ordering::Relaxed));
        let first = 10_000 + (next % 10_000) as u16;
        if (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
}
