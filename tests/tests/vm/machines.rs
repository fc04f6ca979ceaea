//! A machine's life, as a user sees it.

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::Command,
    sync::LazyLock,
    time::Instant,
};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use super::place::{self, Site};

/// Each way, with digests. Two emulations on a busy machine move one or two MiB a second.
static BULK: LazyLock<usize> = LazyLock::new(|| place::number("HOLDFAST_VM_MIB", 64) << 20);

#[test]
fn a_machine_runs_commands_and_keeps_its_files_through_a_stop() {
    const NAME: &str = "machines::a_machine_runs_commands_and_keeps_its_files_through_a_stop";
    place::run(NAME, |parts| async move {
        let site = Site::start(NAME, &parts).await?;
        let begun = Instant::now();
        site.create("box", &["--cpus", "1", "--memory", "384Mi"]).await?;
        eprintln!("measured: create to Ready {:.1} s", begun.elapsed().as_secs_f64());
        it_came_up_stage_by_stage(&site).await?;
        its_processes_are_confined(&site).await?;

        let uname = site.command(["exec", "box", "--", "uname", "-a"]).run().await?.success()?.text();
        let outside = Command::new("uname").arg("-r").output()?.stdout;
        ensure!(!uname.contains(String::from_utf8(outside)?.trim()), "that is the kernel outside: {uname}");
        eprintln!("measured: {}", uname.trim());
        ensure!(uname.contains(" box "), "the host name is the sandbox's: {uname}");

        for (line, code) in [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 128 + 15)] {
            site.sh("box", line).await?.exited(code)?;
        }
        site.command(["exec", "box", "--", "no-such-command"]).run().await?.exited(127)?;
        let tty = site
            .command(["exec", "-t", "box", "--", "sh", "-c", "test -t 0 && echo a terminal"])
            .run()
            .await?;
        ensure!(tty.success()?.text().contains("a terminal"), "no terminal");
        let memory = site.sh("box", "awk '/MemTotal/ { print $2 }' /proc/meminfo").await?.success()?.text();
        let memory: u64 = memory.trim().parse()?;
        ensure!((256 << 10..400 << 10).contains(&memory), "{memory} KiB of memory, asked for 384 MiB");

        let begun = Instant::now();
        for _ in 0..5 {
            site.command(["exec", "box", "--", "true"]).run().await?.success()?;
        }
        eprintln!(
            "measured: an exec with its command line tool {:.0} ms",
            begun.elapsed().as_secs_f64() * 200.0
        );
        let holder = site.holder("box").await?;
        for mark in ["machine", "gvproxy"] {
            let kib = holdfast_tests::harness::resident_kib(place::child_of(holder, mark)?)?;
            eprintln!("measured: {mark} {} MiB resident", kib / 1024);
        }
        eprintln!("measured: holder {} MiB resident", holdfast_tests::harness::resident_kib(holder)? / 1024);

        bulk(&site).await?;
        secrets_are_out_of_sight(&site).await?;

        // Through a stop and a start; a command's own files and those outside of the workspace.
        site.sh("box", "echo kept > /workspace/file; echo too > /etc/own; sync").await?.success()?;
        let begun = Instant::now();
        site.command(["stop", "box"]).run().await?.success()?;
        site.command(["wait", "box", "--for", "phase=Stopped", "--timeout", "60s"]).run().await?.success()?;
        eprintln!("measured: stop {:.1} s", begun.elapsed().as_secs_f64());
        let note = std::fs::read_to_string(site.dir("box").await?.join("machine.json"))?;
        ensure!(note.contains("the supervisor stopped the machine"), "not in order: {note}");
        site.command(["start", "box"]).run().await?.success()?;
        site.command(["wait", "box", "--timeout", "200s"]).run().await?.success()?;
        let files = site.sh("box", "cat /workspace/file /etc/own").await?.success()?.text();
        ensure!(files == "kept\ntoo\n", "the files are {files:?}");
        ensure!(!site.images.join("busybox/etc/own").exists(), "the image was changed");
        site.finish(&["box"]).await
    });
}

