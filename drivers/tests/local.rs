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

#[tokio::test]
async fn what_the_supervisor_reads_is_right_and_private() {
    let local = Local::new(Namespaces::Auto);
    let driver = local.driver().await;
    let (spec, observed) = local.running(&driver).await;
    let dir = local.dir(spec.sandbox);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for name in ["", "identity", "state", "workspace"] {
        assert_eq!(mode(&dir.join(name)), 0o700, "{name}");
    }
    for name in ["cert.pem", "key.pem", "ca.pem"] {
        assert_eq!(mode(&dir.join("identity").join(name)), 0o400, "{name}");
    }
    for name in ["supervisor.toml", "workload.json", "console.log"] {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }

    let config = SupervisorConfig::load(&dir.join("supervisor.toml")).unwrap();
    assert_eq!((config.sandbox_id, config.workload_generation), (spec.sandbox, spec.generation));
    assert_eq!(config.workspace, dir.join("workspace"));
    assert_eq!(config.gateway.addresses, spec.bootstrap.addresses);
    assert_eq!(fs::read_to_string(&config.identity.key).unwrap(), spec.bootstrap.key_pem.expose());
    let isolated = driver.capabilities().isolation == Isolation::Processes;
    assert_eq!((config.init, config.mount_proc), (isolated, isolated));

    let proc = PathBuf::from(format!("/proc/{}", observed.pid.unwrap()));
    for name in ["environ", "cmdline"] {
        let text = fs::read(proc.join(name)).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains("PRIVATE KEY"), "a key in {name}");
    }
    driver.delete(spec.sandbox).await.unwrap();
}

#[tokio::test]
async fn a_supervisor_inherits_nothing_of_the_gateway() {
    let local = Local::new(Namespaces::Auto);
    let driver = local.driver().await;
    let (spec, observed) = local.running(&driver).await;
    let pid = observed.pid.unwrap();
    let proc = PathBuf::from(format!("/proc/{pid}"));

    let descriptors = fs::read_dir(proc.join("fd")).unwrap().map(|entry| entry.unwrap().path());
    let ours =
        |path: &PathBuf| fs::read_link(path).is_ok_and(|target| !target.ends_with("fake_supervisor.sh"));
    let mut names: Vec<_> =
        descriptors.filter(ours).map(|path| path.file_name().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["0", "1", "2"]);
    assert_eq!(fs::read_link(proc.join("fd/0")).unwrap(), Path::new("/dev/null"));
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));

    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let session: u32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(session, pid, "a session of its own");

    let environment = fs::read(proc.join("environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    let names: Vec<_> =
        environment.split_terminator('\0').map(|line| line.split('=').next().unwrap()).collect();
    let known = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "RUST_LOG"];
    let given = ["HELD", "HOLDFAST_SANDBOX_ID", "HOLDFAST_WORKLOAD_DIR"];
    assert!(names.iter().all(|name| known.contains(name) || given.contains(name)), "{names:?}");
    assert!(given.iter().all(|name| names.contains(name)), "{names:?}");
    driver.delete(spec.sandbox).await.unwrap();
}

#[tokio::test]
async fn namespaces_are_its_own_where_the_capabilities_say_so() {
    let local = Local::new(Namespaces::Auto);
    let driver = local.driver().await;
    let (spec, observed) = local.running(&driver).await;
    let isolated = driver.capabilities().isolation == Isolation::Processes;
    for kind in ["pid", "mnt"] {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let differs = namespace(&observed.pid.unwrap().to_string()) != namespace("self");
        assert_eq!(differs, isolated, "{kind}");
    }
    assert!(driver.capabilities().isolation_note.starts_with("does not isolate"));
    driver.delete(spec.sandbox).await.unwrap();
}

#[tokio::test]
async fn commands_do_not_outlive_a_killed_supervisor() {
    for namespaces in [Namespaces::Auto, Namespaces::Never] {
        let local = Local::new(namespaces);
        let driver = local.driver().await;
        let mut watch = driver.watch().await.unwrap();
        let (spec, observed) = local.running(&driver).await;
        kill_process(pid_of(&observed), Signal::KILL).unwrap();
        let dead =
            watch.by_ref().filter(|level| std::future::ready(!level.state.is_alive())).next().await.unwrap();
        assert_eq!(
            processes_of(&local.dir(spec.sandbox)),
            [],
            "{namespaces:?}: they end before the death is told"
        );
        assert_eq!(dead.state, WorkloadState::Exited(Exit::Signal(9)));
        assert_eq!(dead.reason, "KilledBySignal");
        assert!(!Path::new(&format!("/proc/{}", observed.pid.unwrap())).exists(), "a zombie is left");
        driver.delete(spec.sandbox).await.unwrap();
    }
}

