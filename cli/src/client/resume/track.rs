//! One output stream of an exec: every byte once, in order, whatever the peer repeats.

use bytes::Bytes;

use super::Violation;

/// How much of one output stream has come, been used, and been confirmed.
#[derive(Clone, Debug)]
pub(super) struct Track {
    name: &'static str,
    /// The offset of the next byte that is wanted.
    pub(super) received: u64,
    /// What the caller has used for good.
    pub(super) consumed: u64,
    /// What the peer was told of that.
    pub(super) acknowledged: u64,
    /// Bytes before this that are gone were told of already.
    pub(super) told: u64,
}

impl Track {
    pub(super) fn new(name: &'static str, offset: u64) -> Self {
        Self { name, received: offset, consumed: offset, acknowledged: offset, told: 0 }
    }

    /// The part of `data` that is new.
    pub(super) fn take(&mut self, offset: u64, mut data: Bytes) -> Result<Bytes, Violation> {
        let end = offset.checked_add(data.len() as u64).ok_or(Violation::Offset(self.name))?;
        if offset > self.received {
            return Err(Violation::Hole { stream: self.name, expected: self.received, got: offset });
        }
        if end <= self.received {
            return Ok(Bytes::new());
        }
        // Less than data's length, because end > received.
        let known = (self.received - offset) as usize;
        self.received = end;
        Ok(data.split_off(known))
    }

    /// Skips to `to`; how many bytes are lost by it and were not told of.
    pub(super) fn gap(&mut self, from: u64, to: u64) -> Result<u64, Violation> {
        if from > to {
            return Err(Violation::Offset(self.name));
        }
        if from > self.received {
            return Err(Violation::Hole { stream: self.name, expected: self.received, got: from });
        }
        let untold = to.saturating_sub(self.received.max(self.told));
        self.received = self.received.max(to);
        Ok(untold)
    }

    /// What `started` says is no longer kept; how many wanted bytes are lost by that.
    pub(super) fn kept_from(&mut self, kept: u64) -> u64 {
        let lost = kept.saturating_sub(self.received.max(self.told));
        self.told = self.told.max(kept);
        lost
    }

    /// What did not come, and was not told of, of a stream of `total` bytes.
    pub(super) fn missing(&self, total: u64) -> u64 {
        total.saturating_sub(self.received.max(self.told))
    }

    pub(super) fn unacknowledged(&self) -> u64 {
        self.consumed - self.acknowledged
    }
}
