//! Writing files that survive the loss of power.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind};
use std::path::{Path, PathBuf};

/// Writes a file under a temporary name, syncs it, gives it its name, and syncs the folder: after a crash the file is
/// whole or absent.
pub fn write_file<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<T, E>,
) -> Result<T, E> {
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
pub(super) fn stage(path: &Path) -> io::Result<PathBuf> {
    if let Some(folder) = path.parent() {
        create_folder(folder)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!("#{}", uuid::Uuid::new_v4().as_u128()));
    Ok(path.with_file_name(name))
}

/// Creates a folder, and those that it lies in, such that they are still there after a loss of power.
pub(super) fn create_folder(folder: &Path) -> io::Result<()> {
    let Some(parent) = folder.parent().filter(|_| !folder.is_dir()) else { return Ok(()) };
    create_folder(parent)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(folder),
    }
}

/// Syncs the folder that a path lies in.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