#[tokio::test]
async fn commands_do_not_outlive_a_stopped_supervisor() {
    for namespaces in [Namespaces::Auto, Namespaces::Never] {
        let local = Local::new(namespaces);
        let driver = local.driver().await;
        let (spec, _) = local.running(&driver).await;
        driver.stop(spec.sandbox, Duration::from_secs(10)).await.unwrap();
        assert_eq!(processes_of(&local.dir(spec.sandbox)), [], "{namespaces:?}");
        let console = driver.logs(spec.sandbox, 1000).await.unwrap();
        assert!(console.ends_with(b"asked to end\n"), "it was asked, and not killed: {console:?}");
        driver.delete(spec.sandbox).await.unwrap();
    }
}

#[tokio::test]
async fn a_pause_stops_every_process_and_a_resume_spares_who_was_stopped_before() {
    for namespaces in [Namespaces::Auto, Namespaces::Never] {
        let local = Local::new(namespaces);
        let driver = local.driver().await;
        let (spec, observed) = local.running(&driver).await;
        let dir = local.dir(spec.sandbox);
        let others =
            || processes_of(&dir).into_iter().filter(|pid| *pid != pid_of(&observed)).collect::<Vec<_>>();
        let spared = others()[0];
        kill_process(spared, Signal::STOP).unwrap();
        eventually("one process stops", || state_of(spared) == 'T').await;

        driver.pause(spec.sandbox).await.unwrap();
        assert!(processes_of(&dir).into_iter().all(|pid| state_of(pid) == 'T'), "{namespaces:?}");
        driver.close().await;
        drop(driver);

        // Another gateway resumes it, and still knows.
        let driver = local.driver().await;
        assert_eq!(driver.list().await.unwrap()[0].state, WorkloadState::Paused);
        driver.resume(spec.sandbox).await.unwrap();
        assert_eq!(driver.list().await.unwrap()[0].state, WorkloadState::Running);
        assert_eq!(state_of(spared), 'T');
        assert!(
            others().into_iter().filter(|pid| *pid != spared).all(|pid| state_of(pid) != 'T'),
            "{namespaces:?}"
        );
        driver.delete(spec.sandbox).await.unwrap();
        assert_eq!(processes_of(&dir), []);
    }
}

#[tokio::test]
async fn a_stop_from_outside_is_seen_by_list() {
    let local = Local::new(Namespaces::Auto);
    let driver = local.driver().await;
    let (spec, observed) = local.running(&driver).await;
    kill_process(pid_of(&observed), Signal::STOP).unwrap();
    eventually("the supervisor stops", || state_of(pid_of(&observed)) == 'T').await;
    let listed = driver.list().await.unwrap().remove(0);
    assert_eq!((listed.state, &*listed.reason), (WorkloadState::Paused, "StoppedOutside"));
    driver.resume(spec.sandbox).await.unwrap();
    assert_eq!(driver.list().await.unwrap()[0].state, WorkloadState::Running);
    driver.delete(spec.sandbox).await.unwrap();
}

#[tokio::test]
async fn a_workload_outlives_a_killed_gateway_and_is_adopted() {
    for namespaces in ["auto", "never"] {
        let local = Local::new(if namespaces == "auto" { Namespaces::Auto } else { Namespaces::Never });
        let spec = sample_spec(SandboxId::random());
        let mut gateway = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "a_gateway_to_be_killed", "--nocapture"])
            .env("HOLDFAST_TEST_ROOT", local.root())
            .env("HOLDFAST_TEST_NAMESPACES", namespaces)
            .env("HOLDFAST_TEST_SANDBOX", spec.sandbox.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(gateway.stdout.take().unwrap()).lines().map_while(Result::ok);
        let made = lines
            .find_map(|line| line.split_once("made pid ").map(|(_, pid)| pid.trim().to_owned()))
            .unwrap();
        gateway.kill().unwrap();
        gateway.wait().unwrap();
        // Had the supervisor kept the pipe, this would not end.
        assert_eq!(lines.count(), 0);

        let driver = local.driver().await;
        let mut watch = driver.watch().await.unwrap();
        let adopted = driver.ensure(&spec).await.unwrap();
        assert_eq!(adopted.origin, Origin::Adopted);
        assert_eq!(adopted.observed.state, WorkloadState::Running);
        assert_eq!(adopted.observed.pid.unwrap().to_string(), made);

        kill_process(pid_of(&adopted.observed), Signal::KILL).unwrap();
        let dead =
            watch.by_ref().filter(|level| std::future::ready(!level.state.is_alive())).next().await.unwrap();
        assert_eq!(dead.state, WorkloadState::Exited(Exit::Unknown), "it is no child of this gateway");
        assert_eq!(processes_of(&local.dir(spec.sandbox)), []);
        driver.delete(spec.sandbox).await.unwrap();
    }
}

