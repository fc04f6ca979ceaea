//! `chaos`: a fault on a sandbox's session, and how long it took until the sandbox was ready again.
//!
//! "Ready again" is proven, not read off a phase: after the fault's end the sandbox runs a real command and writes
//! a file over its session, and its phase is Ready.

use std::time::Duration;

use holdfast_wire::{
    api::{ChaosKind, ChaosRequest, ChaosResponse, ProbeRequest, ProbeResponse},
    reason::Reason,
};
use serde::Serialize;
use tokio::time::Instant;

use super::{Context, sandboxes};
use crate::{
    args::{ChaosArgs, Fault},
    client::{CALL_TIMEOUT, Client, Error},
    failure::Failed,
    output::Row,
};

/// How long a fault lasts if nobody says; the gateway's default too.
const TIME: Duration = Duration::from_secs(10);

/// One question for a proof. The gateway allows two minutes; a shorter one notices a gateway that is gone.
const ROUND: Duration = Duration::from_secs(30);

/// Between tries while the gateway is away.
const RETRY: Duration = Duration::from_millis(500);

/// What was done, and what came of it.
#[derive(Debug, Serialize)]
struct Done {
    sandbox: String,
    fault: &'static str,
    /// 0: done in an instant.
    fault_ms: u64,
    epoch_before: u64,
    epoch_after: u64,
    supervisor_version: String,
    /// From the fault's begin, its own time included.
    ready_after_ms: u64,
    /// From the fault's end.
    recovered_in_ms: u64,
}

impl Row for Done {
    fn header(_: bool) -> Vec<&'static str> {
        vec!["sandbox", "fault", "lasted", "session", "ready again after", "from its end"]
    }

    fn cells(&self, _: bool) -> Vec<String> {
        let seconds = |ms: u64| format!("{:.1} s", Duration::from_millis(ms).as_secs_f64());
        vec![
            self.sandbox.clone(),
            self.fault.to_owned(),
            if self.fault_ms == 0 { "-".to_owned() } else { seconds(self.fault_ms) },
            if self.epoch_after == self.epoch_before {
                format!("kept (epoch {})", self.epoch_after)
            } else {
                format!("new (epoch {} to {})", self.epoch_before, self.epoch_after)
            },
            seconds(self.ready_after_ms),
            seconds(self.recovered_in_ms),
        ]
    }

    fn name(&self) -> String {
        self.sandbox.clone()
    }
}

pub(super) async fn chaos(args: &ChaosArgs, context: &Context) -> Result<u8, Failed> {
    let name = &args.sandbox;
    let time = fault_time(args).map_err(Failed::Usage)?;
    let does = what_it_does(name, args.fault, time);
    if !args.yes {
        return Err(Failed::Usage(format!("{does} Say --yes to do it.")));
    }
    let client = context.client()?;
    let mut gateway = client.gateway();
    let request = ChaosRequest {
        sandbox: name.clone(),
        kind: kind(args.fault).into(),
        duration: (!time.is_zero()).then(|| time.try_into().unwrap_or_default()),
    };
    let what = format!("{} on {name}", args.fault.name());
    let begun: ChaosResponse = client.call(&what, CALL_TIMEOUT, gateway.chaos(request)).await?;
    let began = Instant::now();
    context.output.note(&does);
    let lasting = format!("{what} for {}", humantime::format_duration(time));
    context.output.during(&lasting, tokio::time::sleep(time)).await;
    let ended = Instant::now();

    let waiting = format!("waiting until {name} is ready again");
    let epoch_after = context.output.during(&waiting, recovered(&client, name, args.within)).await?;
    let ms = |since: Instant| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    let done = Done {
        sandbox: name.clone(),
        fault: args.fault.name(),
        fault_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        epoch_before: begun.epoch,
        epoch_after,
        supervisor_version: begun.supervisor_version,
        ready_after_ms: ms(began),
        recovered_in_ms: ms(ended),
    };
    context.output.one("faults", &done)?;
    Ok(0)
}

