//! Holdfast's protocol: what gateway, supervisor and callers say to each other.
//!
//! ```text
//!   caller ── gRPC (api, feature `api`) ──▶ gateway ◀── QUIC (transport) ── supervisor
//!                                             │  stream 0: control messages     │
//!                                             │  stream n: relay header, reply, │
//!                                             │            then frames or bytes │
//! ```
//!
//! No tasks and no policy live here: messages, frames, limits, codes, and the thin room around quinn
//! that both ends share.
//!
//! - [`api`]: the public messages `holdfast.v1` (and the gRPC stubs, with feature `api`)
//! - [`control`]: messages between gateway and supervisor
//! - [`frame`]: the frames of an exec relay; [`files`]: those of a transfer of files
//! - [`message`]: length-prefixed messages on a stream
//! - [`close`]: the codes that say who ended a stream or connection, and whether to come back
//! - [`timing`], [`limits`]: numbers, each with its reason
//! - [`transport`]: the one room that knows quinn
//! - [`machine`]: what a microVM's first process reads
//! - [`ids`], [`bootstrap`], [`spec`], [`reason`]: names, the supervisor's file, checking an exec's spec, error reasons

pub mod bootstrap;
mod chunks;
pub mod close;
pub mod files;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod machine;
pub mod message;
pub mod reason;
pub mod spec;
pub mod timing;
pub mod transport;

/// The version of the protocol, negotiated by TLS (ALPN).
pub const ALPN: &[u8] = b"holdfast/1";

/// This build's version, as it is told to peers.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[doc(inline)]
pub use proto::{control::v1 as control, v1 as api};

/// What the protos compile to, nested as their packages are.
// Generated: its style and its documentation are the proto files'.
#[allow(clippy::all, missing_debug_implementations, unreachable_pub)]
mod proto {
    /// The public API, `holdfast.v1` (and its gRPC stubs, with feature `api`).
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/holdfast.v1.rs"));
    }

    /// Messages between gateway and supervisor, `holdfast.control.v1`.
    pub mod control {
        /// Its first version.
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/holdfast.control.v1.rs"));
        }
    }
}

/// The descriptors of all messages and services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

impl std::fmt::Debug for api::EnvVar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EnvVar({}=…)", String::from_utf8_lossy(&self.name))
    }
}

impl std::fmt::Debug for api::SandboxSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SandboxSpec")
            .field("image", &self.image)
            .field("labels", &self.labels)
            .field("env", &self.env.keys())
            .field("user", &self.user)
            .field("resources", &self.resources)
            .field("mounts", &self.mounts)
            .field("network", &self.network)
            .field("read_only_root", &self.read_only_root)
            .field("main", &self.main)
            .field("rootfs", &self.rootfs)
            .field("egress", &self.egress)
            .finish()
    }
}
