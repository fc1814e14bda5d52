//! Looks for damage to fjall's files that fjall itself takes for something else, before it opens them.
//!
//! **Journals.** fjall takes the first batch that it can't read for a write that a crash has cut off, and drops it with all batches
//! behind it. Here each commit is one batch, and is synced before the next one is written. So a crash leaves at most one batch
//! that isn't whole, and nothing behind it. A batch that was written to its end and isn't whole is damaged. What fjall reads is
//! compared with the journals again once it has opened them, as no checksum covers a batch's sequence number.
//!
//! **Manifests.** The file `current` has the digest of the manifest that it names. fjall doesn't compare them: a manifest with
//! a flipped bit makes it panic, or delete the files that the manifest doesn't name any more.
//!
//! **Tables and blob files.** What is read of them has digests. But fjall takes memory for as many sections as a file says that it has
//! before it looks at the digest of that.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memchr::memmem;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::state::PartitionState;
use crate::position::Offset;

/// What a batch in a journal begins with, before its count of items and its sequence number.
const START: u8 = 1;
/// What an item begins with.
const ITEM: u8 = 2;
/// What a batch ends with, before the checksum of its items and the magic bytes.
const END: u8 = 3;
const MAGIC: &[u8; 4] = b"FJL\x03";
/// What a table or a blob file ends with: magic bytes, two numbers, the digest of where its sections are, and where that begins.
const TRAILER: &[u8; 4] = b"SFA!";
const TRAILER_BYTES: usize = 38;
const SECTIONS: &[u8; 4] = b"TOC!";
/// Sequence numbers from this one on aren't fjall's.
const SEQUENCE_END: u64 = 1 << 63;
/// Bytes that a file system writes at once. Those that it hasn't written when the power fails read as zeros.
const PAGE: usize = 4096;

/// Files that aren't what was written, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what}; put the log's folder back from a copy, or move it away and start without it: `anabranch log adopt TABLE` then goes \
     on behind what is archived of a table"
)]
pub(super) struct Damage {
    pub(super) what: String,
}

impl Damage {
    pub(super) fn error(what: String) -> io::Error {
        io::Error::other(Self { what })
    }
}

/// Where partitions end at least, by their keys.
pub(super) type Ends = BTreeMap<Vec<u8>, Offset>;

/// Looks through a database that nobody has open. Returns what its journals say of partitions.
pub(super) fn check(path: &Path) -> io::Result<Ends> {
    let mut ends = Ends::new();
    let lock = match File::open(path.join("lock")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ends),
        opened => opened?,
    };
    // Who has it open may be writing, and fjall says that it is locked.
    if lock.try_lock().is_err() {
        return Ok(ends);
    }
    for keyspace in entries(&path.join("keyspaces"))? {
        check_manifest(&keyspace)?;
        for file in entries(&keyspace.join("tables"))?.into_iter().chain(entries(&keyspace.join("blobs"))?) {
            check_sections(&file)?;
        }
    }
    let number = |path: &PathBuf| path.file_name()?.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok();
    let mut journals: Vec<_> = entries(path)?.into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
    journals.sort();
    let mut sequence = 0;
    for (_, journal) in journals {
        check_journal(&journal, &mut sequence, &mut ends)?;
    }
    Ok(ends)
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

fn check_manifest(keyspace: &Path) -> io::Result<()> {
    let current = keyspace.join("current");
    let named = match fs::read(&current) {
        // A process died as it made the keyspace.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        named => named?,
    };
    let mut rest = &named[..];
    let (id, digest) = (take(&mut rest).map(u64::from_le_bytes), take(&mut rest).map(u128::from_le_bytes));
    let is_whole = match fs::read(keyspace.join(format!("v{}", id.unwrap_or_default()))) {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        manifest => digest == Some(xxh3_128(&manifest?)),
    };
    let current = current.display();
    let what = || format!("`{current}` is damaged, or the manifest beside it that it names is damaged or missing");
    if is_whole { Ok(()) } else { Err(Damage::error(what())) }
}

/// Checks where a file says that its sections are. One that a crash has cut off doesn't say so, and isn't named by a manifest.
fn check_sections(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let mut trailer = [0; TRAILER_BYTES];
    let Some(end) = file.metadata()?.len().checked_sub(TRAILER_BYTES as u64) else { return Ok(()) };
    file.read_exact_at(&mut trailer, end)?;
    let mut rest = trailer.strip_prefix(TRAILER).unwrap_or_default();
    let _version_and_kind: Option<[u8; 2]> = take(&mut rest);
    let (digest, begins) = (take(&mut rest).map(u128::from_le_bytes), take(&mut rest).map(u64::from_le_bytes));
    let begins = begins.unwrap_or(end).min(end);
    let mut sections = vec![0; (end - begins) as usize];
    file.read_exact_at(&mut sections, begins)?;
    if !sections.starts_with(SECTIONS) || digest == Some(xxh3_128(&sections)) {
        return Ok(());
    }
    Err(Damage::error(format!("`{}` is damaged: what it says of its sections isn't what was written", path.display())))
}

