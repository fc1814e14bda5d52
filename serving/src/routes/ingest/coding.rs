//! Bodies that come compressed.

use std::io::Read;

use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;

use crate::problem::Problem;

/// The largest window of zstd, as a power of two: 8 MiB, which RFC 9659 lets senders use.
const ZSTD_WINDOW: u32 = 23;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// Not at all.
    Identity,
    Gzip,
    Zstd,
}

impl Coding {
    /// What a request says.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let said = headers.get_all(header::CONTENT_ENCODING).iter();
        let said: Vec<String> = said.map(|value| String::from_utf8_lossy(value.as_bytes()).to_lowercase()).collect();
        let said = said.join(",");
        let mut codings = said.split(',').map(str::trim).filter(|coding| !matches!(*coding, "" | "identity"));
        match (codings.next(), codings.next()) {
            (None, _) => Ok(Self::Identity),
            (Some("gzip" | "x-gzip"), None) => Ok(Self::Gzip),
            (Some("zstd"), None) => Ok(Self::Zstd),
            _ => {
                let detail =
                    format!("the body is encoded as `{said}`; it may be as `gzip` or `zstd`, once, or not at all");
                Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoded-body", detail))
            }
        }
    }

    /// The body as it was, if it has at most `max` bytes.
    pub fn unfold(self, body: Bytes, max: usize) -> Result<Bytes, Problem> {
        let mut plain = Vec::new();
        let limit = max as u64 + 1;
        let (name, read) = match self {
            Self::Identity => return Ok(body),
            Self::Gzip => ("gzip", MultiGzDecoder::new(&body[..]).take(limit).read_to_end(&mut plain)),
            Self::Zstd => {
                let decoder = zstd::Decoder::with_buffer(&body[..]).and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW)?;
                    Ok(decoder)
                });
                ("zstd", decoder.and_then(|decoder| decoder.take(limit).read_to_end(&mut plain)))
            }
        };
        match read {
            Ok(length) if length <= max => Ok(plain.into()),
            Ok(_) => {
                let detail = format!("the body unfolds to more than {max} bytes; send it in parts");
                Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-long", detail))
            }
            Err(error) => Err(Problem::bad_request("bad-body", format!("the body is not {name} to its end: {error}"))),
        }
    }
}
