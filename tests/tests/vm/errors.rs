//! What cannot be made is said clearly, before anything is made, and leaves nothing.

use std::{fs, process::Command};

use anyhow::ensure;

use super::{
    HOLDFAST,
    place::{self, Parts, Site},
};

#[test]
fn what_is_missing_is_named_and_nothing_is_left() {
    const NAME: &str = "errors::what_is_missing_is_named_and_nothing_is_left";
    place::run(NAME, |parts| async move {
        let temp = tempfile::tempdir()?;
        for (without, wanted) in [("libkrunfw.so.5", "no libkrunfw.so.5"), ("gvproxy", "no gvproxy")] {
            let links = temp.path().join(without);
            parts.lay_out(&links, Some(without))?;
            let said = refused_start(temp.path(), &links)?;
            ensure!(said.contains(wanted) && said.contains("install-parts"), "{said}");
        }
        let links = temp.path().join("all");
        parts.lay_out(&links, None)?;
        // A device of its own name for a moment: this is the test host's, or root's.
        if fs::rename("/dev/kvm", "/dev/kvm-away").is_ok() {
            let said = refused_start(temp.path(), &links);
            fs::rename("/dev/kvm-away", "/dev/kvm")?;
            let said = said?;
            ensure!(said.contains("there is no /dev/kvm") && said.contains("modprobe"), "{said}");
        }

        let site = Site::start(NAME, &parts).await?;
        fs::write(site.images.join("words.tar"), "no archive")?;
        let image = |name: &str| site.images.join(name).display().to_string();
        for (words, wanted) in [
            (vec!["--rootfs".to_owned(), image("words.tar")], "is no tar archive"),
            (vec!["--rootfs".to_owned(), image("nowhere")], "No such file"),
            (vec!["--rootfs".to_owned(), "/etc".to_owned()], "not in a directory that the gateway gives"),
            (vec![], "--rootfs"),
            (
                vec!["--rootfs".to_owned(), image("busybox"), "--memory".to_owned(), "64Mi".to_owned()],
                "at least",
            ),
            (
                vec!["--rootfs".to_owned(), image("busybox"), "--cpus".to_owned(), "0.5".to_owned()],
                "whole processors",
            ),
            (
                vec!["--rootfs".to_owned(), image("busybox"), "--egress".to_owned(), "all".to_owned()],
                "none of none, internet",
            ),
            (
                vec!["--rootfs".to_owned(), image("busybox"), "--workspace".to_owned(), "tape".to_owned()],
                "none of disk, ephemeral",
            ),
        ] {
            let all = ["create".to_owned(), "bad".to_owned()].into_iter().chain(words);
            let refused = site.command(all).run().await?;
            ensure!(refused.code != 0 && refused.stderr.contains(wanted), "{}: {}", wanted, refused.stderr);
        }
        site.create("box", &[]).await?;
        let missing = site.command(["exec", "box", "--", "python3"]).run().await?.exited(127)?;
        ensure!(missing.stderr.contains("python3"), "{}", missing.stderr);
        site.finish(&["box"]).await
    });
}

/// A gateway that does not start: what it says.
fn refused_start(dir: &std::path::Path, parts: &std::path::Path) -> anyhow::Result<String> {
    let output = Command::new(HOLDFAST)
        .args(["gateway", "--driver", "vm", "--listen", "127.0.0.1:0", "--vm-parts"])
        .arg(parts)
        .arg("--data-dir")
        .arg(dir.join("data"))
        // The private directory of this user is not looked through.
        .env("XDG_CACHE_HOME", dir.join("no-cache"))
        .output()?;
    ensure!(!output.status.success(), "it started");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Here, where the tests are started: on a machine whose KVM is there and runs nothing this is the real thing, on one whose
/// KVM works the other half. In the test host every other test begins with a check that must say yes.
#[test]
fn a_kvm_that_runs_no_guest_is_told_from_one_that_does() {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("skipped: there is no /dev/kvm that this user may open");
        return;
    }
    let launcher =
        Parts::find().and_then(|parts| parts.path("holdfast-vmm").map_err(|error| error.to_string()));
    let launcher = match launcher {
        Ok(launcher) => launcher,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let output = Command::new(launcher).arg("check").output().expect("the launcher starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("seen: {}: {}", output.status, said.trim());
    if output.status.success() {
        return;
    }
    for words in
        ["/dev/kvm is there, and makes machines and does not run one", "nested virtualisation", "kvm_amd"]
    {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
    assert!(!place::kvm_works(), "QEMU runs a whole kernel on a KVM that was refused: {said}");
}
