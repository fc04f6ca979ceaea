//! Private keys: PEM text that never shows itself and is wiped when dropped.

use std::fmt;
use std::sync::Arc;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use crate::error::Error;

/// A private key in PEM form. `Debug` and errors never show it; dropping it wipes the memory.
#[derive(Clone)]
pub struct PrivateKeyPem(Zeroizing<String>);

impl PrivateKeyPem {
    /// Takes PEM text over and checks that a usable private key is in it.
    ///
    /// `origin` is where it came from, for errors.
    pub fn from_pem(pem: impl Into<Zeroizing<String>>, origin: &str) -> Result<Self, Error> {
        let key = Self(pem.into());
        key.signing_key(origin)?;
        Ok(key)
    }

    /// The PEM text, for writing it to the one file or message where it belongs.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub(crate) fn generate() -> Result<(Self, KeyPair), Error> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| Error::private_key("a new key pair", error))?;
        Ok((Self(Zeroizing::new(pair.serialize_pem())), pair))
    }

    /// The key as the issuing library wants it: P-256, which is all that is issued here.
    pub(crate) fn key_pair(&self, origin: &str) -> Result<KeyPair, Error> {
        KeyPair::from_pkcs8_pem_and_sign_algo(&self.0, &PKCS_ECDSA_P256_SHA256).map_err(|error| {
            Error::private_key(origin, format!("it is not a P-256 key in PKCS#8 form: {error}"))
        })
    }

    /// The key as TLS wants it.
    pub(crate) fn signing_key(&self, origin: &str) -> Result<Arc<dyn SigningKey>, Error> {
        let der = PrivateKeyDer::from_pem_slice(self.0.as_bytes()).map_err(|error| Error::Pem {
            origin: origin.to_owned(),
            wanted: "a private key",
            reason: error.to_string(),
        })?;
        rustls::crypto::ring::sign::any_supported_type(&der).map_err(|error| {
            Error::private_key(origin, format!("it is damaged or of an unknown kind: {error}"))
        })
    }
}

impl fmt::Debug for PrivateKeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKeyPem([redacted])")
    }
}