/// Waits for the proof and for Ready; says which session it was then.
async fn recovered(client: &Client, name: &str, within: Duration) -> Result<u64, Failed> {
    let deadline = Instant::now() + within;
    let left = || deadline.saturating_duration_since(Instant::now());
    let late = |cause: String| {
        let within = humantime::format_duration(within);
        Failed::local(format!("wait until {name} is ready again: not within {within}"), cause)
    };
    let proof = loop {
        match prove(client, name, left().min(ROUND)).await {
            Ok(proof) => match failing(&proof) {
                None => break proof,
                // It answers, and is not well: what is wrong may pass.
                Some(why) if left() <= RETRY => return Err(late(why)),
                Some(_) => {}
            },
            Err(error) if !passes(&error) => return Err(error.into()),
            Err(error) if left() <= RETRY => return Err(late(error.to_string())),
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    };
    match sandboxes::until(client, name, "ready", left()).await {
        Ok(_) => Ok(proof.epoch),
        Err(Failed::Timeout(text)) => Err(late(text)),
        Err(error) => Err(error),
    }
}

/// A refusal that time may cure.
fn passes(error: &Error) -> bool {
    error.is_transient() || matches!(error.reason(), Some(Reason::WaitTimeout | Reason::NoSession))
}

/// Asks a sandbox to prove itself.
pub(super) async fn prove(client: &Client, name: &str, within: Duration) -> Result<ProbeResponse, Error> {
    let mut gateway = client.gateway();
    let request =
        ProbeRequest { sandbox: name.to_owned(), at_most: Some(within.try_into().unwrap_or_default()) };
    client.call(&format!("probe {name}"), within + CALL_TIMEOUT, gateway.probe(request)).await
}

/// What of a proof failed.
pub(super) fn failing(proof: &ProbeResponse) -> Option<String> {
    [("exec", &proof.exec), ("filesystem", &proof.filesystem)].into_iter().find_map(|(what, part)| match part
    {
        Some(part) if part.ok => None,
        Some(part) => Some(format!("{what}: {}", part.message)),
        None => Some(format!("{what}: no result")),
    })
}

fn fault_time(args: &ChaosArgs) -> Result<Duration, String> {
    match (args.fault.lasts(), args.time) {
        (true, time) => Ok(time.unwrap_or(TIME)),
        (false, None) => Ok(Duration::ZERO),
        (false, Some(_)) => Err(format!("{} is done in an instant: leave --for out", args.fault.name())),
    }
}

fn kind(fault: Fault) -> ChaosKind {
    match fault {
        Fault::DropPath => ChaosKind::DropPath,
        Fault::Rebind => ChaosKind::Rebind,
        Fault::ResetSession => ChaosKind::ResetSession,
        Fault::Stall => ChaosKind::Stall,
    }
}

fn what_it_does(name: &str, fault: Fault, time: Duration) -> String {
    let time = humantime::format_duration(time);
    let does = match fault {
        Fault::DropPath => format!(
            "{name}'s supervisor loses every UDP packet, both ways, for {time}; calls attached to it wait, and after \
             10 s of silence end with SESSION_LOST and attach again."
        ),
        Fault::Rebind => {
            format!("{name}'s supervisor moves its connection to a new UDP socket; calls should not notice.")
        }
        Fault::ResetSession => format!(
            "the gateway closes {name}'s session; calls attached to it end with SESSION_LOST and attach again."
        ),
        Fault::Stall => format!(
            "{name}'s supervisor neither reads nor writes for {time}, while QUIC itself lives on; calls attached to \
             it wait."
        ),
    };
    format!("{does} Commands in {name} run on.")
}

#[cfg(test)]
mod tests {
    use holdfast_wire::api::Proof;

    use super::*;

    fn args(fault: Fault, seconds: Option<u64>) -> ChaosArgs {
        ChaosArgs {
            sandbox: "box".to_owned(),
            fault,
            time: seconds.map(Duration::from_secs),
            yes: false,
            within: Duration::from_secs(1),
        }
    }

    #[test]
    fn only_what_lasts_takes_a_time() {
        assert_eq!(fault_time(&args(Fault::Stall, None)), Ok(TIME));
        assert_eq!(fault_time(&args(Fault::DropPath, Some(3))), Ok(Duration::from_secs(3)));
        assert_eq!(fault_time(&args(Fault::Rebind, None)), Ok(Duration::ZERO));
        assert!(fault_time(&args(Fault::ResetSession, Some(3))).unwrap_err().contains("instant"));
    }

    #[test]
    fn the_refusal_says_what_would_happen() {
        let text = what_it_does("box", Fault::DropPath, Duration::from_secs(15));
        assert!(text.contains("15s") && text.contains("box") && text.contains("SESSION_LOST"), "{text}");
    }

    #[test]
    fn a_proof_without_a_result_is_none() {
        let ok = Proof { ok: true, ..Proof::default() };
        let bad = Proof { ok: false, message: "ENOSPC".to_owned(), ..Proof::default() };
        let proof = |exec: Option<&Proof>, filesystem: Option<&Proof>| ProbeResponse {
            exec: exec.cloned(),
            filesystem: filesystem.cloned(),
            ..ProbeResponse::default()
        };
        assert_eq!(failing(&proof(Some(&ok), Some(&ok))), None);
        assert_eq!(failing(&proof(Some(&ok), Some(&bad))).unwrap(), "filesystem: ENOSPC");
        assert!(failing(&proof(Some(&ok), None)).is_some());
    }
}
