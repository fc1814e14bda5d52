//! Digests: by them it is noticed that a stored file isn't what was written.
//!
//! | what | where its SHA-256 stands |
//! |---|---|
//! | a file of a table | in its `add` action's tags, [`SHA256_TAG`] |
//! | a file of partials | in the note of the version, [`anabranch_exchange::version::PaneFile`] |
//! | a commit | in itself, as the first field of its `commitInfo`: it is of the commit without that field |
//! | a checkpoint of Delta's | in a file beside it, `….checkpoint.parquet.sha256` |
//!
//! What other programs and earlier builds have written has none, and is read as it is.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use memchr::memmem;
use sha2::{Digest, Sha256};

use super::TableError;
use super::write::write_file;

/// The tag of an `add` action that holds the file's digest.
pub(super) const SHA256_TAG: &str = "anabranch.sha256";

/// What was written to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// How many bytes.
    pub size: u64,
    /// Their SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// A writer that digests what goes through it.
#[derive(Debug)]
pub struct Digesting<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a file as [`write_file`] does, and digests it on the way.
pub fn write_digested<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut Digesting<&mut BufWriter<File>>) -> Result<(), E>,
) -> Result<Written, E> {
    write_file(path, |file| {
        let mut digesting = Digesting { inner: file, hash: Sha256::new(), size: 0 };
        write(&mut digesting)?;
        Ok(Written { size: digesting.size, sha256: hex(digesting.hash) })
    })
}

/// Looks whether a file is what was written: what is wrong with it, if anything. Without a digest only whether it is there.
pub fn damage(path: &Path, sha256: Option<&str>) -> io::Result<Option<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some("it is missing".to_owned())),
        Err(error) => return Err(error),
    };
    let Some(expected) = sha256 else { return Ok(None) };
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    let found = hex(hash);
    Ok((found != expected).then(|| format!("its SHA-256 is {found}, and {expected} was written")))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How a commit of ours begins, up to its digest.
const SEAL: &[u8] = br#"{"commitInfo":{"anabranch.sha256":""#;
/// How a commit begins that Delta's library made.
const INFO: &[u8] = br#"{"commitInfo":{"#;
const DIGITS: usize = 64;

/// A commit with its digest in it, for a commit that begins with its `commitInfo`; any other as it is.
pub(super) fn seal(commit: Vec<u8>) -> Vec<u8> {
    let Some(rest) = commit.strip_prefix(INFO) else { return commit };
    let digest = hex(Sha256::new_with_prefix(&commit));
    [SEAL, digest.as_bytes(), b"\",", rest].concat()
}

/// What is wrong with a commit, if anything. One without a digest is right unless it is empty.
pub fn commit_damage(commit: &[u8]) -> Option<String> {
    if commit.is_empty() {
        return Some("it is empty".to_owned());
    }
    let field = &SEAL[INFO.len()..];
    let at = memmem::find(&commit[..commit.len().min(SEAL.len())], field)?;
    let digits = at + field.len();
    let (Some(sealed), Some(rest)) = (commit.get(digits..digits + DIGITS), commit.get(digits + DIGITS + 2..)) else {
        return Some("it is cut off".to_owned());
    };
    let found = hex(Sha256::new_with_prefix(&commit[..at]).chain_update(rest));
    let is_whole = found.as_bytes() == sealed && &commit[digits + DIGITS..digits + DIGITS + 2] == b"\",";
    (!is_whole).then(|| format!("its SHA-256 is {found}, and {} was written", String::from_utf8_lossy(sealed)))
}

/// The files of a table's log that aren't what was written, with what was found; none if there is no log.
pub fn log_damage(root: &Path) -> Result<Vec<(PathBuf, String)>, TableError> {
    let log = root.join("_delta_log");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TableError::File { step: "reading", path, source }
    };
    let mut damaged = Vec::new();
    let entries = match std::fs::read_dir(&log) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(damaged),
        entries => entries.map_err(failed(&log))?,
    };
    for entry in entries {
        let path = entry.map_err(failed(&log))?.path();
        let found = match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => commit_damage(&std::fs::read(&path).map_err(failed(&path))?),
            Some("parquet") => checkpoint_damage(&path).map_err(failed(&path))?,
            _ => None,
        };
        damaged.extend(found.map(|found| (path, found)));
    }
    damaged.sort();
    Ok(damaged)
}

/// Where the digest of a checkpoint of Delta's stands.
fn beside(checkpoint: &Path) -> PathBuf {
    let mut name = checkpoint.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

/// Writes the digest of a checkpoint beside it, if there is one, and deletes those of checkpoints that are gone.
pub(super) fn seal_checkpoint(checkpoint: &Path) -> io::Result<()> {
    let content = match std::fs::read(checkpoint) {
        Ok(content) => content,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let digest = hex(Sha256::new_with_prefix(&content));
    write_file(&beside(checkpoint), |file| file.write_all(digest.as_bytes()))?;
    for entry in checkpoint.parent().into_iter().flat_map(std::fs::read_dir).flatten() {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sha256") && !path.with_extension("").exists() {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// What is wrong with a checkpoint of Delta's, if anything. One without a digest is right.
pub(super) fn checkpoint_damage(checkpoint: &Path) -> io::Result<Option<String>> {
    match std::fs::read(beside(checkpoint)) {
        Ok(digest) => damage(checkpoint, Some(&String::from_utf8_lossy(&digest))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
