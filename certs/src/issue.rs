//! What the authority signs: for whom, for how long, and with which names in it.
//!
//! An identity and a validity enter, with a new key pair or a holder's own public key; a certificate
//! leaves. Nothing of what a holder asks for gets into it, its public key aside.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::DnsName;
use time::OffsetDateTime;

use crate::anchors::TrustAnchors;
use crate::authority::CertificateAuthority;
use crate::bundle::CertificateBundle;
use crate::error::Error;
use crate::facts::CertificateFacts;
use crate::identity::{Identity, SpiffeId};
use crate::key::PrivateKeyPem;
use crate::request;

/// X.509 counts whole seconds, so nothing shorter can be expressed.
const MIN_VALIDITY: Duration = Duration::from_secs(1);
/// A machine whose clock is a few minutes behind must accept a certificate made just now; beyond that the
/// clock is broken and saying so is better.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
/// A certificate that lives for seconds must not look old when it is made: renewal goes by the share of
/// its life that has passed. Whoever issues such has clocks that agree.
const SKEW_SHARE: u32 = 10;
/// Names and addresses under which one gateway is reached.
const MAX_ALTERNATIVE_NAMES: usize = 64;

/// A certificate with the new private key that it was made for.
#[derive(Debug, Clone)]
pub struct IssuedCertificate {
    /// The certificate, in PEM form.
    pub cert_chain_pem: String,
    /// Its private key, in PEM form.
    pub private_key_pem: PrivateKeyPem,
    /// What the certificate says.
    pub facts: CertificateFacts,
}

impl IssuedCertificate {
    /// Joins it with the anchors, as its holder needs it.
    pub fn into_bundle(self, anchors: &TrustAnchors) -> Result<CertificateBundle, Error> {
        CertificateBundle::new(&self.cert_chain_pem, self.private_key_pem, anchors.clone())
    }
}

/// A certificate for a key that its holder keeps.
#[derive(Debug, Clone)]
pub struct SignedCertificate {
    /// The certificate, in PEM form.
    pub cert_chain_pem: String,
    /// What the certificate says.
    pub facts: CertificateFacts,
}

/// A further name or address under which a gateway is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AlternativeName {
    /// A DNS name.
    Dns(DnsName<'static>),
    /// An IP address.
    Ip(IpAddr),
}

impl FromStr for AlternativeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        match DnsName::try_from(text.to_owned()) {
            Ok(name) => Ok(Self::Dns(name)),
            Err(_) => Err(Error::Issue {
                identity: "a gateway".to_owned(),
                reason: format!("{text:?} is neither an IP address nor a DNS name"),
            }),
        }
    }
}

impl CertificateAuthority {
    /// Makes a key pair and a certificate for `identity`, valid from now for `validity` (whole seconds, at
    /// least one; never longer than the authority itself).
    ///
    /// `extra_sans` are for gateways, besides the name that each of them carries anyway.
    pub fn issue(
        &self,
        identity: &Identity,
        validity: Duration,
        extra_sans: &[AlternativeName],
    ) -> Result<IssuedCertificate, Error> {
        self.issue_at(SystemTime::now(), identity, validity, extra_sans)
    }

    /// The same from the instant `now` on, for whoever does not live by the machine's clock.
    pub fn issue_at(
        &self,
        now: SystemTime,
        identity: &Identity,
        validity: Duration,
        extra_sans: &[AlternativeName],
    ) -> Result<IssuedCertificate, Error> {
        let (private_key_pem, pair) = PrivateKeyPem::generate()?;
        let SignedCertificate { cert_chain_pem, facts } =
            self.sign(now, identity, validity, extra_sans, &pair)?;
        Ok(IssuedCertificate { cert_chain_pem, private_key_pem, facts })
    }

    /// Signs the public key in a PKCS#10 request (DER, at most [`MAX_CSR_BYTES`](crate::MAX_CSR_BYTES))
    /// for `expected`, valid from now for `validity`.
    ///
    /// The request's own signature proves that the sender has the private key. Whatever names and
    /// extensions it asks for are ignored: who the sender is, the caller knows from the connection.
    pub fn sign_csr(
        &self,
        csr_der: &[u8],
        expected: &Identity,
        validity: Duration,
    ) -> Result<SignedCertificate, Error> {
        self.sign_csr_at(SystemTime::now(), csr_der, expected, validity)
    }

