//! What operators make, against loops over all records.

use anabranch_log::key::by_key;
use anabranch_plan::expr::{BinaryOp, Expr as Value};
use anabranch_plan::rows::{AsOfJoin, Field, IntervalJoin, Lag, Lagged, Rows};
use anabranch_plan::schema::{DataType as Type, Table};
use anabranch_plan::time::Micros;
use polars::prelude::*;
use proptest::prelude::*;

use super::*;

const TABLES: &str = "
CREATE TABLE l (lk TEXT, x BIGINT, lt TIMESTAMP NOT NULL) WITH (event_time = 'lt', partition_by = 'lk');
CREATE TABLE r (rk TEXT, y BIGINT, rt TIMESTAMP NOT NULL) WITH (event_time = 'rt', partition_by = 'rk');
";

/// A record of `l` or `r`, or a change of a row of `r`: without a value, its deletion.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Record {
    key: Option<u8>,
    value: Option<i64>,
    time: Micros,
    offset: i64,
}

impl Record {
    /// Where its key has it among [`PARTS`]; without one it could be anywhere.
    fn partition(&self) -> u32 {
        self.key.map_or(0, |key| by_key(key.to_string().as_bytes(), PARTS))
    }
}

/// How many partitions the tables have.
const PARTS: u32 = 2;

/// Micro-batches: of the left table or not, and their records.
type Batches = Vec<(bool, Vec<Record>)>;

/// Micro-batches, and the horizon behind each.
#[derive(Debug, Clone)]
struct Case {
    batches: Batches,
    horizons: Vec<Micros>,
}

impl Case {
    /// So many micro-batches, where every record is in time.
    fn in_time() -> impl Strategy<Value = Self> {
        (batches(), proptest::collection::vec(0_i64..6, 12)).prop_map(|(batches, slack)| {
            let least = |from: usize| {
                let later = batches[from..].iter().flat_map(|(_, records)| records).map(|record| record.time);
                later.min().unwrap_or(1_000)
            };
            // What comes in time isn't earlier than the horizon, and may be at it.
            let horizons = (0..batches.len()).map(|i| least(i + 1) - slack[i % slack.len()]).collect();
            Self { batches, horizons }
        })
    }

    /// The same with horizons that go on too fast.
    fn late() -> impl Strategy<Value = Self> {
        (batches(), proptest::collection::vec(-5_i64..50, 12))
            .prop_map(|(batches, horizons)| Self { batches, horizons })
    }

    fn records(&self, of_left: bool) -> Vec<Record> {
        let of = self.batches.iter().filter(|(is_left, _)| *is_left == of_left);
        of.flat_map(|(_, records)| records.clone()).collect()
    }
}

fn batches() -> impl Strategy<Value = Batches> {
    let record = (proptest::option::weighted(0.9, 0_u8..3), proptest::option::weighted(0.8, 0_i64..9), 0_i64..40);
    let batch = (any::<bool>(), proptest::collection::vec(record, 0..8));
    proptest::collection::vec(batch, 1..10).prop_map(|batches| {
        let mut offset = 0..;
        let mut record = |(key, value, time)| Record { key, value, time, offset: offset.next().unwrap_or_default() };
        batches.into_iter().map(|(left, records)| (left, records.into_iter().map(&mut record).collect())).collect()
    })
}

fn table(name: &str, is_changelog: bool) -> Rows {
    let catalog = anabranch_plan::sql::plan(&[("t.sql".to_owned(), TABLES.to_owned())]).expect("tables");
    let table = Table::clone(&catalog.tables[name]);
    let primary_key = if is_changelog { vec![0] } else { Vec::new() };
    Rows::Scan(Arc::new(Table { primary_key, ..table }))
}

fn frame(is_left: bool, records: &[Record]) -> Records {
    let [key, value, time] = if is_left { ["lk", "x", "lt"] } else { ["rk", "y", "rt"] };
    let column = |name: &str, values: Vec<Option<i64>>| Column::new(name.into(), values);
    let all = |of: fn(&Record) -> Option<i64>| records.iter().map(of).collect::<Vec<_>>();
    let keys: Vec<Option<String>> = records.iter().map(|record| record.key.map(|key| key.to_string())).collect();
    let times = column(time, all(|record| Some(record.time))).cast(&polars_type(&Type::Timestamp)).expect("times");
    let deleted: Vec<bool> = records.iter().map(|record| record.value.is_none()).collect();
    let columns = vec![
        Column::new(key.into(), keys),
        column(value, all(|record| record.value)),
        times,
        Column::new(DELETED.into(), deleted),
        column(PARTITION, all(|record| Some(i64::from(record.partition())))),
        column(OFFSET, all(|record| Some(record.offset))),
    ];
    let frame = DataFrame::new(records.len(), columns).expect("a frame");
    Records::from([(if is_left { "l" } else { "r" }.to_owned(), frame)])
}