/// Reads a journal to its end. `sequence` is the least number that its next batch may have.
fn check_journal(path: &Path, sequence: &mut u64, ends: &mut Ends) -> io::Result<()> {
    let content = fs::read(path)?;
    // It was made larger beforehand.
    let journal = &content[..written(&content)];
    let mut at = 0;
    while let Some(batch) = Batch::read(&journal[at..])
        && (*sequence..SEQUENCE_END).contains(&batch.sequence)
    {
        at += batch.bytes;
        *sequence = batch.sequence + 1;
        for (key, state) in batch.partitions {
            let end = ends.entry(key.to_vec()).or_default();
            *end = state.end.max(*end);
        }
    }
    if at == journal.len() {
        return Ok(());
    }
    if Batch::read(&journal[at..]).is_some() || !is_cut_off(&journal[at..], at) {
        let (path, end) = (path.display(), journal.len());
        let what =
            format!("`{path}` is damaged at byte {at}, and what was written there and behind it, up to byte {end}");
        return Err(Damage::error(format!("{what}, would be lost")));
    }
    // fjall does so as well, unless only a page within the batch is missing.
    let journal = File::options().write(true).open(path)?;
    journal.set_len(at as u64)?;
    journal.sync_all()
}

/// Where the zeros begin that a file ends with.
fn written(content: &[u8]) -> usize {
    let pages = content.chunks(PAGE).rposition(|page| !is_zero(page)).map_or(0, |last| last + 1);
    let end = content.len().min(pages * PAGE);
    content[..end].iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

fn is_zero(page: &[u8]) -> bool {
    page == &[0; PAGE][..page.len()]
}

/// Whether what is at the end of a journal and isn't whole may be the last write before a crash. Of a process that was
/// killed it lacks its end; after a power failure it may also lack any page.
fn is_cut_off(rest: &[u8], at: usize) -> bool {
    let differs = |last: &[u8; 4]| (u32::from_le_bytes(*last) ^ u32::from_le_bytes(*MAGIC)).count_ones();
    match memmem::find(rest, MAGIC) {
        Some(magic) if magic + MAGIC.len() < rest.len() => false,
        None if rest.last_chunk().is_none_or(|last| differs(last) > 1) => true,
        _ => {
            let (first, others) = rest.split_at(rest.len().min(PAGE - at % PAGE));
            is_zero(first) || others.chunks(PAGE).any(is_zero)
        }
    }
}

/// A whole batch at the beginning of what is left of a journal.
struct Batch<'a> {
    sequence: u64,
    /// Its length.
    bytes: usize,
    /// What it says of partitions, by their keys.
    partitions: Vec<(&'a [u8], PartitionState)>,
}

impl<'a> Batch<'a> {
    fn read(journal: &'a [u8]) -> Option<Self> {
        let mut rest = journal;
        let [START] = take(&mut rest)? else { return None };
        let items = u32::from_le_bytes(take(&mut rest)?);
        let sequence = u64::from_le_bytes(take(&mut rest)?);
        let first = rest;
        let mut partitions = Vec::new();
        for _ in 0..items {
            let [ITEM, _value_type, _compression] = take(&mut rest)? else { return None };
            let _keyspace: [u8; 8] = take(&mut rest)?;
            let key_bytes = u16::from_le_bytes(take(&mut rest)?);
            let _uncompressed_bytes: [u8; 4] = take(&mut rest)?;
            let value_bytes = u32::from_le_bytes(take(&mut rest)?);
            let (key, after) = rest.split_at_checked(key_bytes.into())?;
            let (value, after) = after.split_at_checked(value_bytes as usize)?;
            rest = after;
            if key.starts_with(b"p") {
                partitions.extend(PartitionState::decode(value).map(|state| (key, state)));
            }
        }
        let checksum = xxh3_64(&first[..first.len() - rest.len()]);
        let is_whole =
            take(&mut rest)? == [END] && take(&mut rest)? == checksum.to_le_bytes() && take(&mut rest)? == *MAGIC;
        is_whole.then_some(Self { sequence, bytes: journal.len() - rest.len(), partitions })
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*taken)
}
