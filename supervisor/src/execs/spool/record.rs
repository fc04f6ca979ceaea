//! The record of one exec on disk: what a later supervisor process needs to tell its outcome, or to know that it is
//! lost. Written and read by this file alone; the spec and its environment are not in it.
//!
//! `version: u8`, then bincode (standard configuration, at most [`MAX_RECORD`] bytes). What peers are told is kept
//! as they are told it, as protobuf, so that it survives a change of versions by protobuf's rules.

use bincode::config;
use holdfast_wire::{api::ExecInfo, ids::ExecId};
use prost::Message as _;

use crate::execs::spawn::ProcessMark;

/// The first byte of a record.
const VERSION: u8 = 1;

/// The largest record, in bytes. Real ones are under 2 KiB.
pub const MAX_RECORD: usize = 64 * 1024;

/// One exec, as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Which.
    pub exec: ExecId,
    /// As it was told last. Its state is ENDED, or it was not over when this was written.
    pub info: ExecInfo,
    /// After the end, in milliseconds.
    pub retain_for_ms: u64,
    /// Of the process that ran it, once it ran.
    pub process: Option<ProcessMark>,
}

/// The bytes after the version.
#[derive(bincode::Encode, bincode::Decode)]
struct Version1 {
    exec: [u8; 16],
    info: Vec<u8>,
    retain_for_ms: u64,
    process: Option<ProcessMark>,
}

/// Bytes that are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Nothing, or a version that this build does not know.
    #[error("a record of version {0:?}: this build reads version {VERSION}")]
    Version(Option<u8>),
    /// Not what the version says.
    #[error("a record that does not decode: {0}")]
    Malformed(String),
}

/// A record's bytes.
#[must_use]
pub fn encode_record(record: &Record) -> Vec<u8> {
    let body = Version1 {
        exec: *record.exec.0.as_bytes(),
        info: record.info.encode_to_vec(),
        retain_for_ms: record.retain_for_ms,
        process: record.process.clone(),
    };
    let mut bytes = vec![VERSION];
    let body = bincode::encode_to_vec(body, config::standard())
        .expect("writing to memory cannot fail, and the type has no unsupported part");
    bytes.extend(body);
    bytes
}

/// Reads a record. Never allocates more than [`MAX_RECORD`] for whatever the bytes claim.
pub fn decode_record(bytes: &[u8]) -> Result<Record, RecordError> {
    let Some((&VERSION, body)) = bytes.split_first() else {
        return Err(RecordError::Version(bytes.first().copied()));
    };
    let malformed = |error: &dyn std::fmt::Display| RecordError::Malformed(error.to_string());
    let limited = config::standard().with_limit::<MAX_RECORD>();
    let (body, used): (Version1, usize) =
        bincode::decode_from_slice(body, limited).map_err(|error| malformed(&error))?;
    if used + 1 != bytes.len() {
        return Err(RecordError::Malformed(format!("{} bytes too many", bytes.len() - used - 1)));
    }
    let info = ExecInfo::decode(body.info.as_slice()).map_err(|error| malformed(&error))?;
    Ok(Record {
        exec: ExecId(uuid::Uuid::from_bytes(body.exec)),
        info,
        retain_for_ms: body.retain_for_ms,
        process: body.process,
    })
}

#[cfg(test)]
mod tests {
    use holdfast_wire::api::{ExecState, Exited, Outcome, outcome::Kind};
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Record {
        Record {
            exec: ExecId(uuid::Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff)),
            info: ExecInfo {
                exec_id: "x".into(),
                state: ExecState::Ended as i32,
                outcome: Some(Outcome { kind: Some(Kind::Exited(Exited { code: 3 })) }),
                ..ExecInfo::default()
            },
            retain_for_ms: 3_600_000,
            process: Some(ProcessMark { pid: 300, start_ticks: 7, boot_id: "b".into(), cgroup: None }),
        }
    }

    #[test]
    fn a_record_is_read_back() {
        assert_eq!(decode_record(&encode_record(&sample())).unwrap(), sample());
    }

    #[test]
    fn the_bytes_never_change() {
        let hex: String = encode_record(&sample()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "0100112233445566778899aabbccddeeff0b0a01781803220\
             40a020803fc80ee360001fb2c0107016200"
        );
    }

    #[test]
    fn another_version_and_trailing_bytes_are_refused() {
        assert_eq!(decode_record(&[]), Err(RecordError::Version(None)));
        assert_eq!(decode_record(&[9, 1]), Err(RecordError::Version(Some(9))));
        let mut long = encode_record(&sample());
        long.push(0);
        assert!(matches!(decode_record(&long), Err(RecordError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), flip in 0_usize..60) {
            let _ = decode_record(&bytes);
            let mut damaged = encode_record(&sample());
            let at = flip % damaged.len();
            damaged[at] ^= 0xff;
            let _ = decode_record(&damaged);
        }
    }
}
