//! The processes of a workload: how they start, freeze and end, together.

use super::*;

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
async fn a_proc_that_the_supervisor_mounts_is_seen_by_itself_alone() {
    let local = Local::new(Namespaces::Auto);
    let script = "mount -t proc proc /proc; echo pid $$ of $(ls -d /proc/[0-9]* | wc -l)";
    let command = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
    let driver =
        LocalDriver::open(LocalConfig { supervisor_command: command, ..local.config() }).await.unwrap();
    if driver.capabilities().isolation != Isolation::Processes {
        return;
    }
    let mut watch = driver.watch().await.unwrap();
    let spec = sample_spec(SandboxId::random());
    driver.ensure(&spec).await.unwrap();
    watch.by_ref().filter(|level| std::future::ready(!level.state.is_alive())).next().await.unwrap();
    let console = driver.logs(spec.sandbox, 100).await.unwrap();
    let count = str::from_utf8(&console).unwrap().trim().strip_prefix("pid 1 of ").unwrap();
    assert!(count.parse::<u32>().unwrap() <= 5, "itself and its pipeline, not the machine's {count}");
    let own = PathBuf::from(format!("/proc/{}", std::process::id()));
    assert!(own.exists(), "the machine's own /proc was covered");
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
        let paused = processes_of(&dir);
        // One that was waiting in the kernel stops when the kernel lets it go.
        assert!(paused.iter().all(|pid| matches!(state_of(*pid), 'T' | 'D')), "{namespaces:?}");
        eventually("all stop", || paused.iter().all(|pid| state_of(*pid) == 'T')).await;
        assert_eq!(processes_of(&dir), paused, "{namespaces:?}: one was started meanwhile");
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
