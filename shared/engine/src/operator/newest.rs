//! The newest rows of each key: the versions of a changelog, or what came last before a row.

use std::cmp::Ordering;
use std::sync::Arc;

use anabranch_plan::time::Micros;
use polars::prelude::*;

use super::key::{Position, hashes, times};
use super::segment::{Segment, Segments, take};
use crate::aggregate::keys::Given;

/// Rows by key, of which the newest are looked up.
#[derive(Debug)]
pub(super) struct Newest {
    keys: Vec<String>,
    time: String,
    /// So many of a key are kept.
    most: usize,
    pub segments: Segments,
}

/// A row: which segment, and which of its rows.
pub(super) type Place = (usize, usize);

impl Newest {
    pub fn new(keys: Vec<String>, time: String, most: usize) -> Self {
        Self { keys, time, most, segments: Segments::default() }
    }

    /// Adds rows.
    pub fn add(&mut self, rows: &DataFrame) -> PolarsResult<()> {
        self.segments.push(Segment::new(rows, &hashes(rows, &self.keys)?, &times(rows, &self.time)?)?);
        Ok(())
    }

    /// Forgets what isn't among the newest of its key up to a time, by as many as are kept, nor later than that time. A deletion stays,
    /// as a version that comes late may be older.
    pub fn forget(&mut self, upto: Micros) -> PolarsResult<()> {
        let Self { keys, most, segments, .. } = self;
        segments.merge(|segment| newest(&segment, keys, *most, upto))
    }

    /// What is among the newest of its key, by as many as are kept; the rows have these columns.
    pub fn all(&self, schema: &Schema) -> PolarsResult<DataFrame> {
        match self.segments.sum()? {
            None => Ok(DataFrame::empty_with_schema(schema)),
            Some(all) => Ok(newest(&all, &self.keys, self.most, Micros::MAX)?.rows),
        }
    }

    /// A look at the rows as they are.
    pub fn look(&self) -> PolarsResult<Look<'_>> {
        let segments = self.segments.0.iter().map(|segment| {
            Ok(Looked { segment, keys: segment.keys(&self.keys)?, position: Position::of(&segment.rows)?, from: 0 })
        });
        Ok(Look { segments: segments.collect::<PolarsResult<_>>()? })
    }
}

/// Those rows of a segment that are among the newest of their key up to a time, by as many as `most`, or later than that time.
fn newest(segment: &Segment, keys: &[String], most: usize, upto: Micros) -> PolarsResult<Segment> {
    let given = segment.keys(keys)?;
    // From the last row to the first, so from the newest of a key to its oldest.
    let mut kept = vec![true; segment.len()];
    let mut newer: Vec<(usize, usize)> = Vec::new();
    for row in (0..segment.len()).rev() {
        if newer.first().is_some_and(|&(other, _)| segment.hashes[other] != segment.hashes[row]) {
            newer.clear();
        }
        if segment.times[row] > upto {
            continue;
        }
        match newer.iter_mut().find(|(other, _)| Given::are_same(&given, row, &given, *other)) {
            Some((_, count)) if *count >= most => kept[row] = false,
            Some((_, count)) => *count += 1,
            None => newer.push((row, 1)),
        }
    }
    segment.filter(|_, row| kept[row])
}

/// Rows to be looked for in order of their hashes.
pub(super) struct Look<'a> {
    segments: Vec<Looked<'a>>,
}

struct Looked<'a> {
    segment: &'a Segment,
    keys: Arc<Vec<Given>>,
    position: Position,
    /// Before it are only lesser hashes than that which was looked for last.
    from: usize,
}

impl Look<'_> {
    /// The newest rows, the newest first and at most so many, that have the key of a row and aren't later than a time. Hashes are looked
    /// for in ascending order.
    pub fn find(&mut self, keys: &[Given], row: usize, hash: u64, upto: Micros, most: usize) -> Vec<Place> {
        let mut found: Vec<Place> = Vec::new();
        for (i, looked) in self.segments.iter_mut().enumerate() {
            let group = looked.segment.of_hash(hash, looked.from);
            looked.from = group.start;
            let rows = looked.segment.within(group, Micros::MIN, upto).rev();
            found.extend(
                rows.filter(|&other| Given::are_same(keys, row, &looked.keys, other)).take(most).map(|row| (i, row)),
            );
        }
        if self.segments.len() > 1 {
            found.sort_by(|&a, &b| self.compare(b, a));
            found.truncate(most);
        }
        found
    }

    fn compare(&self, (i, a): Place, (j, b): Place) -> Ordering {
        let (one, other) = (&self.segments[i], &self.segments[j]);
        one.segment.times[a].cmp(&other.segment.times[b]).then_with(|| one.position.compare(a, &other.position, b))
    }

    /// Whether a row of another frame comes before one.
    pub fn is_before(&self, time: Micros, position: &Position, row: usize, (i, other): Place) -> bool {
        let looked = &self.segments[i];
        time.cmp(&looked.segment.times[other]).then_with(|| position.compare(row, &looked.position, other)).is_lt()
    }

    /// The time of a row.
    pub fn time(&self, (i, row): Place) -> Micros {
        self.segments[i].segment.times[row]
    }

    /// The rows of the segments.
    pub fn frames(&self) -> Vec<&DataFrame> {
        self.segments.iter().map(|looked| &looked.segment.rows).collect()
    }
}

/// Rows of some frames; nulls where there is none. The frames have the columns of the schema, and perhaps others.
pub(super) fn gather(frames: &[&DataFrame], schema: &Schema, places: &[Option<Place>]) -> PolarsResult<DataFrame> {
    let mut all = DataFrame::full_null(schema, 1);
    let mut begins = Vec::with_capacity(frames.len());
    for (i, frame) in frames.iter().enumerate() {
        begins.push(all.height());
        // Only what is wanted of each, as a frame may be far larger.
        let wanted = places.iter().flatten().filter(|place| place.0 == i).map(|place| place.1 as IdxSize).collect();
        all.vstack_mut(&take(&frame.select(schema.iter_names_cloned())?, wanted)?)?;
    }
    all.rechunk_mut();
    let order = places.iter().map(|place| match place {
        None => 0,
        Some((i, _)) => {
            begins[*i] += 1;
            (begins[*i] - 1) as IdxSize
        }
    });
    take(&all, order.collect())
}
