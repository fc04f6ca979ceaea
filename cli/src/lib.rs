//! Holdfast's client library, and what the `holdfast` command is made of.

pub mod client;
pub mod profile;
pub mod suggest;
