//! Where things are kept that several processes share: a folder, or a prefix in a bucket of S3, by one interface.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{Error, ObjectStore, RetryConfig};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::table::durable::Durable;

#[cfg(test)]
mod tests;

/// For so long, and so often, a request that fails is sent again. Beyond it whoever asked says so, and asks again when
/// it likes.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_RETRIES: usize = 3;

/// A place to keep things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Location {
    /// A folder.
    Folder(PathBuf),
    /// What a bucket holds below a prefix.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix, without a slash at its end.
        prefix: Path,
    },
}

impl TryFrom<String> for Location {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // The text isn't repeated: it may hold keys that don't belong there.
        let wrong = "a place is a folder, such as `/srv/anabranch`, or `s3://bucket/prefix` and nothing more";
        let url = match Url::parse(&text) {
            Ok(url) => url,
            Err(url::ParseError::RelativeUrlWithoutBase) if !text.is_empty() => return Ok(Self::Folder(text.into())),
            Err(_) => return Err(wrong.to_owned()),
        };
        let is_plain = url.username().is_empty() && url.password().is_none() && url.port().is_none();
        let is_plain = is_plain && url.query().is_none() && url.fragment().is_none();
        match (url.scheme(), url.host_str().filter(|host| !host.is_empty())) {
            ("file", None) if is_plain => url.to_file_path().map(Self::Folder).map_err(|()| wrong.to_owned()),
            ("s3", Some(bucket)) if is_plain => {
                let prefix = Path::from_url_path(url.path()).map_err(|error| format!("{wrong}: {error}"))?;
                Ok(Self::S3 { bucket: bucket.to_owned(), prefix })
            }
            _ => Err(wrong.to_owned()),
        }
    }
}

impl From<Location> for String {
    fn from(location: Location) -> Self {
        location.to_string()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::S3 { bucket, prefix } if prefix.is_root() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// Checks the name of a property of S3's client.
pub fn check_option(name: &str) -> Result<(), String> {
    match name.parse() {
        Ok(AmazonS3ConfigKey::Bucket) => Err(format!("`{name}`: the bucket stands in the place, `s3://bucket/prefix`")),
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "`{name}` is no property of S3's client; such are `aws_endpoint`, `aws_region`, `aws_access_key_id`, \
             `aws_secret_access_key`, `aws_allow_http` and `timeout`"
        )),
    }
}

/// A place that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("opening the storage `{location}` failed")]
pub struct StorageError {
    location: Location,
    #[source]
    source: Error,
}

/// A place, and its objects by paths below it.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The objects. A put is there as a whole or not at all, and stays.
    pub objects: Arc<dyn ObjectStore>,
    location: Location,
}

impl Storage {
    /// Opens a place. A folder is made if it isn't there. S3's client takes its properties from `options`, and those that
    /// lack there from the environment (`AWS_ENDPOINT`, `AWS_ACCESS_KEY_ID`, …); nothing is sent yet.
    pub fn open(location: Location, options: &BTreeMap<String, String>) -> Result<Self, StorageError> {
        let opened = match &location {
            Location::Folder(folder) => std::fs::create_dir_all(folder)
                .map_err(|source| Error::Generic { store: "local", source: source.into() })
                .and_then(|()| LocalFileSystem::new_with_prefix(folder))
                .map(|files| Arc::new(Durable::new(files)) as Arc<dyn ObjectStore>),
            Location::S3 { bucket, prefix } => s3(bucket, options)
                .map(|objects| Arc::new(PrefixStore::new(objects, prefix.clone())) as Arc<dyn ObjectStore>),
        };
        match opened {
            Ok(objects) => Ok(Self { objects, location }),
            Err(source) => Err(StorageError { location, source }),
        }
    }

    /// How a path in it is shown.
    pub fn shown(&self, path: &Path) -> String {
        format!("{}/{path}", self.location)
    }
}

fn s3(bucket: &str, options: &BTreeMap<String, String>) -> Result<impl ObjectStore, Error> {
    let retry = RetryConfig { max_retries: MAX_RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::from_env().with_retry(retry);
    for (name, value) in options {
        builder = builder.with_config(name.parse()?, value);
    }
    builder.with_bucket_name(bucket).build()
}
