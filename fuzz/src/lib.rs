//! What the fuzz targets do with their bytes, as plain functions: `fuzz_targets/` hands them libFuzzer's inputs, and
//! the workspace's tests hand them the corpus. They panic where a promise of the decoder is broken.

pub mod machines;
pub mod spool;
pub mod wire;