/// As the events tell it, and then as its condition.
async fn it_came_up_stage_by_stage(site: &Site) -> anyhow::Result<()> {
    let events = site.command(["events", "box", "-o", "jsonl"]).run().await?.success()?.text();
    let mut stages = Vec::new();
    for line in events.lines() {
        let event: serde_json::Value = serde_json::from_str(line)?;
        if event["reason"] == "BootStage" {
            eprintln!("measured: stage {}", event["message"]);
            let message = event["message"].as_str().context("a message")?;
            stages.push(message.split(',').next().unwrap_or_default().to_owned());
        }
    }
    let want = ["spec", "network", "kernel", "init", "dialled", "attached", "probed"];
    ensure!(stages == want, "the stages were {stages:?}");
    let sandbox = site.get("box").await?;
    let booted = sandbox["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == "Booted");
    let booted = booted.context("a condition")?;
    ensure!(booted["status"] == "True" && booted["reason"] == "Probed", "{booted}");
    Ok(())
}

/// What a guest would have that took over a process of its machine.
async fn its_processes_are_confined(site: &Site) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: how a root gateway's machines are confined: this is not root");
        return Ok(());
    }
    let holder = site.holder("box").await?;
    let (machine, network) = (place::child_of(holder, "machine")?, place::child_of(holder, "gvproxy")?);
    let ours = std::fs::read_link("/proc/self/ns/mnt")?;
    // To read what is root's alone in the image; nothing; to end the other two.
    for (name, pid, capabilities) in [
        ("machine", machine, "0000000000000004"),
        ("gvproxy", network, "0000000000000000"),
        ("holder", holder, "0000000000000020"),
    ] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
            line.map(str::to_owned).with_context(|| format!("{field} of {name}: {status}"))
        };
        ensure!(field("NoNewPrivs")? == "1", "{name} may gain privileges");
        for set in ["CapEff", "CapPrm"] {
            ensure!(field(set)? == capabilities, "{name} has {set} {}", field(set)?);
        }
        ensure!(field("CapBnd")? == "0000000000000000" && field("CapInh")? == "0000000000000000", "{status}");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("a limit")?;
        ensure!(core.split_whitespace().nth(4) == Some("0"), "{name}: {core}");
        let mounts = std::fs::read_link(format!("/proc/{pid}/ns/mnt"))?;
        if name == "holder" {
            continue;
        }
        ensure!(mounts != ours, "{name} has the gateway's mounts");
        let root = format!("/proc/{pid}/root");
        let mut seen: Vec<_> = std::fs::read_dir(&root)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        seen.sort();
        eprintln!("measured: {name} sees {seen:?}");
        let here = std::path::Path::new(&root).join(site.images.strip_prefix("/")?);
        ensure!(!here.exists(), "{name} sees {}", here.display());
        if name == "machine" {
            ensure!(seen == ["console", "dev", "disk", "image", "proc"], "{name} sees {seen:?}");
            ensure!(field("Seccomp")? == "2", "{name} may make every call");
        }
        let files = limits.lines().find(|line| line.starts_with("Max open files")).context("a limit")?;
        ensure!(!files.contains("unlimited"), "{name}: {files}");
    }
    let real = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("users")?;
        let users: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        ensure!(users.windows(2).all(|two| two[0] == two[1]), "several users: {users:?}");
        users.first().copied().context("a user")
    };
    let (machine, network) = (real(machine)?, real(network)?);
    ensure!(machine >= 0x7000_0000 && network >= 0x7800_0000 && machine != network, "{machine}, {network}");
    // And the guest's root may still read what is root's alone.
    site.sh("box", "cat /etc/secret").await?.success()?;
    let note = site.command(["status", "-o", "json"]).run().await?.success()?.text();
    ensure!(note.contains("confined by limits, own mounts, own user") && !note.contains("not by"), "{note}");
    Ok(())
}

