//! A tar archive at one end of a transfer in place of a tree: what `holdfast cp -` reads and writes.
//!
//! Archives end here, at the command: on the wire go entries, whose bounds are checked one by one. An archive's own
//! tricks (absolute names, `..`, links) are refused by the same rules as everybody's entries.

use std::io::{self, Read, Write};

use bytes::Bytes;
use holdfast_wire::{
    api::{FileEntry, FileFailureKind, FileKind, FileProblem, FileProblemKind, TransferEnd},
    files::{Decoder, Frame},
    limits::MAX_PATH,
};
use prost::Message as _;
use tar::{Archive, EntryType, Header};

use crate::{
    emit::{Emitter, Stopped, Summary},
    failure::{Failure, path_of},
    names,
    tally::Tally,
    window::Window,
};

/// The largest archive that is taken for a moment to be a name and not content, in bytes: a GNU long name or a PAX
/// header of more is refused before it is read.
const MAX_EXTENSION: u64 = 1 << 20;

/// Reads an archive into `window`; the last frame says how it went.
///
/// # Errors
/// It is no archive, or is cut short, or nobody wants the stream.
pub fn send(from: impl Read, window: &Window, progress: &dyn Fn(u64, u64)) -> Result<Summary, Stopped> {
    let mut out = Emitter::new(window);
    match entries(from, &mut out, progress) {
        Ok(()) => Ok(out.end()?),
        Err(Stopped::Failed(failure)) => {
            out.fail(failure.to_wire())?;
            Err(Stopped::Failed(failure))
        }
        Err(closed) => Err(closed),
    }
}

fn broken(error: &io::Error) -> Failure {
    Failure::new(FileFailureKind::Invalid, "-", format!("reading the archive: {error}"))
}

fn entries(from: impl Read, out: &mut Emitter<'_>, progress: &dyn Fn(u64, u64)) -> Result<(), Stopped> {
    let mut archive = Archive::new(Guarded::new(io::BufReader::with_capacity(64 << 10, from)));
    for entry in archive.entries().map_err(|error| broken(&error))? {
        let mut entry = entry.map_err(|error| broken(&error))?;
        let kind = entry.header().entry_type();
        let path = Bytes::from(tidy(&entry.path_bytes()));
        let said = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Some(FileKind::File),
            EntryType::Directory => Some(FileKind::Directory),
            EntryType::Symlink => Some(FileKind::Symlink),
            EntryType::Link => Some(FileKind::Hardlink),
            // Headers for all that follows say nothing that is carried.
            EntryType::XGlobalHeader => continue,
            _ => None,
        };
        let Some(said) = said else {
            let message = format!("skipped: an entry of type {:?}", kind.as_byte() as char);
            out.problem(FileProblem { path, kind: FileProblemKind::Special.into(), errno: 0, message })?;
            continue;
        };
        let target = match said {
            FileKind::Symlink => entry.link_name_bytes().map(|name| name.to_vec()).unwrap_or_default(),
            FileKind::Hardlink => entry.link_name_bytes().map(|name| tidy(&name)).unwrap_or_default(),
            _ => Vec::new(),
        };
        if target.len() >= MAX_PATH {
            return Err(
                Failure::new(FileFailureKind::Invalid, path_of(&path), "a link that is too long").into()
            );
        }
        // Said here, where the archive is, and once more where it is written.
        names::components(&path)?;
        let header = entry.header();
        let number = |field: io::Result<u64>| u32::try_from(field.unwrap_or(0)).unwrap_or(0);
        let size = if said == FileKind::File { entry.size() } else { 0 };
        out.entry(&FileEntry {
            path,
            kind: said.into(),
            mode: header.mode().unwrap_or(0o644) & 0o7777,
            mtime_seconds: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0),
            mtime_nanos: 0,
            size,
            target: target.into(),
            uid: number(header.uid()),
            gid: number(header.gid()),
        })?;
        if said == FileKind::File {
            let mut left = size;
            while left > 0 {
                match out.content(&mut entry, left)? {
                    Ok(0) => return Err(broken(&io::ErrorKind::UnexpectedEof.into()).into()),
                    Ok(n) => left = left.saturating_sub(n as u64),
                    Err(error) => return Err(broken(&error).into()),
                }
                let (bytes, entries) = out.progress();
                progress(bytes, entries);
            }
            out.close()?;
        }
    }
    Ok(())
}

/// `./a//b/` is `a/b`; what leads out stays as it is, to be refused.
fn tidy(path: &[u8]) -> Vec<u8> {
    let absolute = path.first() == Some(&b'/');
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    let tidy = parts.join(&b'/');
    if absolute { [b"/", tidy.as_slice()].concat() } else { tidy }
}

