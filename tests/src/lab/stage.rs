//! Whom a fault hits: the product ([`Site`](super::Site)) or the baseline, in a lab. A fault is written once, for both.

use anyhow::Context;
use async_trait::async_trait;
use rustix::process::Signal;

use super::Net;
use crate::harness;

/// How supervisors are told where the gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the address of the first gateway's host.
    Address,
    /// By the address that `service` leads to gateways.
    Service,
    /// By a name, which [`Stage::name_leads_to`] gives to another host.
    Name,
}

/// The address that `service` gives to gateways.
pub(super) const SERVICE: &str = "203.0.113.100";

/// The name under [`Way::Name`].
pub(super) const NAME: &str = "gateway.lab";

/// The address of a gateway's host, for supervisors.
pub(super) fn address_of(number: usize) -> String {
    format!("203.0.113.{number}")
}

impl Way {
    /// What a supervisor dials.
    pub(super) fn host(self) -> String {
        match self {
            Self::Address => address_of(1),
            Self::Service => SERVICE.to_owned(),
            Self::Name => NAME.to_owned(),
        }
    }
}

/// What a fault can do to whom it hits.
#[async_trait]
pub trait Stage: Send + Sync {
    /// The network and its faults.
    fn net(&self) -> &Net;

    /// `kill -9` of the gateway.
    async fn kill_gateway(&mut self) -> anyhow::Result<()>;

    /// Starts the gateway again, on the host of gateway `number`.
    async fn start_gateway(&mut self, number: usize) -> anyhow::Result<()>;

    /// Starts a gateway of another installation on the host of gateway `number`: nobody here trusts it.
    async fn start_stranger(&mut self, number: usize) -> anyhow::Result<()>;

    /// The gateway's process.
    fn gateway_pid(&self) -> anyhow::Result<i32>;

    /// The supervisors' processes.
    async fn supervisor_pids(&self) -> anyhow::Result<Vec<i32>>;

    /// Where the hosts file of the supervisors is.
    fn hosts(&self) -> std::path::PathBuf;

    /// The gateway's name leads to the host of gateway `number` from now on.
    fn name_leads_to(&self, number: usize) -> anyhow::Result<()> {
        // In place: the file is mounted over the supervisors' own, and a new file would not be.
        let line = format!("127.0.0.1 localhost\n{} {NAME}\n", address_of(number));
        std::fs::write(self.hosts(), line).context("writing the supervisors' hosts file")
    }

    /// One of the lab's scripts.
    async fn verb(&self, verb: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.net().verb(verb, arguments).await
    }

    /// SIGSTOP, or SIGCONT, to the gateway.
    fn signal_gateway(&self, signal: Signal) -> anyhow::Result<()> {
        harness::signal(self.gateway_pid()?, signal)
    }

    /// The same to all supervisors; what runs in them runs on.
    async fn signal_supervisors(&self, signal: Signal) -> anyhow::Result<()> {
        let pids = self.supervisor_pids().await?;
        anyhow::ensure!(!pids.is_empty(), "no supervisor is found");
        pids.into_iter().try_for_each(|pid| harness::signal(pid, signal))
    }
}

/// Those of `pids` on whose command line all `words` are, whole arguments each.
pub(super) fn with_words(pids: &[u32], words: &[&str]) -> Vec<i32> {
    let has = |pid: &&u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<_> = line.split(|&byte| byte == 0).collect();
        words.iter().all(|word| arguments.contains(&word.as_bytes()))
    };
    pids.iter().filter(has).filter_map(|&pid| i32::try_from(pid).ok()).collect()
}

/// A shell's line that runs a program in a network namespace, with `hosts` over its own hosts file where it has to
/// resolve a name. It replaces itself all the way: the process stays the one that was started.
pub(super) fn enter(namespace: &str, hosts: Option<&std::path::Path>, program: &str) -> String {
    match hosts {
        None => format!("exec nsenter --net={namespace} -- {program}"),
        Some(hosts) => format!(
            "exec nsenter --net={namespace} -- unshare --mount sh -c \
             'mount --bind {} /etc/hosts && exec \"$@\"' sh {program}",
            hosts.display()
        ),
    }
}
