//! What streams send of a view, put together once for all of them: its newest answer with what has changed in it, and its finals.

use std::collections::BTreeMap;
use std::sync::{OnceLock, Weak};

use anabranch_engine::render::Rows;
use anabranch_log::position::{Positions, TopicPartition};
use anabranch_plan::view::{Kept, ViewId};
use polars::prelude::PolarsResult;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::change::{Change, KeyedRows};
use crate::merge::{self, Answer, Ask, Final};
use crate::proof::Proof;
use crate::source::{Layers, Mode, Sources, Stamp};

/// The newest answer of a view, cut into what a difference is made of.
#[derive(Debug)]
pub struct Frame {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Its position in the ids of events: a hash of the answer.
    pub id: String,
    /// Its rows.
    pub rows: KeyedRows,
    /// The id of the frame before it, which most streams were sent last, and what has changed since, put together once for them.
    follows: Option<String>,
    change: OnceLock<String>,
}

/// Of each view the newest answer that streams have, as long as one has it.
pub type Frames = BTreeMap<ViewId, tokio::sync::Mutex<Shared>>;

/// An answer that all streams of its view send.
#[derive(Debug, Default)]
pub struct Shared {
    /// The answer.
    pub frame: Weak<Frame>,
    /// What it was made of.
    pub stamp: Option<Stamp>,
    /// Until when it is good enough, though the layers have moved on.
    pub due: Option<Instant>,
}

impl Frame {
    /// The newest answer that these layers make; of its rows the first `most`.
    pub fn compute(
        view: &Kept,
        layers: &Layers,
        log_end: &Positions<TopicPartition>,
        rejected: u64,
        most: usize,
        follows: Option<String>,
    ) -> PolarsResult<Self> {
        let sources = Sources::choose(view, Mode::Merged, layers, log_end);
        let answer = merge::answer(view, &sources, Ask::Current)?;
        let rows = KeyedRows::of(view, &answer, most)?;
        let Answer { span, quality, late, .. } = answer;
        let total = rows.total();
        let proof = Proof { view, sources: &sources, span, quality, late, rejected, total };
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        proof.write_head(&mut head);
        head.extend_from_slice(format!(",\"truncated\":{}", most < total).as_bytes());
        proof.write_tail(&mut tail);
        let mut hash = Sha256::new();
        [head.as_slice(), &tail].into_iter().chain(rows.iter()).for_each(|part| hash.update(part));
        let id = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { head, tail, id, rows, follows, change: OnceLock::new() })
    }

    /// What has changed since `sent`, as the data of an event.
    pub fn since(&self, sent: Option<&Frame>) -> String {
        match sent {
            Some(before) if self.follows.as_ref() == Some(&before.id) => {
                self.change.get_or_init(|| self.write(sent)).clone()
            }
            _ => self.write(sent),
        }
    }

    fn write(&self, sent: Option<&Frame>) -> String {
        let Change { reset, rows, removed, cut, retracted } = self.rows.since(sent.map(|sent| &sent.rows));
        let mut data = self.head.clone();
        data.extend_from_slice(b",\"rows\":[");
        join(&mut data, &rows);
        data.extend_from_slice(b"],");
        data.extend_from_slice(&self.tail);
        data.extend_from_slice(format!(",\"reset\":{reset},\"removed\":[").as_bytes());
        join(&mut data, &removed);
        data.extend_from_slice(b"],\"cut\":[");
        join(&mut data, &cut);
        data.extend_from_slice(b"],\"retracted\":[");
        join(&mut data, &retracted);
        data.extend_from_slice(b"]}");
        String::from_utf8(data).expect("JSON is text")
    }
}

fn join(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(part);
    }
}

/// Finals as they are sent: each window, and the data of its event.
pub type Finals = Vec<(Final, String)>;

/// The finals that come next after one, see [`merge::finals`]; none if that can't be told yet.
pub fn finals(
    view: &Kept,
    layers: &Layers,
    log_end: &Positions<TopicPartition>,
    after: Option<Final>,
    rejected: u64,
) -> PolarsResult<Option<Finals>> {
    let sources = Sources::choose(view, Mode::Merged, layers, log_end);
    let Some(finals) = merge::finals(view, &sources, after)? else { return Ok(None) };
    let data = |(window, Answer { span, rows, quality, late }): (Final, Answer)| {
        let rows = Rows::of(&rows)?;
        let proof = Proof { view, sources: &sources, span, quality, late, rejected, total: rows.height() };
        let mut data = Vec::with_capacity(512 + rows.height() * 64);
        proof.write_head(&mut data);
        data.extend_from_slice(b",\"truncated\":false,\"rows\":");
        rows.write_json_array(&mut data);
        data.push(b',');
        proof.write_tail(&mut data);
        data.push(b'}');
        Ok((window, String::from_utf8(data).expect("JSON is text")))
    };
    finals.into_iter().map(data).collect::<PolarsResult<_>>().map(Some)
}
