//! The public half of the authority: what a peer needs to verify the other side.
//!
//! PEM enters, with one certificate or, while an authority is being replaced, a few. All must belong to
//! one trust domain, which each carries as its only URI.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::error::Error;
use crate::facts::{only_uri, parse};
use crate::identity::TrustDomain;

/// Old and new authority side by side is two; more than eight is somebody's whole system store.
const MAX_ANCHORS: usize = 8;

/// The authority certificates of one trust domain.
#[derive(Debug, Clone)]
pub struct TrustAnchors {
    trust_domain: TrustDomain,
    certificates: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    pem: String,
    origin: String,
}

impl TrustAnchors {
    /// Reads one to eight authority certificates from PEM text. `origin` says where it came from, for
    /// errors.
    pub fn from_pem(pem: &str, origin: &str) -> Result<Self, Error> {
        let certificates = certificates_from_pem(pem, origin, MAX_ANCHORS)?;
        let mut roots = RootCertStore::empty();
        let mut domains = Vec::with_capacity(certificates.len());
        for certificate in &certificates {
            let x509 = parse(certificate, origin)?;
            if !x509.is_ca() {
                return Err(Error::certificate(origin, "it is not an authority's certificate"));
            }
            domains.push(TrustDomain::from_uri(only_uri(&x509, origin)?)?);
            roots.add(certificate.clone()).map_err(|error| Error::certificate(origin, error))?;
        }
        let mut domains = domains.into_iter();
        let trust_domain = domains.next().expect("certificates_from_pem returns at least one");
        if let Some(found) = domains.find(|domain| *domain != trust_domain) {
            return Err(Error::TrustDomain { origin: origin.to_owned(), found, wanted: trust_domain });
        }
        Ok(Self {
            trust_domain,
            certificates,
            roots: Arc::new(roots),
            pem: pem.to_owned(),
            origin: origin.to_owned(),
        })
    }

    /// The trust domain that all of them belong to.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The certificates in PEM form, as they are handed to sandboxes and clients.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Where they were read from, for errors.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Checks that one of the anchors signed `certificate`, at whatever time.
    pub(crate) fn check_signed(&self, certificate: &CertificateDer<'_>, origin: &str) -> Result<(), Error> {
        let x509 = parse(certificate, origin)?;
        for anchor in &self.certificates {
            if x509.verify_signature(Some(parse(anchor, &self.origin)?.public_key())).is_ok() {
                return Ok(());
            }
        }
        Err(Error::UnknownIssuer { origin: origin.to_owned(), anchors: self.origin.clone() })
    }
}

/// The one certificate of a holder. The authority signs each itself, so that none comes in between.
pub(crate) fn leaf_from_pem(pem: &str, origin: &str) -> Result<CertificateDer<'static>, Error> {
    let mut certificates = certificates_from_pem(pem, origin, 1)?;
    Ok(certificates.remove(0))
}

/// At least one certificate, at most `limit`.
fn certificates_from_pem(
    pem: &str,
    origin: &str,
    limit: usize,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let refuse = |reason: String| Error::Pem { origin: origin.to_owned(), wanted: "a certificate", reason };
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        if certificates.len() == limit {
            return Err(refuse(format!("there are more certificates in it than the {limit} expected")));
        }
        certificates.push(certificate.map_err(|error| refuse(error.to_string()))?);
    }
    if certificates.is_empty() {
        return Err(refuse("there is no CERTIFICATE section in it".to_owned()));
    }
    Ok(certificates)
}
