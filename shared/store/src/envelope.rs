//! One envelope for all that is stored or sent in bytes: checkpoints, and snapshots on their way to those that serve.
//!
//! | bytes | what                                                      |
//! |-------|-----------------------------------------------------------|
//! | 8     | the kind of thing that it holds                           |
//! | 1     | the version of that kind's format                         |
//! | 8     | the length of the header                                  |
//! | 8     | the length of all frames together                         |
//! | …     | the header, JSON; it says which frame is where            |
//! | …     | the frames: bytes of any kind, such as Parquet files      |
//! | 4     | CRC-32 of everything before                               |
//!
//! Integers are little-endian. A kind's version is raised whenever its header or its frames are written otherwise, and a build
//! reads the version that it writes and no other: what is in envelopes can be made anew from log and archive. The kind, the version
//! and the checksum have these places in all versions, so a damaged envelope isn't taken for one of another version.

use std::fmt::Display;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const FIXED_BYTES: usize = 8 + 1 + 8 + 8;

/// A kind of thing that is put in envelopes.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The bytes that it begins with.
    pub magic: &'static [u8; 8],
    /// The version of its format.
    pub version: u8,
    /// What it is called in messages, with its article.
    pub name: &'static str,
}

/// Why what is in an envelope can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is something else.
    #[error("it isn't {0}")]
    OtherKind(&'static str),
    /// Another build wrote it.
    #[error("it is of format {there}, and this build reads format {known}")]
    OtherVersion {
        /// The version that it has.
        there: u8,
        /// The version that can be read.
        known: u8,
    },
    /// Its end is missing.
    #[error("it is cut off")]
    CutOff,
    /// It isn't what was written.
    #[error("its checksum doesn't match")]
    Checksum,
    /// It is what was written, and not what is wanted.
    #[error("{0}")]
    Content(String),
}

impl EnvelopeError {
    /// That its content isn't what is wanted.
    pub fn content(problem: impl Display) -> Self {
        Self::Content(problem.to_string())
    }
}

/// Where a frame is: how many bytes behind the first frame's beginning, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place(usize, usize);

/// The frames of an envelope that is being written.
#[derive(Debug, Default)]
pub struct Frames {
    pieces: Vec<Bytes>,
    length: usize,
}

impl Frames {
    /// Puts one behind the others. The header has to name its place.
    pub fn push(&mut self, mut frame: Vec<u8>) -> Place {
        frame.shrink_to_fit();
        let place = Place(self.length, frame.len());
        self.length += frame.len();
        self.pieces.push(frame.into());
        place
    }

    /// The envelope, in pieces: there is never a second copy of the frames.
    pub fn seal(self, kind: Kind, header: &impl Serialize) -> serde_json::Result<Vec<Bytes>> {
        let header = serde_json::to_vec(header)?;
        let lengths = [header.len(), self.length].map(|length| (length as u64).to_le_bytes());
        let fixed = [&kind.magic[..], &[kind.version], lengths.as_flattened()].concat();
        let mut pieces: Vec<Bytes> = vec![fixed.into(), header.into()];
        pieces.extend(self.pieces);
        let mut sum = crc32fast::Hasher::new();
        pieces.iter().for_each(|piece| sum.update(piece));
        pieces.push(sum.finalize().to_le_bytes().to_vec().into());
        Ok(pieces)
    }
}

/// The frames of an envelope that was opened.
#[derive(Debug, Clone, Copy)]
pub struct Read<'a>(&'a [u8]);

impl<'a> Read<'a> {
    /// The frame at a place.
    pub fn at(self, Place(start, length): Place) -> Result<&'a [u8], EnvelopeError> {
        let frame = self.0.get(start..start.saturating_add(length));
        frame.ok_or_else(|| EnvelopeError::content("a frame is outside of it"))
    }
}

impl Kind {
    /// Opens an envelope that is to hold a thing of this kind: its header and its frames.
    pub fn open<'a, H: DeserializeOwned>(&self, bytes: &'a [u8]) -> Result<(H, Read<'a>), EnvelopeError> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_BYTES>().ok_or(EnvelopeError::CutOff)?;
        let (magic, fixed) = fixed.split_at(8);
        if magic != self.magic {
            return Err(EnvelopeError::OtherKind(self.name));
        }
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or(EnvelopeError::CutOff)?;
        let is_whole = crc32fast::hash(body) == u32::from_le_bytes(*sum);
        if fixed[0] != self.version && is_whole {
            return Err(EnvelopeError::OtherVersion { there: fixed[0], known: self.version });
        }
        let (lengths, _) = fixed[1..].as_chunks::<8>();
        let length = |i: usize| usize::try_from(u64::from_le_bytes(lengths[i])).unwrap_or(usize::MAX);
        let (header, rest) = rest.split_at_checked(length(0)).ok_or(EnvelopeError::CutOff)?;
        let (frames, rest) = rest.split_at_checked(length(1)).ok_or(EnvelopeError::CutOff)?;
        match rest.len() {
            0..4 => return Err(EnvelopeError::CutOff),
            4 if is_whole => {}
            _ => return Err(EnvelopeError::Checksum),
        }
        let header = serde_json::from_slice(header).map_err(EnvelopeError::content)?;
        Ok((header, Read(frames)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LETTER: Kind = Kind { magic: b"LETTER\r\n", version: 3, name: "a letter" };

    fn sealed(kind: Kind) -> Vec<u8> {
        let mut frames = Frames::default();
        let places = [b"first".to_vec(), Vec::new(), b"last".to_vec()].map(|frame| frames.push(frame));
        frames.seal(kind, &places).expect("sealed").concat()
    }

    fn refused(bytes: &[u8]) -> EnvelopeError {
        LETTER.open::<Vec<Place>>(bytes).map(|(places, _)| places).expect_err("refused")
    }

    #[test]
    fn frames_are_found_where_the_header_says() {
        let bytes = sealed(LETTER);
        let (places, frames) = LETTER.open::<Vec<Place>>(&bytes).expect("opened");
        let found: Vec<&[u8]> = places.into_iter().map(|place| frames.at(place).expect("a frame")).collect();
        assert_eq!(found, [&b"first"[..], b"", b"last"]);
        let outside = frames.at(Place(6, 4)).expect_err("outside");
        assert_eq!(outside.to_string(), "a frame is outside of it");
        assert!(frames.at(Place(usize::MAX, usize::MAX)).is_err());
    }

    #[test]
    fn what_is_wrong_with_an_envelope_is_said() {
        let bytes = sealed(LETTER);
        assert_eq!(refused(&sealed(Kind { magic: b"PARCEL\r\n", ..LETTER })), EnvelopeError::OtherKind("a letter"));
        let later = refused(&sealed(Kind { version: 4, ..LETTER }));
        assert_eq!(later.to_string(), "it is of format 4, and this build reads format 3");
        let mut damaged = bytes.clone();
        damaged[8] = 4;
        assert_eq!(refused(&damaged), EnvelopeError::Checksum, "not one of format 4");
        assert_eq!(refused(&sealed(LETTER)[..bytes.len() - 1]), EnvelopeError::CutOff);
        for length in 0..bytes.len() {
            assert_eq!(refused(&bytes[..length]), EnvelopeError::CutOff, "{length} bytes");
        }
        for at in FIXED_BYTES..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(refused(&damaged), EnvelopeError::Checksum, "byte {at}");
        }
        assert_eq!(refused(&[&bytes[..], b"more"].concat()), EnvelopeError::Checksum);
        let other = Frames::default().seal(LETTER, &"no places").expect("sealed").concat();
        assert!(matches!(refused(&other), EnvelopeError::Content(_)));
    }
}
