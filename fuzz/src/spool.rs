//! The supervisor's records on disk. Its own files, but a crash may leave them in any state, and a sandbox's user
//! who is root there may write what he likes.

use holdfast_supervisor::execs::spool::{decode_record, encode_record};

/// A record: it is read or refused, and what was read can be written and read again.
pub fn spool_record(data: &[u8]) {
    let Ok(record) = decode_record(data) else { return };
    let again = decode_record(&encode_record(&record)).expect("what we write we can read");
    assert_eq!(again, record);
}
