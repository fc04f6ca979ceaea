//! One output stream as it is kept: absolute offsets, the oldest part in segment files, the newest in memory. Pure:
//! it knows names of files and touches none.
//!
//! ```text
//!      begin           memory_from      end
//!        │ segment │ segment │ chunk │ chunk │
//!        └──── on disk ──────┴── in memory ──┘      before `begin`: gone, told by a gap
//! ```

use std::collections::VecDeque;

use bytes::Bytes;

/// What a chunk in memory costs besides its bytes, so that a million single bytes are not a million free chunks.
pub(super) const CHUNK_COST: usize = 64;

/// Output in a file: `from..to`, whole files only come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The offset of its first byte; also its file's name.
    pub(super) from: u64,
    /// One past its last byte.
    pub(super) to: u64,
}

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Log {
    segments: VecDeque<Segment>,
    memory: VecDeque<Bytes>,
    memory_from: u64,
    end: u64,
}

/// Where the bytes at an offset are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Here.
    Memory(Bytes),
    /// In this segment, `skip` bytes from its start, `length` of them.
    Disk { segment: Segment, skip: u64, length: usize },
    /// Gone; the next byte that is kept (or will be written) is at `to`.
    Gap { to: u64 },
    /// Not written yet.
    End,
}

/// What left the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) bytes: u64,
    /// The file to unlink.
    pub(super) segment: Option<Segment>,
}

/// Memory on its way to disk.
#[derive(Clone, Debug)]
pub(super) struct Spill {
    /// The segment that it goes to, as it will be afterwards.
    pub(super) segment: Segment,
    /// Where its first byte goes.
    pub(super) at: u64,
    pub(super) chunks: Vec<Bytes>,
}

impl Log {
    /// What an earlier process left: segments in order, `end` no less than the last one's.
    pub(super) fn recovered(segments: Vec<Segment>, end: u64) -> Self {
        Self { segments: segments.into(), memory: VecDeque::new(), memory_from: end, end }
    }

    /// The next byte's offset.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The oldest kept byte's offset.
    pub(super) fn begin(&self) -> u64 {
        self.segments.front().map_or(self.memory_from, |segment| segment.from)
    }

    /// Bytes kept.
    pub(super) fn kept(&self) -> u64 {
        let on_disk: u64 = self.segments.iter().map(|segment| segment.to - segment.from).sum();
        on_disk + (self.end - self.memory_from)
    }

    /// What the memory part costs.
    pub(super) fn memory_cost(&self) -> usize {
        (self.end - self.memory_from) as usize + self.memory.len() * CHUNK_COST
    }

    /// Takes the next bytes.
    pub(super) fn append(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.end += data.len() as u64;
            self.memory.push_back(data);
        }
    }

    /// Where the bytes from `offset` are, at most `max` of them.
    pub(super) fn find(&self, offset: u64, max: usize) -> Place {
        if offset >= self.end {
            return Place::End;
        }
        if offset >= self.memory_from {
            let mut from = self.memory_from;
            for chunk in &self.memory {
                let skip = (offset - from) as usize;
                if skip < chunk.len() {
                    return Place::Memory(chunk.slice(skip..chunk.len().min(skip.saturating_add(max))));
                }
                from += chunk.len() as u64;
            }
        }
        let next = self.segments.partition_point(|segment| segment.to <= offset);
        match self.segments.get(next) {
            Some(segment) if segment.from <= offset => {
                let skip = offset - segment.from;
                let length = usize::try_from(segment.to - offset).unwrap_or(max).min(max);
                Place::Disk { segment: *segment, skip, length }
            }
            Some(segment) => Place::Gap { to: segment.from },
            None => Place::Gap { to: self.memory_from },
        }
    }

    /// Drops the oldest unit: a segment, or a chunk. `None`: nothing is kept.
    pub(super) fn drop_oldest(&mut self) -> Option<Dropped> {
        if let Some(segment) = self.segments.pop_front() {
            return Some(Dropped { bytes: segment.to - segment.from, segment: Some(segment) });
        }
        let chunk = self.memory.pop_front()?;
        self.memory_from += chunk.len() as u64;
        Some(Dropped { bytes: chunk.len() as u64, segment: None })
    }

    /// Drops the oldest unit if every byte of it is before `offset`.
    pub(super) fn drop_before(&mut self, offset: u64) -> Option<Dropped> {
        let to = match (self.segments.front(), self.memory.front()) {
            (Some(segment), _) => segment.to,
            (None, Some(chunk)) => self.memory_from + chunk.len() as u64,
            (None, None) => return None,
        };
        if to <= offset { self.drop_oldest() } else { None }
    }

    /// What goes to disk next so that the memory part costs at most `keep`; `None`: it does already. A segment grows
    /// to about `segment_bytes`.
    pub(super) fn spill(&self, keep: usize, segment_bytes: u64) -> Option<Spill> {
        let mut excess = self.memory_cost().checked_sub(keep).filter(|excess| *excess > 0)?;
        let last = self
            .segments
            .back()
            .filter(|last| last.to == self.memory_from && last.to - last.from < segment_bytes);
        let from = last.map_or(self.memory_from, |last| last.from);
        let (mut to, mut chunks) = (self.memory_from, Vec::new());
        for chunk in &self.memory {
            if excess == 0 || to - from >= segment_bytes {
                break;
            }
            excess = excess.saturating_sub(chunk.len() + CHUNK_COST);
            to += chunk.len() as u64;
            chunks.push(chunk.clone());
        }
        (!chunks.is_empty()).then_some(Spill { segment: Segment { from, to }, at: self.memory_from, chunks })
    }

    /// The spill has been written. What was dropped of it meanwhile stays dropped: false, the file holds nothing
    /// that is kept.
    pub(super) fn spilled(&mut self, spill: &Spill) -> bool {
        if self.memory_from != spill.at || self.begin() > spill.segment.from {
            return false;
        }
        for _ in &spill.chunks {
            self.memory.pop_front();
        }
        self.memory_from = spill.segment.to;
        match self.segments.back_mut() {
            Some(last) if last.from == spill.segment.from => last.to = spill.segment.to,
            _ => self.segments.push_back(spill.segment),
        }
        true
    }
}