/// Many bytes in, and the same out: through one command at once, and as a file.
async fn bulk(site: &Site) -> anyhow::Result<()> {
    let (here, back) = (site.images.join("bulk"), site.images.join("back"));
    let mut bytes = vec![0; *BULK];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let want = digest(&bytes);
    std::fs::write(&here, &bytes)?;
    let patience = place::PATIENCE * u32::try_from(*BULK >> 23)?.max(1);
    let path = |path: &Path| path.to_str().map(str::to_owned).context("a path in UTF-8");

    let begun = Instant::now();
    let inside = ["exec", "-i", "box", "--", "cat"];
    let inside = site.command(inside).patience(patience).stdin(bytes).run().await?.success()?;
    rate("exec -i -- cat: in and out at once", begun);
    ensure!(inside.stdout.len() == *BULK && digest(&inside.stdout) == want, "other bytes came back");

    let begun = Instant::now();
    let copy = site.command(["cp", &path(&here)?, "box:/workspace/bulk"]);
    copy.patience(patience).run().await?.success()?;
    rate("cp: in", begun);
    let begun = Instant::now();
    let sum = site.sh("box", "sha256sum < /workspace/bulk").await?.success()?.text();
    ensure!(sum.starts_with(&want), "other bytes arrived: {sum}");
    rate("sha256sum in there", begun);
    let begun = Instant::now();
    let copy = site.command(["cp", "box:/workspace/bulk", &path(&back)?]);
    copy.patience(patience).run().await?.success()?;
    rate("cp: out", begun);
    ensure!(digest(&std::fs::read(&back)?) == want, "other bytes were brought");
    site.sh("box", "rm /workspace/bulk").await?.success()?;
    for file in [here, back] {
        std::fs::remove_file(file)?;
    }
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rate(what: &str, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    let mib = *BULK >> 20;
    eprintln!("measured: {mib} MiB by {what}: {seconds:.1} s, {:.2} MiB/s", mib as f64 / seconds);
}

/// The identity is nowhere on disk, and not in the file that brought it.
async fn secrets_are_out_of_sight(site: &Site) -> anyhow::Result<()> {
    site.sh("box", "test ! -e /.holdfast-machine.toml -a ! -e /init.krun").await?.success()?;
    let words = site.sh("box", "cat /proc/cmdline; env").await?.success()?.text();
    ensure!(!words.contains("PRIVATE") && !words.contains("BEGIN"), "{words}");
    let dir = site.dir("box").await?;
    let found = Command::new("grep").args(["-rlI", "PRIVATE KEY"]).arg(&dir).output()?;
    ensure!(found.stdout.is_empty(), "a key in {}", String::from_utf8_lossy(&found.stdout));
    Ok(())
}

#[test]
fn two_machines_at_once_reach_their_gateway_and_nothing_else() {
    const NAME: &str = "machines::two_machines_at_once_reach_their_gateway_and_nothing_else";
    place::run(NAME, |parts| async move {
        let site = Site::start(NAME, &parts).await?;
        // The other's root is an image: unpacked once, its second layer over its first.
        let archive = site.images.join("image.tar");
        place::oci_archive(&site.images.join("busybox"), &archive)?;
        let image = archive.to_str().context("UTF-8")?;
        let words = ["--egress", "internet", "--rootfs", image];
        let (one, other) = tokio::join!(site.create("one", &[]), site.create("other", &words));
        one?;
        other?;
        let layers =
            site.sh("other", "test ! -e /removed && cat /added && stat -c %u:%a /etc/secret").await?;
        ensure!(layers.success()?.text() == "by the second layer\n0:600\n", "the layers are not one root");
        let roots = std::fs::read_dir(site.cluster.data_dir().join("rootfs"))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .count();
        ensure!(roots == 1, "{roots} roots of one archive");
        for (machine, word) in [("one", "first"), ("other", "second")] {
            site.sh(machine, &format!("echo {word} > /workspace/mine")).await?.success()?;
        }
        ensure!(site.sh("one", "cat /workspace/mine").await?.text() == "first\n");

        let mut secret = Secret::listen()?;
        let victim = site.images.join("victim");
        std::fs::write(&victim, "kept")?;
        let (one, other) = tokio::join!(
            nothing_answers(&site, "one", &secret, &victim),
            nothing_answers(&site, "other", &secret, &victim)
        );
        one?;
        other?;
        ensure!(!secret.was_asked(), "somebody reached the host's loopback");
        ensure!(std::fs::read(&victim)? == b"kept", "a file of the host was touched");
        let exposed = std::net::TcpStream::connect(("127.0.0.1", EXPOSED));
        ensure!(exposed.is_err(), "a machine has opened a port of the host");
        // By a pipe that does not end: gvproxy may take the end of a question for the end of the talk.
        let internet = format!(
            "mkfifo /tmp/ask && exec 3<>/tmp/ask && {} >&3 && nc -w 30 203.0.113.7 8080 <&3",
            get("/")
        );

        // The internet, as far as this test goes: an address of documentation on this machine.
        let loopback = Command::new("ip").args(["addr", "add", "203.0.113.7/32", "dev", "lo"]).status()?;
        if loopback.success() {
            let page = Page::serve()?;
            let got = site.sh("other", &internet).await;
            Command::new("ip").args(["addr", "del", "203.0.113.7/32", "dev", "lo"]).status()?;
            drop(page);
            let got = got?.success()?.text();
            ensure!(got.ends_with("public\n"), "with egress the internet does not answer: {got}");
        }

        let listeners = Command::new("ss").args(["-H", "-lntup"]).output()?.stdout;
        let listeners = String::from_utf8_lossy(&listeners).into_owned();
        ensure!(!listeners.is_empty(), "ss shows nothing, not even the gateway");
        for name in ["gvproxy", "holdfast-vmm", "libkrun"] {
            ensure!(!listeners.contains(name), "{name} listens: {listeners}");
        }
        site.finish(&["one", "other"]).await
    });
}

/// What a machine would have its host listen on.
const EXPOSED: u16 = 47_777;

/// A request, by hand: busybox's wget looks the protocol's name up, and dies at it where there is no /etc/services.
fn get(path: &str) -> String {
    format!("printf 'GET {path} HTTP/1.0\\r\\n\\r\\n'")
}

/// What would have gvproxy listen for this machine on the host.
fn expose(protocol: &str, local: &str, remote: &str) -> String {
    let body = format!(r#"{{"local":"{local}","remote":"{remote}","protocol":"{protocol}"}}"#);
    let head = format!("POST /services/forwarder/expose HTTP/1.0\\r\\nContent-Length: {}", body.len());
    format!("printf '{head}\\r\\n\\r\\n%s' '{body}'")
}

/// All that a machine must not reach, asked at once: each is waited for in vain.
async fn nothing_answers(site: &Site, machine: &str, secret: &Secret, victim: &Path) -> anyhow::Result<()> {
    let gateway = site.cluster.gateway()?.address.port();
    let victim = victim.to_str().context("a path in UTF-8")?;
    let mut questions = vec![
        (get("/services/forwarder/all"), "192.168.127.1", 80),
        (expose("tcp", &format!("0.0.0.0:{EXPOSED}"), "192.168.127.2:80"), "192.168.127.1", 80),
        (expose("unix", victim, "tcp://192.168.127.2:80"), "192.168.127.1", 80),
        (get("/"), "192.168.127.254", secret.port),
        (get("/"), "192.168.127.254", gateway),
    ];
    if machine == "one" {
        // Without egress the internet is one of them.
        questions.push((get("/"), "203.0.113.7", 8080));
    }
    let ask = |(request, address, port): &(String, &str, u16)| {
        format!("({request} | nc -w 5 {address} {port}; echo \"$? of {address} {port}\") &\n")
    };
    let script: String = questions.iter().map(ask).collect();
    let answers = site.sh(machine, &format!("{script}wait")).await?.success()?.text();
    let mut lines: Vec<&str> = answers.lines().collect();
    let mut want: Vec<String> =
        questions.iter().map(|(_, address, port)| format!("1 of {address} {port}")).collect();
    lines.sort_unstable();
    want.sort_unstable();
    ensure!(lines == want, "{machine} asked, and got: {answers}");
    Ok(())
}

/// Something on the host's loopback that nobody in a machine may see.
struct Secret {
    listener: TcpListener,
    port: u16,
}

impl Secret {
    fn listen() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        Ok(Self { port: listener.local_addr()?.port(), listener })
    }

    fn was_asked(&mut self) -> bool {
        self.listener.accept().is_ok()
    }
}

/// One web page, for each that asks.
struct Page(#[allow(dead_code)] std::thread::JoinHandle<()>);

impl Page {
    fn serve() -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind("203.0.113.7:8080").context("listening on the address just added")?;
        Ok(Self(std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let mut request = [0; 1024];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\npublic\n");
            }
        })))
    }
}
