//! Where checkpoints are: in a folder or on S3, those of each pipeline in a folder of their own.
//!
//! A checkpoint is put as a whole or not at all, under a name that nobody has put one under before. The one before it is
//! kept. One that is damaged is refused and set aside, and the one before it is used. One of another format is passed over,
//! and stays for the build that reads it. But one that can't be read now may be sound: then nothing is begun.

use std::future::Future;

use anabranch_plan::view::Kept;
use anabranch_store::envelope::EnvelopeError;
use anabranch_store::storage::Storage;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt, PutMode, PutPayload};
use tokio::runtime::Handle;

use super::Image;
use crate::error::SpeedError;

/// Where checkpoints are stored.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    pub(super) storage: Storage,
    runtime: Handle,
}

impl Checkpoints {
    /// Checkpoints in a storage. The requests are made on a runtime, which has to have threads of its own: the threads that
    /// ask wait for it.
    pub fn new(storage: Storage, runtime: Handle) -> Self {
        Self { storage, runtime }
    }

    /// Waits for one of the requests below. Not for threads of the runtime.
    pub(crate) fn block_on<T>(&self, request: impl Future<Output = T>) -> T {
        self.runtime.block_on(request)
    }

    /// The checkpoints of a table by epoch and number, the newest first.
    pub(super) async fn list(&self, table: &str) -> Result<Vec<((u64, u64), Path)>, SpeedError> {
        let number = |path: &Path| {
            let (epoch, number) = path.filename()?.strip_suffix(".checkpoint")?.split_once('-')?;
            Some((epoch.parse().ok()?, number.parse().ok()?))
        };
        let folder = Path::from(table);
        let objects = self.storage.objects.list(Some(&folder)).map_ok(|object| object.location).try_collect::<Vec<_>>();
        let objects = objects.await.map_err(self.failed(&folder, "listing"))?;
        let mut found: Vec<_> = objects.into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
        found.sort_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// Stores a checkpoint and keeps the one before it. Those of a later epoch stay the newest: whoever has lost a table
    /// to somebody else can't take it back by writing.
    pub(crate) async fn store(&self, table: &str, epoch: u64, bytes: PutPayload) -> Result<Path, SpeedError> {
        let mut older = self.list(table).await?;
        older.retain(|((other, _), _)| *other <= epoch);
        let number = older.iter().filter(|((other, _), _)| *other == epoch).map(|((_, number), _)| number + 1).max();
        let path = self.put(table, (epoch, number.unwrap_or(1)), bytes).await?;
        fail::fail_point!("speed::checkpoint_written");
        for (_, old) in older.iter().skip(1) {
            match self.storage.objects.delete(old).await {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed(old, "removing it, as it is outdated,")(error)),
            }
        }
        Ok(path)
    }

    pub(super) async fn put(
        &self,
        table: &str,
        (epoch, number): (u64, u64),
        bytes: PutPayload,
    ) -> Result<Path, SpeedError> {
        let path = Path::from(table).join(format!("{epoch:020}-{number:020}.checkpoint"));
        match self.storage.objects.put_opts(&path, bytes, PutMode::Create.into()).await {
            Ok(_) => Ok(path),
            Err(Error::AlreadyExists { .. }) => Err(SpeedError::CheckpointTaken { path: self.storage.shown(&path) }),
            Err(error) => Err(self.failed(&path, "writing it")(error)),
        }
    }

    /// The newest checkpoint of a pipeline and its topics that is sound and of this build's format. Damaged ones are set aside,
    /// with a warning.
    pub(crate) async fn load(
        &self,
        (table, topics): (&str, &[&str]),
        views: &[Kept],
    ) -> Result<Option<Image>, SpeedError> {
        let mut is_said = false;
        for (_, path) in self.list(table).await? {
            let shown = self.storage.shown(&path);
            let read = async { self.storage.objects.get(&path).await?.bytes().await };
            match Image::decode(&read.await.map_err(self.failed(&path, "reading it"))?, table, topics, views) {
                Ok(image) => {
                    tracing::info!(table, path = shown, "read a checkpoint");
                    return Ok(Some(image));
                }
                Err(problem @ EnvelopeError::OtherVersion { .. }) => {
                    if !is_said {
                        let problem = problem.to_string();
                        tracing::warn!(table, path = shown, problem, "checkpoints of another build are passed over");
                    }
                    is_said = true;
                }
                Err(problem) => {
                    let problem = problem.to_string();
                    tracing::warn!(table, path = shown, problem, "a checkpoint can't be used and is set aside");
                    let aside = Path::from(path.as_ref().replace(".checkpoint", ".damaged"));
                    if let Err(error) = self.storage.objects.rename(&path, &aside).await {
                        tracing::warn!(path = shown, %error, "setting a damaged checkpoint aside failed");
                    }
                }
            }
        }
        Ok(None)
    }

    /// Sets all checkpoints aside that a table has a part in, of whichever partitions, in a folder of this name, and says how many.
    pub async fn set_aside(&self, table: &str, folder: &str) -> Result<usize, SpeedError> {
        let objects = &self.storage.objects;
        let is_of_table = |path: &Path| {
            let name = path.filename().unwrap_or_default();
            let of_partition = name.rsplit_once('-').filter(|(_, p)| p.parse::<u32>().is_ok()).map(|(name, _)| name);
            of_partition.into_iter().chain([name]).any(|name| name.split('+').any(|own| own == table))
        };
        let all = Path::default();
        let folders = objects.list_with_delimiter(None).await.map_err(self.failed(&all, "listing"))?.common_prefixes;
        let mut moved = 0;
        for of_pipeline in folders.iter().filter(|path| is_of_table(path)) {
            let found = objects.list(Some(of_pipeline)).map_ok(|object| object.location).try_collect::<Vec<_>>();
            for path in found.await.map_err(self.failed(of_pipeline, "listing"))? {
                let aside = Path::from(format!("{folder}/{path}"));
                objects.rename(&path, &aside).await.map_err(self.failed(&path, "setting it aside"))?;
                moved += 1;
            }
        }
        Ok(moved)
    }

    fn failed(&self, path: &Path, step: &'static str) -> impl FnOnce(Error) -> SpeedError + use<> {
        let path = self.storage.shown(path);
        move |source| SpeedError::Checkpoint { path, step, source: Box::new(source) }
    }
}
