//! A machine's life, as a user sees it.

use std::{process::Command, time::Instant};

use anyhow::ensure;

use super::place::{self, Site};

#[test]
fn a_machine_runs_commands_in_a_kernel_of_its_own() {
    const NAME: &str = "machines::a_machine_runs_commands_in_a_kernel_of_its_own";
    place::run(NAME, |parts| async move {
        let site = Site::start(NAME, &parts).await?;
        let begun = Instant::now();
        site.create("box", &["--cpus", "1", "--memory", "384Mi"]).await?;
        eprintln!("measured: create to Ready {:.1} s", begun.elapsed().as_secs_f64());

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
        for _ in 0..20 {
            site.command(["exec", "box", "--", "true"]).run().await?.success()?;
        }
        eprintln!(
            "measured: an exec with its command line tool {:.0} ms",
            begun.elapsed().as_secs_f64() * 50.0
        );
        let holder = site.holder("box").await?;
        for mark in ["machine", "gvproxy"] {
            let kib = holdfast_tests::harness::resident_kib(place::child_of(holder, mark)?)?;
            eprintln!("measured: {mark} {} MiB resident", kib / 1024);
        }
        eprintln!("measured: holder {} MiB resident", holdfast_tests::harness::resident_kib(holder)? / 1024);

        secrets_are_out_of_sight(&site).await?;

        site.finish(&["box"]).await
    });
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
