//! A local object store whose writes survive the loss of power.
//!
//! `LocalFileSystem` renames a file into place without syncing it, so after a power loss a table's newest commit may be
//! there and empty, and the table unreadable. Here a file is synced before it gets its name, and its folder after.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// Writes a file under a temporary name, syncs it, gives it its name, and syncs the folder: after a crash the file is
/// whole or absent.
pub fn write_file<T, E: From<io::Error>>(
    path: &FsPath,
    write: impl FnOnce(&mut BufWriter<File>) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let staged = stage(path)?;
    let written = (|| {
        let mut file = BufWriter::new(File::create(&staged)?);
        let value = write(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&staged, path)?;
        sync_folder(path)?;
        Ok(value)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&staged);
    }
    written
}

/// A name beside the path that object stores pass over when they list a folder: it ends in `#` and digits.
fn stage(path: &FsPath) -> io::Result<PathBuf> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!("#{}", uuid::Uuid::new_v4().as_u128()));
    Ok(path.with_file_name(name))
}

fn sync_folder(path: &FsPath) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// [`LocalFileSystem`] with durable puts.
#[derive(Debug)]
pub(crate) struct Durable(pub LocalFileSystem);

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "durable {}", self.0)
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
            PutMode::Update(_) => return self.0.put_opts(location, payload, options).await,
        };
        let path = self.0.path_to_filesystem(location)?;
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
        self.0.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.0.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.0.rename_opts(from, to, options).await
    }
}
