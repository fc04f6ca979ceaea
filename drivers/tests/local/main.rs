//! The local driver, with real processes: the conformance suite in namespaces and without, and what is its own.
#![cfg(target_os = "linux")]

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use holdfast_drivers::{
    ComputeDriver, DriverError, ErrorKind, Exit, Isolation, Observed, Origin, Resources, WorkloadSpec,
    WorkloadState,
    conformance::{Harness, sample_spec},
    local::{LocalConfig, LocalDriver, Namespaces},
};
use holdfast_wire::{
    bootstrap::SupervisorConfig,
    ids::{Generation, SandboxId},
};
use rustix::process::{Pid, Signal, kill_process};

mod adoption;
mod files;
mod processes;

mod in_namespaces {
    holdfast_drivers::conformance_tests!(async { super::Local::new(super::Namespaces::Auto) });
}

mod plain {
    holdfast_drivers::conformance_tests!(async { super::Local::new(super::Namespaces::Never) });
}

/// A root of its own, and an end for whatever still runs in it when a test fails.
struct Local {
    temp: tempfile::TempDir,
    namespaces: Namespaces,
}

impl Local {
    fn new(namespaces: Namespaces) -> Self {
        Self { temp: tempfile::tempdir().unwrap(), namespaces }
    }

    fn root(&self) -> PathBuf {
        self.temp.path().canonicalize().unwrap().join("sandboxes")
    }

    fn dir(&self, sandbox: SandboxId) -> PathBuf {
        self.root().join(sandbox.to_string())
    }

    fn config(&self) -> LocalConfig {
        LocalConfig { namespaces: self.namespaces, ..LocalConfig::new(self.root(), fake_supervisor()) }
    }

    async fn driver(&self) -> LocalDriver {
        LocalDriver::open(self.config()).await.unwrap()
    }

    /// A running workload with all its processes there.
    async fn running(&self, driver: &LocalDriver) -> (WorkloadSpec, Observed) {
        let spec = sample_spec(SandboxId::random());
        let observed = driver.ensure(&spec).await.unwrap().observed;
        // The supervisor, its command, and the daemon's two.
        eventually("the workload's processes", || processes_of(&self.dir(spec.sandbox)).len() >= 4).await;
        (spec, observed)
    }

    fn record(&self, sandbox: SandboxId, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.dir(sandbox).join("workload.json");
        let mut record = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut record);
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        for pid in processes_below(self.temp.path()) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

#[async_trait]
impl Harness for Local {
    async fn open(&self) -> Arc<dyn ComputeDriver> {
        Arc::new(self.driver().await)
    }

    fn invalid_specs(&self) -> Vec<(WorkloadSpec, &'static str)> {
        let spec = || sample_spec(SandboxId::random());
        let resources = Resources { memory_bytes: Some(1 << 30), ..Resources::default() };
        vec![
            (WorkloadSpec { image: Some("debian:13".into()), ..spec() }, "image"),
            (WorkloadSpec { user: Some("nobody".into()), ..spec() }, "user"),
            (WorkloadSpec { resources, ..spec() }, "resources.memory_bytes"),
        ]
    }

    async fn kill(&self, observed: &Observed) {
        kill_process(pid_of(observed), Signal::KILL).unwrap();
    }

    async fn write_file(&self, sandbox: SandboxId, name: &str, content: Bytes) {
        fs::write(self.dir(sandbox).join("workspace").join(name), content).unwrap();
    }

    async fn read_file(&self, sandbox: SandboxId, name: &str) -> Option<Bytes> {
        fs::read(self.dir(sandbox).join("workspace").join(name)).ok().map(Bytes::from)
    }

    async fn write_console(&self, sandbox: SandboxId, text: Bytes) {
        let mut console =
            fs::OpenOptions::new().append(true).open(self.dir(sandbox).join("console.log")).unwrap();
        console.write_all(&text).unwrap();
    }

    async fn leftovers(&self, observed: &Observed) -> Vec<String> {
        let dir = self.dir(observed.sandbox);
        let mut left: Vec<String> = processes_of(&dir).iter().map(|pid| format!("process {pid:?}")).collect();
        let files = fs::read_dir(self.root()).unwrap().map(|entry| entry.unwrap().path());
        let named = |path: &PathBuf| path.to_string_lossy().contains(&observed.sandbox.to_string());
        left.extend(files.filter(named).map(|path| path.display().to_string()));
        let trash = fs::read_dir(self.root().join(".trash")).into_iter().flatten();
        left.extend(trash.map(|entry| entry.unwrap().path().display().to_string()));
        left
    }
}

fn fake_supervisor() -> Vec<OsString> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_supervisor.sh");
    vec!["/bin/sh".into(), script.into()]
}

fn pid_of(observed: &Observed) -> Pid {
    Pid::from_raw(i32::try_from(observed.pid.expect("a pid")).unwrap()).unwrap()
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

/// The processes that carry the mark of this workload's directory, as all of the fake supervisor's do.
fn processes_of(dir: &Path) -> Vec<Pid> {
    marked(|marked| marked == dir)
}

fn processes_below(root: &Path) -> Vec<Pid> {
    let root = root.canonicalize().unwrap();
    marked(|marked| marked.starts_with(&root))
}

fn marked(wanted: impl Fn(&Path) -> bool) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let mark = environment.split('\0').find_map(|line| line.strip_prefix("HOLDFAST_WORKLOAD_DIR="));
        if mark.is_some_and(|mark| wanted(Path::new(mark))) {
            found.push(pid);
        }
    }
    found
}

/// The state letter of `/proc/<pid>/stat`; a process that is gone has none.
fn state_of(pid: Pid) -> char {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

/// Waits for what the system does not announce.
async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"));
}
