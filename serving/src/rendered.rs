//! A finished answer as bytes, and the tag by which a client says that it has them already.

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use sha2::{Digest, Sha256};

/// A finished answer.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// Its bytes.
    pub body: Bytes,
    /// What names these bytes.
    pub etag: HeaderValue,
    /// What is known of the rows, where the body can't say it.
    pub proof: Option<HeaderValue>,
}

/// Weak, as the same answer may go out compressed. Definition, version and offsets are all in what is hashed.
pub(crate) fn etag(body: &[u8], beside: &[u8]) -> HeaderValue {
    let mut hash = Sha256::new();
    hash.update(beside);
    hash.update(body);
    let hex: String = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::from_str(&format!("W/\"{hex}\"")).unwrap_or_else(|_| HeaderValue::from_static("W/\"0\""))
}

/// Whether the client has what it asks for already, by this tag.
pub(crate) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let strong = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|known| known.to_str().ok());
    known.flat_map(|known| known.split(',')).any(|known| known.trim() == "*" || strong(known) == strong(etag))
}
