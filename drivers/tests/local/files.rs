//! What is on disk: laid out privately, and removed without leaving the root.

use super::*;

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
