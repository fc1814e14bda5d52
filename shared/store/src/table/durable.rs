//! A local object store for Delta's logs, whose writes survive the loss of power, and whose reads notice damage.
//!
//! `LocalFileSystem` renames a file into place without syncing it, so after a power loss a table's newest commit may be
//! there and empty, and the table unreadable. Here a file is synced before it gets its name, and its folder after.
//!
//! Commits carry their digest ([`super::digest`]), and one that isn't what was written can't be read. The same goes for
//! checkpoints, but what they hold the commits hold too, until these are deleted: [`Durable::pass_over_checkpoint`]. The
//! hint `_last_checkpoint` has no digest and saves a local folder nothing, so it is never read.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::path::Path as FsPath;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use parking_lot::Mutex;

use super::digest;
use super::write::{stage, sync_folder, write_file};

/// [`LocalFileSystem`] with durable puts and checked gets.
#[derive(Debug)]
pub(crate) struct Durable {
    files: LocalFileSystem,
    checkpoints: Arc<Mutex<Checkpoints>>,
}

/// The checkpoints of Delta's that were met.
#[derive(Debug, Default)]
struct Checkpoints {
    /// Those that readers were told of.
    listed: BTreeSet<Path>,
    /// Those of them whose digests were looked at.
    checked: BTreeSet<Path>,
    /// Those that are listed no more.
    passed_over: BTreeSet<Path>,
}

impl Durable {
    pub fn new(files: LocalFileSystem) -> Self {
        Self { files, checkpoints: Arc::default() }
    }

    /// Has the newest checkpoint passed over from now on, as the table can't be read with it; whether there was any.
    pub fn pass_over_checkpoint(&self) -> bool {
        let mut checkpoints = self.checkpoints.lock();
        let newest = checkpoints.listed.pop_last();
        checkpoints.passed_over.extend(newest.clone());
        newest.is_some()
    }

    /// Fails if a checkpoint isn't what was written.
    fn check_checkpoint(&self, location: &Path) -> Result<()> {
        if !is_checkpoint(location) || self.checkpoints.lock().checked.contains(location) {
            return Ok(());
        }
        let failed = |source: io::Error| Error::Generic { store: "local", source: source.into() };
        match digest::checkpoint_damage(&self.files.path_to_filesystem(location)?).map_err(failed)? {
            Some(found) => Err(damaged(location, &found)),
            None => {
                self.checkpoints.lock().checked.insert(location.clone());
                Ok(())
            }
        }
    }
}

/// What stands between a file's name and what is wrong with it.
pub(super) const DAMAGED: &str = " is damaged: ";

fn damaged(location: &Path, found: &str) -> Error {
    Error::Generic { store: "local", source: format!("{location}{DAMAGED}{found}").into() }
}

fn is_commit(location: &Path) -> bool {
    let version = location.as_ref().strip_prefix("_delta_log/").and_then(|name| name.strip_suffix(".json"));
    version.is_some_and(|version| version.len() == 20 && version.bytes().all(|digit| digit.is_ascii_digit()))
}

fn is_checkpoint(location: &Path) -> bool {
    location.filename().is_some_and(|name| name.ends_with(".checkpoint.parquet"))
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "durable {}", self.files)
    }
}

fn put(path: &FsPath, payload: &PutPayload, create: bool) -> io::Result<()> {
    if !create {
        return write_file(path, |file| payload.iter().try_for_each(|part| file.write_all(part)));
    }
    let staged = stage(path)?;
    let written = (|| {
        let mut file = File::create(&staged)?;
        payload.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        fail::fail_point!("storage::staged");
        // A link is refused where a rename would overwrite.
        fs::hard_link(&staged, path)?;
        sync_folder(path)
    })();
    let _ = fs::remove_file(&staged);
    written
}

#[async_trait::async_trait]
impl ObjectStore for Durable {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create = match options.mode {
            PutMode::Overwrite => false,
            PutMode::Create => true,
            PutMode::Update(_) => return self.files.put_opts(location, payload, options).await,
        };
        let payload = if is_commit(location) { digest::seal(Bytes::from(payload).into()).into() } else { payload };
        let path = self.files.path_to_filesystem(location)?;
        let shown = location.to_string();
        tokio::task::spawn_blocking(move || put(&path, &payload, create))
            .await
            .map_err(|source| Error::JoinError { source })?
            .map_err(|source| match source.kind() {
                ErrorKind::AlreadyExists => Error::AlreadyExists { path: shown, source: source.into() },
                _ => Error::Generic { store: "local", source: source.into() },
            })?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if location.filename() == Some("_last_checkpoint") {
            return Err(Error::NotFound { path: location.to_string(), source: "it isn't read".into() });
        }
        self.check_checkpoint(location)?;
        let is_whole = options.range.is_none() && !options.head;
        let got = self.files.get_opts(location, options).await?;
        if !is_commit(location) || !is_whole {
            return Ok(got);
        }
        let (meta, range, attributes) = (got.meta.clone(), got.range.clone(), got.attributes.clone());
        let commit = got.bytes().await?;
        match digest::commit_damage(&commit) {
            Some(found) => Err(damaged(location, &found)),
            None => {
                let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(commit) }).boxed());
                Ok(GetResult { payload, meta, range, attributes })
            }
        }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.check_checkpoint(location)?;
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let checkpoints = self.checkpoints.clone();
        let is_listed = move |listed: &Result<ObjectMeta>| {
            let Some(location) = listed.as_ref().ok().map(|it| &it.location).filter(|it| is_checkpoint(it)) else {
                return true;
            };
            let mut checkpoints = checkpoints.lock();
            let is_listed = !checkpoints.passed_over.contains(location);
            if is_listed {
                checkpoints.listed.insert(location.clone());
            }
            is_listed
        };
        self.files.list(prefix).filter(move |listed| std::future::ready(is_listed(listed))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}
