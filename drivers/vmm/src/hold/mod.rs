//! The holder: one machine from its launch to its end, and the words for why it ended.
//!
//! ```text
//!   spec ─▶ network ─▶ kernel ─▶ init ──▶ … runs … ──▶ end
//!                         │        │                    ▲
//!                         │ boot deadline               │ gvproxy gone, filter broken, machine gone,
//!                         └────────┴────────────────────┘ or SIGTERM: the guest is asked, and says `stopped`
//! ```
//!
//! That a machine process ended with code 0 means nothing: a guest kernel's panic gives the same. Only the supervisor's
//! own word, through the control port, makes an end an orderly one.
//!
//! One thread: it moves frames and lines and waits. The parent-death signal of what it starts is bound to it.

mod network;
mod pump;
mod relay;
mod vm;

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use holdfast_drivers::{
    Boot, BootStage,
    vm::{
        control::{self, Report},
        filter::Policy,
        launch::{Launch, LaunchError, MAX_BYTES},
        log::BoundedLog,
        note::{End, Note},
    },
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until, timeout},
};

use rustix::thread::CapabilitySet;

use self::{
    network::{Network, NetworkError},
    relay::RelayEnd,
    vm::{Machine, News},
};
use crate::confine::{Needs, confine};

/// How long a guest that said `stopped` may take to be gone. It has nothing left to do but to reset itself.
const GONE_PATIENCE: Duration = Duration::from_secs(10);
/// How much of the console is told with a failed boot.
const CONSOLE_TAIL: u64 = 2048;

/// Holds the machine that stdin tells of. Ends when it has ended.
pub(crate) fn run() -> ExitCode {
    let launch = match take_launch() {
        Ok(launch) => launch,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "starting the runtime");
            return ExitCode::FAILURE;
        }
    };
    let dir = launch.dir.to_path();
    let mut holder = Holder { dir, boot: Boot::default(), stop_asked: false };
    let outcome = runtime.block_on(holder.hold(launch));
    let code = if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let end = outcome.unwrap_or_else(|end| end);
    tracing::info!(reason = %end.reason, "{}", end.message);
    holder.tell(Some(end));
    code
}

fn take_launch() -> Result<Launch, LaunchError> {
    let mut bytes = Vec::new();
    let read = io::stdin().take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| LaunchError::Decode(error.to_string()))?;
    Launch::decode(&bytes)
}

/// What the holder knows.
struct Holder {
    dir: PathBuf,
    boot: Boot,
    stop_asked: bool,
}

/// An end that was asked for, or another.
type Outcome = Result<End, End>;

impl Holder {
    async fn hold(&mut self, launch: Launch) -> Outcome {
        self.reach(BootStage::Spec);
        let mut terminate =
            signal(SignalKind::terminate()).map_err(|error| failed("HolderFailed", &error))?;
        let console = BoundedLog::open(&self.dir, "console.log", launch.log_bytes)
            .map_err(|error| failed("HolderFailed", &error))?;

        let network = tokio::select! {
            network = Network::start(&launch) => network,
            _ = terminate.recv() => return Ok(stopped("it was stopped before it was started")),
        };
        let network = network.map_err(|error| network_failed(&error))?;
        self.reach(BootStage::Network);

        let machine =
            Machine::start(&launch, console).map_err(|error| failed("MachineNotStarted", &error))?;
        self.reach(BootStage::Kernel);
        // Both have been started, and what they needed of its rights is theirs.
        let right_to_end =
            Needs { view: None, user: None, capabilities: CapabilitySet::KILL, files: None, calls: false };
        confine(right_to_end).tell();
        let policy = Policy { gateway: launch.gateway.into(), egress: launch.egress };
        self.keep(network, machine, policy, launch.boot_seconds, &mut terminate).await
    }