/// Rows as lists of numbers, sorted. Keys and times are numbers as well.
fn listed(rows: &DataFrame, names: &[&str]) -> Vec<Vec<Option<i64>>> {
    let column = |name: &&str| rows.column(name).expect("a column").cast(&DataType::Int64).expect("numbers");
    let columns: Vec<Column> = names.iter().map(column).collect();
    let row = |row: usize| columns.iter().map(|column| column.i64().expect("numbers").get(row)).collect();
    let mut all: Vec<Vec<Option<i64>>> = (0..rows.height()).map(row).collect();
    all.sort();
    all
}

fn sorted(mut rows: Vec<Vec<Option<i64>>>) -> Vec<Vec<Option<i64>>> {
    rows.sort();
    rows
}

/// What a run through the micro-batches makes.
struct Run {
    operators: Operators,
    settled: Vec<Vec<Option<i64>>>,
    unsure: Unsure,
}

impl Run {
    fn new(rows: &Rows) -> Self {
        Self::of(Operators::new(rows, &|_| true, None).expect("operators"))
    }

    fn of(operators: Operators) -> Self {
        Self { operators, settled: Vec::new(), unsure: Unsure::default() }
    }

    fn step(&mut self, records: &Records, horizon: Micros, names: &[&str]) {
        let settled = &mut self.settled;
        let mut emit = |rows: DataFrame| {
            settled.extend(listed(&rows, names));
            Ok(())
        };
        let unsure = self.operators.advance(records, horizon, &mut emit).expect("a step");
        self.unsure = self.unsure.and(unsure);
    }

    fn all(rows: &Rows, case: &Case, names: &[&str], mut look: impl FnMut(&Self, usize)) -> Self {
        let mut run = Self::new(rows);
        for (i, (is_left, records)) in case.batches.iter().enumerate() {
            run.step(&frame(*is_left, records), case.horizons[i], names);
            look(&run, i);
        }
        run.step(&Records::new(), 10_000, names);
        run
    }
}

fn boxed(name: &str, data_type: Type) -> Box<Value> {
    Box::new(Value::Column(name.to_owned(), data_type))
}

/// `x < y`
fn less() -> Value {
    Value::Binary(boxed("x", Type::BigInt), BinaryOp::Less, boxed("y", Type::BigInt))
}

fn names(one: &str, other: &str) -> (String, String) {
    (one.to_owned(), other.to_owned())
}

fn interval_join(within: (Micros, Micros), condition: Option<Value>, is_outer: bool) -> Rows {
    let (left, right) = (table("l", false), table("r", false));
    let (keys, times) = (vec![names("lk", "rk")], names("lt", "rt"));
    Rows::Interval(Box::new(IntervalJoin { left, right, keys, times, within, condition, is_outer }))
}

const PAIR: [&str; 6] = ["lk", "x", "lt", "rk", "y", "rt"];

/// All pairs, and if they are asked for the left rows without one.
fn pairs(
    left: &[Record],
    right: &[Record],
    (from, to): (Micros, Micros),
    is_less: bool,
    is_outer: bool,
) -> Vec<Vec<Option<i64>>> {
    let mut all = Vec::new();
    for l in left {
        let row = |r: Option<&Record>| {
            let [key, value, time] = r.map_or([None; 3], |r| [r.key.map(i64::from), r.value, Some(r.time)]);
            vec![l.key.map(i64::from), l.value, Some(l.time), key, value, time]
        };
        let fits = |r: &&Record| {
            l.key.is_some()
                && l.key == r.key
                && (from..=to).contains(&(r.time - l.time))
                && (!is_less || matches!((l.value, r.value), (Some(x), Some(y)) if x < y))
        };
        let found: Vec<_> = right.iter().filter(fits).map(|r| row(Some(r))).collect();
        if found.is_empty() && is_outer {
            all.push(row(None));
        }
        all.extend(found);
    }
    sorted(all)
}

