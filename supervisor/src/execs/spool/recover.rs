//! What an earlier supervisor process left in the state directory. Blocks; called once, at start.

use std::sync::Arc;

use holdfast_wire::ids::ExecId;

use super::{Disk, Spool, Stream, kept::Kept, log::Log, record::Record};

/// One exec of an earlier process.
#[derive(Debug)]
pub(in crate::execs) struct Recovered {
    pub(in crate::execs) record: Record,
    /// What is kept of its output; complete if its record says that it had ended and memory was written.
    pub(in crate::execs) spool: Spool,
}

/// Reads what is there. What cannot be read is removed, and said in the log: the gateway learns from its absence
/// that it is lost.
pub(in crate::execs) fn recover(disk: &Arc<Disk>) -> Vec<Recovered> {
    if let Err(error) = disk.prepare() {
        disk.failed("making the directory of execs", &error);
    }
    let ids = disk.list().unwrap_or_else(|error| {
        disk.failed("listing execs", &error);
        Vec::new()
    });
    ids.into_iter().filter_map(|exec| recover_one(disk, exec)).collect()
}

fn recover_one(disk: &Arc<Disk>, exec: ExecId) -> Option<Recovered> {
    let record = match disk.read_record(exec) {
        Ok(record) => record,
        Err(error) => {
            tracing::error!(%exec, %error, "what an earlier supervisor kept of this exec cannot be read: removed");
            disk.remove(exec);
            return None;
        }
    };
    let written = [record.info.stdout_bytes, record.info.stderr_bytes];
    let logs = Stream::BOTH.map(|stream| {
        let segments = disk.segments(exec, stream);
        // An exec that had not ended may have written more than its record says.
        let end = segments.last().map_or(0, |last| last.to).max(written[stream as usize]);
        Log::recovered(segments, end)
    });
    let kept = Kept::recovered(logs);
    disk.take(kept.kept());
    Some(Recovered { record, spool: Spool::over(exec, Arc::clone(disk), kept) })
}

impl Recovered {
    /// Lets its output go when others need the room; a changed record is to be written first.
    pub(in crate::execs) fn rewrite(&self, disk: &Disk) {
        if let Err(error) = disk.write_record(&self.record, true) {
            disk.failed("writing a record", &error);
        }
    }
}