/// The archive's bytes, with an eye on its extension headers: the reader above takes those into memory whole.
struct Guarded<R> {
    inner: R,
    block: Vec<u8>,
    at: usize,
    /// Content of the current entry that is still to come, padding included.
    content: u64,
}

impl<R: Read> Guarded<R> {
    fn new(inner: R) -> Self {
        Self { inner, block: Vec::new(), at: 0, content: 0 }
    }

    /// The next header block, looked at before anybody else sees it.
    fn header(&mut self) -> io::Result<()> {
        self.block.resize(512, 0);
        let mut filled = 0;
        while filled < 512 {
            match self.inner.read(&mut self.block[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.block.truncate(filled);
        self.at = 0;
        if filled < 512 {
            return Ok(());
        }
        let header = Header::from_byte_slice(&self.block);
        // Not a header at all, or the end: whoever parses it says so.
        let size = header.entry_size().unwrap_or(0);
        let kind = header.entry_type();
        let extension = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if extension && size > MAX_EXTENSION {
            return Err(io::Error::other(format!("an extension header of {size} bytes")));
        }
        // A size that stands in an extension header instead is not seen here: that content is then looked at block by
        // block, and would have to look like an extension of more than a mebibyte to be refused.
        let length = if header.entry_type().is_dir() { 0 } else { size };
        self.content = length.div_ceil(512).saturating_mul(512);
        Ok(())
    }
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() && self.content > 0 {
            let most = usize::try_from(self.content).unwrap_or(usize::MAX).min(out.len());
            let n = self.inner.read(&mut out[..most])?;
            self.content -= n as u64;
            return Ok(n);
        }
        if self.at == self.block.len() {
            self.header()?;
        }
        let n = out.len().min(self.block.len() - self.at);
        out[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Makes an archive of a transfer's stream.
pub struct Packer<W: Write> {
    out: W,
    decoder: Decoder,
    tally: Tally,
    /// What the root is called in the archive.
    name: Vec<u8>,
    /// Of the current file: what is to come.
    left: u64,
    size: u64,
    open: bool,
    problems: Vec<FileProblem>,
    end: Option<TransferEnd>,
}

impl<W: Write> std::fmt::Debug for Packer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("tally", &self.tally).finish_non_exhaustive()
    }
}

impl<W: Write> Packer<W> {
    /// Writes to `out`; the root is called `name`, and its content stands below it. Empty: the content alone.
    #[must_use]
    pub fn new(out: W, name: Vec<u8>) -> Self {
        Self {
            out,
            decoder: Decoder::new(),
            tally: Tally::default(),
            name,
            left: 0,
            size: 0,
            open: false,
            problems: Vec::new(),
            end: None,
        }
    }

    /// Counts and digest, once all has come and is verified.
    #[must_use]
    pub fn end(&self) -> Option<&TransferEnd> {
        self.end.as_ref()
    }

    /// What the sender left out.
    #[must_use]
    pub fn problems(&self) -> &[FileProblem] {
        &self.problems
    }

    /// Content and entries so far.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.tally.bytes, self.tally.entries)
    }

    /// Takes the next chunk. True: that was all, and it is verified.
    ///
    /// # Errors
    /// The archive cannot be written, or the stream is not right.
    pub fn take(&mut self, chunk: Bytes) -> Result<bool, Failure> {
        self.decoder.push(chunk);
        while let Some(frame) =
            self.decoder.next_frame().map_err(|error| Failure::protocol(error.to_string()))?
        {
            match frame {
                Frame::Entry(payload) => {
                    let entry =
                        FileEntry::decode(payload.clone()).map_err(|e| Failure::protocol(e.to_string()))?;
                    self.tally.on_entry(&payload, entry.kind());
                    self.on_entry(&entry)?;
                }
                Frame::Data(data) => {
                    self.tally.on_data(&data);
                    self.content(&data)?;
                }
                Frame::Hole(length) => {
                    self.tally.on_hole(length);
                    self.zeros(length)?;
                }
                Frame::Close => {
                    self.tally.on_close();
                    // It became shorter, and the header is out: zeros keep the archive whole, and a problem tells.
                    self.zeros(self.left)?;
                    self.pad()?;
                }
                Frame::Drop => {
                    self.tally.on_drop();
                    self.zeros(self.left)?;
                    self.pad()?;
                }
                Frame::Problem(problem) => {
                    if self.problems.len() < holdfast_wire::limits::MAX_TRANSFER_PROBLEMS {
                        self.problems.push(problem);
                    }
                }
                Frame::End(end) => {
                    if self.tally.end(end.problems) != end {
                        return Err(Failure::new(
                            FileFailureKind::Mismatch,
                            "",
                            "what came is not what was sent",
                        ));
                    }
                    self.write(&[0; 1024])?;
                    self.out.flush().map_err(|error| Failure::io("writing", "-".as_ref(), &error))?;
                    self.end = Some(end);
                    return Ok(true);
                }
                Frame::Failed(failure) => return Err(Failure::from_wire(failure)),
                Frame::Ack(_) | Frame::Done(_) => {
                    return Err(Failure::protocol("a frame that only a receiver sends"));
                }
            }
        }
        Ok(false)
    }

    fn on_entry(&mut self, entry: &FileEntry) -> Result<(), Failure> {
        if self.open {
            return Err(Failure::protocol("an entry inside a file"));
        }
        names::components(&entry.path)?;
        let mut path = match (self.name.is_empty(), entry.path.is_empty()) {
            (true, true) => b".".to_vec(),
            (true, false) => entry.path.to_vec(),
            (false, true) => self.name.clone(),
            (false, false) => [&self.name, &b"/"[..], &entry.path].concat(),
        };
        let mut header = Header::new_gnu();
        let target = match entry.kind() {
            FileKind::File => {
                header.set_entry_type(EntryType::Regular);
                None
            }
            FileKind::Directory => {
                header.set_entry_type(EntryType::Directory);
                path.push(b'/');
                None
            }
            FileKind::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                Some(entry.target.to_vec())
            }
            FileKind::Hardlink => {
                header.set_entry_type(EntryType::Link);
                Some(match self.name.is_empty() {
                    true => entry.target.to_vec(),
                    false => [&self.name, &b"/"[..], &entry.target].concat(),
                })
            }
            _ => return Err(Failure::protocol("an entry of a kind that is not carried")),
        };
        let size = if entry.kind() == FileKind::File { entry.size } else { 0 };
        header.set_mode(entry.mode);
        header.set_mtime(u64::try_from(entry.mtime_seconds).unwrap_or(0));
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_size(size);
        if let Some(target) = &target {
            self.long(b'K', target)?;
            put(&mut header.as_gnu_mut().map(|gnu| &mut gnu.linkname), target);
        }
        self.long(b'L', &path)?;
        put(&mut header.as_gnu_mut().map(|gnu| &mut gnu.name), &path);
        header.set_cksum();
        self.write(header.as_bytes())?;
        (self.left, self.size) = (size, size);
        self.open = entry.kind() == FileKind::File;
        Ok(())
    }

    /// A name that does not fit its field goes in front, as GNU tar does.
    fn long(&mut self, kind: u8, name: &[u8]) -> Result<(), Failure> {
        if name.len() < 100 {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        put(&mut header.as_gnu_mut().map(|gnu| &mut gnu.name), b"././@LongLink");
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(name.len() as u64 + 1);
        header.set_cksum();
        self.write(header.as_bytes())?;
        self.write(name)?;
        self.write(&[0])?;
        self.size = name.len() as u64 + 1;
        self.padding()
    }

    /// Content, at most as much as the header said: what a growing file has more is not in the archive.
    fn content(&mut self, data: &[u8]) -> Result<(), Failure> {
        if !self.open {
            return Err(Failure::protocol("content without a file"));
        }
        let fits = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
        self.left -= fits as u64;
        self.write(&data[..fits])
    }

    fn zeros(&mut self, length: u64) -> Result<(), Failure> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut left = length.min(self.left);
        self.left -= left;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write(&ZEROS[..n])?;
            left -= n as u64;
        }
        Ok(())
    }

    fn pad(&mut self) -> Result<(), Failure> {
        if !std::mem::take(&mut self.open) {
            return Err(Failure::protocol("nothing to close"));
        }
        self.padding()
    }

    fn padding(&mut self) -> Result<(), Failure> {
        let over = usize::try_from(self.size % 512).unwrap_or(0);
        if over == 0 { Ok(()) } else { self.write(&[0; 512][over..]) }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| Failure::io("writing", "-".as_ref(), &error))
    }
}

/// As much of `text` as fits the field.
fn put(field: &mut Option<&mut [u8; 100]>, text: &[u8]) {
    if let Some(field) = field {
        let n = text.len().min(field.len());
        field[..n].copy_from_slice(&text[..n]);
    }
}