fn as_of_join(condition: Option<Value>, is_outer: bool) -> Rows {
    let (rows, table) = (table("l", false), table("r", true));
    let (keys, times) = (vec![names("lk", "rk")], names("lt", "rt"));
    Rows::AsOf(Box::new(AsOfJoin { rows, table, keys, times, condition, is_outer }))
}

/// Each left row with the newest version not after it.
fn versions(left: &[Record], right: &[Record], is_less: bool, is_outer: bool) -> Vec<Vec<Option<i64>>> {
    let mut all = Vec::new();
    for l in left {
        let held = right.iter().filter(|r| l.key.is_some() && r.key == l.key && r.time <= l.time);
        let newest = held.max_by_key(|r| (r.time, r.offset)).filter(|r| r.value.is_some());
        let fits = newest.filter(|r| !is_less || matches!((l.value, r.value), (Some(x), Some(y)) if x < y));
        if fits.is_none() && !is_outer {
            continue;
        }
        let [key, value, time] = fits.map_or([None; 3], |r| [r.key.map(i64::from), r.value, Some(r.time)]);
        all.push(vec![l.key.map(i64::from), l.value, Some(l.time), key, value, time]);
    }
    sorted(all)
}

fn lag() -> Rows {
    let lagged =
        |name: &str, of: &str, back, default| Lagged { name: name.to_owned(), of: of.to_owned(), back, default };
    let zero = Value::Literal(anabranch_plan::expr::Literal::BigInt(-1));
    let columns = vec![lagged("one", "x", 1, None), lagged("before", "lt", 1, None), lagged("two", "x", 2, Some(zero))];
    Rows::Lag(Box::new(Lag { rows: table("l", false), keys: vec!["lk".to_owned()], time: "lt".to_owned(), columns }))
}

const LAGGED: [&str; 6] = ["lk", "x", "lt", "one", "before", "two"];

/// Each row with the one before it and the one before that.
fn lagged(left: &[Record]) -> Vec<Vec<Option<i64>>> {
    let mut order = left.to_vec();
    order.sort_by_key(|record| (record.time, record.offset));
    let row = |i: usize| {
        let own = order[i];
        let before: Vec<&Record> = order[..i].iter().rev().filter(|other| other.key == own.key).collect();
        let one = before.first();
        let two = before.get(1).map_or(Some(-1), |two| two.value);
        vec![
            own.key.map(i64::from),
            own.value,
            Some(own.time),
            one.and_then(|one| one.value),
            one.map(|one| one.time),
            two,
        ]
    };
    sorted((0..order.len()).map(row).collect())
}

fn join(mut rows: Vec<Vec<Option<i64>>>, others: Vec<Vec<Option<i64>>>) -> Vec<Vec<Option<i64>>> {
    rows.extend(others);
    sorted(rows)
}

/// What either list has that the other hasn't.
fn difference(one: &[Vec<Option<i64>>], other: &[Vec<Option<i64>>]) -> Vec<Vec<Option<i64>>> {
    let (mut left, mut wrong) = (other.to_vec(), Vec::new());
    for row in one {
        match left.iter().position(|it| it == row) {
            Some(i) => drop(left.swap_remove(i)),
            None => wrong.push(row.clone()),
        }
    }
    wrong.extend(left);
    wrong
}

/// Checks that rows which aren't what they should be have times that were said to be unsure.
fn check_unsure(run: &Run, expected: &[Vec<Option<i64>>]) -> Result<(), TestCaseError> {
    for row in difference(&sorted(run.settled.clone()), expected) {
        let time = row[2].unwrap_or_default();
        let is_said = run.unsure.span.is_some_and(|(from, to)| (from..=to).contains(&time));
        prop_assert!(is_said, "{row:?} isn't said to be unsure: {:?}", run.unsure);
    }
    Ok(())
}

fn within() -> impl Strategy<Value = (Micros, Micros)> {
    (-12_i64..12, 0_i64..15).prop_map(|(from, length)| (from, from + length))
}

