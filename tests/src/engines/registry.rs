//! A registry for an engine: Debian's docker-registry behind a door that can be made slow, or stuck.
//!
//! ```text
//!   engine ── HTTP ──▶ door (this machine's address as the engine sees it) ── unix socket ──▶ docker-registry
//!                        └ what comes back is paced
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    process::{Child, Command},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// Its start takes a tenth of a second; a loaded machine gets more.
const BOUND: Duration = Duration::from_secs(30);
/// What the door reads at once.
const PIECE: usize = 32 << 10;

/// How fast the registry answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As it can.
    Free,
    /// So many bytes a second, on each connection.
    Bytes(u32),
    /// Nothing comes any more, and connections stay open.
    Stuck,
}

/// A registry that runs until it is dropped.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    pace: watch::Sender<Pace>,
    _door: JoinSet<()>,
    _service: Child,
}

/// Why no registry can be run here.
#[must_use]
pub fn registry_obstacle() -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join("docker-registry").exists());
    (!found).then(|| "not installed: docker-registry (tests/engines/install-deps)".to_owned())
}

impl Registry {
    /// Starts one that keeps its images in `dir` and answers at this address of the machine.
    pub async fn start(dir: &Path, address: IpAddr) -> anyhow::Result<Self> {
        let (socket, config) = (dir.join("registry.sock"), dir.join("registry.yml"));
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  net: unix\n  addr: {}\n",
            dir.join("registry").display(),
            socket.display()
        );
        std::fs::write(&config, text)?;
        let mut service = Command::new("docker-registry");
        service.arg("serve").arg(&config).stdin(Stdio::null()).kill_on_drop(true);
        let log = std::fs::File::create(dir.join("registry.log"))?;
        service.stdout(log.try_clone()?).stderr(log);
        let service = service.spawn().context("starting docker-registry")?;
        let answers = async {
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            while UnixStream::connect(&socket).await.is_err() {
                tick.tick().await;
            }
        };
        timeout(BOUND, answers).await.context("docker-registry does not answer")?;
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let pace = watch::Sender::new(Pace::Free);
        let mut door = JoinSet::new();
        door.spawn(admit(listener, socket, pace.subscribe()));
        Ok(Self { address, pace, _door: door, _service: service })
    }

    /// `address/name`.
    #[must_use]
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// How fast it answers from now on.
    pub fn pace(&self, pace: Pace) {
        self.pace.send_replace(pace);
    }
}

/// Lets engines in until it is dropped, and with it everybody who is inside.
async fn admit(listener: TcpListener, socket: std::path::PathBuf, pace: watch::Receiver<Pace>) {
    let mut inside = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((engine, _)) = accepted else { return };
                let (socket, pace) = (socket.clone(), pace.clone());
                inside.spawn(async move {
                    // An end of either side is an end.
                    if let Ok(registry) = UnixStream::connect(socket).await {
                        let _ = join(engine, registry, pace).await;
                    }
                });
            }
            Some(_) = inside.join_next() => {}
        }
    }
}

async fn join(
    mut engine: TcpStream,
    mut registry: UnixStream,
    mut pace: watch::Receiver<Pace>,
) -> std::io::Result<()> {
    let ((mut from_engine, mut to_engine), (mut from_registry, mut to_registry)) =
        (engine.split(), registry.split());
    let there = async {
        tokio::io::copy(&mut from_engine, &mut to_registry).await?;
        to_registry.shutdown().await
    };
    let back = async {
        let mut piece = vec![0; PIECE];
        loop {
            let n = from_registry.read(&mut piece).await?;
            if n == 0 {
                return to_engine.shutdown().await;
            }
            let stuck = pace.wait_for(|pace| *pace != Pace::Stuck).await;
            let now = stuck.map_or(Pace::Free, |pace| *pace);
            if let Pace::Bytes(rate) = now {
                tokio::time::sleep(Duration::from_secs_f64(n as f64 / f64::from(rate))).await;
            }
            to_engine.write_all(&piece[..n]).await?;
        }
    };
    tokio::try_join!(there, back).map(drop)
}
