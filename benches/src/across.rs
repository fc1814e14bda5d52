//! What rows across records cost: an interval join, a join as of each row's time and LAG. The operators alone, micro-batch by micro-batch
//! and all at once, and then the speed layer from a log of JSON records to sums of twenty seconds, beside DuckDB on the same rows.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::failure::Failure;
use anabranch_engine::decode::DELETED;
use anabranch_engine::operator::{OFFSET, Operators, PARTITION, Records};
use anabranch_engine::partial::{self, Part, Scope};
use anabranch_log::clock::SystemClock;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::kafka::{KafkaLog, KafkaOptions};
use anabranch_log::{Append, Log};
use anabranch_plan::rows::Rows;
use anabranch_plan::time::{Micros, format_timestamp};
use anabranch_plan::view::Catalog;
use anabranch_speed_layer::Memory;
use polars::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::stream::planned;
use super::{in_folder, millions, per_second, report, speed_context};

const SQL: &str = "
CREATE TABLE clicks (user_id TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
CREATE TABLE purchases (user_id TEXT, amount BIGINT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
CREATE TABLE users (id TEXT PRIMARY KEY, plan TEXT, changed TIMESTAMP NOT NULL) WITH (event_time = 'changed');
CREATE VIEW bought AS SELECT p.amount, p.ts FROM clicks AS c JOIN purchases AS p
  ON c.user_id = p.user_id AND p.ts BETWEEN c.ts - INTERVAL '10 seconds' AND c.ts + INTERVAL '10 seconds';
CREATE VIEW before AS SELECT LAG(amount) OVER (PARTITION BY user_id ORDER BY ts) AS amount, ts FROM purchases;
CREATE VIEW with_plan AS SELECT p.amount, u.plan, p.ts FROM purchases AS p
  JOIN users FOR SYSTEM_TIME AS OF p.ts AS u ON u.id = p.user_id;
CREATE MATERIALIZED VIEW sum_bought AS SELECT window_start, window_end, count(*) AS n, sum(amount) AS total
  FROM TUMBLE(bought, ts, INTERVAL '20 seconds') GROUP BY window_start, window_end;
CREATE MATERIALIZED VIEW sum_before AS SELECT window_start, window_end, count(*) AS n, sum(amount) AS total
  FROM TUMBLE(before, ts, INTERVAL '20 seconds') GROUP BY window_start, window_end;
CREATE MATERIALIZED VIEW sum_with_plan AS SELECT window_start, window_end, count(*) AS n, sum(amount) AS total
  FROM TUMBLE(with_plan, ts, INTERVAL '20 seconds') GROUP BY window_start, window_end;
";

const BOUGHT: &str = "SELECT count(*), sum(p.amount) FROM clicks c JOIN purchases p ON c.user_id = p.user_id
  AND p.ts BETWEEN c.ts - INTERVAL '10 seconds' AND c.ts + INTERVAL '10 seconds'";
const BEFORE: &str = "SELECT count(*), sum(previous) FROM (
  SELECT lag(amount) OVER (PARTITION BY user_id ORDER BY ts, __offset) AS previous FROM purchases)";
const WITH_PLAN: &str =
    "SELECT count(*), sum(p.amount) FROM purchases p ASOF JOIN users u ON u.id = p.user_id AND u.changed <= p.ts";

/// Rows of a micro-batch.
const BATCH: usize = 10_000;
const SPAN: Micros = 200_000_000;

/// Measures and prints, with so many events of each table and so many keys; the log is embedded, or on these brokers.
pub fn run(events: usize, keys: u32, brokers: Option<&str>) -> Result<(), Failure> {
    let catalog = planned(SQL)?;
    let mut random = StdRng::seed_from_u64(11);
    let step = |row: usize| row as Micros * SPAN / events as Micros;
    let user = |random: &mut StdRng| format!("user-{:07}", random.random_range(0..keys));
    let clicks: Vec<String> = (0..events).map(|_| user(&mut random)).collect();
    let buyers: Vec<String> = (0..events).map(|_| user(&mut random)).collect();
    let amounts: Vec<i64> = (0..events).map(|_| random.random_range(1..1_000)).collect();
    let users: Vec<String> = (0..keys).map(|key| format!("user-{key:07}")).collect();
    let times: Vec<Micros> = (0..events).map(step).collect();
    let clicks = frame(vec![Column::new("user_id".into(), clicks), time("ts", times.clone())?])?;
    let purchases =
        vec![Column::new("user_id".into(), buyers), Column::new("amount".into(), amounts), time("ts", times)?];
    let purchases = frame(purchases)?;
    let plans: Vec<&str> = (0..keys).map(|key| if key % 3 == 0 { "paid" } else { "free" }).collect();
    let changed = time("changed", vec![-1; users.len()])?;
    let deleted = Column::new(DELETED.into(), vec![false; users.len()]);
    let users = frame(vec![Column::new("id".into(), users), Column::new("plan".into(), plans), changed, deleted])?;

    in_folder(|folder| {
        for (name, rows) in [("clicks", &clicks), ("purchases", &purchases), ("users", &users)] {
            let mut file = std::fs::File::create(folder.join(format!("{name}.parquet")))?;
            ParquetWriter::new(&mut file).finish(&mut rows.clone())?;
        }
        let [clicks, purchases, users] = [("clicks", &clicks), ("purchases", &purchases), ("users", &users)];
        for (what, name, tables, versions, sql) in [
            ("interval join of two tables", "bought", &[clicks, purchases][..], None, BOUGHT),
            ("LAG", "before", &[purchases], None, BEFORE),
            ("join as of each row's time", "with_plan", &[purchases], Some(users), WITH_PLAN),
        ] {
            let expected = measure(what, &catalog.rows[name], tables, versions, sql, folder)?;
            let tables: Vec<_> = tables.iter().copied().chain(versions).collect();
            let view = format!("sum_{name}");
            let log: Arc<dyn Log> = match brokers {
                None => {
                    let keyed = ["users".to_owned()].into();
                    let options = EmbeddedOptions { keyed, ..EmbeddedOptions::default() };
                    Arc::new(EmbeddedLog::open(folder.join(format!("log-{name}")), options, Arc::new(SystemClock))?)
                }
                Some(brokers) => {
                    let topic_prefix = format!("anabranch-bench-{}-{name}-", std::process::id());
                    let options = KafkaOptions { topic_prefix, ..KafkaOptions::new(brokers) };
                    Arc::new(KafkaLog::open(options, Arc::new(SystemClock))?)
                }
            };
            let (rate, found) = by_speed_layer(log, &tables, &catalog, &view, &folder.join(&view))?;
            if found != expected {
                return Err(Failure::new(format!("{what}: {found:?}, and DuckDB says {expected:?}")));
            }
            report(&format!("{what}, by the speed layer"), millions(rate), "from JSON records in the log");
        }
        Ok(())
    })
}

/// A table's records as JSON.
fn lines(table: &DataFrame) -> Result<Vec<String>, Failure> {
    let columns: Vec<&Column> = table.columns().iter().filter(|column| !column.name().starts_with("__")).collect();
    let line = |row: usize| {
        let field = |column: &&Column| {
            let name = column.name();
            Ok(match column.get(row)? {
                AnyValue::String(text) => format!("\"{name}\":\"{text}\""),
                AnyValue::Datetime(time, ..) => format!("\"{name}\":\"{}\"", format_timestamp(time)),
                value => format!("\"{name}\":{value}"),
            })
        };
        let fields: PolarsResult<Vec<String>> = columns.iter().map(field).collect();
        Ok(format!("{{{}}}", fields?.join(",")))
    };
    Ok((0..table.height()).map(line).collect::<PolarsResult<_>>()?)
}

/// Events a second from a log to the sums of a view, and the number of its rows and their sum. Records lie in four partitions.
fn by_speed_layer(
    log: Arc<dyn Log>,
    tables: &[(&str, &DataFrame)],
    catalog: &Catalog,
    view: &str,
    folder: &Path,
) -> Result<(f64, (i64, i64)), Failure> {
    const PARTITIONS: u32 = 4;
    let mut events = 0;
    for (topic, rows) in tables {
        log.create_topic(topic, PARTITIONS)?;
        for (piece, partition) in lines(rows)?.chunks(20_000).zip((0..PARTITIONS).cycle()) {
            let payloads = piece.iter().map(String::as_bytes).collect();
            log.append(topic, Append { parts: vec![(partition, payloads)], ..Append::default() })?;
            events += piece.len() as u64;
        }
    }
    let mut catalog = catalog.clone();
    catalog.views.retain(|name, _| name == view);
    let view = catalog.kept_view(view).ok_or_else(|| Failure::new("no such view"))?;
    let context = speed_context(folder, log, &Arc::new(catalog), Memory::new(usize::MAX))?;
    let started = Instant::now();
    let layer = anabranch_speed_layer::run(&context, &CancellationToken::new())?;
    let mut receiver = layer.snapshots().0[&view.id].clone();
    let runtime = tokio::runtime::Handle::current();
    let snapshot = loop {
        runtime.block_on(receiver.changed())?;
        let snapshot = receiver.borrow_and_update().clone();
        if let Some(reason) = &snapshot.stopped {
            return Err(Failure::new(reason.clone()));
        }
        if snapshot.coverage.len() == events {
            break snapshot;
        }
    };
    let rate = per_second(events, started.elapsed());
    layer.stop();
    let panes = snapshot.chunks.iter().flat_map(|chunk| chunk.panes.values());
    let parts: Vec<Part> = panes.map(|pane| Part { partials: pane.partials.clone(), slack: None }).collect();
    let rows = partial::windows(view.aggregation(), &parts, Scope::All)?.rows;
    let sum =
        |name: &str| -> PolarsResult<i64> { Ok(rows.column(name)?.as_materialized_series().sum::<i64>().unwrap_or(0)) };
    Ok((rate, (sum("n")?, sum("total")?)))
}

fn measure(
    what: &str,
    rows: &Rows,
    tables: &[(&str, &DataFrame)],
    before: Option<(&str, &DataFrame)>,
    sql: &str,
    folder: &Path,
) -> Result<(i64, i64), Failure> {
    let events: usize = tables.iter().map(|(_, rows)| rows.height()).sum();
    let (theirs, expected) = duckdb(sql, folder)?;
    let mut figures = Vec::new();
    for size in [BATCH, usize::MAX] {
        let (mut operators, mut counted, mut most) = (Operators::new(rows, &|_| true, None)?, (0, 0), 0);
        let mut emit = |rows: DataFrame| {
            counted.0 += rows.height() as i64;
            counted.1 += rows.column("amount")?.as_materialized_series().sum::<i64>().unwrap_or(0);
            Ok(())
        };
        let records = |name: &str, rows: DataFrame| Records::from([(name.to_owned(), rows)]);
        if let Some((name, versions)) = before {
            operators.advance(&records(name, versions.clone()), Micros::MIN, &mut emit)?;
        }
        let mut took = Duration::ZERO;
        for at in (0..tables[0].1.height()).step_by(size.min(events)) {
            for (name, rows) in tables {
                let rows = rows.slice(at as i64, size.min(rows.height() - at));
                let seen = rows.column("ts")?.cast(&DataType::Int64)?.i64()?.get(0).unwrap_or_default();
                let records = records(name, rows);
                let started = Instant::now();
                operators.advance(&records, if size == BATCH { seen } else { Micros::MIN }, &mut emit)?;
                took += started.elapsed();
                most = most.max(operators.len());
            }
        }
        let started = Instant::now();
        operators.advance(&Records::new(), Micros::MAX / 2, &mut emit)?;
        took += started.elapsed();
        if counted != expected {
            return Err(Failure::new(format!("{what}: {counted:?}, and DuckDB says {expected:?}")));
        }
        figures.push((took, most));
    }
    let [(small, most), (whole, _)] = figures[..] else { return Err(Failure::new("two figures")) };
    report(
        &format!("{what}, by {BATCH} rows"),
        millions(per_second(events as u64, small)),
        &format!("at most {most} rows kept; {} rows made", expected.0),
    );
    report(
        &format!("{what}, all at once"),
        millions(per_second(events as u64, whole)),
        &format!("DuckDB on Parquet: {}", millions(per_second(events as u64, theirs))),
    );
    Ok(expected)
}

fn time(name: &str, times: Vec<Micros>) -> Result<Column, Failure> {
    Ok(Column::new(name.into(), times).cast(&DataType::Datetime(TimeUnit::Microseconds, None))?)
}

fn frame(mut columns: Vec<Column>) -> Result<DataFrame, Failure> {
    let rows = columns[0].len();
    columns.push(Column::new(PARTITION.into(), vec![0_i64; rows]));
    columns.push(Column::new(OFFSET.into(), (0..rows as i64).collect::<Vec<_>>()));
    Ok(DataFrame::new(rows, columns)?)
}

/// How long DuckDB takes, and the number of rows and the sum that it finds.
fn duckdb(sql: &str, folder: &Path) -> Result<(Duration, (i64, i64)), Failure> {
    let duckdb = duckdb::Connection::open_in_memory()?;
    for name in ["clicks", "purchases", "users"] {
        let file = folder.join(format!("{name}.parquet"));
        duckdb.execute_batch(&format!("CREATE VIEW {name} AS SELECT * FROM read_parquet('{}')", file.display()))?;
    }
    let cast = format!("SELECT CAST(a AS BIGINT), CAST(b AS BIGINT) FROM ({sql}) AS r(a, b)");
    let started = Instant::now();
    let found = duckdb.query_row(&cast, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok((started.elapsed(), found))
}
