//! The suite that every driver passes, over real machines.
//!
//! Instead of the supervisor a small fake is the first process: it has no gateway to talk to, and writes and reads files
//! of its workspace as it is told through the shared root file system. All checks are one test, because a test host of
//! its own for each would take longer than the checks.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_drivers::{
    ComputeDriver, Observed, Resources, WorkloadSpec,
    conformance::{CHECKS, Harness, Verdict, sample_spec},
    vm::{VmConfig, VmDriver},
};
use holdfast_wire::ids::SandboxId;
use rustix::process::Signal;

use super::place::{self, Parts};

/// The fake's program: static, because the driver asks for that, and nothing but the way to its script.
const FAKE: &str = r#"
use std::os::unix::process::CommandExt;
fn main() {
    let error = std::process::Command::new("/bin/sh").arg("/fake-supervisor.sh").exec();
    eprintln!("fake supervisor: {error}");
}
"#;

const SCRIPT: &str = r#"
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" != holdfast ] || exec 5<>"/dev/${port##*/}"
done
mount -t tmpfs mounts /.holdfast
mkdir /.holdfast/disk
mount -t ext4 /dev/vda /.holdfast/disk
workspace=/.holdfast/disk/workspace
mkdir -p $workspace
config=$(cat /.holdfast-machine.toml)
value() { echo "$config" | sed -n "s/^$1 = \"*\([^\"]*\)\"*$/\1/p" | head -n 1; }
mail=/mailbox/$(value sandbox_id)/$(value workload_generation)
echo init >&5
(
    read=
    while :; do
        for letter in "$mail"/*; do
            case "$read " in *" $letter "*) continue ;; esac
            [ -e "$letter" ] || continue
            read="$read $letter"
            . "$letter"
        done
        sleep 0.1
    done
) &
while read -r line <&5; do
    if [ "$line" = stop ]; then
        sync
        echo stopped >&5
        reboot -f
    fi
done
"#;

#[test]
fn the_vm_driver_conforms() {
    const NAME: &str = "conformance::the_vm_driver_conforms";
    let fake = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake-supervisor");
    if place::is_outside() {
        build_fake(&fake);
    }
    place::run(NAME, |parts| async move {
        let mut failed = Vec::new();
        for check in CHECKS {
            // Each with machines of its own, so that what one leaves is not the next one's.
            let machines = Machines::new(&parts, &fake)?;
            let begun = Instant::now();
            let verdict = check.run(&machines).await;
            eprintln!("{} {:?} {:.1} s", check.name, verdict, begun.elapsed().as_secs_f64());
            match verdict {
                Ok(Verdict::Holds) => {}
                Ok(Verdict::Unsupported) => failed.push(format!("{}: a vm can do all of it", check.name)),
                Err(seen) => {
                    machines.tell();
                    failed.push(seen);
                }
            }
        }
        anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    });
}

fn build_fake(to: &Path) {
    let source = to.with_extension("rs");
    fs::write(&source, FAKE).expect("writing the fake");
    let built = Command::new("rustc")
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .arg(to)
        .arg(source)
        .status();
    assert!(built.is_ok_and(|status| status.success()), "the fake supervisor does not compile");
}

struct Machines {
    temp: tempfile::TempDir,
    mails: AtomicU32,
}

impl Machines {
    fn new(parts: &Parts, fake: &Path) -> anyhow::Result<Self> {
        let temp = tempfile::Builder::new().prefix("holdfast-vm-").tempdir()?;
        let links = temp.path().join("parts");
        parts.lay_out(&links, Some("holdfast-supervisor"))?;
        std::os::unix::fs::symlink(fake, links.join("holdfast-supervisor"))?;
        let rootfs = temp.path().join("images/busybox");
        parts.rootfs(&rootfs)?;
        fs::create_dir(rootfs.join("mailbox"))?;
        fs::write(rootfs.join("fake-supervisor.sh"), SCRIPT)?;
        Ok(Self { temp, mails: AtomicU32::new(0) })
    }

    fn root(&self) -> PathBuf {
        self.temp.path().join("machines")
    }

    fn dir(&self, sandbox: SandboxId) -> PathBuf {
        self.root().join(sandbox.to_string())
    }

    fn record(&self, sandbox: SandboxId) -> serde_json::Value {
        let text = fs::read(self.dir(sandbox).join("workload.json")).expect("a record");
        serde_json::from_slice(&text).expect("a record that parses")
    }

    /// Has the fake do something, and waits for its word on the console.
    async fn mail(&self, sandbox: SandboxId, script: &str) -> String {
        let generation = self.record(sandbox)["generation"].to_string();
        let generation = generation.trim_matches('"');
        let mailbox =
            self.temp.path().join("images/busybox/mailbox").join(sandbox.to_string()).join(generation);
        fs::create_dir_all(&mailbox).expect("a mailbox");
        let mark = format!("mail-{}-", self.mails.fetch_add(1, Ordering::Relaxed));
        let (new, sent) = (self.temp.path().join("mail"), mailbox.join(&mark));
        fs::write(&new, format!("echo \"{mark}$({script})-over\" >/dev/console\n")).expect("writing mail");
        fs::rename(new, &sent).expect("sending mail");
        let deadline = Instant::now() + self.patience();
        loop {
            let console = fs::read(self.dir(sandbox).join("console.log")).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            if let Some((answer, _)) =
                console.rsplit_once(&mark).and_then(|(_, rest)| rest.split_once("-over"))
            {
                // A machine that is started again would do it again.
                fs::remove_file(sent).expect("removing mail");
                return answer.to_owned();
            }
            assert!(Instant::now() < deadline, "the fake does not answer; its console: {console}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn tell(&self) {
        for machine in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            for name in ["workload.json", "machine.json", "launcher.log", "gvproxy.log", "console.log"] {
                if let Ok(text) = fs::read(machine.path().join(name)) {
                    eprintln!("==== {name}\n{}", String::from_utf8_lossy(&text));
                }
            }
        }
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for process in place::processes_below(&self.root()) {
            let pid = process.split(' ').next().and_then(|pid| pid.parse().ok());
            let _ = pid.map(|pid| holdfast_tests::harness::signal(pid, Signal::KILL));
        }
    }
}

#[async_trait]
impl Harness for Machines {
    async fn open(&self) -> Arc<dyn ComputeDriver> {
        let gateway = SocketAddr::from(([127, 0, 0, 1], 9));
        let config = VmConfig {
            rootfs_dirs: vec![self.temp.path().join("images")],
            parts_dir: Some(self.temp.path().join("parts")),
            boot_deadline: place::PATIENCE,
            ..VmConfig::new(self.root(), gateway)
        };
        Arc::new(VmDriver::open(config).await.expect("the driver opens"))
    }

    fn spec(&self) -> WorkloadSpec {
        let rootfs = self.temp.path().join("images/busybox");
        WorkloadSpec {
            rootfs: Some(rootfs.to_str().expect("UTF-8").to_owned()),
            resources: Resources { memory_bytes: Some(160 << 20), ..Resources::default() },
            ..sample_spec(SandboxId::random())
        }
    }

    fn invalid_specs(&self) -> Vec<(WorkloadSpec, &'static str)> {
        let resources = |memory_bytes, cpu_millis, processes| Resources {
            memory_bytes,
            cpu_millis,
            processes,
            ..Resources::default()
        };
        vec![
            (WorkloadSpec { image: Some("debian:13".into()), ..self.spec() }, "image"),
            (WorkloadSpec { user: Some("nobody".into()), ..self.spec() }, "user"),
            (WorkloadSpec { rootfs: None, ..self.spec() }, "rootfs"),
            (WorkloadSpec { rootfs: Some("/etc".into()), ..self.spec() }, "rootfs"),
            (WorkloadSpec { rootfs: Some("relative".into()), ..self.spec() }, "rootfs"),
            (WorkloadSpec { egress: Some("everything".into()), ..self.spec() }, "egress"),
            (
                WorkloadSpec { resources: resources(Some(1 << 20), None, None), ..self.spec() },
                "resources.memory_bytes",
            ),
            (
                WorkloadSpec { resources: resources(None, Some(1500), None), ..self.spec() },
                "resources.cpu_millis",
            ),
            (
                WorkloadSpec { resources: resources(None, None, Some(10)), ..self.spec() },
                "resources.processes",
            ),
        ]
    }

    async fn kill(&self, observed: &Observed) {
        let pid = i32::try_from(observed.pid.expect("a pid")).expect("a pid");
        holdfast_tests::harness::signal(pid, Signal::KILL).expect("killing the holder");
    }

    async fn write_file(&self, sandbox: SandboxId, name: &str, content: Bytes) {
        let octal: String = content.iter().map(|byte| format!("\\{byte:03o}")).collect();
        self.mail(sandbox, &format!("printf '{octal}' >$workspace/{name}; sync; echo done")).await;
    }

    async fn read_file(&self, sandbox: SandboxId, name: &str) -> Option<Bytes> {
        if self.record(sandbox)["stage"]["stage"] == "running" {
            let hex =
                self.mail(sandbox, &format!("od -An -v -tx1 $workspace/{name} 2>&1 | tr -d ' \\n'")).await;
            let digits: Option<Vec<u8>> =
                (0..hex.len() / 2).map(|n| u8::from_str_radix(hex.get(2 * n..2 * n + 2)?, 16).ok()).collect();
            return digits.map(Bytes::from);
        }
        // No machine runs: its disk is read from outside.
        let disk = self.dir(sandbox).join("disk.ext4");
        let output = Command::new("debugfs")
            .args(["-R", &format!("cat /workspace/{name}")])
            .arg(disk)
            .output()
            .ok()?;
        (!output.stdout.is_empty()).then(|| output.stdout.into())
    }

    async fn write_console(&self, sandbox: SandboxId, text: Bytes) {
        let path = self.dir(sandbox).join("console.log");
        let mut console = fs::OpenOptions::new().append(true).create(true).open(path).expect("the console");
        console.write_all(&text).expect("writing to the console");
    }

    async fn leftovers(&self, observed: &Observed) -> Vec<String> {
        let mut left = place::processes_below(&self.dir(observed.sandbox));
        let id = observed.sandbox.to_string();
        let files = fs::read_dir(self.root()).into_iter().flatten().flatten().map(|entry| entry.path());
        left.extend(files.map(|path| path.display().to_string()).filter(|path| path.contains(&id)));
        let trash = fs::read_dir(self.root().join(".trash")).into_iter().flatten().flatten();
        left.extend(trash.map(|entry| entry.path().display().to_string()));
        left
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(90)
    }
}
