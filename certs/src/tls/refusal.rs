//! What a TLS alert means for the one who got it: come back, renew, or give up.

use std::fmt;

use rustls::AlertDescription;

/// Why the gateway refused a peer's certificate, told from the alert that it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The holder was deleted or locked out. No retry will help.
    Revoked,
    /// The certificate has run out, or the two clocks disagree.
    Expired,
    /// The certificate is of another installation.
    UnknownAuthority,
    /// A good certificate, but not for this port.
    NotAllowedHere,
    /// No certificate was shown.
    CertificateRequired,
    /// The certificate is damaged or made for another use.
    BadCertificate,
}

impl Refusal {
    /// The meaning of a TLS alert's number; `None` if it is not about the certificate. QUIC carries the
    /// alert as transport error `0x100 + alert`.
    pub fn from_alert(alert: u8) -> Option<Self> {
        match AlertDescription::from(alert) {
            AlertDescription::CertificateRevoked => Some(Self::Revoked),
            AlertDescription::CertificateExpired => Some(Self::Expired),
            AlertDescription::UnknownCA => Some(Self::UnknownAuthority),
            AlertDescription::AccessDenied => Some(Self::NotAllowedHere),
            AlertDescription::CertificateRequired => Some(Self::CertificateRequired),
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError => Some(Self::BadCertificate),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Revoked => "the gateway no longer knows the holder of this certificate",
            Self::Expired => "the certificate has run out, or the clocks of the two machines disagree",
            Self::UnknownAuthority => "the certificate is from another installation's authority",
            Self::NotAllowedHere => "the certificate is good, but its holder may not use this port",
            Self::CertificateRequired => "a client certificate is needed and none was shown",
            Self::BadCertificate => "the certificate is damaged or made for another use",
        })
    }
}