proptest! {
    #[test]
    fn operators_go_on_from_a_state_as_those_whose_it_was(
        case in Case::in_time(), within in within(), is_outer in any::<bool>(), kind in 0..5,
    ) {
        let nested = |rows| match rows {
            Rows::Lag(lag) => Rows::Lag(Box::new(Lag { rows: interval_join(within, None, is_outer), ..*lag })),
            rows => rows,
        };
        let (rows, names) = match kind {
            0 => (interval_join(within, None, is_outer), PAIR),
            1 => (as_of_join(None, is_outer), PAIR),
            2 => (lag(), LAGGED),
            3 => (table("r", true), ["rk", "y", "rt", "rk", "y", "rt"]),
            _ => (nested(lag()), LAGGED),
        };
        let (mut one, mut other) = (Run::new(&rows), Run::new(&rows));
        for ((is_left, records), &horizon) in case.batches.iter().zip(&case.horizons) {
            for run in [&mut one, &mut other] {
                run.step(&frame(*is_left, records), horizon, &names);
            }
            let state = other.operators.state().expect("a state");
            other.operators = Operators::resume(&rows, &|_| true, None, state).expect("operators");
            prop_assert_eq!(sorted(one.settled.clone()), sorted(other.settled.clone()));
            let pending = [&one, &other].map(|run| listed(&run.operators.pending().expect("pending"), &names));
            prop_assert_eq!(&pending[0], &pending[1]);
        }
        for run in [&mut one, &mut other] {
            run.step(&Records::new(), 10_000, &names);
        }
        prop_assert_eq!(sorted(one.settled), sorted(other.settled));
        prop_assert_eq!(other.unsure, Unsure::default());
    }

    #[test]
    fn the_parts_of_a_state_go_on_to_make_what_the_whole_makes(
        case in Case::in_time(), within in within(), is_outer in any::<bool>(), kind in 0..4, cut in 0_usize..10,
    ) {
        let (rows, names) = match kind {
            0 => (interval_join(within, None, is_outer), PAIR),
            1 => (as_of_join(None, is_outer), PAIR),
            2 => (lag(), LAGGED),
            _ => (table("r", true), ["rk", "y", "rt", "rk", "y", "rt"]),
        };
        let mut whole = Run::new(&rows);
        let mut parts: Vec<Run> = Vec::new();
        for (i, ((is_left, records), &horizon)) in case.batches.iter().zip(&case.horizons).enumerate() {
            if i == cut.min(case.batches.len() - 1) {
                let resume = |partition| {
                    let (part, state) = (Part { partition, partitions: PARTS }, whole.operators.state().expect("a state"));
                    Run::of(Operators::resume(&rows, &|_| true, Some(part), state).expect("operators"))
                };
                parts = (0..PARTS).map(resume).collect();
                whole.settled.clear();
            }
            // Those without a key would lie in every partition.
            let of_lag = |record: &&Record| kind != 2 || record.key.is_some();
            let records: Vec<Record> = records.iter().filter(of_lag).copied().collect();
            whole.step(&frame(*is_left, &records), horizon, &names);
            for (partition, part) in (0..).zip(&mut parts) {
                let is_whole = kind == 1 && !is_left;
                let own: Vec<Record> = records.iter().filter(|r| is_whole || r.partition() == partition).copied().collect();
                part.step(&frame(*is_left, &own), horizon, &names);
            }
            if !parts.is_empty() {
                let settled = parts.iter().flat_map(|part| part.settled.clone()).collect();
                prop_assert_eq!(sorted(settled), sorted(whole.settled.clone()));
                let pending = |run: &Run| listed(&run.operators.pending().expect("pending"), &names);
                prop_assert_eq!(sorted(parts.iter().flat_map(pending).collect()), pending(&whole));
            }
        }
        for run in &parts {
            prop_assert_eq!(run.unsure, Unsure::default());
        }
    }

    #[test]
    fn the_rows_of_a_changelog_are_the_last_versions_wherever_the_stream_is_cut(case in Case::late()) {
        let rows = table("r", true);
        let mut partial = Ok(());
        let run = Run::all(&rows, &case, &["rk", "y", "rt"], |run, i| {
            let so_far = Case { batches: case.batches[..=i].to_vec(), horizons: Vec::new() };
            let records = so_far.records(false);
            let is_last = |(i, record): &(usize, &Record)| records[i + 1..].iter().all(|later| later.key != record.key);
            let last = records.iter().enumerate().filter(is_last).map(|(_, record)| record);
            let expected = last.filter(|record| record.value.is_some());
            let expected = expected.map(|record| vec![record.key.map(i64::from), record.value, Some(record.time)]);
            let (expected, pending) = (sorted(expected.collect()), run.operators.pending().expect("pending"));
            if listed(&pending, &["rk", "y", "rt"]) != expected && partial.is_ok() {
                partial = Err(TestCaseError::fail(format!("behind micro-batch {i}: {pending}, not {expected:?}")));
            }
        });
        partial?;
        prop_assert!(run.settled.is_empty());
        prop_assert_eq!(run.unsure, Unsure::default());
    }

    #[test]
    fn pairs_are_made_once_wherever_the_stream_is_cut(
        case in Case::in_time(), within in within(), is_less in any::<bool>(), is_outer in any::<bool>(),
    ) {
        let rows = interval_join(within, is_less.then(less), is_outer);
        let mut partial = Ok(());
        let run = Run::all(&rows, &case, &PAIR, |run, i| {
            // The pairs of what has come are there at once; left rows without a partner are not.
            let so_far = Case { batches: case.batches[..=i].to_vec(), horizons: Vec::new() };
            let expected = pairs(&so_far.records(true), &so_far.records(false), within, is_less, false);
            let settled = sorted(run.settled.iter().filter(|row| row[5].is_some()).cloned().collect());
            if settled != expected && partial.is_ok() {
                partial = Err(TestCaseError::fail(format!("behind micro-batch {i}: {settled:?}, not {expected:?}")));
            }
        });
        partial?;
        let expected = pairs(&case.records(true), &case.records(false), within, is_less, is_outer);
        prop_assert_eq!(sorted(run.settled), expected);
        prop_assert_eq!(run.unsure, Unsure::default());
        prop_assert_eq!(run.operators.len(), 0, "nothing is kept that can't find a partner any more");
    }

    #[test]
    fn a_pair_that_is_lacking_is_said_to_be(
        case in Case::late(), within in within(), is_less in any::<bool>(), is_outer in any::<bool>(),
    ) {
        let run = Run::all(&interval_join(within, is_less.then(less), is_outer), &case, &PAIR, |_, _| {});
        check_unsure(&run, &pairs(&case.records(true), &case.records(false), within, is_less, is_outer))?;
    }

    #[test]
    fn a_row_meets_the_version_of_its_time_wherever_the_stream_is_cut(
        case in Case::in_time(), is_less in any::<bool>(), is_outer in any::<bool>(),
    ) {
        let rows = as_of_join(is_less.then(less), is_outer);
        let mut partial = Ok(());
        let run = Run::all(&rows, &case, &PAIR, |run, i| {
            let so_far = Case { batches: case.batches[..=i].to_vec(), horizons: Vec::new() };
            let expected = versions(&so_far.records(true), &so_far.records(false), is_less, is_outer);
            let pending = listed(&run.operators.pending().expect("pending"), &PAIR);
            let all = join(run.settled.clone(), pending);
            if all != expected && partial.is_ok() {
                partial = Err(TestCaseError::fail(format!("behind micro-batch {i}: {all:?}, not {expected:?}")));
            }
        });
        partial?;
        prop_assert_eq!(sorted(run.settled), versions(&case.records(true), &case.records(false), is_less, is_outer));
        prop_assert_eq!(run.unsure, Unsure::default());
    }

    #[test]
    fn a_row_with_a_version_that_came_too_late_is_said_to_be_unsure(
        case in Case::late(), is_less in any::<bool>(), is_outer in any::<bool>(),
    ) {
        let run = Run::all(&as_of_join(is_less.then(less), is_outer), &case, &PAIR, |_, _| {});
        check_unsure(&run, &versions(&case.records(true), &case.records(false), is_less, is_outer))?;
    }

    #[test]
    fn a_row_sees_those_before_it_wherever_the_stream_is_cut(case in Case::in_time()) {
        let mut partial = Ok(());
        let run = Run::all(&lag(), &case, &LAGGED, |run, i| {
            let so_far = Case { batches: case.batches[..=i].to_vec(), horizons: Vec::new() };
            let expected = lagged(&so_far.records(true));
            let pending = listed(&run.operators.pending().expect("pending"), &LAGGED);
            let all = join(run.settled.clone(), pending);
            if all != expected && partial.is_ok() {
                partial = Err(TestCaseError::fail(format!("behind micro-batch {i}: {all:?}, not {expected:?}")));
            }
        });
        partial?;
        prop_assert_eq!(sorted(run.settled), lagged(&case.records(true)));
        prop_assert_eq!(run.unsure, Unsure::default());
    }

    #[test]
    fn a_row_that_belongs_before_others_that_have_gone_makes_them_unsure(case in Case::late()) {
        let run = Run::all(&lag(), &case, &LAGGED, |_, _| {});
        check_unsure(&run, &lagged(&case.records(true)))?;
    }

    #[test]
    fn operators_stand_on_each_other(case in Case::in_time(), within in within()) {
        // What was bought by the row before, of pairs: a join, a filter, and a look back.
        let rows = Rows::Filter { rows: Box::new(interval_join(within, None, false)), condition: less() };
        let lagged = Lagged { name: "one".to_owned(), of: "y".to_owned(), back: 1, default: None };
        let rows = Rows::Lag(Box::new(Lag { rows, keys: vec!["lk".to_owned()], time: "rt".to_owned(), columns: vec![lagged] }));
        let names = ["lk", "x", "lt", "rk", "y", "rt", "one"];
        let run = Run::all(&rows, &case, &names, |_, _| {});
        prop_assert_eq!(run.unsure, Unsure::default());
        let once = Case { batches: vec![(true, case.records(true)), (false, case.records(false))], horizons: vec![Micros::MIN; 2] };
        let whole = Run::all(&rows, &once, &names, |_, _| {});
        prop_assert_eq!(sorted(run.settled.clone()), sorted(whole.settled));
        let without: Vec<_> = run.settled.into_iter().map(|row| row[..6].to_vec()).collect();
        prop_assert_eq!(sorted(without), pairs(&case.records(true), &case.records(false), within, true, false));
    }
}

