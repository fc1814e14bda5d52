//! What is stored of a partition.

use crate::clock::Micros;
use crate::position::{Offset, Partition};

/// What the log knows of a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PartitionState {
    pub(super) start: Offset,
    pub(super) end: Offset,
    pub(super) log_time: Micros,
    pub(super) bytes: u64,
}

impl PartitionState {
    pub(super) fn key(topic: u32, partition: Partition) -> Vec<u8> {
        [b"p", &topic.to_be_bytes()[..], &partition.to_be_bytes()].concat()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        [self.start, self.end, self.log_time.cast_unsigned(), self.bytes].map(u64::to_be_bytes).concat()
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = Fields(value);
        let (start, end) = (fields.u64()?, fields.u64()?);
        Some(Self { start, end, log_time: fields.u64()?.cast_signed(), bytes: fields.u64()? })
    }
}

/// Takes numbers off the front of a stored value.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn u32(&mut self) -> Option<u32> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*field))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*field))
    }
}
