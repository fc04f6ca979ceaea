//! The one room that knows quinn: endpoints, connections, streams, and the settings that both ends share. Its
//! successor is expected; nothing outside of this folder names a quinn type, but the simulation's socket.
//!
//! ```text
//!   Endpoint ── accept/dial ──▶ Connection ── open_bi/accept_bi ──▶ (SendStream, RecvStream)
//!      │ rebind, close, wait_idle   │ lost() says how it ended        │ guards: dropped without `finish`
//!                                                                     │ they reset, never a false clean end
//! ```
//!
//! What quinn leaves to its users is settled here, once:
//! - dropping quinn's send stream finishes it, which looks like a clean end: [`SendStream`] resets instead;
//! - `open_bi` waits for ever at the peer's stream limit: [`Connection::open_bi`] takes a deadline;
//! - a restarted gateway can only answer unknown connections with a stateless reset if the reset key *and* the
//!   connection-id key are the old ones: [`ServerKeys`] derives both from one persisted secret;
//! - a finite connection window lets two stuck readers hang every stream: it is unlimited, memory is bounded by
//!   the number of streams;
//! - segmentation offload at an MTU above 6553 fails silently: MTU discovery stops at 6500.

mod connection;
mod endpoint;
mod settings;
mod stream;
mod switch;

pub use connection::{Connection, Lost, OpenError, PathStats};
pub use endpoint::{DialError, Dialer, Endpoint, EndpointError, Incoming, Listener, ServerKeys, Socket};
pub use settings::{Congestion, MAX_MTU, Profile, Role};
pub use stream::{MessageReader, RecvStream, SendStream, StreamError};
pub use switch::Switch;
