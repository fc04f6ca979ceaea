//! What the next gateway finds: workloads that outlived one, and what only looks like them.

use super::*;

#[tokio::test]
async fn a_workload_outlives_a_killed_gateway_and_is_adopted() {
    for namespaces in ["auto", "never"] {
        let local = Local::new(if namespaces == "auto" { Namespaces::Auto } else { Namespaces::Never });
        let spec = sample_spec(SandboxId::random());
        let mut gateway = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "adoption::a_gateway_to_be_killed", "--nocapture"])
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
