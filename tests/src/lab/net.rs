//! A network of namespaces by the scripts in `netem-scripts/`: up, faults, down.
//!
//! A lab's name carries the process that made it, so that labs side by side do not meet, and one that was left by
//! a test that was killed is found and cleared by the next.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::{process::Command, time::timeout};

/// A verb takes a tenth of a second, `lab-up` with twenty nodes a few; a loaded machine gets more.
const VERB_BOUND: Duration = Duration::from_secs(60);

/// What the names of these labs begin with.
const MARK: &str = "hf";

/// How many labs this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A lab that is up; taken down when dropped.
#[derive(Debug)]
pub struct Net {
    name: String,
    nodes: Vec<String>,
    /// By the wire without faults.
    gateways: Vec<IpAddr>,
}

/// Why no lab can be made here; `None` where one can.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &str| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| dir.join(tool).exists())
    };
    let missing: Vec<_> =
        ["ip", "tc", "nft", "conntrack", "nsenter", "flock"].into_iter().filter(|tool| !has(tool)).collect();
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}

impl Net {
    /// Brings a lab up; `options` are `lab-up`'s. Its gateways can be reached from here by a wire without faults.
    pub async fn up(options: &[&str]) -> anyhow::Result<Self> {
        clear_orphans().await?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        // At most 10 characters: a pid has at most 7 digits, 5 in base 36.
        let name = format!("{MARK}{}-{}", base36(std::process::id()), base36(number % (36 * 36)));
        let mut net = Self { name, nodes: Vec::new(), gateways: Vec::new() };
        let mut arguments = vec!["--host-link", "--json"];
        arguments.extend(options);
        let lab: Value = serde_json::from_str(&net.verb("lab-up", &arguments).await?)?;
        for node in lab["nodes"].as_array().context("a lab has nodes")? {
            net.nodes.push(node["name"].as_str().context("a node has a name")?.to_owned());
        }
        for gateway in lab["gateways"].as_array().context("a lab has gateways")? {
            let address = gateway["host_address"].as_str().context("--host-link gives an address")?;
            net.gateways.push(address.parse()?);
        }
        Ok(net)
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its nodes, where supervisors run.
    #[must_use]
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// How many gateways there can be.
    #[must_use]
    pub fn gateways(&self) -> usize {
        self.gateways.len()
    }

    /// The address of the gateway `number` (from 1) on the wire without faults.
    pub fn host_address(&self, number: usize) -> anyhow::Result<IpAddr> {
        self.gateways.get(number.wrapping_sub(1)).copied().with_context(|| format!("no gateway {number}"))
    }

    /// The file of a node's network namespace, for `nsenter --net=`.
    #[must_use]
    pub fn namespace(&self, node: &str) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-{node}", self.name))
    }

    /// Runs one of the scripts on this lab; returns what it printed.
    pub async fn verb(&self, verb: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut named = vec!["--name", &self.name];
        named.extend(arguments);
        script(verb, &named).await
    }

    /// What `status --json` says.
    pub async fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.verb("status", &["--json"]).await?)?)
    }

    /// How many packets the faults on a link have dropped, up and down.
    pub async fn dropped(&self, link: &str) -> anyhow::Result<(u64, u64)> {
        let status = self.status().await?;
        let links = status["links"].as_array().context("a lab has links")?;
        let link = links.iter().find(|one| one["name"] == link).with_context(|| format!("no link {link}"))?;
        let count = |key: &str| link[key].as_u64().with_context(|| format!("no {key}"));
        Ok((count("dropped_up")?, count("dropped_down")?))
    }

    /// The processes in a node's namespace.
    pub async fn processes(&self, node: &str) -> anyhow::Result<Vec<u32>> {
        let output =
            Command::new("ip").args(["netns", "pids", &format!("{}-{node}", self.name)]).output().await?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Not asynchronous: this runs while a panic unwinds, too.
        let down = std::process::Command::new(scripts().join("lab-down"))
            .args(["--quiet", "--name", &self.name])
            .stdin(Stdio::null())
            .status();
        if !down.is_ok_and(|status| status.success()) {
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("lab {} could not be taken down\n", self.name).as_bytes(),
            );
        }
    }
}

/// Clears the labs of processes that are gone.
async fn clear_orphans() -> anyhow::Result<()> {
    for name in script("status", &["--list"]).await?.split_whitespace() {
        let maker = name.strip_prefix(MARK).and_then(|rest| rest.split_once('-')).map(|(maker, _)| maker);
        let Some(Ok(maker)) = maker.map(|maker| u32::from_str_radix(maker, 36)) else { continue };
        if !Path::new("/proc").join(maker.to_string()).exists() {
            script("lab-down", &["--quiet", "--name", name]).await?;
        }
    }
    Ok(())
}

async fn script(verb: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let child =
        Command::new(scripts().join(verb)).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(VERB_BOUND, child).await.with_context(|| format!("{verb} does not end"))??;
    if !output.status.success() {
        bail!("{verb} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../netem-scripts")
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(number % 36, 36).expect("a remainder of 36 is a digit in base 36"));
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_at_most_ten_characters_and_says_who_made_it() {
        for number in [0, 1, 35, 36, 4_194_304] {
            let digits = base36(number);
            assert_eq!(u32::from_str_radix(&digits, 36).unwrap(), number);
            assert!(MARK.len() + digits.len() + "-zz".len() <= 10);
        }
    }
}
