//! Replays the fuzz corpus: what a fuzzer once found, and the seeds that it starts from, on every run of the tests.

use std::{fs, panic::catch_unwind, path::Path};

/// The fuzz targets themselves.
#[path = "../../fuzz/src/wire.rs"]
pub mod targets;

fn replay(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        // The panic has told its own message by then; this one says of which file.
        assert!(catch_unwind(|| run(&input)).is_ok(), "{} broke {target}", path.display());
        inputs += 1;
    }
    assert!(inputs >= 5, "{}: only {inputs} inputs", directory.display());
}

#[test]
fn control_messages_of_the_corpus_hold() {
    replay("control_message", targets::control_message);
}

#[test]
fn relay_headers_of_the_corpus_hold() {
    replay("relay_header", targets::relay_header);
}

#[test]
fn exec_frames_of_the_corpus_hold() {
    replay("exec_frames", targets::exec_frames);
}

#[test]
fn transfer_frames_of_the_corpus_hold() {
    replay("transfer_frames", targets::transfer_frames);
}
