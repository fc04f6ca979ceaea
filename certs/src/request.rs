//! Signing requests: how a holder asks for a certificate without giving its key away.
//!
//! The holder makes a key and a PKCS#10 request and sends the request; the authority checks the request's
//! own signature, which proves that the sender has the key, and takes nothing from it but the public key.

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SubjectPublicKeyInfo,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::error::Error;
use crate::key::PrivateKeyPem;

/// A P-256 request has about 200 bytes. Room for subjects and extensions that other tools add, which are
/// ignored, and no more.
pub const MAX_CSR_BYTES: usize = 4096;

/// A private key and the request to certify it. Whom the certificate will name is not in it: the gateway
/// knows from the connection.
#[derive(Debug, Clone)]
pub struct KeyAndCsr {
    /// The key, to be kept until the certificate arrives.
    pub private_key_pem: PrivateKeyPem,
    /// The request, PKCS#10 in DER form, to be sent.
    pub csr_der: Vec<u8>,
}

impl KeyAndCsr {
    /// A new key pair, which each renewal should have: a key that leaked is worth little for long.
    pub fn generate() -> Result<Self, Error> {
        let (private_key_pem, pair) = PrivateKeyPem::generate()?;
        Self::request(private_key_pem, &pair)
    }

    /// A request for a key that the holder has already.
    pub fn with_key(private_key_pem: PrivateKeyPem) -> Result<Self, Error> {
        let pair = private_key_pem.key_pair("the holder's key")?;
        Self::request(private_key_pem, &pair)
    }

    fn request(private_key_pem: PrivateKeyPem, pair: &KeyPair) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params
            .serialize_request(pair)
            .map_err(|error| Error::Request { reason: format!("it could not be made: {error}") })?;
        Ok(Self { private_key_pem, csr_der: csr.der().to_vec() })
    }
}

/// The public key in a request, after its sender's possession of the private key has been checked.
pub(crate) fn public_key(csr_der: &[u8]) -> Result<SubjectPublicKeyInfo, Error> {
    let refuse = |reason: String| Error::Request { reason };
    if csr_der.len() > MAX_CSR_BYTES {
        return Err(refuse(format!("it has {} bytes, more than {MAX_CSR_BYTES}", csr_der.len())));
    }
    let (rest, csr) = X509CertificationRequest::from_der(csr_der)
        .map_err(|error| refuse(format!("it is not PKCS#10: {error}")))?;
    if !rest.is_empty() {
        return Err(refuse("there are bytes after its end".to_owned()));
    }
    let key = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|error| refuse(format!("its public key cannot be read: {error}")))?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(refuse("its public key is not on P-256, the only curve that is issued for".to_owned()));
    }
    csr.verify_signature()
        .map_err(|_| refuse("its signature does not prove possession of the private key".to_owned()))?;
    Ok(key)
}
