//! The protocol held still: what it looks like on the wire, that it survives any chunking and any nonsense, that
//! its bounds fit together, and that versions which do not know each other can talk.

mod bounds;
mod frames;
mod golden;
mod messages;
mod samples;
mod schema;
mod specs;
mod versions;
