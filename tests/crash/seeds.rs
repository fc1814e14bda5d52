//! Lives of a project, each made from a seed. Its processes are killed at failpoints and between them, or stopped while runs are at
//! work; their clock jumps; views are removed, and added while retention takes the log's beginning. After each life every
//! acknowledged event is counted once in every view, and every run that was due is made.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;

use proptest::test_runner::{RngAlgorithm, TestRng};
use rand::RngExt;
use serde_json::{Value, json};

use super::due::{Clock, Due};
use super::{EMBEDDED, KAFKA, LAYERS, PIECE, SETTINGS, SOON, event_time, most, post, submit};
use crate::support::{Project, Server, kafka, until};

const TABLE: &str = "
CREATE TABLE events (id BIGINT, user_id TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts', watermark = '5 seconds', partitions = 2);
";

/// A view that counts events and adds up their ids.
struct View {
    name: &'static str,
    /// What it groups by: windows of so many minutes, and users.
    minutes: Option<usize>,
    by_user: bool,
}

const fn view(name: &'static str, minutes: Option<usize>, by_user: bool) -> View {
    View { name, minutes, by_user }
}

/// The first has a schedule, and the first two are always there.
const VIEWS: [View; 4] = [
    view("ever", None, false),
    view("per_user", Some(1), true),
    view("users", None, true),
    view("windows", Some(15), false),
];

const STAY: usize = 2;

/// Hours by which the clock jumps, where each may have a run of its own, and where not.
const FEW_HOURS: i64 = 4;
const MANY_HOURS: i64 = 9_600;

/// For less than a day the log remembers the key of a request.
const REMEMBERED_HOURS: i64 = 20;

const LIVES: u64 = 4;

/// A process that hasn't come to its failpoint by then is killed where it is.
const MOST_STEPS: usize = 250;

impl View {
    fn sql(&self, catch_up: &str) -> String {
        let schedule =
            if self.name == "ever" { format!("batch = '0 * * * *', catch_up = '{catch_up}', ") } else { String::new() };
        let mut keys: Vec<&str> = if self.minutes.is_some() { vec!["window_start", "window_end"] } else { vec![] };
        keys.extend(self.by_user.then_some("user_id"));
        let from = self
            .minutes
            .map_or_else(|| "events".to_owned(), |minutes| format!("TUMBLE(events, ts, INTERVAL '{minutes} minutes')"));
        let columns: String = keys.iter().map(|key| format!("{key}, ")).collect();
        let group = if keys.is_empty() { String::new() } else { format!(" GROUP BY {}", keys.join(", ")) };
        let name = self.name;
        format!(
            "CREATE MATERIALIZED VIEW {name} WITH ({schedule}allowed_lateness = '1 hour') AS \
             SELECT {columns}count(*) AS n, sum(id) AS ids FROM {from}{group};\n"
        )
    }

    /// What it has to say of so many events: by group, how many they are and the sum of their ids.
    fn expected(&self, events: usize) -> BTreeMap<String, (i64, i64)> {
        let mut expected = BTreeMap::<String, (i64, i64)>::new();
        for id in 0..events {
            let window = self.minutes.map(|minutes| event_time(id / 60 / minutes * minutes * 60));
            let user = self.by_user.then(|| format!("u{}", id % 7));
            let group = [window, user].into_iter().flatten().collect::<Vec<_>>().join(" ");
            let (count, ids) = expected.entry(group).or_default();
            (*count, *ids) = (*count + 1, *ids + id as i64);
        }
        expected
    }

    fn rows(&self, server: &Server, mode: &str) -> Option<Value> {
        let range = if self.minutes.is_some() { "from=2024-01-15T10:00:00Z&to=2024-01-15T11:00:00Z&" } else { "" };
        let path = format!("/v1/views/{}/rows?{range}limit=20000&mode={mode}", self.name);
        let answer = server.try_get(&path).ok()?;
        let (status, text) = (answer.status(), answer.text().ok()?);
        assert!(status.is_success(), "{path}: {text}");
        Some(serde_json::from_str(&text).expect("JSON"))
    }
}

/// What an answer says, by group.
fn counted(answer: &Value) -> BTreeMap<String, (i64, i64)> {
    let rows = answer["rows"].as_array().expect("rows").iter();
    let each = rows.filter(|row| row["n"] != 0).map(|row| {
        let group: Vec<&str> = ["window_start", "user_id"].iter().filter_map(|&key| row[key].as_str()).collect();
        (group.join(" "), (row["n"].as_i64().expect("a count"), row["ids"].as_i64().expect("a sum")))
    });
    each.collect()
}

fn is_claim(answer: &Value) -> bool {
    answer["exact"] == true && answer["incomplete"] == false
}

/// An answer that calls itself exact and complete counts the events at the offsets that it names, and these are all from the
/// log's first one on, if the batch layer has a part in it. On Kafka some offsets are no events, but marks of transactions.
fn check_claim(answer: &Value, on_kafka: bool) {
    let (mut ends, mut offsets) = (BTreeMap::<&str, i64>::new(), 0);
    for layer in ["batch", "speed"] {
        for (partition, range) in answer["sources"][layer]["offsets"]["events"].as_object().into_iter().flatten() {
            let (from, to) = (range[0].as_i64().expect("an offset"), range[1].as_i64().expect("an offset"));
            if from < to {
                let end = ends.insert(partition, to).unwrap_or(0);
                assert!(
                    from == end || answer["mode"] == "speed",
                    "the offsets from {end} to {from} are missing: {answer}"
                );
                offsets += to - from;
            }
        }
    }
    let events: i64 = counted(answer).values().map(|(n, _)| n).sum();
    assert!(
        if on_kafka { events <= offsets } else { events == offsets },
        "{events} events at {offsets} offsets: {answer}"
    );
}

fn jobs(server: &Server) -> Option<Vec<Value>> {
    let list: Value = server.try_get("/v1/jobs").ok()?.json().ok()?;
    Some(list["jobs"].as_array().unwrap_or_else(|| panic!("{list}")).clone())
}

fn is_over(jobs: &[Value]) -> bool {
    jobs.iter().all(|job| !job["ended"].is_null())
}

/// What is drawn in a part of a scenario follows from the seed, whatever the processes have done before.
fn random(seed: u64, part: u64) -> TestRng {
    TestRng::from_seed(RngAlgorithm::ChaCha, &[seed, part, 0, 0].map(u64::to_le_bytes).concat())
}

struct Scenario {
    seed: u64,
    project: Project,
    on_kafka: bool,
    catch_up: &'static str,
    random: TestRng,
    clock: Clock,
    due: Due,
    /// Those of the views that come and go that are there.
    added: BTreeSet<&'static str>,
    /// The pieces that were acknowledged, and whether the process has died from one more.
    pieces: usize,
    in_flight: bool,
    /// The jobs that were accepted.
    accepted: BTreeSet<String>,
    /// What has happened, and how often.
    seen: BTreeMap<&'static str, usize>,
}

impl Scenario {
    fn new(seed: u64, brokers: Option<&str>) -> Self {
        let mut random = random(seed, 0);
        let catch_up = ["last", "last", "all", "none"][random.random_range(0..4)];
        let project = Project::with_sql("");
        let settings = SETTINGS.replace("scheduler = false\n", "");
        let retention = if brokers.is_some() { "retention_age = '1 s'" } else { "retention_bytes = '2 kB'" };
        let soon = if brokers.is_some() { SOON } else { "" };
        project.write("anabranch.toml", &format!("[log]\n{retention}\n{settings}{soon}"));
        let project = if let Some(brokers) = brokers { project.on_kafka(brokers) } else { project };
        let clock = Clock::new(project.path().join("clock"));
        let due = Due::new(VIEWS[0].name, catch_up);
        let (added, accepted, seen) = Default::default();
        let on_kafka = brokers.is_some();
        let (pieces, in_flight) = (0, false);
        let it =
            Self { seed, project, on_kafka, catch_up, random, clock, due, added, pieces, in_flight, accepted, seen };
        it.write_views();
        it
    }

    fn run(mut self) -> BTreeMap<&'static str, usize> {
        self.check();
        for life in 1..=LIVES {
            self.random = random(self.seed, 2 * life);
            self.change();
            self.live();
            self.random = random(self.seed, 2 * life + 1);
            if self.random.random_bool(0.3) {
                self.change();
            }
            self.check();
        }
        self.seen
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn views(&self) -> Vec<&'static View> {
        let is_there = |(i, view): &(usize, &View)| *i < STAY || self.added.contains(view.name);
        VIEWS.iter().enumerate().filter(is_there).map(|(_, view)| view).collect()
    }

    fn write_views(&self) {
        let views: String = self.views().iter().map(|view| view.sql(self.catch_up)).collect();
        self.project.write("views/views.sql", &format!("{TABLE}{views}"));
    }

    /// What changes while no process is there.
    fn change(&mut self) {
        if self.random.random_bool(0.6) {
            let name = VIEWS[self.random.random_range(STAY..VIEWS.len())].name;
            if self.added.remove(name) {
                self.note("views removed");
            } else {
                self.added.insert(name);
                self.note("views added");
            }
            self.write_views();
        }
        if self.random.random_bool(0.5) {
            self.jump();
        }
    }

    /// Sets the clock ahead or back.
    fn jump(&mut self) {
        let most = match self.random.random_range(0..3) {
            0 if self.catch_up != "all" && !self.in_flight => MANY_HOURS,
            1 if self.catch_up != "all" => REMEMBERED_HOURS,
            _ => FEW_HOURS,
        };
        let (from, by) = (self.clock.hour(), self.random.random_range(1..=most));
        let is_ahead = self.random.random_bool(0.6);
        // Not before the events.
        let to = if is_ahead { from + by } else { (from - by).max(-MANY_HOURS) };
        self.note(if is_ahead { "jumps ahead" } else { "jumps back" });
        self.clock.set(to);
        self.due.jump(from, to);
    }

    fn start(&self, environment: &[(&str, &str)]) -> Result<Server, String> {
        let file = self.clock.file.to_str().expect("a path");
        Server::start_with(&self.project, &[&[("ANABRANCH_CLOCK_AHEAD", file)], environment].concat())
    }

    /// A life, until it ends by itself or has taken its steps.
    fn live(&mut self) {
        let failpoints = if self.on_kafka { [&KAFKA[..], &LAYERS].concat() } else { [&EMBEDDED[..], &LAYERS].concat() };
        let failpoint = failpoints[self.random.random_range(0..failpoints.len())];
        let crash = format!("{failpoint}:{}", self.random.random_range(1..most(failpoint)));
        let few = self.random.random_range(20..80);
        let (steps, environment) = match self.random.random_range(0..10) {
            0..6 => (MOST_STEPS, ("ANABRANCH_CRASH_AT", crash.as_str())),
            6..8 => (few, ("ANABRANCH_CRASH_AT", "nowhere:1")),
            // Runs take longer where the process is to be stopped during one.
            _ => (few, ("ANABRANCH_FAIL_AT", "batch::windows_written=sleep(100)")),
        };
        let Ok(mut server) = self.start(&[environment]) else {
            assert_eq!(environment.1, crash, "it didn't start");
            return self.note("deaths at failpoints");
        };
        if (0..steps).all(|_| self.step(&server)) {
            if environment.0 == "ANABRANCH_FAIL_AT" {
                return self.stop_in_mid_run(server);
            }
            self.note("kills");
            return server.kill();
        }
        let status = server.wait();
        assert_eq!(
            (status.signal(), environment.1),
            (Some(6), crash.as_str()),
            "only its failpoint may end it: {status}"
        );
        self.note("deaths at failpoints");
    }

    /// Does something, and says whether the server is still there.
    fn step(&mut self, server: &Server) -> bool {
        match self.random.random_range(0..100) {
            0..70 => self.post(server),
            70..80 => self.submit(server),
            80..88 => {
                self.jump();
                !self.due.is_awaited(&self.clock) || self.random.random_bool(0.5) || self.await_due(server)
            }
            _ => self.look(server).is_some(),
        }
    }

    fn post(&mut self, server: &Server) -> bool {
        self.in_flight = !post(server, self.pieces);
        self.pieces += usize::from(!self.in_flight);
        !self.in_flight
    }

    fn submit(&mut self, server: &Server) -> bool {
        let views = self.views();
        let one = [views[self.random.random_range(0..views.len())].name];
        let views = if self.random.random_bool(0.5) { &one[..] } else { &[] };
        let job = submit(server, &json!({"kind": "batch", "views": views, "full": self.random.random_bool(0.2)}));
        let is_there = job.is_some();
        self.accepted.extend(job);
        is_there
    }

    /// Waits until a run is asked for that is due, so that the process may die from it.
    fn await_due(&mut self, server: &Server) -> bool {
        let mut is_there = true;
        until("a run that is due is asked for", || {
            let jobs = jobs(server);
            is_there = jobs.is_some();
            jobs.is_none_or(|jobs| self.due.is_asked_for(&self.clock, &jobs))
        });
        is_there
    }

    /// Looks whether any answer claims what isn't so.
    fn look(&self, server: &Server) -> Option<()> {
        for view in self.views() {
            for mode in ["merged", "batch", "speed"] {
                let answer = view.rows(server, mode)?;
                if is_claim(&answer) {
                    check_claim(&answer, self.on_kafka);
                }
            }
        }
        Some(())
    }

    /// Stops the process while a run is at work, if that can be had.
    fn stop_in_mid_run(&mut self, mut server: Server) {
        for _ in 0..3 {
            assert!(self.submit(&server), "it is there");
        }
        let mut is_at_work = false;
        until("a run is at work", || {
            let jobs = jobs(&server).expect("it is there");
            is_at_work = jobs.iter().any(|job| job["state"] == "running");
            is_at_work || is_over(&jobs)
        });
        server.signal("TERM");
        let status = server.wait();
        assert!(status.success(), "the server ended with {status}");
        self.note(if is_at_work { "stops in mid-run" } else { "stops" });
    }

    /// All is there again, and nothing twice.
    fn check(&mut self) {
        let server = self.start(&[]).unwrap_or_else(|said| panic!("the server did not start:\n{said}"));
        self.check_events(&server);
        self.check_runs(&server);
        if self.random.random_bool(0.3) {
            self.check_a_minute(&server);
        }
        if self.random.random_bool(0.5) {
            // So that retention may go on.
            assert_eq!(server.run_job(&json!({"kind": "batch"}))["state"], "succeeded");
        }
        self.check_events(&server);
        if self.random.random_bool(0.5) { server.stop() } else { server.kill() }
    }

    /// The clock is set back by less than a minute over the beginning of an hour, and comes to it again.
    fn check_a_minute(&mut self, server: &Server) {
        let hour = self.clock.hour() + 1;
        self.due.jump(hour - 1, hour);
        self.clock.set(hour);
        self.check_runs(server);
        self.clock.shift(-10);
        self.post(server);
        self.check_events(server);
        self.clock.shift(0);
        self.check_runs(server);
        self.note("minutes that came again");
    }

    /// Waits until every view has come to the end of the log. On Kafka what was acknowledged can be read only once the brokers have
    /// marked its transaction as committed, which they do behind their answer.
    fn settle(&self, server: &Server) {
        let count =
            || counted(&VIEWS[0].rows(server, "merged").expect("an answer")).values().map(|(n, _)| *n).sum::<i64>();
        if self.on_kafka {
            until("what was acknowledged is counted", || count() >= (self.pieces * PIECE) as i64);
        }
        for view in self.views() {
            server.until(view.name, |detail| detail["lag"] == 0 && detail["stopped"].is_null());
        }
    }

    /// Every view counts each acknowledged event once. A piece that the process has died from may be there or not; once it is
    /// sent again, it is there once.
    fn check_events(&mut self, server: &Server) {
        self.settle(server);
        if self.in_flight {
            let counted = counted(&VIEWS[0].rows(server, "merged").expect("an answer"));
            let possible = [self.pieces, self.pieces + 1].map(|pieces| VIEWS[0].expected(pieces * PIECE));
            assert!(possible.contains(&counted), "{} pieces were acknowledged: {counted:?}", self.pieces);
            assert!(self.post(server), "it is there");
            self.settle(server);
        }
        for view in self.views() {
            let answer = view.rows(server, "merged").expect("an answer");
            assert!(is_claim(&answer), "{answer}");
            check_claim(&answer, self.on_kafka);
            assert_eq!(counted(&answer), view.expected(self.pieces * PIECE), "{}: {answer}", view.name);
        }
        self.look(server).expect("it is there");
        server.until_ready();
        for view in VIEWS.iter().skip(STAY).filter(|view| !self.added.contains(view.name)) {
            let answer = server.try_get(&format!("/v1/views/{}", view.name)).expect("an answer");
            assert_eq!(answer.status(), 404, "{} was removed", view.name);
        }
    }

    /// Every run that was accepted or due is made, and none twice.
    fn check_runs(&mut self, server: &Server) {
        let (view, due) = (VIEWS[0].name, self.clock.next_due());
        let mut found = Vec::new();
        until("the schedule is dealt with", || {
            let next = server.metrics().sum("anabranch_schedule_due_timestamp_seconds", &[("view", view)]);
            found = jobs(server).expect("it is there");
            next == Some(due) && is_over(&found)
        });
        self.due.check(&self.clock, &found);
        let gone = |job: &Value| job["error"].as_str().is_some_and(|why| why.contains("the project has no view"));
        for job in &found {
            assert!(job["state"] == "succeeded" || (job["state"] == "failed" && gone(job)), "{job}");
        }
        for id in &self.accepted {
            assert!(found.iter().any(|job| job["id"] == **id), "the job {id} is lost: {found:#?}");
        }
        let count = |is: fn(&Value) -> bool| found.iter().filter(|job| is(job)).count();
        self.seen.insert("due runs", count(|job| job["trigger"] == "schedule"));
        self.seen.insert("runs begun again", count(|job| job["attempts"].as_u64() > Some(1)));
        self.seen.insert("runs for views that the log lacked records of", count(|job| job["trigger"] == "cli"));
    }
}

