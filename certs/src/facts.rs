//! What a certificate says, read once: whom it names, from when to when, and how to tell it apart.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::time::ASN1Time;

use crate::error::Error;
use crate::identity::SpiffeId;

/// How a certificate from a peer is called in errors.
const A_CERTIFICATE: &str = "the given DER";

/// What a Holdfast certificate says about its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whom it names.
    pub spiffe_id: SpiffeId,
    /// First instant at which it is valid (whole seconds).
    pub not_before: SystemTime,
    /// Last instant at which it is valid (whole seconds).
    pub not_after: SystemTime,
    /// The serial number, lower-case hex.
    pub serial: String,
    /// SHA-256 over the whole certificate.
    pub fingerprint: Fingerprint,
}

impl CertificateFacts {
    /// Reads a leaf certificate, which must carry exactly one URI, a SPIFFE id.
    ///
    /// Says nothing about who signed it: that is the business of the handshake.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        Self::read(certificate, A_CERTIFICATE)
    }

    /// The same, with a place to name in errors.
    pub(crate) fn read(certificate: &CertificateDer<'_>, origin: &str) -> Result<Self, Error> {
        let x509 = parse(certificate, origin)?;
        let spiffe_id = only_uri(&x509, origin)?.parse::<SpiffeId>()?;
        Ok(Self {
            spiffe_id,
            not_before: system_time(x509.validity().not_before, origin)?,
            not_after: system_time(x509.validity().not_after, origin)?,
            serial: hex(x509.raw_serial()),
            fingerprint: Fingerprint::of(certificate),
        })
    }

    /// Whether it has run out at `now`.
    pub fn expired_at(&self, now: SystemTime) -> bool {
        now > self.not_after
    }

    /// How long it is still valid at `now`; zero once it has run out.
    pub fn remaining_at(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

/// SHA-256 over a certificate's DER; shown as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of `certificate`.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self::of_bytes(certificate)
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let digest = digest(&SHA256, bytes);
        Self(digest.as_ref().try_into().expect("SHA-256 is 32 bytes long"))
    }

    /// The raw digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Parses one certificate and nothing after it.
pub(crate) fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
    origin: &str,
) -> Result<X509Certificate<'a>, Error> {
    let (rest, x509) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| Error::certificate(origin, format!("it is not X.509: {error}")))?;
    if !rest.is_empty() {
        return Err(Error::certificate(origin, "there are bytes after its end"));
    }
    Ok(x509)
}

/// The one URI among the alternative names. Two would leave open which one is meant, so they are refused.
pub(crate) fn only_uri<'a>(x509: &'a X509Certificate<'_>, origin: &str) -> Result<&'a str, Error> {
    let names = x509.subject_alternative_name().map_err(|error| {
        Error::certificate(origin, format!("its alternative names are malformed: {error}"))
    })?;
    let Some(names) = names else {
        return Err(Error::certificate(origin, "it has no alternative names, so it names nobody"));
    };
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri),
        (None, _) => Err(Error::certificate(origin, "it carries no URI, so it names nobody")),
        (Some(_), Some(_)) => {
            Err(Error::certificate(origin, "it carries more than one URI, so it is not clear whom it names"))
        }
    }
}

pub(crate) fn system_time(time: ASN1Time, origin: &str) -> Result<SystemTime, Error> {
    let seconds = u64::try_from(time.timestamp()).ok();
    let time = seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    time.ok_or_else(|| Error::certificate(origin, "its validity lies outside of what this machine can count"))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
