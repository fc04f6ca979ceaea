//! Names for things: every id is its own type, so that no call can take one for another.
//!
//! Ids are UUIDs. Those that Holdfast makes are version 7 (they sort by time, which keeps the store's
//! indexes tight); an [`ExecId`] comes from the caller and may be any version.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, never given before; ids made later sort later.
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id in its 16 bytes on the wire.
            #[must_use]
            pub fn to_bytes(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(self.0.as_bytes())
            }

            /// Reads the 16 bytes of the wire. A wrong length is an error.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
                Uuid::from_slice(bytes)
                    .map(Self)
                    .map_err(|_| IdError { what: stringify!($name), got: format!("{} bytes", bytes.len()) })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0.hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(s: &str) -> Result<Self, IdError> {
                Uuid::try_parse(s).map(Self).map_err(|_| IdError {
                    what: stringify!($name),
                    got: format!("{:?}", s.chars().take(64).collect::<String>()),
                })
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    };
}

uuid_id!(
    /// A sandbox, for its whole life: through stops, starts and every workload behind it.
    SandboxId
);
uuid_id!(
    /// An exec: one command in one sandbox. Chosen by the caller, so that a repeated start is the same exec.
    ExecId
);
uuid_id!(
    /// One authenticated connection of a supervisor, from attach to loss.
    SessionId
);
uuid_id!(
    /// One caller's stream joined to one stream of a session. For logs; the stream itself is the correlation.
    RelayId
);
uuid_id!(
    /// A transfer of files. Chosen by the caller, so that a repeated open is the same transfer.
    TransferId
);
uuid_id!(
    /// One supervisor process: another process in the same sandbox has another instance.
    Instance
);

/// An id that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{got} is not a valid {what}: expected a UUID")]
pub struct IdError {
    what: &'static str,
    got: String,
}

impl ExecId {
    /// The exec that is the main command of one workload of a sandbox. Everybody who knows the two knows it, so a
    /// start that is repeated by a gateway without memory is a start of the same exec.
    #[must_use]
    pub fn of_main(sandbox: SandboxId, generation: Generation) -> Self {
        use sha2::{Digest as _, Sha256};
        let digest = Sha256::new()
            .chain_update(b"holdfast main command")
            .chain_update(sandbox.0.as_bytes())
            .chain_update(generation.0.to_be_bytes())
            .finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        // Version 8: whoever makes such an id says how.
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// Counts the attaches of one sandbox's session. The newest wins by comparison, never by timing.
    Epoch
);
counter!(
    /// Counts the workloads made for one sandbox: facts about an older one are not facts about this one.
    Generation
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_text_and_bytes() {
        let id = ExecId::random();
        assert_eq!(id.to_string().parse::<ExecId>().unwrap(), id);
        assert_eq!(ExecId::from_slice(&id.to_bytes()).unwrap(), id);
    }

    #[test]
    fn a_main_commands_id_is_a_fact_about_its_workload() {
        let sandbox: SandboxId = "0199b2c0-5e0e-7b3a-9a50-2f8a4c1d9e77".parse().unwrap();
        let first = ExecId::of_main(sandbox, Generation(1));
        // Stored by every gateway before: it must never change.
        assert_eq!(first.to_string(), "50afb9e3-1b3e-8ce8-bc3b-2f930cee6341");
        assert_ne!(first, ExecId::of_main(sandbox, Generation(2)));
        assert_ne!(first, ExecId::of_main(SandboxId::random(), Generation(1)));
    }

    #[test]
    fn a_bad_id_says_what_it_is_not() {
        let error = "box".parse::<SandboxId>().unwrap_err().to_string();
        assert_eq!(error, "\"box\" is not a valid SandboxId: expected a UUID");
        assert!(ExecId::from_slice(&[1, 2, 3]).unwrap_err().to_string().contains("3 bytes"));
    }

    #[test]
    fn later_ids_sort_later() {
        let first = SessionId::random();
        assert!(SessionId::random() > first);
    }
}
