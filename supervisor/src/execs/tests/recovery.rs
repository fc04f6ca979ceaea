//! What outlives a supervisor process, and a disk that fails.

use holdfast_wire::api::{ExecState, LostReason};

use super::*;

/// What a killed process leaves: nothing in this one may run on.
async fn crash(lab: Lab) -> (Arc<tempfile::TempDir>, ExecsConfig) {
    let dir = Arc::clone(&lab.dir);
    let config = config(&dir, Arc::new(RealSpawner::new()));
    drop(lab);
    (dir, config)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_exec_survives_a_restart_with_its_output() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let spec = shell("head -c 700000 /dev/zero | tr '\\0' x; echo tail; echo oops >&2; exit 6");
    let before = lab.relay(start(id, spec.clone())).await.finish().await;
    let (dir, config) = crash(lab).await;
    let lab = Lab::over(dir, config).await;
    let [info] = lab.execs.report().try_into().unwrap();
    assert_eq!((info.exec_id, info.state), (id.to_string(), ExecState::Ended as i32));
    // Starting it again is asking for the same exec.
    let after = lab.relay(start(id, spec)).await.finish().await;
    assert_eq!((after.code(), &after.stdout, &after.stderr), (6, &before.stdout, &before.stderr));
    assert!(after.gaps.is_empty());
    let conflict = lab.try_relay(start(id, shell("exit 0"))).await.err().unwrap();
    assert_eq!(conflict.code(), holdfast_wire::control::RefusedCode::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_exec_is_lost_and_what_is_left_of_it_killed() {
    // A first life that ends without ending its execs: its command is started by hand, as a killed supervisor
    // leaves it, and the record that such a supervisor had written beside it.
    use crate::execs::spool::{Record, encode_record};
    for spawner in [RealSpawner::new(), RealSpawner::without_cgroups()] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut config = config(&dir, Arc::new(spawner.clone()));
        config.spool.per_exec_bytes = 1 << 20;
        let id = ExecId::random();
        let request = crate::execs::spawn::SpawnRequest {
            exec: id,
            argv: ["sh", "-c", "sleep 600 & sleep 600"].map(Into::into).to_vec(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            cwd: "/".into(),
            in_workspace: true,
            user: None,
            tty: None,
            stdin: false,
        };
        let mut spawned = spawner.spawn(request).await.unwrap();
        let record = Record {
            exec: id,
            info: holdfast_wire::api::ExecInfo {
                exec_id: id.to_string(),
                state: ExecState::Running as i32,
                started_at: Some(prost_types::Timestamp::default()),
                pid: spawned.pid,
                ..Default::default()
            },
            retain_for_ms: 60_000,
            process: Some(spawned.control.mark()),
        };
        let place = dir.path().join("state/execs").join(id.to_string());
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("record"), encode_record(&record)).unwrap();
        std::fs::write(place.join("out-00000000000000000000"), b"what it wrote").unwrap();
        spawned.control.release();
        let lab = Lab::over(Arc::clone(&dir), config).await;
        // Killed by the recovery, not by us.
        assert_eq!(
            spawned.wait.await.unwrap(),
            crate::execs::spawn::Exit::Signal { signal: libc::SIGKILL, core: false, oom: false }
        );
        nothing_left(id).await;
        let report = lab.relay(attach(id, 5)).await.finish().await;
        let Kind::Lost(lost) = report.outcome() else { panic!("{report:?}") };
        assert_eq!(lost.reason(), LostReason::SupervisorRestarted);
        assert_eq!(report.stdout(), "it wrote");
        // And it stays lost.
        let (dir, config) = crash(lab).await;
        let lab = Lab::over(dir, config).await;
        assert!(matches!(lab.relay(attach(id, 0)).await.finish().await.outcome(), Kind::Lost(_)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_removed_and_the_rest_kept() {
    let lab = Lab::real().await;
    let (good, bad) = (ExecId::random(), ExecId::random());
    lab.relay(start(good, shell("echo good"))).await.finish().await;
    lab.relay(start(bad, shell("echo bad"))).await.finish().await;
    let (dir, config) = crash(lab).await;
    let record = dir.path().join("state/execs").join(bad.to_string()).join("record");
    std::fs::write(&record, b"\x01garbage").unwrap();
    let lab = Lab::over(dir, config).await;
    assert_eq!(lab.execs.report().len(), 1);
    assert!(!record.exists());
    assert_eq!(lab.relay(attach(good, 0)).await.finish().await.stdout(), "good\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_ends_after_its_time() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    lab.relay(start(id, ExecSpec { retain_for: millis(400), ..shell("echo x") })).await.finish().await;
    let place = lab.dir.path().join("state/execs").join(id.to_string());
    assert!(place.exists());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !lab.execs.report().is_empty() || place.exists() || lab.execs.spool_usage().bytes > 0 {
        assert!(tokio::time::Instant::now() < deadline, "it is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let refused = lab.try_relay(attach(id, 0)).await.err().unwrap();
    assert_eq!(refused.code(), holdfast_wire::control::RefusedCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_table_lets_the_oldest_ended_go_and_refuses_when_all_run() {
    let lab = Lab::with(|config| config.max_execs = 2).await;
    let ids: Vec<ExecId> = (0..3).map(|_| ExecId::random()).collect();
    for id in &ids {
        lab.relay(start(*id, shell("true"))).await.finish().await;
    }
    let kept: Vec<String> = lab.execs.report().into_iter().map(|info| info.exec_id).collect();
    assert_eq!(kept, [ids[1].to_string(), ids[2].to_string()]);
    let mut running = Vec::new();
    for _ in 0..2 {
        running.push(lab.relay(start(ExecId::random(), shell("sleep 60"))).await);
    }
    let refused = lab.try_relay(start(ExecId::random(), shell("true"))).await.err().unwrap();
    assert_eq!(refused.code(), holdfast_wire::control::RefusedCode::Exhausted);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_state_directory_costs_durability_alone() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut config = config(&dir, Arc::new(RealSpawner::new()));
    let file = dir.path().join("file");
    std::fs::write(&file, b"not a directory").unwrap();
    config.state_dir = file;
    let lab = Lab::over(dir, config).await;
    let report = lab.run(shell("echo fine; exit 2")).await;
    assert_eq!((report.code(), report.stdout().as_str()), (2, "fine\n"));
    assert!(lab.execs.spool_usage().error.is_some_and(|error| error.contains("Not a directory")));
}

/// Unmounts when dropped, so that a failed test leaves nothing.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    /// `None`, said aloud, where it cannot be mounted.
    fn mount(dir: &std::path::Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(dir).unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", dir, "tmpfs", flags, Some(options.as_c_str())) {
            Ok(()) => Some(Self(dir.to_owned())),
            Err(error) => {
                skipped(&format!("no tmpfs can be mounted here: {error}"));
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_kills_no_command_and_loses_no_byte_of_a_reader_that_keeps_up() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let Some(tmpfs) = Tmpfs::mount(&dir.path().join("state"), "512k") else { return };
    let lab = Lab::over(Arc::clone(&dir), config(&dir, Arc::new(RealSpawner::new()))).await;
    let id = ExecId::random();
    let mut caller = lab.relay(start(id, shell("head -c 8000000 /dev/zero; exit 3"))).await;
    let report = caller.finish().await;
    assert_eq!((report.code(), report.stdout.len()), (3, 8_000_000));
    assert!(report.gaps.is_empty());
    assert!(lab.execs.spool_usage().error.is_some_and(|error| error.contains("No space left")));
    // Detached, the newest is kept within memory's bound.
    let id = ExecId::random();
    let mut request = start(id, shell("head -c 8000000 /dev/zero; echo end; exit 4"));
    request.attach = false;
    lab.relay(request).await;
    let wait = holdfast_wire::control::WaitCall { exec_id: id.to_bytes(), at_most_ms: 60_000 };
    lab.call(exec_call::Kind::Wait(wait)).await.unwrap();
    let report = lab.relay(attach(id, 0)).await.finish().await;
    assert_eq!(report.code(), 4);
    assert!(report.stdout.ends_with(b"end\n") && !report.gaps.is_empty());
    drop(lab);
    drop(tmpfs);
}
