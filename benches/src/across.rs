//! What rows across records cost: an interval join, a join as of each row's time and LAG, micro-batch by micro-batch as the speed
//! layer has them and all at once as the batch layer has them, beside DuckDB on the same rows.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::failure::Failure;
use anabranch_engine::decode::DELETED;
use anabranch_engine::operator::{OFFSET, Operators, PARTITION, Records};
use anabranch_plan::rows::{AsOfJoin, Rows};
use anabranch_plan::schema::Table;
use anabranch_plan::time::Micros;
use polars::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::stream::planned;
use super::{in_folder, millions, per_second, report};

const SQL: &str = "
CREATE TABLE clicks (user_id TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
CREATE TABLE purchases (user_id TEXT, amount BIGINT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
CREATE TABLE users (id TEXT, plan TEXT, changed TIMESTAMP NOT NULL) WITH (event_time = 'changed');
CREATE VIEW bought AS SELECT p.amount, p.ts FROM clicks AS c JOIN purchases AS p
  ON c.user_id = p.user_id AND p.ts BETWEEN c.ts - INTERVAL '10 seconds' AND c.ts + INTERVAL '10 seconds';
CREATE VIEW before AS SELECT amount, LAG(amount) OVER (PARTITION BY user_id ORDER BY ts) AS previous FROM purchases;
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

/// Measures and prints, with so many events of each table and so many keys.
pub fn run(events: usize, keys: u32) -> Result<(), Failure> {
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

    let table = |name: &str| Rows::Scan(Arc::clone(&catalog.tables[name]));
    let changelog = Table { primary_key: vec![0], ..Table::clone(&catalog.tables["users"]) };
    let names = |one: &str, other: &str| (one.to_owned(), other.to_owned());
    let with_plan = Rows::AsOf(Box::new(AsOfJoin {
        rows: table("purchases"),
        table: Rows::Scan(Arc::new(changelog)),
        keys: vec![names("user_id", "id")],
        times: names("ts", "changed"),
        condition: None,
        is_outer: false,
    }));
    in_folder(|folder| {
        for (name, rows) in [("clicks", &clicks), ("purchases", &purchases), ("users", &users)] {
            let mut file = std::fs::File::create(folder.join(format!("{name}.parquet")))?;
            ParquetWriter::new(&mut file).finish(&mut rows.clone())?;
        }
        let both = [("clicks", &clicks), ("purchases", &purchases)];
        let one = [("purchases", &purchases)];
        measure("interval join of two tables", &catalog.rows["bought"], &both, None, "amount", BOUGHT, folder)?;
        measure("LAG", &catalog.rows["before"], &one, None, "previous", BEFORE, folder)?;
        let versions = Some(("users", &users));
        measure("join as of each row's time", &with_plan, &one, versions, "amount", WITH_PLAN, folder)
    })
}

fn measure(
    what: &str,
    rows: &Rows,
    tables: &[(&str, &DataFrame)],
    before: Option<(&str, &DataFrame)>,
    summed: &str,
    sql: &str,
    folder: &Path,
) -> Result<(), Failure> {
    let events: usize = tables.iter().map(|(_, rows)| rows.height()).sum();
    let (theirs, expected) = duckdb(sql, folder)?;
    let mut figures = Vec::new();
    for size in [BATCH, usize::MAX] {
        let (mut operators, mut counted, mut most) = (Operators::new(rows)?, (0, 0), 0);
        let mut emit = |rows: DataFrame| {
            counted.0 += rows.height() as i64;
            counted.1 += rows.column(summed)?.as_materialized_series().sum::<i64>().unwrap_or(0);
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
    Ok(())
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