    /// The same from the instant `now` on, for whoever does not live by the machine's clock.
    pub fn sign_csr_at(
        &self,
        now: SystemTime,
        csr_der: &[u8],
        expected: &Identity,
        validity: Duration,
    ) -> Result<SignedCertificate, Error> {
        let public_key = request::public_key(csr_der)?;
        self.sign(now, expected, validity, &[], &public_key)
    }

    fn sign(
        &self,
        now: SystemTime,
        identity: &Identity,
        validity: Duration,
        extra_sans: &[AlternativeName],
        public_key: &impl PublicKeyData,
    ) -> Result<SignedCertificate, Error> {
        let refuse = |reason: String| Error::Issue { identity: identity.to_string(), reason };
        if validity < MIN_VALIDITY {
            return Err(refuse(format!("a validity of {validity:?} is below one second")));
        }
        if now >= self.not_after {
            return Err(refuse("the authority itself has run out".to_owned()));
        }
        let id = SpiffeId::new(self.trust_domain().clone(), identity.clone());
        let backdated = CLOCK_SKEW.min(validity / SKEW_SHARE);
        let not_after = now.checked_add(validity).map_or(self.not_after, |end| end.min(self.not_after));

        let mut params = CertificateParams::default();
        params.not_before = asn1_time(now.checked_sub(backdated).unwrap_or(now), "a new certificate")?;
        params.not_after = asn1_time(not_after, "a new certificate")?;
        params.serial_number = Some(random_serial()?);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, identity.to_string());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity {
            // Gateways dial each other, too.
            Identity::Gateway { .. } => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Identity::Sandbox { .. } | Identity::Client { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.subject_alt_names = alternative_names(&id, extra_sans).map_err(refuse)?;
        params.use_authority_key_identifier_extension = true;

        let certificate =
            params.signed_by(public_key, &self.issuer).map_err(|error| refuse(error.to_string()))?;
        let facts = CertificateFacts::read(certificate.der(), "a new certificate")?;
        Ok(SignedCertificate { cert_chain_pem: certificate.pem(), facts })
    }
}

fn alternative_names(id: &SpiffeId, extra: &[AlternativeName]) -> Result<Vec<SanType>, String> {
    let text = |text: String| text.try_into().map_err(|error: rcgen::Error| error.to_string());
    let mut names = vec![SanType::URI(text(id.to_string())?)];
    if !matches!(id.identity, Identity::Gateway { .. }) {
        return match extra {
            [] => Ok(names),
            _ => Err("only a gateway may carry further names".to_owned()),
        };
    }
    if extra.len() > MAX_ALTERNATIVE_NAMES {
        return Err(format!("{} further names are more than {MAX_ALTERNATIVE_NAMES}", extra.len()));
    }
    names.push(SanType::DnsName(text(id.trust_domain.gateway_dns_name())?));
    for name in extra {
        let name = match name {
            AlternativeName::Dns(name) => SanType::DnsName(text(name.as_ref().to_owned())?),
            AlternativeName::Ip(address) => SanType::IpAddress(*address),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whole seconds, rounded down, as X.509 has them.
pub(crate) fn asn1_time(time: SystemTime, origin: &str) -> Result<OffsetDateTime, Error> {
    let outside = || Error::certificate(origin, "its validity lies outside of what X.509 can express");
    let seconds = time.duration_since(UNIX_EPOCH).map_err(|_| outside())?.as_secs();
    let seconds = i64::try_from(seconds).map_err(|_| outside())?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| outside())
}

/// 127 random bits: two certificates never share a serial, even for one key, and none can be guessed.
pub(crate) fn random_serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| {
        Error::certificate("a new certificate", "the system gave no random bytes for its serial")
    })?;
    // A serial is positive, and its first byte not zero, so that it has one length and one spelling.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
