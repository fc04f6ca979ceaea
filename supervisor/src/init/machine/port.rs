//! The serial line to the machine's holder: it says `stop`, this side says how far it is.
//!
//! It can be opened once in a machine's life: libkrun ends the machine at the second time. So it is opened by whoever
//! sets the machine up, and the supervisor has it as its standard input.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
};

use tokio::sync::oneshot;

/// The port's name, as the launcher gave it.
const NAME: &str = "holdfast";
/// Where the kernel lists ports.
const PORTS: &str = "/sys/class/virtio-ports";
/// Far above the one word that is understood.
const MAX_LINE: u64 = 256;

/// The port cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// None has the name.
    #[error("there is no port {NAME:?} in {PORTS}: the launcher and this supervisor do not fit together")]
    None,
    /// The system refused.
    #[error("the port {}: {source}", path.display())]
    System {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The port, opened.
#[derive(Debug)]
pub struct Port(File);

impl Port {
    /// Finds the port by its name.
    pub fn find() -> Result<Self, PortError> {
        for entry in fs::read_dir(PORTS).map_err(|_| PortError::None)?.flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == NAME {
                return Self::open(&Path::new("/dev").join(entry.file_name()));
            }
        }
        Err(PortError::None)
    }

    fn open(path: &Path) -> Result<Self, PortError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(Self(file.map_err(|source| PortError::System { path: path.to_owned(), source })?))
    }

    /// The one that this process was started with.
    pub fn inherited() -> Result<Self, PortError> {
        let port = io::stdin().as_fd().try_clone_to_owned();
        port.map(|fd| Self(fd.into()))
            .map_err(|source| PortError::System { path: "of standard input".into(), source })
    }

    /// For a process to inherit.
    pub fn to_stdin(&self) -> io::Result<Stdio> {
        self.0.try_clone().map(Stdio::from)
    }

    /// Says a line. Nobody may be listening: then there is nobody to be told of it.
    pub fn say_now(&mut self, line: &str) {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = self.0.write_all(format!("{line}\n").as_bytes());
    }

    /// Ends when the holder says `stop`. The wait is a thread's: the device blocks.
    pub fn stop_asked(&self) -> io::Result<oneshot::Receiver<()>> {
        let (sender, receiver) = oneshot::channel();
        let mut lines = BufReader::new(self.0.try_clone()?);
        thread::Builder::new().name("port".to_owned()).spawn(move || {
            loop {
                let mut line = String::new();
                match lines.by_ref().take(MAX_LINE).read_line(&mut line) {
                    Ok(_) if line.trim() == "stop" => break,
                    // The holder is gone, and this machine with it in a moment; until then nobody asks anything.
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
            // A supervisor that is stopping already does not listen.
            let _ = sender.send(());
        })?;
        Ok(receiver)
    }
}
