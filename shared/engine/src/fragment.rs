//! Fragments: events of a group that follow each other with less than the gap of a session between them.

use anabranch_plan::time::Micros;
use polars::prelude::*;

use crate::frame::{FIRST, LAST};

/// Where the fragments of a frame begin and end.
pub(crate) fn spans(rows: &DataFrame) -> PolarsResult<(Vec<Micros>, Vec<Micros>)> {
    let times = |name| PolarsResult::Ok(rows.column(name)?.i64()?.iter().map(Option::unwrap_or_default).collect());
    Ok((times(FIRST)?, times(LAST)?))
}

/// The fragments of some groups.
#[derive(Debug)]
pub(crate) struct Fragments {
    gap: Micros,
    /// Each one's group, and its first and last event.
    pub group: Vec<u32>,
    pub first: Vec<Micros>,
    pub last: Vec<Micros>,
    of_group: Vec<Vec<u32>>,
}

impl Fragments {
    pub fn new(gap: Micros) -> Self {
        Self { gap, group: Vec::new(), first: Vec::new(), last: Vec::new(), of_group: Vec::new() }
    }

    /// The fragment that each row belongs to; new ones are added. Two that a row brings together stay apart: they are joined
    /// when sessions are made.
    pub fn number(&mut self, groups: &[u32], first: &[Micros], last: &[Micros]) -> Vec<u32> {
        let mut numbers = Vec::with_capacity(groups.len());
        for ((&group, &first), &last) in groups.iter().zip(first).zip(last) {
            if self.of_group.len() <= group as usize {
                self.of_group.resize(group as usize + 1, Vec::new());
            }
            let near = |&&fragment: &&u32| {
                let at = fragment as usize;
                first.saturating_sub(self.last[at]) < self.gap && self.first[at].saturating_sub(last) < self.gap
            };
            let number = match self.of_group[group as usize].iter().rev().find(near) {
                Some(&fragment) => fragment,
                None => {
                    let number = self.group.len() as u32;
                    self.group.push(group);
                    self.first.push(first);
                    self.last.push(last);
                    self.of_group[group as usize].push(number);
                    number
                }
            };
            let at = number as usize;
            self.first[at] = self.first[at].min(first);
            self.last[at] = self.last[at].max(last);
            numbers.push(number);
        }
        numbers
    }

    pub fn len(&self) -> usize {
        self.group.len()
    }

    pub fn bytes(&self) -> usize {
        self.group.capacity() * (20 + 8) + self.of_group.capacity() * 24
    }
}
