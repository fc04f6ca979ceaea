//! The launcher as a program: what it refuses, and how it says so. Machines themselves are tested in `tests/`, `vm`.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use holdfast_drivers::{
    BootStage,
    vm::{
        launch::{BytePath, Egress, Endpoint, Launch},
        note::Note,
    },
};

fn vmm(arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_holdfast-vmm"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn launch(dir: &Path, gvproxy: &str) -> Launch {
    let nowhere = BytePath::from(Path::new("/nowhere"));
    Launch {
        dir: BytePath::from(dir),
        cpus: 1,
        memory_mib: 128,
        rootfs: nowhere.clone(),
        disk: Some(nowhere.clone()),
        user: 0x7000_0001,
        supervisor: nowhere.clone(),
        machine_config: Vec::new(),
        libkrunfw: nowhere,
        gvproxy: BytePath::from(Path::new(gvproxy)),
        gateway: Endpoint { address: [192, 168, 127, 254], port: 1 },
        egress: Egress::None,
        log_bytes: 65536,
        boot_seconds: 5,
    }
}

#[test]
fn a_wrong_command_line_is_told_and_help_is_there() {
    assert_eq!(vmm(&["fly"], b"").status.code(), Some(2));
    assert!(said(&vmm(&["--help"], b"")).contains("holdfast-vmm check"));
}

#[test]
fn a_launch_of_another_build_or_none_is_refused() {
    for (bytes, wanted) in [(&b""[..], "empty"), (&[9, 1, 2], "version 9"), (&[2, 0xff], "does not decode")] {
        let output = vmm(&["hold"], bytes);
        assert!(!output.status.success());
        assert!(said(&output).contains(wanted), "{}", said(&output));
    }
}

#[test]
fn a_library_that_is_none_is_told_by_its_path() {
    let output = vmm(&["check", "/etc/hostname"], b"");
    assert!(!output.status.success());
    // Where there is no KVM that is said first.
    assert!(
        said(&output).contains("/etc/hostname") || said(&output).contains("/dev/kvm"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_network_that_does_not_start_is_the_machines_end_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let output = vmm(&["hold"], &launch(dir.path(), "/bin/false").encode().unwrap());
    assert!(!output.status.success());
    let note = Note::read(dir.path()).unwrap();
    assert_eq!(note.boot.last(), Some(BootStage::Spec));
    let end = note.end.unwrap();
    assert_eq!(end.reason, "NetworkNotStarted");
    assert!(end.message.contains("gvproxy ended at its start"), "{}", end.message);
    let mut left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["console.log", "gvproxy.log", "machine.json"]);
}

#[test]
fn a_program_dies_with_the_process_that_it_was_bound_to() {
    // Bound to a process that is not its parent, it does not even start.
    let output = vmm(&["network", "1", "1879048193", "/bin/echo", "alive"], b"");
    assert!(
        !said(&output).contains("alive") && said(&output).contains("parent is gone"),
        "{}",
        said(&output)
    );
    let own = std::process::id().to_string();
    assert!(said(&vmm(&["network", &own, "1879048193", "/bin/echo", "alive"], b"")).contains("alive"));
}