    /// Keeps the machine until it ends. What it leaves is killed: nothing outlives its holder's last word.
    async fn keep(
        &mut self,
        mut network: Network,
        mut machine: Machine,
        policy: Policy,
        boot_seconds: u32,
        terminate: &mut Signal,
    ) -> Outcome {
        let boot = Instant::now() + Duration::from_secs(u64::from(boot_seconds));
        let relay = relay::run(policy, machine.frames.take(), network.frames.take());
        tokio::pin!(relay);
        let outcome = loop {
            tokio::select! {
                biased;
                status = network.ended() => break Err(End {
                    reason: "NetworkLost".to_owned(),
                    message: format!("gvproxy ended ({}), and with it the machine's network; see gvproxy.log", say(status)),
                }),
                end = &mut relay => break Err(match end {
                    // Whoever of the two closed first: their own ends say more, and come at once.
                    RelayEnd::Machine => self.judge(machine.ended().await, &machine),
                    RelayEnd::Network => End {
                        reason: "NetworkLost".to_owned(),
                        message: "gvproxy closed the machine's network; see gvproxy.log".to_owned(),
                    },
                    RelayEnd::Broken(error) => End { reason: "NetworkLost".to_owned(), message: error.to_string() },
                }),
                news = machine.next() => match news {
                    News::Ended(status) => break Err(self.judge(status, &machine)),
                    News::Says(Report::Init) => self.reach(BootStage::Init),
                    News::Says(Report::Failed(message)) => break Err(End {
                        reason: "GuestInitFailed".to_owned(),
                        message: format!("the supervisor could not set up the machine: {message}"),
                    }),
                    News::Says(Report::Stopped) => {
                        let gone = timeout(GONE_PATIENCE, machine.ended()).await.is_ok();
                        tracing::info!(gone, "the guest has stopped in order");
                        break Ok(stopped("the supervisor stopped the machine"));
                    }
                },
                _ = terminate.recv() => {
                    self.stop_asked = true;
                    if !self.boot.is_past(BootStage::Init) {
                        break Ok(stopped("it was stopped while it booted"));
                    }
                    // A guest that does not listen is killed by the driver, at the end of the grace.
                    if let Err(error) = machine.port.send(control::STOP).await {
                        tracing::warn!(%error, "the guest cannot be asked to stop");
                    }
                }
                () = sleep_until(boot), if !self.boot.is_past(BootStage::Init) => break Err(End {
                    reason: "BootTimeout".to_owned(),
                    message: machine.with_console(&format!(
                        "the guest kernel did not get as far as its supervisor within {boot_seconds} s: /dev/kvm is there and \
                         makes machines, but does not seem to run this guest kernel (a nested one may be broken)"
                    )),
                }),
            }
        };
        machine.kill().await;
        network.kill().await;
        match outcome {
            Err(end) if self.stop_asked && end.reason == "GuestEnded" => Ok(stopped(&end.message)),
            outcome => outcome,
        }
    }

    /// What the end of the machine process means, when no report came before it.
    fn judge(&self, status: Option<ExitStatus>, machine: &Machine) -> End {
        use std::os::unix::process::ExitStatusExt;
        if let Some(signal) = status.and_then(|status| status.signal()) {
            return End {
                reason: "MachineKilled".to_owned(),
                message: format!("the machine process was killed by signal {signal}"),
            };
        }
        if !self.boot.is_past(BootStage::Init) {
            return End {
                reason: "MachineNotStarted".to_owned(),
                message: machine.with_console(&format!("the machine process ended ({})", say(status))),
            };
        }
        End {
            reason: "GuestEnded".to_owned(),
            message: machine
                .with_console("the guest ended by itself: its kernel panicked, or somebody in it reset it"),
        }
    }

    fn reach(&mut self, stage: BootStage) {
        tracing::info!(%stage, "reached");
        self.boot.reach(stage);
        self.tell(None);
    }

    fn tell(&self, end: Option<End>) {
        if let Err(error) = (Note { boot: self.boot.clone(), end }).write(&self.dir) {
            tracing::warn!(%error, "the note cannot be written");
        }
    }
}

fn say(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "nobody saw how".to_owned(), |status| status.to_string())
}

fn stopped(message: &str) -> End {
    End { reason: "Stopped".to_owned(), message: message.to_owned() }
}

fn failed(reason: &str, error: &dyn std::error::Error) -> End {
    End { reason: reason.to_owned(), message: error.to_string() }
}

fn network_failed(error: &NetworkError) -> End {
    failed("NetworkNotStarted", error)
}

/// This program, by a path that another process can start it by.
fn own_program() -> &'static Path {
    Path::new("/proc/self/exe")
}
