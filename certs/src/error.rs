//! The one error of this crate: what was attempted, on what, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::identity::{IdentityError, SpiffeId, TrustDomain};

/// Why an identity could not be made, read, written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be used at all.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A private key, or the directory it is in, is open to other users.
    #[error(
        "{} is open to other users (mode {mode:04o}), so the private key cannot be trusted: \
         run `chmod {wanted:04o} {}`, and issue it anew if somebody may have read it",
        path.display(), path.display()
    )]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits now.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// Input larger than anything legitimate.
    #[error("{what} is larger than {limit} bytes; refusing to read it")]
    TooLarge {
        /// What was being read.
        what: String,
        /// The bound, in bytes.
        limit: usize,
    },
    /// Not PEM, or PEM without the part that is needed.
    #[error("{origin} does not hold {wanted} in PEM form: {reason}")]
    Pem {
        /// Where it came from: a path, or the name of a field.
        origin: String,
        /// What should have been there.
        wanted: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// A private key that is damaged or of a kind that is not used here.
    #[error("the private key in {origin} cannot be used: {reason}")]
    PrivateKey {
        /// Where it came from.
        origin: String,
        /// What was wrong; never any part of the key.
        reason: String,
    },
    /// A certificate that is damaged or not of the form that Holdfast issues.
    #[error("the certificate in {origin} cannot be used: {reason}")]
    Certificate {
        /// Where it came from.
        origin: String,
        /// What was wrong.
        reason: String,
    },
    /// A certificate and a private key that do not belong together.
    #[error("the certificate in {certificate} was not made for the private key in {key}")]
    KeyMismatch {
        /// Where the certificate came from.
        certificate: String,
        /// Where the key came from.
        key: String,
    },
    /// The authority's certificate is there, its key is not.
    #[error(
        "{} exists but {} does not: restore the key from a backup, or remove the certificate to start \
         a new authority (every sandbox and client then needs a new certificate)",
        certificate.display(), key.display()
    )]
    AuthorityKeyMissing {
        /// The certificate's path.
        certificate: PathBuf,
        /// Where its key should be.
        key: PathBuf,
    },
    /// An authority or certificate of another installation.
    #[error("{origin} belongs to trust domain {found}, but {wanted} is configured")]
    TrustDomain {
        /// Where it came from.
        origin: String,
        /// The trust domain in it.
        found: TrustDomain,
        /// The trust domain that was expected.
        wanted: TrustDomain,
    },
    /// A certificate for somebody else than expected.
    #[error("the certificate in {origin} is for {found}, not for {wanted}")]
    WrongIdentity {
        /// Where it came from.
        origin: String,
        /// Whom it names.
        found: Box<SpiffeId>,
        /// Whom it should name.
        wanted: Box<SpiffeId>,
    },
    /// A certificate that none of the trust anchors signed.
    #[error("the certificate in {origin} was not signed by the authority in {anchors}")]
    UnknownIssuer {
        /// Where the certificate came from.
        origin: String,
        /// Where the anchors came from.
        anchors: String,
    },
    /// A malformed identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A signing request that was refused.
    #[error("the signing request is refused: {reason}")]
    Request {
        /// What was wrong with it.
        reason: String,
    },
    /// A certificate that this authority must not or cannot issue.
    #[error("cannot issue a certificate for {identity}: {reason}")]
    Issue {
        /// For whom, in words.
        identity: String,
        /// Why not.
        reason: String,
    },
    /// The TLS library refused a configuration.
    #[error("cannot set up TLS for {what}: {source}")]
    Tls {
        /// Which side of which connection.
        what: &'static str,
        /// What the library said.
        #[source]
        source: rustls::Error,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn certificate(origin: &str, reason: impl ToString) -> Self {
        Self::Certificate { origin: origin.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn private_key(origin: &str, reason: impl ToString) -> Self {
        Self::PrivateKey { origin: origin.to_owned(), reason: reason.to_string() }
    }
}
