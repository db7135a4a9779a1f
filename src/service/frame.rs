//! ttrpc's frames: a header of ten bytes, and a payload.
//!
//! It must never trust a length.

use std::io;

/// Length and stream in network order, kind, flags.
pub(super) const HEADER: usize = 10;

pub(super) const REQUEST: u8 = 1;
pub(super) const RESPONSE: u8 = 2;
pub(super) const DATA: u8 = 3;

pub(super) const REMOTE_CLOSED: u8 = 1;
pub(super) const NO_DATA: u8 = 4;

/// One frame.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub stream: u32,
    pub kind: u8,
    pub flags: u8,
    pub payload: &'a [u8],
}

/// The length of the payload after `header`, and the kind. An error: it is longer than `max`.
pub(super) fn begin(header: &[u8; HEADER], max: usize) -> io::Result<(usize, u8)> {
    let [l0, l1, l2, l3, _, _, _, _, kind, _] = *header;
    let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length > max {
        let text = format!("a frame of {length} bytes, at most {max} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok((length, kind))
}

impl<'a> Frame<'a> {
    /// The frame that `bytes` begin with. None: it is not all there. An error: its payload is
    /// larger than `max`.
    pub fn parse(bytes: &'a [u8], max: usize) -> io::Result<Option<Frame<'a>>> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let (length, kind) = begin(header, max)?;
        let [_, _, _, _, s0, s1, s2, s3, _, flags] = *header;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        Ok(rest.get(..length).map(|payload| Frame { stream, kind, flags, payload }))
    }

    /// As it goes over the connection.
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&[self.kind, self.flags]);
        bytes.extend_from_slice(self.payload);
        bytes
    }
}