proptest! {
    #[test]
    fn what_lacks_below_is_said_above(case in Case::late(), within in within(), then in within()) {
        // Of the rows that are made without one late record, those that would be others have only times that are unsure.
        let lagged = Lagged { name: "one".to_owned(), of: "y".to_owned(), back: 1, default: None };
        let lag = |rows| Lag { rows, keys: vec!["lk".to_owned()], time: "rt".to_owned(), columns: vec![lagged.clone()] };
        let third = |name: &str, of: &str, data_type| Field { name: name.to_owned(), expr: Value::Column(of.to_owned(), data_type) };
        let fields = vec![third("tk", "lk", Type::Text), third("tt", "lt", Type::Timestamp)];
        let three = IntervalJoin {
            left: interval_join(within, None, false),
            right: Rows::Project { rows: Box::new(table("l", false)), fields },
            keys: vec![names("lk", "tk")],
            times: names("rt", "tt"),
            within: then,
            condition: None,
            is_outer: true,
        };
        let over_join = (Rows::Lag(Box::new(lag(interval_join(within, None, false)))), vec!["lk", "x", "lt", "rk", "y", "rt", "one"], vec![2, 5]);
        let over_outer = (
            Rows::Lag(Box::new(Lag { time: "lt".to_owned(), ..lag(interval_join(within, None, true)) })),
            vec!["lk", "x", "lt", "rk", "y", "rt", "one"],
            vec![2],
        );
        let of_three = (Rows::Interval(Box::new(three)), vec!["lk", "x", "lt", "rk", "y", "rt", "tt"], vec![2, 5]);
        for (rows, names, times) in [over_join, over_outer, of_three] {
            let run = Run::all(&rows, &case, &names, |_, _| {});
            let once = Case { batches: vec![(true, case.records(true)), (false, case.records(false))], horizons: vec![Micros::MIN; 2] };
            let whole = Run::all(&rows, &once, &names, |_, _| {});
            prop_assert_eq!(whole.unsure, Unsure::default());
            for row in difference(&run.settled, &whole.settled) {
                for &time in &times {
                    let time = row[time].unwrap_or_default();
                    let is_said = run.unsure.span.is_some_and(|(from, to)| (from..=to).contains(&time));
                    prop_assert!(is_said, "{row:?} of {names:?} isn't said to be unsure: {:?}", run.unsure);
                }
            }
        }
    }
}

