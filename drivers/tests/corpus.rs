//! Replays the fuzz corpus of this crate's decoders: what a fuzzer once found, and the seeds that it starts from.
#![cfg(target_os = "linux")]

use std::{fs, panic::catch_unwind, path::Path};

/// The fuzz targets themselves.
#[path = "../../fuzz/src/machines.rs"]
pub mod targets;

fn replay(name: &str, target: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        // The panic has told its own message by then; this one says of which file.
        assert!(catch_unwind(|| target(&input)).is_ok(), "{} broke it", path.display());
        inputs += 1;
    }
    assert!(inputs >= 5, "{}: only {inputs} inputs", directory.display());
}

#[test]
fn frames_of_machines_of_the_corpus_hold() {
    replay("machine_frames", targets::machine_frames);
}

#[test]
fn launches_of_the_corpus_hold() {
    replay("machine_launch", targets::machine_launch);
}
