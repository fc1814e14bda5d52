//! What operators keep, as bytes: an [envelope](anabranch_store::envelope) of kind `ANABOPS\n`, with a Parquet file for each of their frames.
//! Checkpoints have the same frames in an envelope of their own.

use std::io::Cursor;

use anabranch_engine::operator::State;
use anabranch_plan::time::Micros;
use anabranch_store::envelope::{EnvelopeError, Frames, Kind, Place, Read};
use polars::prelude::*;
use serde::{Deserialize, Serialize};

/// Checkpoints have a version of their own, which is raised with this one.
const KIND: Kind = Kind { magic: b"ANABOPS\n", version: 1, name: "what operators keep" };

/// What the header of an envelope says of a state whose frames are in it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Header {
    horizon: Micros,
    frames: Vec<Place>,
}

/// The bytes of a state.
pub fn encode(state: &State) -> PolarsResult<Vec<u8>> {
    let mut frames = Frames::default();
    let header = put(state, &mut frames)?;
    let pieces = frames.seal(KIND, &header).map_err(|error| polars_err!(ComputeError: "header: {error}"))?;
    Ok(pieces.concat())
}

/// Puts a state's frames into an envelope that is being written.
pub fn put(state: &State, frames: &mut Frames) -> PolarsResult<Header> {
    let mut places = Vec::new();
    for frame in &state.frames {
        let mut file = Vec::new();
        ParquetWriter::new(&mut file)
            .with_compression(ParquetCompression::Lz4Raw)
            .set_parallel(false)
            .finish(&mut frame.clone())?;
        places.push(frames.push(file));
    }
    Ok(Header { horizon: state.horizon, frames: places })
}

/// The state that bytes are of.
pub fn decode(bytes: &[u8]) -> Result<State, EnvelopeError> {
    let (header, frames) = KIND.open(bytes)?;
    take(header, frames)
}

/// The state whose frames are in an envelope.
pub fn take(Header { horizon, frames: places }: Header, frames: Read<'_>) -> Result<State, EnvelopeError> {
    let read = |place| {
        let frame = ParquetReader::new(Cursor::new(frames.at(place)?.to_vec())).finish();
        frame.map_err(EnvelopeError::content)
    };
    Ok(State { horizon, frames: places.into_iter().map(read).collect::<Result<_, _>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_not_if_it_is_damaged() {
        let texts = df!("k" => [Some("a"), None], "n" => [1_i64, 2]).expect("a frame");
        let state = State { horizon: -5, frames: vec![texts.clone(), texts.clear()] };
        let bytes = encode(&state).expect("bytes");
        let read = decode(&bytes).expect("read");
        assert_eq!((read.horizon, read.frames.len()), (-5, 2));
        for (one, other) in read.frames.iter().zip(&state.frames) {
            assert!(one.equals_missing(other), "{one} isn't {other}");
        }
        for at in [0, 9, 20, bytes.len() / 2, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert!(decode(&damaged).is_err(), "byte {at}");
        }
    }
}
