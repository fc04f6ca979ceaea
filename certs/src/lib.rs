//! Who is who in a Holdfast installation, and how each side proves it.
//!
//! What enters: a directory for the authority, identities to issue for, signing requests from
//! sandboxes, PEM files on disk. What leaves: certificates, and rustls configurations that admit
//! exactly the peers that they should. Nothing here opens a socket or starts a task; file access is
//! blocking and takes milliseconds.
//!
//! ```text
//!              CertificateAuthority ── issue / sign_csr ──► certificate, key
//!                     │                                          │
//!               TrustAnchors (public half)               CertificateBundle  ◄─► files
//!                     │                                          │
//!                     │                                    LiveIdentity (replaced on renewal)
//!                     └───────────────► tls::*_config ◄──────────┘
//! ```
//!
//! Every certificate names its holder by one URI, a SPIFFE id: `spiffe://<trust domain>/sandbox/<id>`,
//! `/client/<name>` or `/gateway/<name>`. Gateways carry the DNS name `gateway.<trust domain>` too, and
//! whoever dials one verifies that name, whatever address it dialled.

mod anchors;
mod authority;
mod bundle;
mod error;
mod facts;
mod files;
mod identity;
mod issue;
mod key;
pub mod renewal;
mod request;
pub mod tls;

pub use anchors::TrustAnchors;
pub use authority::CertificateAuthority;
pub use bundle::{BundleFiles, CertificateBundle};
pub use error::Error;
pub use facts::{CertificateFacts, Fingerprint};
pub use identity::{Identity, IdentityError, Name, SpiffeId, TrustDomain};
pub use issue::{AlternativeName, IssuedCertificate, SignedCertificate};
pub use key::PrivateKeyPem;
pub use request::{KeyAndCsr, MAX_CSR_BYTES};
