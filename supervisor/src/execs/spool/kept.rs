//! What one spool keeps, and whether it may take more: the decisions, without I/O and without waiting.

use std::collections::HashMap;

use bytes::Bytes;
use holdfast_wire::timing;
use tokio::time::Instant;

use super::{
    DRAIN_SLACK, Disk, FLOOR, MEMORY, READ, SEGMENT, SEGMENT_MIN, SPILL_AT, SPILL_TO, Stream,
    log::{CHUNK_COST, Dropped, Log, Place, Segment, Spill},
    record::Record,
};

/// Both streams of one exec, who reads them, and what is to be done.
#[derive(Debug)]
pub(super) struct Kept {
    logs: [Log; 2],
    per_exec: u64,
    segment_bytes: u64,
    /// What each attached reader has for good.
    readers: HashMap<u64, [u64; 2]>,
    next_reader: u64,
    /// The policy asked for; false: drop_oldest.
    block: bool,
    /// Blocked without any reader for too long: drop_oldest until one comes.
    lapsed: bool,
    /// Since when each stream has been blocked without any reader.
    alone_since: [Option<Instant>; 2],
    pub(super) draining: bool,
    /// All memory goes to disk.
    pub(super) flush: bool,
    /// Nothing more will be asked of the writer.
    pub(super) retired: bool,
    disk_ok: bool,
    unlink: Vec<(Stream, Segment)>,
    freed: u64,
    record: Option<(Record, bool)>,
    revision: u64,
}

/// May a stream take bytes?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// So many.
    Free(usize),
    /// All execs together have reached their bound: see whether another's old output may go.
    OthersFirst,
    /// None now; by itself it changes at `until`.
    Wait { until: Option<Instant> },
}

/// What the writer does next, in this order.
#[derive(Debug, Default)]
pub(super) struct Job {
    pub(super) unlink: Vec<(Stream, Segment)>,
    pub(super) spills: Vec<(Stream, Spill)>,
    /// Revision, record, whether it must reach the disk itself.
    pub(super) record: Option<(u64, Record, bool)>,
}

impl Kept {
    pub(super) fn new(per_exec: u64, block: bool) -> Self {
        Self {
            logs: Default::default(),
            per_exec,
            segment_bytes: (per_exec / 16).clamp(SEGMENT_MIN, SEGMENT),
            readers: HashMap::new(),
            next_reader: 0,
            block,
            lapsed: false,
            alone_since: [None; 2],
            draining: false,
            flush: false,
            retired: false,
            disk_ok: true,
            unlink: Vec::new(),
            freed: 0,
            record: None,
            revision: 0,
        }
    }

    /// Of an exec that has ended: nothing is written any more.
    pub(super) fn recovered(logs: [Log; 2]) -> Self {
        Self { logs, retired: true, ..Self::new(u64::MAX, false) }
    }

    pub(super) fn kept(&self) -> u64 {
        self.logs.iter().map(Log::kept).sum()
    }

    pub(super) fn sizes(&self) -> [(u64, u64); 2] {
        Stream::BOTH.map(|stream| (self.log(stream).begin(), self.log(stream).end()))
    }

    pub(super) fn find(&self, stream: Stream, offset: u64, max: usize) -> Place {
        self.log(stream).find(offset, max)
    }

    fn log(&self, stream: Stream) -> &Log {
        &self.logs[stream as usize]
    }

    // ---- writing ------------------------------------------------------------------------------

    pub(super) fn append(&mut self, stream: Stream, data: Bytes) {
        self.logs[stream as usize].append(data);
    }

    /// May `stream` take bytes now? Drops what the policy lets go.
    pub(super) fn room(&mut self, stream: Stream, disk: &Disk, others_first: bool, now: Instant) -> Verdict {
        let slack = if self.draining { DRAIN_SLACK } else { 0 };
        loop {
            let kept = self.kept();
            let cost = self.log(stream).memory_cost() + CHUNK_COST;
            let memory = (MEMORY + slack).saturating_sub(cost);
            let quota = self.per_exec.saturating_add(slack as u64).saturating_sub(kept);
            // What was freed is not given back yet.
            let free = disk.free().saturating_add(self.freed);
            let total = free.max(FLOOR.saturating_sub(kept)).saturating_add(slack as u64);
            let room = READ.min(memory).min(usize::try_from(quota.min(total)).unwrap_or(READ));
            if room > 0 {
                self.alone_since[stream as usize] = None;
                return Verdict::Free(room);
            }
            let full = quota == 0 || total == 0;
            if !full && self.disk_ok {
                // Memory alone is short, and the writer is at it.
                return Verdict::Wait { until: None };
            }
            if quota > 0 && total == 0 && others_first {
                return Verdict::OthersFirst;
            }
            // Where the disk fails, only memory of this very stream helps; else any of this exec's bytes.
            let dropped = if self.block && !self.lapsed {
                self.drop_acknowledged(stream, full)
            } else {
                self.drop_oldest(stream, full)
            };
            match dropped {
                None => return self.blocked(stream, now),
                // A full disk has room for memory once this file is gone: let the writer try before more goes.
                Some(dropped) if dropped.segment.is_some() && !full => return Verdict::Wait { until: None },
                Some(_) => {}
            }
        }
    }

