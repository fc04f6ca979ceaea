//! All that a holder needs to speak for itself and to verify the other side: certificate, key, anchors.
//!
//! What leaves this room fits together: the key is the certificate's, the certificate is signed by the
//! anchors, and all are of one trust domain.
//!
//! On disk a bundle is three files, of which two change together at a renewal, and a crash may come
//! between any two steps:
//!
//! ```text
//! write:  ca.pem ─► key.pem.next ─► cert.pem ─► rename key.pem.next to key.pem
//! load:   cert.pem with whichever of key.pem and key.pem.next it was made for
//! ```
//!
//! So at every instant one pair on disk fits together.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::anchors::{TrustAnchors, leaf_from_pem};
use crate::error::Error;
use crate::facts::CertificateFacts;
use crate::files::{self, DirectoryLock, Exposure};
use crate::key::PrivateKeyPem;

/// How the certificate of a bundle that did not come from a file is called in errors.
const GIVEN_CERTIFICATE: &str = "the given certificate";
/// Only the owner reads, and nobody writes: a bundle changes by being replaced.
const MODE: u32 = 0o400;

/// A certificate, its private key, and the anchors to verify peers by.
#[derive(Clone)]
pub struct CertificateBundle {
    certified: Arc<CertifiedKey>,
    chain_pem: String,
    key: PrivateKeyPem,
    anchors: TrustAnchors,
    facts: CertificateFacts,
}

impl CertificateBundle {
    /// Joins the three, checking that they fit together. Whether the certificate has run out is not
    /// checked: an expired one can still be renewed.
    pub fn new(chain_pem: &str, key: PrivateKeyPem, anchors: TrustAnchors) -> Result<Self, Error> {
        Self::assemble(chain_pem, GIVEN_CERTIFICATE, key, "the given key", anchors)
    }

    /// The same from PEM text.
    pub fn from_pem(chain_pem: &str, key_pem: &str, ca_pem: &str) -> Result<Self, Error> {
        let key = PrivateKeyPem::from_pem(Zeroizing::new(key_pem.to_owned()), "the given key")?;
        Self::new(chain_pem, key, TrustAnchors::from_pem(ca_pem, "the given anchors")?)
    }

    /// This bundle with a new certificate, and the key that it was asked for with. Refuses a certificate
    /// for anybody else, whatever the gateway sent.
    pub fn renewed(&self, chain_pem: &str, key: PrivateKeyPem) -> Result<Self, Error> {
        let renewed =
            Self::assemble(chain_pem, "the renewed certificate", key, "the new key", self.anchors.clone())?;
        if renewed.facts.spiffe_id != self.facts.spiffe_id {
            return Err(Error::WrongIdentity {
                origin: "the renewed certificate".to_owned(),
                found: Box::new(renewed.facts.spiffe_id),
                wanted: Box::new(self.facts.spiffe_id.clone()),
            });
        }
        Ok(renewed)
    }

    /// What the certificate says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// What peers are verified by.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// The certificate in PEM form.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKeyPem {
        &self.key
    }

    /// Certificate and key as TLS wants them.
    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    fn assemble(
        chain_pem: &str,
        chain_origin: &str,
        key: PrivateKeyPem,
        key_origin: &str,
        anchors: TrustAnchors,
    ) -> Result<Self, Error> {
        let leaf = leaf_from_pem(chain_pem, chain_origin)?;
        let facts = CertificateFacts::read(&leaf, chain_origin)?;
        if facts.spiffe_id.trust_domain != *anchors.trust_domain() {
            return Err(Error::TrustDomain {
                origin: chain_origin.to_owned(),
                found: facts.spiffe_id.trust_domain,
                wanted: anchors.trust_domain().clone(),
            });
        }
        let certified = Arc::new(CertifiedKey::new(vec![leaf.clone()], key.signing_key(key_origin)?));
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(Error::KeyMismatch {
                    certificate: chain_origin.to_owned(),
                    key: key_origin.to_owned(),
                });
            }
            Err(error) => return Err(Error::certificate(chain_origin, error)),
        }
        anchors.check_signed(&leaf, chain_origin)?;
        Ok(Self { certified, chain_pem: chain_pem.to_owned(), key, anchors, facts })
    }
}

impl fmt::Debug for CertificateBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CertificateBundle").field(&self.facts).finish()
    }
}

/// Where the files of a bundle lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key. While a renewal is being written, a second one lies beside it as `<name>.next`.
    pub key: PathBuf,
    /// The authority's certificates.
    pub ca: PathBuf,
}

impl BundleFiles {
    /// `cert.pem`, `key.pem` and `ca.pem` in one directory.
    pub fn within(dir: &Path) -> Self {
        Self { certificate: dir.join("cert.pem"), key: dir.join("key.pem"), ca: dir.join("ca.pem") }
    }

    /// Reads a bundle and checks that its parts fit together.
    ///
    /// Refuses a key that others than the owner and its group can read. Blocking, milliseconds.
    pub fn load(&self) -> Result<CertificateBundle, Error> {
        let anchors_origin = self.ca.display().to_string();
        let ca = files::read_required(&self.ca, Exposure::Public)?;
        let anchors = TrustAnchors::from_pem(&ca, &anchors_origin)?;
        match self.load_with(&self.key, &anchors) {
            Err(Error::KeyMismatch { .. }) => {}
            Err(Error::Io { path, source, .. })
                if path == self.key && source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        // A write was cut short before its last step, or is at it right now: then the key may have been
        // moved into place since, and the third look finds it. If not, its error is the one to report.
        match self.load_with(&self.next_key(), &anchors) {
            Ok(bundle) => Ok(bundle),
            Err(_) => self.load_with(&self.key, &anchors),
        }
    }

    /// Writes a bundle, each file whole or not at all, all of them readable by the owner alone (0400).
    ///
    /// A crash between any two steps leaves files that [`load`](Self::load) still makes sense of.
    /// Blocking, milliseconds.
    pub fn write(&self, bundle: &CertificateBundle) -> Result<(), Error> {
        let directory = files::parent(&self.key);
        files::private_directory(directory)?;
        let _lock = DirectoryLock::acquire(directory)?;
        files::write_atomically(&self.ca, bundle.anchors.pem(), MODE)?;
        let next = self.next_key();
        files::write_atomically(&next, bundle.key.expose(), MODE)?;
        files::write_atomically(&self.certificate, &bundle.chain_pem, MODE)?;
        files::rename(&next, &self.key)
    }

    fn load_with(&self, key: &Path, anchors: &TrustAnchors) -> Result<CertificateBundle, Error> {
        let chain_origin = self.certificate.display().to_string();
        let key_origin = key.display().to_string();
        let chain = files::read_required(&self.certificate, Exposure::Public)?;
        let key = files::read_required(key, Exposure::OwnerAndGroup)?;
        let key = PrivateKeyPem::from_pem(key, &key_origin)?;
        CertificateBundle::assemble(&chain, &chain_origin, key, &key_origin, anchors.clone())
    }

    fn next_key(&self) -> PathBuf {
        let mut name = self.key.clone().into_os_string();
        name.push(".next");
        name.into()
    }
}