/// Not a test: the gateway that the test above kills.
#[tokio::test]
#[ignore = "runs as the child of a_workload_outlives_a_killed_gateway_and_is_adopted"]
async fn a_gateway_to_be_killed() {
    let Some(root) = std::env::var_os("HOLDFAST_TEST_ROOT") else { return };
    let id = std::env::var("HOLDFAST_TEST_SANDBOX").unwrap().parse().unwrap();
    let never = std::env::var("HOLDFAST_TEST_NAMESPACES").unwrap() == "never";
    let namespaces = if never { Namespaces::Never } else { Namespaces::Auto };
    let driver = LocalDriver::open(LocalConfig { namespaces, ..LocalConfig::new(root, fake_supervisor()) })
        .await
        .unwrap();
    let made = driver.ensure(&sample_spec(id)).await.unwrap();
    writeln!(std::io::stdout(), "made pid {}", made.observed.pid.unwrap()).unwrap();
    std::future::pending().await
}

#[tokio::test]
async fn another_process_with_the_same_pid_is_not_adopted() {
    let local = Local::new(Namespaces::Never);
    let driver = local.driver().await;
    let (spec, _) = local.running(&driver).await;
    driver.stop(spec.sandbox, Duration::from_secs(10)).await.unwrap();
    driver.close().await;
    drop(driver);
    // As if the supervisor's PID had been given to this process since.
    local.record(spec.sandbox, |record| {
        let process = serde_json::json!({"pid": std::process::id(), "started": 1, "boot": boot()});
        record["stage"] = serde_json::json!({
            "stage": "running", "process": process, "namespaces": false, "since": "2026-01-01T00:00:00Z",
        });
    });
    let driver = local.driver().await;
    let found = driver.list().await.unwrap().remove(0);
    assert_eq!(found.state, WorkloadState::Exited(Exit::Unknown));
    // Had it been taken for the supervisor, this would be the end of the test.
    driver.delete(spec.sandbox).await.unwrap();
}

#[tokio::test]
async fn a_workload_of_another_boot_is_told_as_such() {
    let local = Local::new(Namespaces::Never);
    let driver = local.driver().await;
    let (spec, observed) = local.running(&driver).await;
    driver.close().await;
    drop(driver);
    kill_process(pid_of(&observed), Signal::KILL).unwrap();
    local.record(spec.sandbox, |record| record["stage"]["process"]["boot"] = "another".into());
    let driver = local.driver().await;
    let found = driver.list().await.unwrap().remove(0);
    assert_eq!((found.state, &*found.reason), (WorkloadState::Exited(Exit::Unknown), "MachineRestarted"));
    driver.delete(spec.sandbox).await.unwrap();
}

#[tokio::test]
async fn a_start_that_was_not_recorded_is_found_by_its_mark() {
    for namespaces in [Namespaces::Auto, Namespaces::Never] {
        let local = Local::new(namespaces);
        let driver = local.driver().await;
        let (spec, observed) = local.running(&driver).await;
        driver.close().await;
        drop(driver);
        let starting = || serde_json::json!({"stage": "starting", "since": "2026-01-01T00:00:00Z"});
        local.record(spec.sandbox, |record| record["stage"] = starting());

        let driver = local.driver().await;
        let adopted = driver.ensure(&spec).await.unwrap();
        assert_eq!((adopted.origin, adopted.observed.pid), (Origin::Adopted, observed.pid), "{namespaces:?}");
        driver.stop(spec.sandbox, Duration::from_secs(10)).await.unwrap();
        driver.close().await;
        drop(driver);

        // And one that was not started at all can be started yet, as the same generation.
        local.record(spec.sandbox, |record| record["stage"] = starting());
        let driver = local.driver().await;
        assert_eq!(driver.list().await.unwrap()[0].state, WorkloadState::Failed);
        assert_eq!(driver.ensure(&spec).await.unwrap().origin, Origin::Created);
        driver.delete(spec.sandbox).await.unwrap();
    }
}

