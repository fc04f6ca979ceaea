//! The simulation: the real gateway core and real supervisors over a network in memory, on a paused clock.
//!
//! ```text
//!   scenario ─▶ World ─ verbs ─▶ net (lines, NAT boxes) ═ gateway core, supervisors' links and execs
//!                 └─ check ◀── Records of callers, the store, the spawner's count: do they tell the same truth?
//! ```
//!
//! - [`line`](mod@line): one direction of a path and what is wrong with it; [`nat`]: a NAT box; [`net`]: hosts,
//!   sockets and the courier between them
//! - [`gateway`]: lives of the gateway; [`supervisor`]: lives of a supervisor; [`store`]: what outlives the first
//! - [`script`]: commands and the truth about them; [`caller`]: who wants to know it
//! - [`world`]: all of it together, and its faults; [`check`]: the invariants
//!
//! A seed decides all chances of the network and of the scenario. TLS keys, ids and the order in which tokio looks
//! at branches are not in its hands, so a seed replays a scenario's faults, and all but rarely its course.

pub mod caller;
pub mod check;
pub mod gateway;
pub mod line;
pub mod nat;
pub mod net;
pub mod script;
pub mod store;
pub mod supervisor;
pub mod world;

pub use self::{
    caller::{Plan, Record, Stream, StreamEnd},
    line::Impairments,
    net::Way,
    script::Script,
    world::{Plot, World},
};
