//! `CREATE MATERIALIZED VIEW`.

use sha2::{Digest, Sha256};
use sqlparser::ast::CreateView;
use sqlparser::tokenizer::Location;

use super::error::Fault;
use super::from::Broken;
use super::name::{defined_name, topic};
use super::option::{Given, Options, schedule};
use super::syntax::Source;
use super::{query, sink};
use crate::aggregation::{Aggregation, Late};
use crate::rows::Rows;
use crate::schedule::Schedule;
use crate::schema::Table;
use crate::time::Micros;
use crate::view::{Catalog, End, View, ViewId};
use crate::window::Window;

/// Rows of state that a view keeps exactly, unless it says otherwise.
const MAX_ROWS: u64 = 5_000_000;

/// Plans a view. `None` if it is sound as far as can be told but its table isn't.
pub(super) fn plan(
    create: &CreateView,
    source: &Source,
    catalog: &Catalog,
    broken: &Broken,
) -> Result<Option<View>, Vec<Fault>> {
    let one = |fault| vec![fault];
    let name = defined_name(&create.name).map_err(one)?;
    if !create.materialized {
        return Err(one(Fault::of(&create.name, "views are kept up to date; write CREATE MATERIALIZED VIEW")));
    }
    let understood = CreateView {
        or_alter: false,
        or_replace: false,
        materialized: true,
        secure: false,
        name: create.name.clone(),
        name_before_not_exists: false,
        columns: Vec::new(),
        query: create.query.clone(),
        options: create.options.clone(),
        cluster_by: Vec::new(),
        comment: None,
        with_no_schema_binding: false,
        if_not_exists: false,
        temporary: false,
        copy_grants: false,
        to: None,
        params: None,
    };
    if understood != *create {
        let message = "unsupported clause; a view is CREATE MATERIALIZED VIEW name [WITH (…)] AS SELECT …";
        return Err(one(Fault::new(source.start(), message)));
    }
    if catalog.views.contains_key(&name) {
        return Err(one(Fault::of(&create.name, format!("view `{name}` is defined twice"))));
    }
    if catalog.tables.contains_key(&name) || broken.names.contains(&name) {
        return Err(one(Fault::of(&create.name, format!("`{name}` is a table; a view needs a name of its own"))));
    }
    let options = Options::read(&create.options, &[&OPTIONS[..], &sink::OPTIONS].concat());
    let (query, tokens) = (&create.query, &source.tokens);
    let view = |rows: Rows, end: End, allowed_lateness: Micros| {
        let definition = definition(rows.table(), allowed_lateness, create);
        View { id: ViewId { name: name.clone(), definition }, sql: source.text.clone(), rows, end }
    };
    let options = match options.map(|mut options| (options.text("sink"), options)) {
        Ok((Some(sink), options)) => {
            let planned = sink::plan(&name, query, (sink, options), tokens, catalog, broken)?;
            return Ok(planned.map(|(rows, sink)| view(rows, End::Send(sink), 0)));
        }
        Ok((None, options)) => view_options(options),
        Err(fault) => Err(fault),
    };
    let query = query::aggregated(query, tokens, catalog, broken);
    let (options, query) = match (options, query) {
        (Ok(options), Ok(query)) => (options, query),
        (Err(fault), Err(mut faults)) => {
            faults.insert(0, fault);
            return Err(faults);
        }
        (Err(fault), _) => return Err(one(fault)),
        (_, Err(faults)) => return Err(faults),
    };
    let Some((rows, asked)) = query else { return Ok(None) };
    let ViewOptions { allowed_lateness, late, schedule, max_rows, memory } = options;
    let late = match late {
        Some((late, at)) => check_late(&name, late, at, &rows, asked.window, catalog).map_err(one)?,
        None => Late::default(),
    };
    let aggregation = Aggregation { allowed_lateness, late, schedule, max_rows, memory, ..asked };
    Ok(Some(view(rows, End::Keep(Box::new(aggregation)), allowed_lateness)))
}

/// Refuses a side output of what can't be late, and a topic that can't be written.
fn check_late(
    name: &str,
    late: Late,
    at: Location,
    rows: &Rows,
    window: Option<Window>,
    catalog: &Catalog,
) -> Result<Late, Fault> {
    if window.is_none() {
        let message = format!("`{name}` has no windows that an event could be late for; leave `late` out");
        return Err(Fault::new(at, message));
    }
    if let Late::Topic(topic) = &late {
        sink::check_topic(name, &Given { text: topic.clone(), at }, rows.table(), catalog)?;
    }
    Ok(late)
}

/// The options of a view without a sink.
const OPTIONS: [&str; 8] =
    ["allowed_lateness", "late", "late_topic", "batch", "schedule_zone", "catch_up", "max_rows", "memory"];

struct ViewOptions {
    allowed_lateness: Micros,
    late: Option<(Late, Location)>,
    schedule: Option<Schedule>,
    max_rows: usize,
    memory: Option<usize>,
}

/// Where late events go, and where that is said.
fn late(options: &mut Options) -> Result<Option<(Late, Location)>, Fault> {
    let (kind, to) = (options.text("late"), options.text("late_topic"));
    let Some(Given { text, at }) = kind else {
        return to.map_or(Ok(None), |to| Err(Fault::new(to.at, "option `late_topic` goes with late = 'topic'")));
    };
    let late = match (text.as_str(), to) {
        ("topic", Some(to)) => {
            let at = to.at;
            return Ok(Some((Late::Topic(topic(to)?), at)));
        }
        ("topic", None) => return Err(Fault::new(at, "late = 'topic' needs to know which; add late_topic = 'name'")),
        ("discard" | "rejects", Some(to)) => {
            return Err(Fault::new(to.at, "option `late_topic` goes with late = 'topic'"));
        }
        ("discard", None) => Late::Discard,
        ("rejects", None) => Late::Rejects,
        (other, _) => {
            let message = format!("late = `{other}`: late events go to `rejects`, to a `topic`, or are `discard`ed");
            return Err(Fault::new(at, message));
        }
    };
    Ok(Some((late, at)))
}

fn view_options(mut options: Options) -> Result<ViewOptions, Fault> {
    let read = ViewOptions {
        allowed_lateness: options.duration("allowed_lateness")?.unwrap_or(0),
        late: late(&mut options)?,
        schedule: schedule(&mut options)?,
        max_rows: options.number("max_rows", 1..=u64::from(u32::MAX))?.unwrap_or(MAX_ROWS) as usize,
        memory: options.bytes("memory")?.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
    };
    match options.rest() {
        None => Ok(read),
        Some((name, given)) => {
            Err(Fault::new(given.at, format!("option `{name}` goes with a sink; add sink = 'kafka', or leave it out")))
        }
    }
}

/// Raised when the same SQL means something else, or when what is kept of a group is stored otherwise: checkpoints, versions and
/// snapshots of before are then of another definition, which nothing reads.
const EDITION: u32 = 2;

/// What the rows mean, in one hash: not the schedule, the limits on memory, white space or comments.
fn definition(table: &Table, allowed_lateness: Micros, create: &CreateView) -> String {
    let canonical =
        format!("edition {EDITION}\n{}\nallowed_lateness = {allowed_lateness} us\n{}", table.sql, create.query);
    let hash = Sha256::digest(canonical.as_bytes());
    hash.iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}
