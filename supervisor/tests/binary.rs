//! The binary as a sandbox runs it: a real process, a configuration in a file, a gateway that speaks the protocol.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use holdfast_certs::{
    BundleFiles, CertificateAuthority, Identity, TrustDomain,
    tls::{self, LiveIdentity, NothingRefused},
};
use holdfast_wire::{
    ALPN,
    bootstrap::{GatewayAddress, IdentityFiles, SpoolLimits, SupervisorConfig},
    close::CloseCode,
    control::{Down, Health, Up, Welcome, down, up},
    ids::{Generation, SandboxId, SessionId},
    limits,
    transport::{Connection, Listener, MessageReader, Profile, Role, SendStream, ServerKeys, Socket},
};
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// For a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

const HOUR: Duration = Duration::from_secs(3600);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// A gateway, and the files of one sandbox below `root`.
struct World {
    root: TempDir,
    config: SupervisorConfig,
    listener: Listener,
}

impl World {
    /// `inside`: how the process sees `root`.
    fn new(inside: Option<&Path>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().to_owned();
        let seen = |path: &str| inside.unwrap_or(&outside).join(path);
        let ca = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::open_or_create(ca.path(), TrustDomain::default()).unwrap();
        let issue = |holder: &Identity| {
            authority.issue(holder, HOUR, &[]).unwrap().into_bundle(authority.anchors()).unwrap()
        };
        let sandbox = SandboxId::random();
        BundleFiles::within(&outside.join("identity")).write(&issue(&Identity::sandbox(sandbox.0))).unwrap();
        let gateway = LiveIdentity::new(&issue(&Identity::gateway("gw-1").unwrap()));
        let tls =
            tls::gateway_quic_server_config(&gateway, authority.anchors(), Arc::new(NothingRefused), &[ALPN])
                .unwrap();
        let socket = Socket::Bind("127.0.0.1:0".parse().unwrap());
        let keys = ServerKeys::derive(&[9; 32]);
        let listener = Listener::bind(socket, tls, &keys, Profile::new(Role::Gateway)).unwrap();
        let port = listener.endpoint().local_address().unwrap().port();
        std::fs::create_dir(outside.join("workspace")).unwrap();
        let config = SupervisorConfig {
            sandbox_id: sandbox,
            workload_generation: Generation(1),
            state_dir: seen("state"),
            workspace: seen("workspace"),
            init: false,
            mount_proc: false,
            default_user: None,
            gateway: GatewayAddress {
                addresses: vec![format!("localhost:{port}")],
                server_name: TrustDomain::default().gateway_dns_name(),
            },
            identity: IdentityFiles {
                cert: seen("identity/cert.pem"),
                key: seen("identity/key.pem"),
                ca: seen("identity/ca.pem"),
            },
            spool: SpoolLimits::default(),
            log: "info".to_owned(),
        };
        Self { root, config, listener }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write_config(&self) -> PathBuf {
        let path = self.path("config.toml");
        std::fs::write(&path, self.config.to_toml().unwrap()).unwrap();
        path
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast-supervisor"));
        command.arg("--config").arg(self.write_config()).kill_on_drop(true);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn welcome(&self) -> Attached {
        soon("a Hello", async {
            let connection = self.listener.accept().await.unwrap().accept().await.unwrap();
            let (mut send, recv) = connection.accept_bi().await.unwrap();
            let mut recv = MessageReader::new(recv);
            let hello: Up = recv.message(limits::MAX_MESSAGE).await.unwrap().unwrap();
            assert!(matches!(hello.body, Some(up::Body::Hello(_))), "{hello:?}");
            let welcome = Welcome {
                session_id: SessionId::random().to_bytes(),
                epoch: 1,
                gateway_name: "gw-1".to_owned(),
                ..Welcome::default()
            };
            let welcome = Down { body: Some(down::Body::Welcome(welcome)) };
            send.send_message(&welcome, limits::MAX_MESSAGE).await.unwrap();
            Attached { connection, _send: send, recv }
        })
        .await
    }
}

struct Attached {
    connection: Connection,
    _send: SendStream,
    recv: MessageReader,
}

impl Attached {
    async fn next(&mut self) -> Option<up::Body> {
        let message: Option<Up> = soon("a message", self.recv.message(limits::MAX_MESSAGE)).await.unwrap();
        message.and_then(|message| message.body)
    }

    async fn health(&mut self) -> Health {
        loop {
            if let up::Body::Health(health) = self.next().await.expect("the stream goes on") {
                return health;
            }
        }
    }
}

async fn output(child: Child) -> (Option<i32>, String, String) {
    let output = soon("the end of the process", child.wait_with_output()).await.unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn terminate(child: &Child) {
    let pid = i32::try_from(child.id().expect("it runs")).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
}

/// From start to stop, with both probes and the healthcheck.
async fn lives_and_leaves(world: &World, child: Child, healthcheck: Option<Command>) -> String {
    let mut session = world.welcome().await;
    let health = session.health().await;
    let (exec, filesystem) = (health.exec.unwrap(), health.filesystem.unwrap());
    assert!(exec.ok, "{exec:?}");
    assert!(filesystem.ok, "{filesystem:?}");
    if let Some(mut healthcheck) = healthcheck {
        let (code, out, err) = output(healthcheck.args(["healthcheck", "--attached"]).spawn().unwrap()).await;
        assert_eq!(code, Some(0), "{out}{err}");
        assert!(out.contains("attached (epoch 1)"), "{out}");
    }
    terminate(&child);
    let mut last = None;
    while let Some(body) = session.next().await {
        last = Some(body);
    }
    assert!(
        matches!(&last, Some(up::Body::Leaving(leaving)) if leaving.reason.contains("SIGTERM")),
        "{last:?}"
    );
    let closed = soon("the close", session.connection.closed()).await;
    assert_eq!(closed.code(), Some(CloseCode::SUPERVISOR_STOPPING));
    let (code, _, err) = output(child).await;
    assert_eq!(code, Some(0), "{err}");
    err
}

#[tokio::test]
async fn it_attaches_proves_the_sandbox_and_leaves_in_good_order() {
    let world = World::new(None);
    let child = world.command().env("LOG_FORMAT", "json").spawn().unwrap();
    let log = lives_and_leaves(&world, child, Some(world.command())).await;
    assert!(log.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{log}");
    let mode = std::fs::metadata(world.path("state")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "nobody else looks into the state directory");
}

#[tokio::test]
async fn a_second_one_says_who_is_there_and_ends() {
    let world = World::new(None);
    let first = world.command().spawn().unwrap();
    let _session = world.welcome().await;
    let (code, _, err) = output(world.command().spawn().unwrap()).await;
    assert_eq!(code, Some(1));
    assert!(err.contains(&format!("pid {}", first.id().unwrap())), "{err}");
}

#[tokio::test]
async fn what_is_wrong_with_the_configuration_is_said() {
    let mut world = World::new(None);
    world.config.sandbox_id = SandboxId::random();
    let (code, _, err) = output(world.command().spawn().unwrap()).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("but the configuration is for sandbox"), "{err}");
    let mut command = world.command();
    std::fs::OpenOptions::new()
        .append(true)
        .open(world.path("config.toml"))
        .unwrap()
        .write_all(b"colour = 1\n")
        .unwrap();
    let (code, _, err) = output(command.spawn().unwrap()).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("config.toml") && err.contains("colour"), "{err}");
    let (code, out, _) = output(world.command().arg("healthcheck").spawn().unwrap()).await;
    assert_eq!((code, out.contains("no supervisor runs")), (Some(1), true), "{out}");
}

/// A root file system with nothing in it but the binary and an nsswitch.conf that makes a static glibc load what is
/// not there; the supervisor is the first process of a PID namespace in it. `HOLDFAST_STATIC_SUPERVISOR` names a
/// binary built with `-C target-feature=+crt-static`.
#[tokio::test]
#[ignore = "needs root and a static binary, named by HOLDFAST_STATIC_SUPERVISOR"]
async fn an_empty_root_with_a_hostile_nsswitch_is_enough() {
    let binary = std::env::var_os("HOLDFAST_STATIC_SUPERVISOR").expect("HOLDFAST_STATIC_SUPERVISOR is set");
    let mut world = World::new(Some(Path::new("/")));
    (world.config.init, world.config.mount_proc) = (true, true);
    world.config.gateway.addresses = world
        .config
        .gateway
        .addresses
        .iter()
        .map(|address| address.replace("localhost", "gateway.test"))
        .collect();
    for dir in ["etc", "proc", "tmp"] {
        std::fs::create_dir(world.path(dir)).unwrap();
    }
    // The devices that every container and guest has: a command's empty stdin, and random numbers (a static glibc
    // has no symbol lookup, by which the library for them would find the system call).
    std::fs::create_dir(world.path("dev")).unwrap();
    for (name, minor) in [("null", 3), ("random", 8), ("urandom", 9)] {
        let (file, device) = (world.path("dev").join(name), makedev(1, minor));
        mknodat(CWD, &file, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device).unwrap();
    }
    std::fs::copy(&binary, world.path("supervisor")).unwrap();
    std::fs::write(
        world.path("etc/nsswitch.conf"),
        "passwd: files systemd\ngroup: files systemd\nhosts: files myhostname resolve dns\n",
    )
    .unwrap();
    std::fs::write(world.path("etc/hosts"), "127.0.0.1 gateway.test\n").unwrap();
    world.write_config();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child=TERM", "chroot"]).arg(world.root.path());
    // Its log is the test's: a failure is told with its reason.
    command.args(["/supervisor", "--config", "/config.toml"]).kill_on_drop(true);
    let child = command.spawn().unwrap();
    let mut session = world.welcome().await;
    let health = session.health().await;
    let (exec, filesystem) = (health.exec.unwrap(), health.filesystem.unwrap());
    assert!(exec.ok, "{exec:?}");
    assert!(filesystem.ok, "{filesystem:?}");
    // unshare's death takes its child along, by SIGTERM: an orderly stop of the first process of a namespace.
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let mut last = None;
    while let Some(body) = session.next().await {
        last = Some(body);
    }
    assert!(matches!(&last, Some(up::Body::Leaving(_))), "{last:?}");
}