#[tokio::test]
async fn a_copy_of_a_root_has_nothing_of_the_original() {
    for namespaces in [Namespaces::Auto, Namespaces::Never] {
        let (original, copy) = (Local::new(namespaces), Local::new(namespaces));
        let driver = original.driver().await;
        let (spec, observed) = original.running(&driver).await;
        let copied = Command::new("cp").arg("-a").arg(original.root()).arg(copy.root()).status().unwrap();
        assert!(copied.success());

        let second = copy.driver().await;
        assert_eq!(second.list().await.unwrap()[0].state, WorkloadState::Exited(Exit::Unknown));
        second.delete(spec.sandbox).await.unwrap();
        assert_eq!(driver.list().await.unwrap()[0].pid, observed.pid);
        assert_eq!(processes_of(&original.dir(spec.sandbox)).len(), 4, "{namespaces:?}");
        driver.delete(spec.sandbox).await.unwrap();
    }
}

#[tokio::test]
async fn one_root_has_one_gateway() {
    let local = Local::new(Namespaces::Never);
    let driver = local.driver().await;
    let error = LocalDriver::open(local.config()).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("another gateway has it"), "{error}");
    driver.close().await;
    LocalDriver::open(local.config()).await.unwrap();
}

#[tokio::test]
async fn a_damaged_record_is_shown_and_can_be_deleted() {
    let local = Local::new(Namespaces::Auto);
    let driver = local.driver().await;
    let (spec, _) = local.running(&driver).await;
    driver.close().await;
    drop(driver);
    fs::write(local.dir(spec.sandbox).join("workload.json"), "{").unwrap();
    let driver = local.driver().await;
    let listed = driver.list().await.unwrap().remove(0);
    assert_eq!((listed.state, &*listed.reason), (WorkloadState::Failed, "RecordUnreadable"));
    let error = driver.ensure(&spec).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("delete it first"), "{error}");
    driver.delete(spec.sandbox).await.unwrap();
    assert_eq!(processes_of(&local.dir(spec.sandbox)), [], "found by their mark");
    assert!(driver.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn links_lead_neither_a_start_nor_a_removal_out_of_the_root() {
    let local = Local::new(Namespaces::Auto);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "precious").unwrap();
    let driver = local.driver().await;
    let (spec, _) = local.running(&driver).await;
    let workspace = local.dir(spec.sandbox).join("workspace");
    symlink(outside.path(), workspace.join("link")).unwrap();
    driver.stop(spec.sandbox, Duration::from_secs(10)).await.unwrap();
    fs::rename(&workspace, local.dir(spec.sandbox).join("moved")).unwrap();
    symlink(outside.path(), &workspace).unwrap();

    let newer = WorkloadSpec { generation: Generation(2), ..spec.clone() };
    let error = driver.ensure(&newer).await.unwrap_err();
    assert!(error.to_string().contains("workspace is a link"), "{error}");
    assert_eq!(driver.list().await.unwrap()[0].state, WorkloadState::Stopped, "what was there is there");
    driver.delete(spec.sandbox).await.unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);

    // The sandbox's own directory may be a link as well.
    let (id, link) = (SandboxId::random(), local.dir(SandboxId::random()));
    symlink(outside.path(), local.dir(id)).unwrap();
    let error = driver.ensure(&sample_spec(id)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    driver.delete(id).await.unwrap();
    assert!(!link.exists() && fs::read_link(local.dir(id)).is_err());
    assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), "precious");
}

#[tokio::test]
async fn a_mount_in_the_workspace_is_refused_and_untouched() {
    use rustix::mount::{UnmountFlags, mount_bind, unmount};
    let local = Local::new(Namespaces::Never);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "precious").unwrap();
    let driver = local.driver().await;
    let (spec, _) = local.running(&driver).await;
    let point = local.dir(spec.sandbox).join("workspace/mounted");
    fs::create_dir(&point).unwrap();
    if mount_bind(outside.path(), &point).is_err() {
        // Nobody but root can put a mount there, so nobody but root meets one.
        driver.delete(spec.sandbox).await.unwrap();
        return;
    }
    let error = driver.delete(spec.sandbox).await.unwrap_err();
    assert!(error.to_string().contains("is a mount point"), "{error}");
    assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), "precious");
    let listed = driver.list().await.unwrap().remove(0);
    assert_eq!(&*listed.reason, "RemovalIncomplete");

    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = local.root().to_string_lossy().into_owned();
    let point =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).find(|point| point.starts_with(&root));
    unmount(point.expect("the mount is still there"), UnmountFlags::empty()).unwrap();
    driver.delete(spec.sandbox).await.unwrap();
    assert_eq!(driver.list().await.unwrap(), []);
    assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), "precious");
}

