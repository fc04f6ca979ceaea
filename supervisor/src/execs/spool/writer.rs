//! The writer of one spool: the one task that changes its exec's files while the exec lives. It moves memory to
//! segments, unlinks what was dropped, and writes the record; a disk that hangs hangs it and nobody else.

use std::{io, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{
    HANGS, RETRY, Spool, Stream,
    kept::Job,
    log::{Segment, Spill},
    record::Record,
};

/// What came of a job.
struct Done {
    spilled: Vec<(Stream, Spill)>,
    spill_error: Option<io::Error>,
    record: Option<(u64, Record, bool, io::Result<()>)>,
}

/// Writes until the spool is retired and nothing is left to write, or until `token`.
pub(super) async fn run(spool: Spool, token: CancellationToken) {
    let mut work = spool.inner.work.subscribe();
    loop {
        work.borrow_and_update();
        let (job, over) = {
            let mut kept = spool.lock();
            (kept.job(), kept.is_retired())
        };
        let Some(job) = job else {
            if over {
                return;
            }
            tokio::select! {
                _ = work.changed() => continue,
                () = token.cancelled() => return,
            }
        };
        let (disk, exec) = (Arc::clone(&spool.inner.disk), spool.inner.exec);
        let mut work_on_disk = tokio::task::spawn_blocking(move || {
            job.unlink
                .iter()
                .for_each(|(stream, segment): &(Stream, Segment)| disk.unlink(exec, *stream, *segment));
            let Job { spills, record, .. } = job;
            let mut done = Done { spilled: Vec::new(), spill_error: None, record: None };
            for (stream, spill) in spills {
                match disk.write_spill(exec, stream, &spill) {
                    Ok(()) => done.spilled.push((stream, spill)),
                    Err(error) => done.spill_error = Some(error),
                }
            }
            done.record = record.map(|(revision, record, sync)| {
                let result = disk.write_record(&record, sync);
                (revision, record, sync, result)
            });
            done
        });
        let done = match tokio::time::timeout(HANGS, &mut work_on_disk).await {
            Ok(done) => done,
            Err(_) => {
                // It may go on one day. Until then memory is all there is, as with a disk that fails.
                let hangs = io::Error::new(io::ErrorKind::TimedOut, format!("not done within {HANGS:?}"));
                spool.inner.disk.failed("writing", &hangs);
                spool.lock().disk_hangs();
                spool.inner.room.send_replace(());
                tokio::select! {
                    done = work_on_disk => done,
                    () = token.cancelled() => return,
                }
            }
        };
        // A panic in there is a fault; its spills stay in memory, its record is lost until the next one.
        let Ok(done) = done else { continue };
        if settle(&spool, done) {
            continue;
        }
        // The disk fails. It is tried again after a while, or at once when something can be unlinked: that may be
        // what it needs.
        let retry = tokio::time::sleep(RETRY);
        tokio::pin!(retry);
        loop {
            tokio::select! {
                () = &mut retry => break,
                _ = work.changed() => {
                    let kept = spool.lock();
                    if kept.has_unlinks() || kept.has_record() { break }
                }
                () = token.cancelled() => return,
            }
        }
    }
}

/// Takes a job's result. False: the disk fails, wait before the next.
fn settle(spool: &Spool, done: Done) -> bool {
    let Done { spilled, spill_error, record } = done;
    let disk = &spool.inner.disk;
    let mut go_on = true;
    let mut saved = None;
    {
        let mut kept = spool.lock();
        for (stream, spill) in &spilled {
            kept.spilled(*stream, spill);
        }
        if let Some((revision, record, sync, result)) = record {
            saved = Some((revision, result.is_ok()));
            match result {
                Ok(()) if spill_error.is_none() => kept.record_written(),
                Ok(()) => {}
                Err(error) => {
                    disk.failed("writing a record", &error);
                    kept.record_failed(record, sync);
                    go_on = false;
                }
            }
        }
        if let Some(error) = &spill_error {
            disk.failed("writing output", error);
            go_on = kept.disk_failed();
        }
        if go_on && spill_error.is_none() && (!spilled.is_empty() || saved.is_some()) {
            disk.works();
        }
    }
    if let Some(saved) = saved {
        spool.inner.saved.send_replace(saved);
    }
    // Memory has become free, or the policy must now make room without the disk.
    spool.inner.room.send_replace(());
    go_on
}
