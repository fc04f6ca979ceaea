//! Replays the fuzz corpus of the supervisor's decoders: what a fuzzer once found, and the seeds that it starts from.

use std::{fs, panic::catch_unwind, path::Path};

/// The fuzz targets themselves.
#[path = "../../fuzz/src/spool.rs"]
pub mod targets;

#[test]
fn spool_records_of_the_corpus_hold() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/spool_record");
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        // The panic has told its own message by then; this one says of which file.
        assert!(catch_unwind(|| targets::spool_record(&input)).is_ok(), "{} broke it", path.display());
        inputs += 1;
    }
    assert!(inputs >= 5, "{}: only {inputs} inputs", directory.display());
}
