//! The certificate authority of one installation: made at the first start, kept in one directory.
//!
//! ```text
//! <dir>/           0700
//!   ca-key.pem     0600   written first: a key without a certificate has signed nothing yet
//!   ca.pem         0644   written second: from here on the authority exists
//!   .lock          held while the two are made or read
//! ```
//!
//! The trust domain is in the certificate, as its only URI; a directory of another installation is
//! recognised by it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};

use crate::anchors::TrustAnchors;
use crate::error::Error;
use crate::facts::{Fingerprint, parse, system_time};
use crate::files::{self, DirectoryLock, Exposure};
use crate::identity::TrustDomain;
use crate::issue::{asn1_time, random_serial};
use crate::key::PrivateKeyPem;

/// Ten years: longer than any installation goes without a new machine, and there is nobody to renew it for it.
const VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// An operator's clock may be behind the machine that makes the authority; a day costs nothing.
const BACKDATED: Duration = Duration::from_secs(24 * 60 * 60);
/// From when on to warn at each start that the authority will run out.
const ENDING_SOON: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Signs every certificate of one trust domain.
pub struct CertificateAuthority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) not_after: SystemTime,
    anchors: TrustAnchors,
}

impl CertificateAuthority {
    /// Opens the authority in `dir`, making one if there is none.
    ///
    /// Any number of processes may do this at once on one directory: all get the same authority. Blocks
    /// while another one is at it, for milliseconds.
    ///
    /// Refuses a key that other users can read, a directory that other users can write to, and an
    /// authority of another trust domain.
    pub fn open_or_create(dir: &Path, trust_domain: TrustDomain) -> Result<Self, Error> {
        files::private_directory(dir)?;
        let _lock = DirectoryLock::acquire(dir)?;
        let paths = Paths::within(dir);
        let certificate = files::read(&paths.certificate, Exposure::Public)?;
        let key = files::read(&paths.key, Exposure::OwnerOnly)?;
        let authority = match (certificate, key) {
            (Some(certificate), Some(key)) => {
                let key = PrivateKeyPem::from_pem(key, &paths.key.display().to_string())?;
                Self::from_parts(&certificate, &key, &paths)?
            }
            (Some(_), None) => {
                let Paths { certificate, key } = paths;
                return Err(Error::AuthorityKeyMissing { certificate, key });
            }
            // A key alone is from a start that was cut short. It may as well be used.
            (None, Some(key)) => {
                let key = PrivateKeyPem::from_pem(key, &paths.key.display().to_string())?;
                Self::create(&trust_domain, &key, &paths)?
            }
            (None, None) => {
                let (key, _) = PrivateKeyPem::generate()?;
                files::write_atomically(&paths.key, key.expose(), 0o600)?;
                Self::create(&trust_domain, &key, &paths)?
            }
        };
        let found = authority.trust_domain();
        if *found != trust_domain {
            let origin = paths.certificate.display().to_string();
            return Err(Error::TrustDomain { origin, found: found.clone(), wanted: trust_domain });
        }
        authority.warn_if_ending(SystemTime::now());
        Ok(authority)
    }

    /// What everybody else needs to verify what this authority signs.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// The trust domain of every identity that it issues.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.anchors.trust_domain()
    }

    /// When the authority itself runs out; nothing that it signs is valid longer.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    fn create(trust_domain: &TrustDomain, key: &PrivateKeyPem, paths: &Paths) -> Result<Self, Error> {
        let origin = paths.certificate.display().to_string();
        let pair = key.key_pair(&paths.key.display().to_string())?;
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.not_before = asn1_time(now.checked_sub(BACKDATED).unwrap_or(now), &origin)?;
        params.not_after = asn1_time(now + VALIDITY, &origin)?;
        params.serial_number = Some(random_serial()?);
        params.distinguished_name = DistinguishedName::new();
        // A name of its own for each authority: a certificate from another one is then "of an unknown
        // authority" to every verifier, and not "wrongly signed".
        let tag = Fingerprint::of_bytes(&pair.subject_public_key_info()).to_string();
        params.distinguished_name.push(DnType::CommonName, format!("Holdfast CA {}", &tag[..8]));
        params.distinguished_name.push(DnType::OrganizationName, "Holdfast");
        // No intermediates: whoever holds a leaf can never sign for another.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let uri = trust_domain.uri().try_into().map_err(|error| Error::certificate(&origin, error))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let certificate = params.self_signed(&pair).map_err(|error| Error::certificate(&origin, error))?;
        let pem = certificate.pem();
        let authority = Self::from_parts(&pem, key, paths)?;
        files::write_atomically(&paths.certificate, &pem, 0o644)?;
        tracing::info!(trust_domain = %trust_domain, directory = %paths.directory().display(), "made a certificate authority");
        Ok(authority)
    }

    fn from_parts(certificate_pem: &str, key: &PrivateKeyPem, paths: &Paths) -> Result<Self, Error> {
        let origin = paths.certificate.display().to_string();
        let key_origin = paths.key.display().to_string();
        let anchors = TrustAnchors::from_pem(certificate_pem, &origin)?;
        let pair = key.key_pair(&key_origin)?;
        let own = anchors.certificates().first().expect("anchors hold at least one certificate");
        let x509 = parse(own, &origin)?;
        if x509.public_key().raw != pair.subject_public_key_info() {
            return Err(Error::KeyMismatch { certificate: origin, key: key_origin });
        }
        let not_after = system_time(x509.validity().not_after, &origin)?;
        let issuer =
            Issuer::from_ca_cert_der(own, pair).map_err(|error| Error::certificate(&origin, error))?;
        Ok(Self { issuer, not_after, anchors })
    }

    fn warn_if_ending(&self, now: SystemTime) {
        let remaining = self.not_after.duration_since(now).unwrap_or_default();
        if remaining < ENDING_SOON {
            let days = remaining.as_secs() / (24 * 60 * 60);
            tracing::warn!(trust_domain = %self.trust_domain(), days, "the certificate authority runs out soon");
        }
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("trust_domain", self.trust_domain())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Where the two parts lie.
#[derive(Debug)]
struct Paths {
    certificate: PathBuf,
    key: PathBuf,
}

impl Paths {
    fn within(dir: &Path) -> Self {
        Self { certificate: dir.join("ca.pem"), key: dir.join("ca-key.pem") }
    }

    fn directory(&self) -> &Path {
        self.certificate.parent().unwrap_or(&self.certificate)
    }
}
