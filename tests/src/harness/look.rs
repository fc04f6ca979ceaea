//! Looking at the machine and at answers.

use std::time::Duration;

use anyhow::Context;
use holdfast_wire::{
    api::{self, ExecSpec},
    ids::ExecId,
};
use serde_json::Value;

use super::Cluster;

/// Whether any process has `needle` on its command line (arguments are separated by NUL).
#[must_use]
pub fn is_running(needle: &str) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    entries.flatten().any(|entry| {
        let numeric = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        numeric
            && std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| line.windows(needle.len()).any(|window| window == needle.as_bytes()))
    })
}

/// Waits until `condition` holds, at most `within`. For facts about foreign processes, of which the kernel tells
/// nobody but their parent: looked at every 20 ms.
pub async fn eventually(within: Duration, condition: impl Fn() -> bool) -> anyhow::Result<()> {
    let look = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while !condition() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(within, look).await.context("it never came to be")
}

/// The id of the exec whose command has `mark` in it, from `holdfast execs -o json`.
pub fn exec_id_of(execs: &Value, mark: &str) -> anyhow::Result<String> {
    fn find(value: &Value, mark: &str) -> Option<String> {
        match value {
            Value::Array(items) => items.iter().find_map(|item| find(item, mark)),
            Value::Object(map) => {
                let command = map.get("command").map(Value::to_string).unwrap_or_default();
                match map.get("exec_id").and_then(Value::as_str) {
                    Some(id) if command.contains(mark) => Some(id.to_owned()),
                    _ => map.values().find_map(|item| find(item, mark)),
                }
            }
            _ => None,
        }
    }
    find(execs, mark).with_context(|| format!("no exec with {mark:?} in {execs}"))
}

/// Starts a command by the client library, for arguments that no process can be given. Returns the error's text;
/// a start that succeeds is an error here.
pub async fn start_argv(cluster: &Cluster, args: Vec<Vec<u8>>) -> anyhow::Result<String> {
    let profile = holdfast_cli::profile::Profile::load(&cluster.data_dir().join("client.toml"))?;
    let client = holdfast_cli::client::Client::new(&profile)?;
    let args = args.into_iter().map(Into::into).collect();
    let spec =
        ExecSpec { command: Some(api::exec_spec::Command::Argv(api::Argv { args })), ..ExecSpec::default() };
    let request = api::StartExecRequest {
        sandbox: "box".to_owned(),
        exec_id: ExecId::random().to_string(),
        spec: Some(spec),
        start_deadline: None,
    };
    match client.execs().start(request).await {
        Ok(_) => anyhow::bail!("the start was taken"),
        Err(status) => Ok(status.message().to_owned()),
    }
}