/// Says which seed it was, if a test fails.
struct Repeat(u64);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("ANABRANCH_TEST_SEED={} repeats this", self.0);
        }
    }
}

/// Goes through a share of the seeds that the environment has it go through, or through the one that it names.
fn run(share: u64, brokers: Option<&str>) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let all = number("ANABRANCH_TEST_SEEDS").unwrap_or(4).div_ceil(share);
    let seeds = number("ANABRANCH_TEST_SEED").map_or(1..=all, |seed| seed..=seed);
    let mut seen = BTreeMap::<&str, usize>::new();
    for seed in seeds.clone() {
        let _repeat = Repeat(seed);
        for (what, count) in Scenario::new(seed, brokers).run() {
            *seen.entry(what).or_default() += count;
        }
    }
    eprintln!("the seeds {seeds:?}: {seen:#?}");
    let wanted = [
        "deaths at failpoints",
        "kills",
        "stops in mid-run",
        "jumps back",
        "runs for views that the log lacked records of",
    ];
    let unseen: Vec<_> = wanted.into_iter().filter(|what| seen.get(what).is_none_or(|&count| count == 0)).collect();
    assert!(seeds.count() < 4 || unseen.is_empty(), "the seeds have none of {unseen:?}");
}

#[test]
fn kills_stops_clocks_that_jump_and_views_that_come_and_go_lose_no_event_and_no_run_and_double_none() {
    run(1, None);
}

#[test]
fn on_kafka_they_lose_no_event_and_no_run_and_double_none() {
    if let Some(brokers) = kafka() {
        run(4, Some(&brokers));
    }
}
