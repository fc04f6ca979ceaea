//! What tests of sessions and execs stand on: a link in memory, a supervisor that does as it is told, and a
//! gateway without an API around the real rooms. All of it lives under a paused clock.

mod link;
mod lone;
mod supervisor;
mod world;

pub(crate) use self::{
    link::FakeWire,
    lone::FakeSessions,
    supervisor::{Act, FakeSupervisor, Heard, open_control},
    world::{FakeWorld, a_spec, an_attach},
};
