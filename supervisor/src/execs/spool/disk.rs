//! The state directory's part of the spool: names of files, what is written and read there, how full it is, and
//! whether the disk works. Everything here blocks; callers are on the runtime's blocking threads.
//!
//! ```text
//!   <state_dir>/execs/<exec_id>/record          see record.rs; replaced as a whole
//!                              /out-<offset>    segments of stdout
//!                              /err-<offset>    segments of stderr
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use holdfast_wire::ids::ExecId;
use tokio::{sync::watch, time::Instant};

use super::{
    Ended, RETRY, Stream,
    log::{Segment, Spill},
    record::{self, MAX_RECORD, Record},
};

/// The record's file.
const RECORD: &str = "record";

/// What the disk said, and when.
#[derive(Debug)]
struct Trouble {
    text: String,
    failed_at: Instant,
    works: bool,
}

/// All execs' directories, and what they share.
#[derive(Debug)]
pub(in crate::execs) struct Disk {
    root: PathBuf,
    limit: u64,
    used: AtomicU64,
    /// Bumped when bytes are freed: whoever waits for the total looks again.
    freed: watch::Sender<()>,
    /// What the disk said last, while it says it.
    trouble: Mutex<Option<Trouble>>,
    /// Whose output goes first when the total is used up.
    pub(super) ended: Ended,
}

impl Disk {
    /// Keeps execs below `state_dir`, at most `limit` bytes of all.
    pub(in crate::execs) fn new(state_dir: &Path, limit: u64) -> Self {
        Self {
            root: state_dir.join("execs"),
            limit,
            used: AtomicU64::new(0),
            freed: watch::Sender::new(()),
            trouble: Mutex::default(),
            ended: Ended::default(),
        }
    }

