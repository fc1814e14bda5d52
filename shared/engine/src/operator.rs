//! What looks across records: interval joins, joins with a changelog, its current rows, and `LAG`, as operators that keep rows.
//!
//! Both layers call them. Batch gives them all records below its frontier, a day after the other, speed a micro-batch after the other, and
//! what goes out is the same:
//!
//! - a row is **settled** when nothing that is in time can change it any more. It goes out once. So what settles in one stretch of the
//!   log adds up with what settled before it;
//! - a row **waits** until then. What the waiting rows would make as things are is [`Operators::pending`], which is computed when
//!   somebody asks, and never added up.
//!
//! What is in time is told by the **horizon**: the watermark less the allowed lateness. It is the one that rows met, and moves between
//! two steps. What comes behind it, and concerns what may have been forgotten or gone on, is [`Unsure`].
//!
//! What operators keep at a moment is a [`State`]. A batch version stores the one at its frontier, and speed goes on from there.

mod asof;
mod current;
mod interval;
mod key;
mod lag;
mod newest;
mod part;
mod segment;
#[cfg(test)]
mod tests;
mod wait;

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_plan::expr::Expr as Value;
use anabranch_plan::rows::Rows;
use anabranch_plan::time::Micros;
use polars::prelude::*;

pub use self::key::times;
pub use self::part::Part;

use self::asof::AsOf;
use self::current::Current;
use self::interval::Interval;
use self::key::{offset_column, partition_column};
use self::lag::Lag;
use self::part::Placed;
use crate::decode::DELETED;
use crate::row::Lowered;
use crate::transform::{column, polars_type};

/// The columns of a table's records that say where each stood in the log.
pub const PARTITION: &str = "__partition";
/// See [`PARTITION`].
pub const OFFSET: &str = "__offset";

/// Takes rows as they are made.
pub type Emit<'a> = dyn FnMut(DataFrame) -> PolarsResult<()> + 'a;

/// All that operators keep at one moment, for others to go on from.
#[derive(Debug, Clone)]
pub struct State {
    /// The horizon.
    pub horizon: Micros,
    /// What each operator keeps, in an order that follows from the rows.
    pub frames: Vec<DataFrame>,
}

/// That rows of some times may be wrong or lacking, since rows came behind the horizon. Of a row with several event times it is said
/// for all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsure {
    /// The times, from the first to the last; none if all are sure.
    pub span: Option<(Micros, Micros)>,
    /// How many rows that concerns.
    pub rows: u64,
}

impl Unsure {
    /// This, and that it concerns one more row.
    fn with(self, from: Micros, to: Micros) -> Self {
        self.and(Self { span: Some((from, to)), rows: 1 })
    }

    /// The same of rows whose times are later than these by as much as from the first to the last.
    fn widened(self, (from, to): (Micros, Micros)) -> Self {
        let span = self.span.map(|(first, last)| (first.saturating_add(from), last.saturating_add(to)));
        Self { span, ..self }
    }

    /// What either says.
    pub fn and(self, other: Self) -> Self {
        Self { span: either(self.span, other.span), rows: self.rows + other.rows }
    }
}

