//! Counts and digest of a transfer, made at both ends from what was sent and from what was received.
//!
//! What is hashed is the content of the frames and not their borders, which the network moves: see `files.proto`.

use holdfast_wire::{
    api::{FileKind, TransferEnd},
    files::kind,
};
use sha2::{Digest as _, Sha256};

/// What has gone by so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    hash: Sha256,
    /// Entries.
    pub entries: u64,
    /// Of them, files that were complete.
    pub files: u64,
    /// Content, in bytes; holes included.
    pub bytes: u64,
    /// Of the current file.
    current: u64,
}

impl Tally {
    /// An entry, as it stands in its frame.
    pub fn on_entry(&mut self, payload: &[u8], _kind: FileKind) {
        self.entries += 1;
        self.current = 0;
        self.hash.update([kind::ENTRY]);
        self.hash.update(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.hash.update(payload);
    }

    /// Content.
    pub fn on_data(&mut self, data: &[u8]) {
        self.current += data.len() as u64;
        self.bytes += data.len() as u64;
        self.hash.update(data);
    }

    /// Zeros.
    pub fn on_hole(&mut self, length: u64) {
        // Bounded by whoever takes frames of a peer: a file's length fits an off_t.
        self.current = self.current.saturating_add(length);
        self.bytes = self.bytes.saturating_add(length);
        self.hash.update([kind::HOLE]);
        self.hash.update(length.to_be_bytes());
    }

    /// The file is complete.
    pub fn on_close(&mut self) {
        self.files += 1;
        self.hash.update([kind::CLOSE]);
        self.hash.update(self.current.to_be_bytes());
    }

    /// The file is not.
    pub fn on_drop(&mut self) {
        self.hash.update([kind::DROP]);
    }

    /// All of it.
    #[must_use]
    pub fn end(&self, problems: u64) -> TransferEnd {
        TransferEnd {
            entries: self.entries,
            files: self.files,
            bytes: self.bytes,
            digest: self.hash.clone().finalize().to_vec().into(),
            problems,
        }
    }
}