#[test]
fn state_is_flat_in_a_long_stream() {
    let mut run = Run::new(&interval_join((-10, 10), None, true));
    for second in 0..2_000 {
        let records: Vec<Record> = (0..20)
            .map(|i| Record { key: Some((i % 200) as u8), value: Some(i), time: second, offset: second * 20 + i })
            .collect();
        run.step(&frame(second % 2 == 0, &records), second - 1, &PAIR);
        // Of each side the rows of 12 seconds, or so many again that are yet to be forgotten.
        assert!(run.operators.len() <= 2 * 2 * 12 * 20, "{} rows in second {second}", run.operators.len());
    }
}

const SHOP: &str = "
CREATE TABLE clicks (id TEXT, user_id TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
CREATE TABLE purchases (id TEXT, user_id TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
CREATE VIEW bought AS SELECT c.id AS click, p.id AS purchase FROM clicks c JOIN purchases p
  ON c.user_id = p.user_id AND p.ts BETWEEN c.ts - INTERVAL '10 seconds' AND c.ts + INTERVAL '10 seconds';
CREATE VIEW abandoned AS SELECT c.id AS click, p.id AS purchase FROM clicks c LEFT JOIN purchases p
  ON c.user_id = p.user_id AND p.ts BETWEEN c.ts AND c.ts + INTERVAL '10 seconds' WHERE p.id IS NULL;
CREATE VIEW same AS SELECT a.id AS click, b.id AS purchase FROM clicks a JOIN clicks b
  ON a.user_id = b.user_id AND b.ts = a.ts;
";

/// A run of a view of the shop. Records are `id`, `user_id` and milliseconds.
struct Shop(Run);

impl Shop {
    fn new(view: &str) -> Self {
        let catalog = anabranch_plan::sql::plan(&[("v.sql".to_owned(), SHOP.to_owned())]).expect("a project");
        Self(Run::new(&catalog.rows[view]))
    }

    /// The pairs that records of a table make, before the horizon moves on to so many milliseconds.
    fn pairs(
        &mut self,
        table: &str,
        records: &[(&str, Option<&str>, i64)],
        horizon: i64,
    ) -> Vec<(String, Option<String>)> {
        let ids: Vec<&str> = records.iter().map(|record| record.0).collect();
        let users: Vec<Option<&str>> = records.iter().map(|record| record.1).collect();
        let times: Vec<i64> = records.iter().map(|record| record.2 * 1_000).collect();
        let columns = vec![
            Column::new("id".into(), ids),
            Column::new("user_id".into(), users),
            Column::new("ts".into(), times).cast(&polars_type(&Type::Timestamp)).expect("times"),
            Column::new(PARTITION.into(), vec![0_i64; records.len()]),
            Column::new(OFFSET.into(), (0..records.len() as i64).collect::<Vec<_>>()),
        ];
        let records = Records::from([(table.to_owned(), DataFrame::new(records.len(), columns).expect("a frame"))]);
        let mut all = Vec::new();
        let mut emit = |rows: DataFrame| {
            let column = |name: &str| rows.column(name).and_then(|column| column.str().cloned());
            let (clicks, purchases) = (column("click")?, column("purchase")?);
            let pair = |(click, purchase): (Option<&str>, Option<&str>)| {
                (click.unwrap_or_default().to_owned(), purchase.map(str::to_owned))
            };
            all.extend(clicks.iter().zip(purchases.iter()).map(pair));
            Ok(())
        };
        self.0.operators.advance(&records, horizon * 1_000, &mut emit).expect("a step");
        all.sort();
        all
    }
}

fn found(pairs: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    pairs.iter().map(|(click, purchase)| ((*click).to_owned(), purchase.map(str::to_owned))).collect()
}

#[test]
fn a_purchase_within_ten_seconds_of_a_click_joins_it_and_no_other_does() {
    let mut shop = Shop::new("bought");
    assert_eq!(shop.pairs("clicks", &[("c1", Some("A"), 0), ("c2", Some("B"), 5_000)], 0), []);
    let purchases = [("p1", Some("A"), 3_000), ("p2", Some("A"), 15_000)];
    assert_eq!(shop.pairs("purchases", &purchases, 0), found(&[("c1", Some("p1"))]));
    assert_eq!(
        shop.pairs("purchases", &[("p3", Some("A"), 10_000)], 0),
        found(&[("c1", Some("p3"))]),
        "10.000 s joins"
    );
    assert_eq!(shop.pairs("purchases", &[("p4", Some("A"), 10_001)], 0), [], "10.001 s doesn't");
    assert_eq!(shop.pairs("clicks", &[("c3", None, 3_000)], 0), []);
    assert_eq!(shop.pairs("purchases", &[("p5", None, 3_000)], 0), [], "nobody is nobody's like");
    // An equal time is in time, and finds what may be forgotten next.
    assert_eq!(shop.pairs("purchases", &[("p6", Some("B"), 15_000)], 15_000), found(&[("c2", Some("p6"))]));
    assert_eq!(shop.pairs("purchases", &[("p7", Some("B"), 15_000)], 15_001), found(&[("c2", Some("p7"))]));
}

#[test]
fn a_click_without_a_purchase_is_told_once_when_none_can_come_in_time() {
    let mut shop = Shop::new("abandoned");
    assert_eq!(shop.pairs("clicks", &[("c1", Some("A"), 0), ("c2", Some("B"), 0), ("c3", None, 1_000)], 10_000), []);
    assert_eq!(shop.pairs("purchases", &[("p1", Some("A"), 10_000)], 10_000), [], "it is in time to the last");
    assert_eq!(shop.pairs("purchases", &[], 10_001), found(&[("c2", None)]), "and no record has to come for it");
    assert_eq!(shop.pairs("purchases", &[], 11_000), []);
    assert_eq!(shop.pairs("purchases", &[], 11_001), found(&[("c3", None)]));
    assert_eq!(shop.pairs("purchases", &[], 99_000), [], "once");
}

#[test]
fn a_null_isnt_equal_to_itself() {
    let mut shop = Shop::new("same");
    let clicks = [("c1", Some("A"), 0), ("c2", None, 0), ("c3", None, 0)];
    assert_eq!(shop.pairs("clicks", &clicks, 0), found(&[("c1", Some("c1"))]));
}

#[test]
fn a_record_in_a_partition_that_isnt_its_own_is_refused_and_a_version_that_has_it_gives_it_to_its_own() {
    let own = by_key(b"1", PARTS);
    let part = |partition| Some(Part { partition, partitions: PARTS });
    let record = Record { key: Some(1), value: Some(5), time: 10, offset: 0 };
    let join = interval_join((0, 10), None, false);
    let why = format!(
        "a record with lk = 1 is in partition {}, where it finds no others: its place among 2 is {own}; whoever writes the topic has to \
         partition it as Kafka's clients do by a key that is this text",
        1 - own
    );
    for rows in [&join, &lag()] {
        let mut other = Operators::new(rows, &|_| true, part(1 - own)).expect("operators");
        let refused = other.advance(&frame(true, &[record]), 0, &mut |_| Ok(())).expect_err("refused");
        assert!(refused.to_string().contains(&why), "{refused}");
        // Who sees all partitions has it, and those who go on from there find it where they look.
        let mut whole = Operators::new(rows, &|_| true, None).expect("operators");
        let mut misplaced = frame(true, &[record]);
        let frame = misplaced.get_mut("l").expect("records");
        frame.with_column(Column::new(PARTITION.into(), [i64::from(1 - own)])).expect("a column");
        whole.advance(&misplaced, 0, &mut |_| Ok(())).expect("a step");
        let resume = |partition| {
            let own = Operators::resume(rows, &|_| true, part(partition), whole.state().expect("a state"));
            own.expect("operators").len()
        };
        assert_eq!((resume(own), resume(1 - own)), (1, 0));
    }
    // One that waits below isn't shown either.
    let Rows::Lag(above) = lag() else { panic!("LAG") };
    let above = Rows::Lag(Box::new(Lag { rows: as_of_join(None, true), ..*above }));
    let mut other = Operators::new(&above, &|_| true, part(1 - own)).expect("operators");
    other.advance(&frame(true, &[record]), 0, &mut |_| Ok(())).expect("it waits for its version");
    assert!(other.pending().is_err_and(|error| error.to_string().contains(&why)));
    let without = Record { key: None, ..record };
    let mut operators = Operators::new(&join, &|_| true, part(own)).expect("operators");
    operators.advance(&frame(true, &[without]), 0, &mut |_| Ok(())).expect("it is joined with nothing");
    let mut operators = Operators::new(&lag(), &|_| true, part(own)).expect("operators");
    let refused = operators.advance(&frame(true, &[without]), 0, &mut |_| Ok(())).expect_err("refused");
    assert!(refused.to_string().contains("a record with lk = NULL is in partition"), "{refused}");
}