/// From the first of two spans' times to the last.
pub fn either(one: Option<(Micros, Micros)>, other: Option<(Micros, Micros)>) -> Option<(Micros, Micros)> {
    match (one, other) {
        (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
        (one, other) => one.or(other),
    }
}

/// The operators that rows go through.
#[derive(Debug)]
pub struct Operators {
    root: Node,
    horizon: Micros,
}

/// The records of tables, by name: their columns, [`PARTITION`] and [`OFFSET`], and of a changelog [`DELETED`].
pub type Records = BTreeMap<String, DataFrame>;

#[derive(Debug)]
struct Node {
    /// The columns of its rows.
    schema: SchemaRef,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The records of a table, which is the one of this number among those of the rows.
    Scan {
        table: String,
        number: usize,
    },
    /// The rows of a changelog, which is such a table.
    Current {
        versions: Box<Node>,
        current: Current,
    },
    Steps {
        of: Box<Node>,
        steps: Lowered,
        also: Vec<PlSmallStr>,
    },
    Interval {
        left: Box<Node>,
        right: Box<Node>,
        join: Interval,
        placed: Option<Placed<2>>,
    },
    AsOf {
        rows: Box<Node>,
        versions: Box<Node>,
        join: AsOf,
    },
    Lag {
        rows: Box<Node>,
        lag: Lag,
        placed: Option<Placed<1>>,
    },
}

impl Operators {
    /// The operators of rows, which keep nothing yet. Of tables they take the event time and the columns that are read, by their names.
    /// `part` is what of the tables they are given; none if all.
    pub fn new(rows: &Rows, is_read: &dyn Fn(&str) -> bool, part: Option<Part>) -> PolarsResult<Self> {
        let mut plan = Planned { is_read, part, tables: 0 };
        Ok(Self { root: Node::new(rows, &mut plan, false)?, horizon: Micros::MIN })
    }

    /// The operators of rows, which keep what those of all partitions kept, or their part of it.
    pub fn resume(rows: &Rows, is_read: &dyn Fn(&str) -> bool, part: Option<Part>, state: State) -> PolarsResult<Self> {
        Self::new(rows, is_read, part)?.keeping(state, part)
    }

    /// The operators of rows, which keep what operators of the same part kept.
    pub fn restore(
        rows: &Rows,
        is_read: &dyn Fn(&str) -> bool,
        part: Option<Part>,
        state: State,
    ) -> PolarsResult<Self> {
        Self::new(rows, is_read, part)?.keeping(state, None)
    }

    /// The same, with what of a state belongs to a part; without one, all of it.
    fn keeping(mut self, State { horizon, frames }: State, part: Option<Part>) -> PolarsResult<Self> {
        self.horizon = horizon;
        let mut frames = frames.into_iter();
        self.root.resume(&mut frames, part)?;
        polars_ensure!(frames.next().is_none(), ComputeError: "the state is of other operators: it has more frames");
        Ok(self)
    }

    /// All that they keep.
    pub fn state(&self) -> PolarsResult<State> {
        let mut frames = Vec::new();
        self.root.state(&mut frames)?;
        Ok(State { horizon: self.horizon, frames })
    }

    /// What records that come now meet: what is earlier isn't in time.
    pub fn horizon(&self) -> Micros {
        self.horizon
    }

    /// The columns of the rows that come out.
    pub fn schema(&self) -> &SchemaRef {
        &self.root.schema
    }

    /// The bytes of what is kept, about.
    pub fn bytes(&self) -> usize {
        self.root.bytes()
    }

    /// Takes records, which meet the horizon as it is, and then goes on to another, if it is later. Gives the rows that settle.
    pub fn advance(&mut self, records: &Records, horizon: Micros, emit: &mut Emit<'_>) -> PolarsResult<Unsure> {
        let met = self.horizon;
        self.horizon = met.max(horizon);
        self.root.advance(records, (met, self.horizon), emit)
    }

    /// What the rows that wait make as things are.
    pub fn pending(&self) -> PolarsResult<DataFrame> {
        self.root.pending()
    }

    /// The horizon behind which half of the rows that are kept for a time are given up; none if no row is.
    pub fn halfway(&self) -> Option<Micros> {
        let mut until = Vec::new();
        self.root.until(&mut until);
        // What may be forgotten already.
        until.retain(|until| *until >= self.horizon);
        let middle = until.len() / 2;
        (!until.is_empty()).then(|| until.select_nth_unstable(middle).1.saturating_add(1))
    }

    /// Gives back the memory of all that is no longer needed.
    pub fn compact(&mut self) -> PolarsResult<()> {
        self.root.compact(self.horizon)
    }

    /// How many rows are kept.
    pub fn len(&self) -> usize {
        self.root.len()
    }

    /// Whether none are.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What nodes are made by.
struct Planned<'a> {
    is_read: &'a dyn Fn(&str) -> bool,
    part: Option<Part>,
    /// How many tables there have been so far.
    tables: usize,
}

/// Where the horizon is before a step, and behind it.
type Step = (Micros, Micros);

impl Node {
    /// `versions` says that of changelogs all versions are wanted, not the current rows.
    fn new(rows: &Rows, plan: &mut Planned<'_>, versions: bool) -> PolarsResult<Self> {
        let is_read = plan.is_read;
        Ok(match rows {
            Rows::Scan(table) => {
                let number = plan.tables;
                plan.tables += 1;
                let time = &table.event_time_column().name;
                let taken = table.columns.iter().filter(|c| c.name == *time || is_read(&c.name));
                let columns = taken.map(|c| (c.name.as_str().into(), polars_type(&c.data_type)));
                let mut schema: Schema = columns.collect();
                if table.is_changelog() {
                    schema.insert(DELETED.into(), DataType::Boolean);
                }
                schema.insert(partition_column(number).into(), DataType::Int64);
                schema.insert(offset_column(number).into(), DataType::Int64);
                let scan = Self { schema: Arc::new(schema), kind: Kind::Scan { table: table.name.clone(), number } };
                if versions || !table.is_changelog() {
                    return Ok(scan);
                }
                let current = Current::new(table, number, scan.schema.clone());
                let mut schema = Schema::clone(&scan.schema);
                schema.shift_remove(DELETED);
                Self { schema: Arc::new(schema), kind: Kind::Current { versions: Box::new(scan), current } }
            }
            Rows::Interval(join) => {
                let (left, right) =
                    (Box::new(Self::new(&join.left, plan, false)?), Box::new(Self::new(&join.right, plan, false)?));
                let mut schema = Schema::clone(&left.schema);
                schema.merge(Schema::clone(&right.schema));
                let placed = Placed::of(plan.part, join.placed_by().map(|(one, other)| [one, other]), false)?;
                let join = Interval::new(join, right.schema.clone());
                Self { schema: Arc::new(schema), kind: Kind::Interval { left, right, join, placed } }
            }
            Rows::AsOf(join) => {
                let (rows, versions) =
                    (Box::new(Self::new(&join.rows, plan, false)?), Box::new(Self::new(&join.table, plan, true)?));
                let mut schema = Schema::clone(&rows.schema);
                schema.merge(Schema::clone(&versions.schema));
                schema.shift_remove(DELETED);
                let join = AsOf::new(join, versions.schema.clone());
                Self { schema: Arc::new(schema), kind: Kind::AsOf { rows, versions, join } }
            }
            Rows::Lag(lag) => {
                let rows = Box::new(Self::new(&lag.rows, plan, false)?);
                let mut schema = Schema::clone(&rows.schema);
                for column in &lag.columns {
                    schema.insert(column.name.as_str().into(), rows.schema.try_get(&column.of)?.clone());
                }
                let placed = Placed::of(plan.part, lag.placed_by().map(|key| [key]), true)?;
                let lag = Lag::new(lag, &rows.schema)?;
                Self { schema: Arc::new(schema), kind: Kind::Lag { rows, lag, placed } }
            }
            Rows::Filter { .. } | Rows::Unnest { .. } | Rows::Project { .. } => {
                let columns = rows.schema().into_iter().filter(|column| is_read(&column.name));
                let columns: Vec<Value> = columns.map(|column| Value::Column(column.name, column.data_type)).collect();
                let (steps, below) = Lowered::steps(rows, columns.iter());
                let of = Box::new(Self::new(below, plan, versions)?);
                let is_own = |name: &&PlSmallStr| key::is_position(name) || name.as_str() == DELETED;
                let also: Vec<PlSmallStr> = of.schema.iter_names().filter(is_own).cloned().collect();
                let none = DataFrame::empty_with_schema(&of.schema);
                let schema = steps.of(none.lazy(), &also).collect()?.schema().clone();
                Self { schema, kind: Kind::Steps { of, steps, also } }
            }
        })
    }

    /// Takes records, and gives the rows that settle.
    fn advance(&mut self, records: &Records, step: Step, emit: &mut Emit<'_>) -> PolarsResult<Unsure> {
        let (met, horizon) = step;
        match &mut self.kind {
            Kind::Scan { table, number } => {
                if let Some(records) = records.get(table).filter(|records| records.height() > 0) {
                    emit(scanned(records, *number, &self.schema)?)?;
                }
                Ok(Unsure::default())
            }
            Kind::Current { versions, current } => {
                let (versions, unsure) = versions.settled(records, step)?;
                current.advance(&versions)?;
                Ok(unsure)
            }
            Kind::Steps { of, steps, also } => of.advance(records, step, &mut |rows| {
                let rows = steps.of(rows.lazy(), also).collect()?;
                if rows.height() > 0 { emit(rows) } else { Ok(()) }
            }),
            Kind::Interval { left, right, join, placed } => {
                let ((left, one), (right, other)) = (left.settled(records, step)?, right.settled(records, step)?);
                Placed::check(placed.as_ref(), [&left, &right])?;
                let unsure = join.advance(&left, &right, met, emit)?;
                join.settle(horizon, emit)?;
                Ok(join.without_left(one).and(join.without_right(other)).and(unsure))
            }
            Kind::AsOf { rows, versions, join } => {
                let ((rows, one), (versions, other)) = (rows.settled(records, step)?, versions.settled(records, step)?);
                let unsure = join.advance(&rows, &versions, met)?;
                join.settle(horizon, emit)?;
                Ok(one.and(other).and(unsure))
            }
            Kind::Lag { rows, lag, placed } => {
                let (rows, one) = rows.settled(records, step)?;
                Placed::check(placed.as_ref(), [&rows])?;
                let unsure = lag.advance(&rows, met)?;
                lag.settle(horizon, emit)?;
                // What is lacking would have been seen by rows to come, however late.
                let below = one.widened((0, Micros::MAX));
                Ok(below.and(unsure))
            }
        }
    }

    /// The rows that settle, in one frame.
    fn settled(&mut self, records: &Records, step: Step) -> PolarsResult<(DataFrame, Unsure)> {
        let mut all = DataFrame::empty_with_schema(&self.schema);
        let unsure = self.advance(records, step, &mut |rows| all.vstack_mut(&rows).map(|_| ()))?;
        all.rechunk_mut();
        Ok((all, unsure))
    }

    /// What the rows that wait make as things are.
    fn pending(&self) -> PolarsResult<DataFrame> {
        match &self.kind {
            Kind::Scan { .. } => Ok(DataFrame::empty_with_schema(&self.schema)),
            Kind::Current { current, .. } => current.pending(),
            Kind::Steps { of, steps, also } => steps.of(of.pending()?.lazy(), also).collect(),
            Kind::Interval { left, right, join, placed } => {
                let (left, right) = (left.pending()?, right.pending()?);
                Placed::check(placed.as_ref(), [&left, &right])?;
                join.pending(&left, &right, &self.schema)
            }
            Kind::AsOf { rows, join, .. } => join.pending(rows.pending()?),
            Kind::Lag { rows, lag, placed } => {
                let rows = rows.pending()?;
                Placed::check(placed.as_ref(), [&rows])?;
                lag.pending(rows)
            }
        }
    }

    /// Adds what it keeps to a list of frames.
    fn state(&self, frames: &mut Vec<DataFrame>) -> PolarsResult<()> {
        match &self.kind {
            Kind::Scan { .. } => {}
            Kind::Current { current, .. } => frames.extend(current.state()?),
            Kind::Steps { of, .. } => of.state(frames)?,
            Kind::Interval { left, right, join, .. } => {
                left.state(frames)?;
                right.state(frames)?;
                frames.extend(join.state(&left.schema, &right.schema)?);
            }
            Kind::AsOf { rows, versions, join } => {
                rows.state(frames)?;
                versions.state(frames)?;
                frames.extend(join.state(&rows.schema)?);
            }
            Kind::Lag { rows, lag, .. } => {
                rows.state(frames)?;
                frames.extend(lag.state(&rows.schema)?);
            }
        }
        Ok(())
    }

    /// Takes what one of its kind kept from such a list: what belongs to a part, or without one all of it.
    fn resume(&mut self, frames: &mut std::vec::IntoIter<DataFrame>, part: Option<Part>) -> PolarsResult<()> {
        match &mut self.kind {
            Kind::Scan { .. } => Ok(()),
            Kind::Current { current, .. } => {
                let [versions] = next(frames)?;
                current.resume([Part::own(part, versions)?])
            }
            Kind::Steps { of, .. } => of.resume(frames, part),
            Kind::Interval { left, right, join, placed } => {
                left.resume(frames, part)?;
                right.resume(frames, part)?;
                let ([lefts, rights], placed) = (next(frames)?, placed.as_ref().filter(|_| part.is_some()));
                join.resume([Placed::own(placed, 0, lefts)?, Placed::own(placed, 1, rights)?])
            }
            Kind::AsOf { rows, versions, join } => {
                rows.resume(frames, part)?;
                versions.resume(frames, part)?;
                let [waiting, versions, gone] = next(frames)?;
                join.resume([Part::own(part, waiting)?, versions, gone])
            }
            Kind::Lag { rows, lag, placed } => {
                rows.resume(frames, part)?;
                let ([waiting, last], placed) = (next(frames)?, placed.as_ref().filter(|_| part.is_some()));
                lag.resume([Placed::own(placed, 0, waiting)?, Placed::own(placed, 0, last)?])
            }
        }
    }

    fn until(&self, until: &mut Vec<Micros>) {
        match &self.kind {
            Kind::Scan { .. } | Kind::Current { .. } => {}
            Kind::Steps { of, .. } => of.until(until),
            Kind::Interval { left, right, join, .. } => {
                left.until(until);
                right.until(until);
                join.until(until);
            }
            Kind::AsOf { rows, versions, join } => {
                rows.until(until);
                versions.until(until);
                join.until(until);
            }
            Kind::Lag { rows, lag, .. } => {
                rows.until(until);
                lag.until(until);
            }
        }
    }

    fn compact(&mut self, horizon: Micros) -> PolarsResult<()> {
        match &mut self.kind {
            Kind::Scan { .. } | Kind::Current { .. } => Ok(()),
            Kind::Steps { of, .. } => of.compact(horizon),
            Kind::Interval { left, right, join, .. } => {
                left.compact(horizon)?;
                right.compact(horizon)?;
                join.compact(horizon)
            }
            Kind::AsOf { rows, versions, join } => {
                rows.compact(horizon)?;
                versions.compact(horizon)?;
                join.compact()
            }
            Kind::Lag { rows, lag, .. } => {
                rows.compact(horizon)?;
                lag.compact()
            }
        }
    }

    fn bytes(&self) -> usize {
        match &self.kind {
            Kind::Scan { .. } => 0,
            Kind::Current { current, .. } => current.bytes(),
            Kind::Steps { of, .. } => of.bytes(),
            Kind::Interval { left, right, join, .. } => left.bytes() + right.bytes() + join.bytes(),
            Kind::AsOf { rows, versions, join } => rows.bytes() + versions.bytes() + join.bytes(),
            Kind::Lag { rows, lag, .. } => rows.bytes() + lag.bytes(),
        }
    }

    fn len(&self) -> usize {
        match &self.kind {
            Kind::Scan { .. } => 0,
            Kind::Current { current, .. } => current.len(),
            Kind::Steps { of, .. } => of.len(),
            Kind::Interval { left, right, join, .. } => left.len() + right.len() + join.len(),
            Kind::AsOf { rows, versions, join } => rows.len() + versions.len() + join.len(),
            Kind::Lag { rows, lag, .. } => rows.len() + lag.len(),
        }
    }
}

/// The next frames of a state.
fn next<const N: usize>(frames: &mut std::vec::IntoIter<DataFrame>) -> PolarsResult<[DataFrame; N]> {
    let next: Vec<DataFrame> = frames.take(N).collect();
    next.try_into().map_err(|_| polars_err!(ComputeError: "the state is of other operators: it has too few frames"))
}

/// Records as rows: their places in the log are named after the table's number.
fn scanned(records: &DataFrame, number: usize, schema: &Schema) -> PolarsResult<DataFrame> {
    let (partition, offset) = (partition_column(number), offset_column(number));
    let columns = schema.iter().map(|(name, data_type)| {
        let of = if *name == partition {
            PARTITION
        } else if *name == offset {
            OFFSET
        } else {
            name.as_str()
        };
        records.column(of)?.cast(data_type).map(|column| column.with_name(name.clone()))
    });
    let mut rows = DataFrame::new(records.height(), columns.collect::<PolarsResult<_>>()?)?;
    rows.rechunk_mut();
    Ok(rows)
}

/// That the keys of a pair are equal, and not their hashes alone.
fn equal_keys(keys: &[(String, String)]) -> Expr {
    let equal = keys.iter().map(|(left, right)| column(left).eq(column(right)));
    equal.reduce(Expr::and).unwrap_or_else(|| lit(true))
}