#[tokio::test]
async fn a_supervisor_that_cannot_be_started_fails_and_can_be_tried_again() {
    let local = Local::new(Namespaces::Auto);
    let program = local.temp.path().join("supervisor");
    fs::write(&program, "#!/nonexistent/interpreter\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let config = LocalConfig { supervisor_command: vec![program.clone().into()], ..local.config() };
    let driver = LocalDriver::open(config).await.unwrap();
    let spec = sample_spec(SandboxId::random());
    let error = driver.ensure(&spec).await.unwrap_err();
    assert!(error.to_string().contains("creating the workload"), "{error}");
    let listed = driver.list().await.unwrap().remove(0);
    assert_eq!((listed.state, &*listed.reason), (WorkloadState::Failed, "StartFailed"));
    fs::write(&program, "#!/bin/sh\nexec sleep 86400\n").unwrap();
    assert_eq!(driver.ensure(&spec).await.unwrap().origin, Origin::Created, "nothing was made of it before");
    driver.delete(spec.sandbox).await.unwrap();
}

#[tokio::test]
async fn a_supervisor_that_ends_by_itself_is_told_with_its_code() {
    let local = Local::new(Namespaces::Auto);
    let command = ["/bin/sh", "-c", "echo no such gateway; exit 78"].map(OsString::from).to_vec();
    let driver =
        LocalDriver::open(LocalConfig { supervisor_command: command, ..local.config() }).await.unwrap();
    let mut watch = driver.watch().await.unwrap();
    let spec = sample_spec(SandboxId::random());
    driver.ensure(&spec).await.unwrap();
    let dead =
        watch.by_ref().filter(|level| std::future::ready(!level.state.is_alive())).next().await.unwrap();
    assert_eq!((dead.state, &*dead.reason), (WorkloadState::Exited(Exit::Code(78)), "SupervisorExited"));
    assert_eq!(&driver.logs(spec.sandbox, 100).await.unwrap()[..], b"no such gateway\n");
    driver.delete(spec.sandbox).await.unwrap();
}

#[tokio::test]
async fn a_supervisor_that_does_not_listen_is_killed_after_the_grace() {
    for namespaces in [Namespaces::Auto, Namespaces::Never] {
        let local = Local::new(namespaces);
        let script = "trap '' TERM; echo deaf; while :; do sleep 86400; done";
        let command = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
        let driver =
            LocalDriver::open(LocalConfig { supervisor_command: command, ..local.config() }).await.unwrap();
        let spec = sample_spec(SandboxId::random());
        driver.ensure(&spec).await.unwrap();
        let console = local.dir(spec.sandbox).join("console.log");
        eventually("it is deaf", || fs::read(&console).unwrap() == b"deaf\n").await;
        let begun = tokio::time::Instant::now();
        let (long, short) = tokio::join!(
            driver.stop(spec.sandbox, Duration::from_secs(3600)),
            driver.stop(spec.sandbox, Duration::from_millis(200)),
        );
        long.and(short).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(200), "the grace was kept");
        let listed = driver.list().await.unwrap().remove(0);
        assert_eq!(listed.state, WorkloadState::Stopped);
        assert!(listed.message.contains("signal 9"), "{}", listed.message);
        assert_eq!(processes_of(&local.dir(spec.sandbox)), []);
        driver.delete(spec.sandbox).await.unwrap();
    }
}

#[tokio::test]
async fn a_long_root_works_and_too_long_a_one_is_refused() {
    let local = Local::new(Namespaces::Auto);
    let long = |parts: usize| (0..parts).fold(local.root(), |path, _| path.join("d".repeat(200)));
    let driver = LocalDriver::open(LocalConfig { root: long(8), ..local.config() }).await.unwrap();
    let spec = sample_spec(SandboxId::random());
    assert_eq!(driver.ensure(&spec).await.unwrap().observed.state, WorkloadState::Running);
    driver.delete(spec.sandbox).await.unwrap();
    let error = LocalDriver::open(LocalConfig { root: long(12), ..local.config() }).await.unwrap_err();
    assert!(matches!(&error, DriverError::InvalidSpec { field, .. } if field == "root"), "{error}");
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_half_made_workload() {
    let local = Local::new(Namespaces::Auto);
    let driver = local.driver().await;
    let spec = sample_spec(SandboxId::random());
    let mut watch = driver.watch().await.unwrap();
    {
        let mut ensure = std::pin::pin!(driver.ensure(&spec));
        assert!(futures::poll!(ensure.as_mut()).is_pending());
    }
    let running = watch.by_ref().filter(|level| std::future::ready(level.state == WorkloadState::Running));
    assert!(std::pin::pin!(running).next().await.is_some());
    assert_eq!(driver.ensure(&spec).await.unwrap().origin, Origin::Adopted);
    driver.delete(spec.sandbox).await.unwrap();
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
