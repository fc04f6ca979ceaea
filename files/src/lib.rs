//! Transfers of files: a tree is read here, a tree is written there, and between them goes one stream of bytes.
//!
//! ```text
//!   tree ─▶ Reader ─▶ Emitter ─▶ Window ~~ relays, any number ~~▶ Window ─▶ Writer ─▶ tree
//!                     frames,    what is not                      what the    temporary names, fsync,
//!                     digest     acknowledged                     disk has    rename; counts, digest
//!                                                                 not taken
//! ```
//!
//! The supervisor and the command use the same two ends, so that a file written into a sandbox and one written out of
//! it are treated alike: nothing leaves the directory that it is written into, nothing is seen half written, and
//! nobody says "done" but the one who has it.
//!
//! - [`window`]: the stream's bytes that are on their way, by offset
//! - [`emit`]: frames into the window; [`tally`]: counts and digest, the same at both ends
//! - [`read`]: walks a tree and emits it
//! - [`mod@write`]: takes frames and makes a tree; [`place`]: where to; [`batch`]: made durable, many at a time
//! - [`names`]: which paths an entry may have
//! - [`calls`]: stat, list, mkdir, remove, move
//! - `archive` (feature `tar`): a tar archive in place of a tree, at either end
//!
//! All of it blocks: it runs on threads of its own, never on a runtime's.

#[cfg(feature = "tar")]
pub mod archive;
pub mod batch;
pub mod calls;
pub mod emit;
pub mod failure;
pub mod journal;
pub mod names;
pub mod place;
pub mod read;
pub mod tally;
pub mod window;
pub mod write;

pub use self::{
    emit::{Emitter, Summary},
    failure::Failure,
    journal::{Journal, Leftovers},
    window::{Piece, Window},
    write::Writer,
};