    /// Bytes kept of all execs, in memory or on disk.
    pub(in crate::execs) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The bound on them.
    pub(in crate::execs) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used())
    }

    pub(super) fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            self.freed.send_replace(());
        }
    }

    pub(super) fn freed(&self) -> watch::Receiver<()> {
        self.freed.subscribe()
    }

    /// What is wrong with the disk, while something is: until it has worked, and not failed for [`RETRY`].
    pub(in crate::execs) fn error(&self) -> Option<String> {
        let mut slot = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref()?.is_over() {
            *slot = None;
            tracing::info!("the spool's disk works again");
        }
        slot.as_ref().map(|trouble| trouble.text.clone())
    }

    /// Takes note of a failure; logged once until the disk works again. A full disk fails and works by turns.
    pub(super) fn failed(&self, what: &str, error: &io::Error) {
        let text = format!("{what} below {}: {error}", self.root.display());
        let mut slot = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_none_or(Trouble::is_over) {
            tracing::error!(error = %text, "the spool's disk fails: output is kept in memory, within its bound");
        }
        *slot = Some(Trouble { text, failed_at: Instant::now(), works: false });
    }

    /// Something was written.
    pub(super) fn works(&self) {
        let mut slot = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trouble) = &mut *slot {
            trouble.works = true;
        }
    }

    fn dir(&self, exec: ExecId) -> PathBuf {
        self.root.join(exec.to_string())
    }

    fn segment_path(&self, exec: ExecId, stream: Stream, segment: Segment) -> PathBuf {
        self.dir(exec).join(format!("{}-{:020}", stream.prefix(), segment.from))
    }

    /// Makes the directory of all execs, closed to others.
    pub(in crate::execs) fn prepare(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root)
    }

    fn prepare_exec(&self, exec: ExecId) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.dir(exec))
    }

    /// Writes memory to its segment's file. A failed attempt leaves the file as it was.
    pub(super) fn write_spill(&self, exec: ExecId, stream: Stream, spill: &Spill) -> io::Result<()> {
        let path = self.segment_path(exec, stream, spill.segment);
        let mut open = OpenOptions::new();
        open.create(true).write(true).truncate(false).mode(0o600);
        let mut file = match open.open(&path) {
            // The exec's first spill, before its first record.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.prepare_exec(exec)?;
                open.open(&path)?
            }
            opened => opened?,
        };
        let begin = spill.at - spill.segment.from;
        let written = append(&mut file, begin, &spill.chunks);
        if written.is_err() {
            // What stays of it is counted nowhere, and memory that goes meanwhile may make the next one begin elsewhere.
            let _ = if begin == 0 { fs::remove_file(&path) } else { file.set_len(begin) };
        }
        written
    }

    /// Reads from a segment. ENOENT: it has been dropped meanwhile.
    pub(super) fn read_segment(
        &self,
        exec: ExecId,
        stream: Stream,
        segment: Segment,
        skip: u64,
        length: usize,
    ) -> io::Result<Bytes> {
        let file = File::open(self.segment_path(exec, stream, segment))?;
        let mut data = vec![0; length];
        file.read_exact_at(&mut data, skip)?;
        Ok(data.into())
    }

    /// Removes a segment's file. One that is not there is as good.
    pub(super) fn unlink(&self, exec: ExecId, stream: Stream, segment: Segment) {
        let path = self.segment_path(exec, stream, segment);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a segment could not be removed");
        }
    }

    /// Replaces an exec's record. With `sync` it is on the disk when this returns.
    pub(super) fn write_record(&self, record: &Record, sync: bool) -> io::Result<()> {
        self.prepare_exec(record.exec)?;
        let dir = self.dir(record.exec);
        let new = dir.join("record.new");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&record::encode_record(record))?;
        if sync {
            file.sync_all()?;
        }
        fs::rename(&new, dir.join(RECORD))?;
        if sync {
            File::open(&dir)?.sync_all()?;
        }
        Ok(())
    }

    /// Removes all of an exec.
    pub(in crate::execs) fn remove(&self, exec: ExecId) {
        let dir = self.dir(exec);
        if let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %dir.display(), %error, "an exec's directory could not be removed");
        }
    }

    /// The execs that have a directory. Anything else in there is left alone.
    pub(in crate::execs) fn list(&self) -> io::Result<Vec<ExecId>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    /// Reads an exec's record.
    pub(in crate::execs) fn read_record(&self, exec: ExecId) -> io::Result<Record> {
        let mut bytes = Vec::new();
        let file = File::open(self.dir(exec).join(RECORD))?;
        file.take(MAX_RECORD as u64 + 1).read_to_end(&mut bytes)?;
        let record = record::decode_record(&bytes).map_err(io::Error::other)?;
        if record.exec != exec {
            return Err(io::Error::other(format!("the record of exec {}", record.exec)));
        }
        Ok(record)
    }

    /// The segments of one stream that are there, in order, without those that overlap (a fault: none are made).
    pub(super) fn segments(&self, exec: ExecId, stream: Stream) -> Vec<Segment> {
        let Ok(entries) = fs::read_dir(self.dir(exec)) else { return Vec::new() };
        let mut segments: Vec<Segment> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let from = entry
                    .file_name()
                    .to_str()?
                    .strip_prefix(stream.prefix())?
                    .strip_prefix('-')?
                    .parse()
                    .ok()?;
                let length = entry.metadata().ok()?.len();
                (length > 0).then_some(Segment { from, to: u64::checked_add(from, length)? })
            })
            .collect();
        segments.sort_by_key(|segment| segment.from);
        segments.dedup_by(|next, previous| next.from < previous.to);
        segments
    }
}

impl Trouble {
    fn is_over(&self) -> bool {
        self.works && self.failed_at.elapsed() >= RETRY
    }
}
/// Writes the chunks from an offset on. A command that writes lines fills memory with thousands of them: one call for many.
fn append(file: &mut File, from: u64, chunks: &[Bytes]) -> io::Result<()> {
    file.seek(io::SeekFrom::Start(from))?;
    let mut pieces: Vec<_> = chunks.iter().map(|chunk| io::IoSlice::new(chunk)).collect();
    let mut rest = pieces.as_mut_slice();
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => io::IoSlice::advance_slices(&mut rest, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