    fn blocked(&mut self, stream: Stream, now: Instant) -> Verdict {
        if !self.readers.is_empty() || !self.block || self.lapsed {
            return Verdict::Wait { until: None };
        }
        let since = *self.alone_since[stream as usize].get_or_insert(now);
        let until = since + timing::BLOCKED_WITHOUT_READER;
        if now < until {
            return Verdict::Wait { until: Some(until) };
        }
        self.lapsed = true;
        tracing::info!("blocked without any reader for too long: the oldest output goes from now on");
        Verdict::Wait { until: Some(now) }
    }

    /// One unit that every attached reader has. Without readers nobody has said that it has anything.
    fn drop_acknowledged(&mut self, stream: Stream, any: bool) -> Option<Dropped> {
        if self.readers.is_empty() {
            return None;
        }
        let streams = Stream::BOTH.into_iter().filter(|one| any || *one == stream);
        for one in streams {
            let acknowledged = self.readers.values().map(|acks| acks[one as usize]).min().unwrap_or(0);
            if let Some(dropped) = self.logs[one as usize].drop_before(acknowledged) {
                self.dropped(one, dropped);
                return Some(dropped);
            }
        }
        None
    }

    fn drop_oldest(&mut self, stream: Stream, any: bool) -> Option<Dropped> {
        let [stdout, stderr] = Stream::BOTH.map(|one| self.log(one).kept());
        let larger = if stdout >= stderr { Stream::Stdout } else { Stream::Stderr };
        let from = if any { larger } else { stream };
        let dropped = self.logs[from as usize].drop_oldest()?;
        self.dropped(from, dropped);
        Some(dropped)
    }

    pub(super) fn drop_all(&mut self) {
        for stream in Stream::BOTH {
            while let Some(dropped) = self.logs[stream as usize].drop_oldest() {
                self.dropped(stream, dropped);
            }
        }
    }

    fn dropped(&mut self, stream: Stream, dropped: Dropped) {
        self.freed += dropped.bytes;
        self.unlink.extend(dropped.segment.map(|segment| (stream, segment)));
    }

    /// Bytes dropped since this was asked last.
    pub(super) fn take_freed(&mut self) -> u64 {
        std::mem::take(&mut self.freed)
    }

    pub(super) fn has_unlinks(&self) -> bool {
        !self.unlink.is_empty()
    }

    pub(super) fn take_unlinks(&mut self) -> Vec<(Stream, Segment)> {
        std::mem::take(&mut self.unlink)
    }

    // ---- readers ------------------------------------------------------------------------------

    pub(super) fn attach(&mut self, offsets: [u64; 2]) -> u64 {
        let id = self.next_reader;
        self.next_reader += 1;
        self.readers.insert(id, offsets);
        self.lapsed = false;
        self.alone_since = [None; 2];
        id
    }

    /// Acknowledgements only grow, and not beyond what was written.
    pub(super) fn ack(&mut self, id: u64, offsets: [u64; 2]) {
        let ends = self.sizes().map(|(_, end)| end);
        if let Some(acks) = self.readers.get_mut(&id) {
            for one in 0..2 {
                acks[one] = acks[one].max(offsets[one].min(ends[one]));
            }
        }
    }

    pub(super) fn detach(&mut self, id: u64) {
        self.readers.remove(&id);
    }

    pub(super) fn readers(&self) -> usize {
        self.readers.len()
    }

    // ---- the writer ---------------------------------------------------------------------------

    pub(super) fn save(&mut self, record: Record, sync: bool) -> u64 {
        self.revision += 1;
        self.record = Some((record, sync));
        self.revision
    }

    /// Is there something for the writer to move?
    pub(super) fn wants_writer(&self) -> bool {
        self.logs.iter().any(|log| log.memory_cost() > SPILL_AT)
    }

    /// What is to be written next. The record of an ended exec follows its output, unless the disk fails: then the
    /// record, being small, is tried first.
    pub(super) fn job(&mut self) -> Option<Job> {
        let mut job = Job { unlink: self.take_unlinks(), ..Job::default() };
        let (above, keep) = if self.flush { (0, 0) } else { (SPILL_AT, SPILL_TO) };
        let record_first = !self.disk_ok && self.record.is_some();
        if !record_first {
            for stream in Stream::BOTH {
                let log = self.log(stream);
                if log.memory_cost() > above
                    && let Some(spill) = log.spill(keep, self.segment_bytes)
                {
                    job.spills.push((stream, spill));
                }
            }
        }
        if job.spills.is_empty() || !self.flush {
            job.record = self.record.take().map(|(record, sync)| (self.revision, record, sync));
        }
        let nothing = job.unlink.is_empty() && job.spills.is_empty() && job.record.is_none();
        (!nothing).then_some(job)
    }

    /// A spill has been written.
    pub(super) fn spilled(&mut self, stream: Stream, spill: &Spill) {
        if !self.logs[stream as usize].spilled(spill) {
            self.unlink.push((stream, spill.segment));
        }
        self.disk_ok = true;
    }

    /// A spill has not been written. True: a record waits that can be tried at once.
    pub(super) fn disk_failed(&mut self) -> bool {
        let first = self.disk_ok;
        self.disk_ok = false;
        first && self.record.is_some()
    }

    /// A job has no end yet: the policy goes by memory alone from now on.
    pub(super) fn disk_hangs(&mut self) {
        self.disk_ok = false;
    }

    /// A record has not been written: it stays, unless there is a newer one.
    pub(super) fn record_failed(&mut self, record: Record, sync: bool) {
        self.disk_ok = false;
        self.record.get_or_insert((record, sync));
    }

    pub(super) fn record_written(&mut self) {
        self.disk_ok = true;
    }

    pub(super) fn has_record(&self) -> bool {
        self.record.is_some()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired
    }
}
