//! The gateway and the supervisor inside this binary: the one file that knows those crates.
