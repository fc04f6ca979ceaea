//! The supervisor's binary that is mounted into every container. It must run in an image without a libc, so its
//! file is looked at before it is used: an ELF program of this machine's kind that asks for no loader.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::DriverError;

/// The file's name beside the gateway's own program.
const NAME: &str = "holdfast-supervisor";

/// How it is built, for whoever has none.
const HOW: &str = "build one that needs no libraries by: RUSTFLAGS='-C target-feature=+crt-static' \
    cargo build --release -p holdfast-supervisor --target \"$(rustc -vV | sed -n 's/^host: //p')\" \
    and name it by --supervisor, or put it beside the gateway's program";

/// The ELF header's fields that are looked at, for 64 bits.
const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const PROGRAM_INTERPRETER: u32 = 3;
/// A program has about a dozen segments; more than this is no program.
const MOST_SEGMENTS: u16 = 128;

/// The binary to mount: the configured one, else the one beside the gateway's own program.
pub(super) fn find(configured: Option<&Path>) -> Result<PathBuf, DriverError> {
    let path = match configured {
        Some(path) => path.to_owned(),
        None => {
            let beside = std::env::current_exe().map(|own| own.with_file_name(NAME));
            let beside =
                beside.map_err(|error| DriverError::io("finding the gateway's own program", error))?;
            if !beside.exists() {
                let message =
                    format!("no supervisor for containers: {} does not exist; {HOW}", beside.display());
                return Err(DriverError::invalid("supervisor", message));
            }
            beside
        }
    };
    let shown = path.display().to_string();
    let wrong = |message: String| DriverError::invalid("supervisor", format!("{shown}: {message}"));
    let path = path.canonicalize().map_err(|error| wrong(format!("{error}; {HOW}")))?;
    check(&path).map_err(|message| wrong(format!("{message}; {HOW}")))?;
    Ok(path)
}

/// Whether it is a program of this machine that needs no loader.
fn check(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let facts = file.metadata().map_err(|error| error.to_string())?;
    if !facts.is_file() || facts.mode() & 0o111 == 0 {
        return Err("it is not an executable file".to_owned());
    }
    let own = File::open("/proc/self/exe").and_then(|mut own| header(&mut own));
    let header = header(&mut file).map_err(|error| format!("it is no program: {error}"))?;
    if own.is_ok_and(|own| own.machine != header.machine) {
        return Err("it is a program for another kind of processor".to_owned());
    }
    match wants_a_loader(&mut file, &header) {
        Ok(false) => Ok(()),
        Ok(true) => Err("it needs a loader and libraries, which an image need not have".to_owned()),
        Err(error) => Err(format!("it is no program: {error}")),
    }
}

struct Header {
    machine: u16,
    segments_at: u64,
    segment_size: u16,
    segments: u16,
}

fn header(file: &mut File) -> io::Result<Header> {
    let mut bytes = [0; 64];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut bytes)?;
    let strange = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if bytes[..4] != MAGIC {
        return strange("not an ELF file");
    }
    if bytes[4] != CLASS_64 {
        return strange("not for 64 bits");
    }
    let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[32..40]);
    let header = Header {
        machine: short(18),
        segments_at: u64::from_ne_bytes(long),
        segment_size: short(54),
        segments: short(56),
    };
    if header.segments == 0 || header.segments > MOST_SEGMENTS || header.segment_size < 4 {
        return strange("no segments");
    }
    Ok(header)
}

fn wants_a_loader(file: &mut File, header: &Header) -> io::Result<bool> {
    for i in 0..u64::from(header.segments) {
        let at = header.segments_at.saturating_add(i * u64::from(header.segment_size));
        file.seek(SeekFrom::Start(at))?;
        let mut kind = [0; 4];
        file.read_exact(&mut kind)?;
        if u32::from_ne_bytes(kind) == PROGRAM_INTERPRETER {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn refusal(path: &Path) -> String {
        find(Some(path)).unwrap_err().to_string()
    }

    #[test]
    fn a_program_with_a_loader_is_refused_with_the_way_to_build_another() {
        // A test's own program is linked as usual; where it is not, there is nothing to refuse.
        let own = std::env::current_exe().unwrap();
        let mut file = File::open(&own).unwrap();
        let facts = header(&mut file).unwrap();
        if wants_a_loader(&mut file, &facts).unwrap() {
            let said = refusal(&own);
            assert!(said.contains("needs a loader") && said.contains("crt-static"), "{said}");
        } else {
            assert_eq!(find(Some(&own)).unwrap(), own.canonicalize().unwrap());
        }
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor");
        assert!(refusal(&path).contains("No such file"));
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(refusal(&path).contains("not an executable file"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(refusal(&path).contains("no program"));
        std::fs::write(&path, [MAGIC.as_slice(), &[CLASS_64; 60]].concat()).unwrap();
        assert!(find(Some(&path)).is_err());
    }
}
