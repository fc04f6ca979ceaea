//! The certificate that one side shows, exchangeable while connections are open.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::bundle::CertificateBundle;
use crate::error::Error;
use crate::facts::CertificateFacts;

/// What every new handshake shows. Connections that are open keep what they have shown.
///
/// Made once, given to any number of configurations, replaced at each renewal.
pub struct LiveIdentity {
    current: ArcSwap<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    facts: CertificateFacts,
}

impl LiveIdentity {
    /// Starts with what is in `bundle`.
    pub fn new(bundle: &CertificateBundle) -> Arc<Self> {
        Arc::new(Self { current: ArcSwap::from_pointee(Current::from_bundle(bundle)) })
    }

    /// Shows what is in `bundle` from the next handshake on. It must be for the same identity: a renewal
    /// never changes who somebody is.
    pub fn replace(&self, bundle: &CertificateBundle) -> Result<(), Error> {
        let next = Current::from_bundle(bundle);
        let now = self.current.load();
        if next.facts.spiffe_id != now.facts.spiffe_id {
            return Err(Error::WrongIdentity {
                origin: "the replacement".to_owned(),
                found: Box::new(next.facts.spiffe_id),
                wanted: Box::new(now.facts.spiffe_id.clone()),
            });
        }
        self.current.store(Arc::new(next));
        Ok(())
    }

    /// What the certificate that is shown now says.
    pub fn facts(&self) -> CertificateFacts {
        self.current.load().facts.clone()
    }
}

impl Current {
    fn from_bundle(bundle: &CertificateBundle) -> Self {
        Self { key: bundle.certified_key(), facts: bundle.facts().clone() }
    }
}

impl ResolvesServerCert for LiveIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }
}

impl ResolvesClientCert for LiveIdentity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for LiveIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveIdentity").field(&self.current.load().facts).finish()
    }
}
