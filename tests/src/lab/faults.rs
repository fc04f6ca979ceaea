//! A fault: from a healthy site to the last check. The list of them is in `list.rs`.
//!
//! ```text
//!   lab up ─▶ before ─▶ calls attached ─▶ act ... healed ─▶ calls ended, judged ─▶ after ─▶ nothing is left
//! ```
//!
//! The product and the baseline go through the same: a fault speaks to a [`Stage`] and does not know which it is.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{
    Site, Stage, Way,
    baseline::Baseline,
    calls::{BOUND, bulk, ride},
    finding::{Compared, Finding},
    load::{Load, Scale, herd, script},
};
use crate::baseline::{Call, Kind};

pub use super::list::{all, long};

/// What happens, to whomever it happens.
pub(super) type Act = for<'a> fn(&'a mut dyn Stage) -> BoxFuture<'a, anyhow::Result<()>>;

/// A fault of the list.
#[derive(Clone, Copy)]
pub struct Fault {
    /// What happens, in words.
    pub name: &'static str,
    /// `lab-up`'s options.
    pub(super) lab: &'static [&'static str],
    /// How supervisors know where the gateway is.
    pub(super) way: Way,
    /// What is attached meanwhile.
    pub(super) load: Load,
    /// What has to be done before calls are attached.
    pub(super) before: Option<Act>,
    /// The fault itself; returns when the network is whole again, or as good as it gets.
    pub(super) act: Act,
    /// What is looked at, or mended, after the calls have ended.
    pub(super) after: Option<Act>,
    /// What the product must show beside its promise.
    pub(super) shows: Option<Shows>,
    /// It needs `sch_netem`: rung three, the test host.
    pub netem: bool,
    /// It works more than it waits: beside others it would measure them.
    pub heavy: bool,
}

/// What the product must show, or the fault did not bite.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shows {
    /// The gateway sees another address.
    Moved,
    /// Datagrams had grown, and have shrunk to what fits through.
    Shrunken,
    /// One session, the same to the end: nothing was dialled.
    OneSession,
}

/// What IPv4 and UDP leave of an MTU of 1280.
const SHRUNKEN: u64 = 1252;

/// What a transfer is given, with whatever happens to it; alone it takes seconds, in full a minute or two.
const BULK_PATIENCE: Duration = Duration::from_secs(180);
const BULK_PATIENCE_FULL: Duration = Duration::from_secs(480);

/// When the baseline is given up.
pub(super) const GIVE_UP: Duration = Duration::from_secs(120);

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fault").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The fault of this name.
///
/// # Errors
/// There is none.
pub fn named(name: &str) -> anyhow::Result<Fault> {
    all().into_iter().find(|fault| fault.name == name).with_context(|| format!("no fault is named {name:?}"))
}

impl Fault {
    /// Runs it in a lab of its own, `program` being the command under test; an error says which promise was broken.
    pub async fn run(&self, program: &Path, scale: Scale) -> anyhow::Result<Finding> {
        let mut site = Site::up(program, self.lab, self.way).await?;
        match self.happen(&mut site, scale).await {
            Ok(finding) => site.finish().await.map(|()| finding),
            Err(error) => {
                let (log, consoles) = (site.gateway_log(), site.consoles());
                Err(error.context(format!("gateway:\n{}\nsupervisors:\n{}", tail(&log), tail(&consoles))))
            }
        }
    }

    async fn happen(&self, site: &mut Site, scale: Scale) -> anyhow::Result<Finding> {
        if let Load::Herd { sandboxes, .. } = self.load {
            // A few at a time: each start is a process that computes keys.
            let names: Vec<_> = (1..sandboxes).map(|number| (herd(number), number)).collect();
            for some in names.chunks(5) {
                let nodes = site.net.nodes();
                let made = some.iter().map(|(name, number)| site.create(name, &nodes[number % nodes.len()]));
                futures::future::try_join_all(made).await?;
            }
        }
        if let Some(before) = self.before {
            before(site).await?;
        }
        if matches!(self.shows, Some(Shows::Shrunken)) {
            grow(site).await?;
        }
        let was = site.session("box").await?.context("the sandbox is ready, so it has a session")?;
        let act = async |site: &mut Site| (self.act)(site).await;
        let finding = match self.load.bytes(scale) {
            Some(bytes) => bulk(site, bytes, patience(scale), act).await?,
            None => ride(site, &self.load.talks(scale), act).await?,
        };
        let is = site.session("box").await?.context("the sandbox is ready, so it has a session")?;
        match self.shows {
            None => {}
            Some(Shows::Moved) => {
                ensure!(
                    is.remote != was.remote,
                    "the gateway still sees {}: the fault did not bite",
                    is.remote
                );
            }
            Some(Shows::Shrunken) => {
                ensure!(is.mtu <= SHRUNKEN, "datagrams still have {} bytes, which cannot arrive", is.mtu);
            }
            Some(Shows::OneSession) => {
                ensure!(
                    is.epoch == was.epoch,
                    "epoch {} became {}: it was dialled anew",
                    was.epoch,
                    is.epoch
                );
            }
        }
        if let Some(after) = self.after {
            after(site).await?;
        }
        Ok(finding)
    }

    /// The same with the baseline, `peer` being the binary `baseline-peer`. What becomes of its calls is no error.
    pub async fn run_baseline(&self, peer: &Path, scale: Scale, keepalive: bool) -> anyhow::Result<Compared> {
        let (calls, give_up_after) = self.baseline_calls(scale);
        let options: Vec<_> = self.lab.iter().copied().chain(["--strict-tcp"]).collect();
        let mut baseline = Baseline::up(peer, &options, self.way, &calls, keepalive, self.before).await?;
        let began = (SystemTime::now(), Instant::now());
        (self.act)(&mut baseline).await?;
        let bytes = self.load.bytes(scale).unwrap_or_default();
        baseline.judge(&calls, bytes, began, give_up_after).await
    }

    /// What the baseline is given to do, and how long.
    fn baseline_calls(&self, scale: Scale) -> (Vec<Call>, Duration) {
        if let Some(bytes) = self.load.bytes(scale) {
            let call = Call {
                call: 0,
                sandbox: "box".to_owned(),
                script: "cat".to_owned(),
                kind: Kind::Bulk { bytes },
            };
            return (vec![call], patience(scale));
        }
        let talks = self.load.talks(scale);
        let longest = talks.iter().map(|(_, talk)| talk.lasts()).max();
        let calls = talks.into_iter().enumerate().map(|(number, (sandbox, talk))| {
            let (code, script) = script(number, talk, "/dev/null");
            Call { call: number as u64, sandbox, script, kind: Kind::Talk { lines: talk.lines, code } }
        });
        (calls.collect(), GIVE_UP.max(longest.unwrap_or_default() + GIVE_UP / 2))
    }
}

fn patience(scale: Scale) -> Duration {
    if scale == Scale::Full { BULK_PATIENCE_FULL } else { BULK_PATIENCE }
}

/// A new connection begins with datagrams of 1200 bytes and finds out with traffic that more fits.
async fn grow(site: &Site) -> anyhow::Result<()> {
    site.command(["exec", "box", "--", "head", "-c", "1M", "/dev/zero"]).run().await?.success()?;
    let grown = async {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        while site.session("box").await?.context("a session")?.mtu <= SHRUNKEN {
            tick.tick().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(BOUND, grown).await.context("datagrams stay small, so the fault cannot bite")?
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_of_its_own() {
        let mut names: Vec<_> = all().iter().map(|fault| fault.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(named(names[0]).is_ok() && named("no such fault").is_err());
    }
}
