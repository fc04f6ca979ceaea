//! Who is let in: rustls verifies signature, time and purpose; this room adds who the peer is.

use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, SignatureScheme,
};

use crate::anchors::TrustAnchors;
use crate::error::Error;
use crate::facts::CertificateFacts;
use crate::identity::{Identity, SpiffeId, TrustDomain};

/// Says who is refused in spite of a good certificate: a deleted sandbox, a client that was locked out.
///
/// Asked in every handshake, on a thread that serves connections: it must answer from memory, without
/// waiting. Any `Fn(&SpiffeId) -> bool` will do.
pub trait RevocationPolicy: Send + Sync {
    /// Whether `id` must not get in.
    fn is_refused(&self, id: &SpiffeId) -> bool;
}

impl<F: Fn(&SpiffeId) -> bool + Send + Sync> RevocationPolicy for F {
    fn is_refused(&self, id: &SpiffeId) -> bool {
        self(id)
    }
}

/// Refuses nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingRefused;

impl RevocationPolicy for NothingRefused {
    fn is_refused(&self, _id: &SpiffeId) -> bool {
        false
    }
}

/// Which port it is, and so who may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// Sandboxes, always with a certificate, which may have run out.
    Supervisors,
    /// Clients and other gateways; without a certificate, too, if `optional`.
    Api { optional: bool },
}

impl Door {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Supervisors => "the supervisors' port",
            Self::Api { .. } => "the API port",
        }
    }

    fn admits(self, identity: &Identity) -> bool {
        match (self, identity) {
            (Self::Supervisors, Identity::Sandbox { .. }) => true,
            (Self::Supervisors, Identity::Client { .. } | Identity::Gateway { .. }) => false,
            (Self::Api { .. }, Identity::Client { .. } | Identity::Gateway { .. }) => true,
            (Self::Api { .. }, Identity::Sandbox { .. }) => false,
        }
    }

    /// A sandbox whose certificate ran out while the gateway was down must be able to come in and renew
    /// it. Anybody else has an operator who can issue a new one.
    fn admits_expired(self, identity: &Identity) -> bool {
        matches!((self, identity), (Self::Supervisors, Identity::Sandbox { .. }))
    }

    fn certificate_required(self) -> bool {
        !matches!(self, Self::Api { optional: true })
    }
}

/// The gateway's view of a peer's certificate.
pub(super) struct PeerVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
    policy: Arc<dyn RevocationPolicy>,
    door: Door,
}

impl PeerVerifier {
    pub(super) fn new(
        anchors: &TrustAnchors,
        policy: Arc<dyn RevocationPolicy>,
        door: Door,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let inner = WebPkiClientVerifier::builder_with_provider(anchors.roots(), Arc::clone(provider))
            .build()
            .map_err(|error| Error::certificate(anchors.origin(), error))?;
        Ok(Self { inner, trust_domain: anchors.trust_domain().clone(), policy, door })
    }

    /// Verifies signature, purpose and time; for a peer that may be late, the time at which its
    /// certificate was still good. Everything but the time is verified in either case.
    ///
    /// Intermediates that a peer sends are not looked at. None was ever issued, and rustls would not hold
    /// an anchor to the path length in its certificate.
    fn verify_signed(
        &self,
        end_entity: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<CertificateFacts, TlsError> {
        let verified = self.inner.verify_client_cert(end_entity, &[], now);
        let expired = match verified {
            Ok(_) => None,
            Err(error) if is_expiry(&error) => Some(error),
            Err(error) => return Err(error),
        };
        let facts = facts(end_entity, &self.trust_domain)?;
        let Some(error) = expired else {
            return Ok(facts);
        };
        if !self.door.admits_expired(&facts.spiffe_id.identity) {
            return Err(error);
        }
        let at_its_end = facts.not_after.duration_since(UNIX_EPOCH).map_err(|_| error)?;
        self.inner.verify_client_cert(end_entity, &[], UnixTime::since_unix_epoch(at_its_end))?;
        Ok(facts)
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.door.certificate_required()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        // The signature first: whom the policy refuses is told to nobody but its own holders.
        let facts = self.verify_signed(end_entity, now)?;
        let id = &facts.spiffe_id;
        if !self.door.admits(&id.identity) {
            tracing::warn!(peer = %id, port = self.door.what(), "refused a peer at the wrong port");
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        if self.policy.is_refused(id) {
            tracing::info!(peer = %id, port = self.door.what(), "refused a peer whose certificate is no longer accepted");
            return Err(CertificateError::Revoked.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier")
            .field("trust_domain", &self.trust_domain)
            .field("door", &self.door)
            .finish_non_exhaustive()
    }
}

/// The dialler's view of the gateway's certificate: what rustls verifies, and that it is a gateway's.
#[derive(Debug)]
pub(super) struct GatewayVerifier {
    inner: Arc<WebPkiServerVerifier>,
    trust_domain: TrustDomain,
}

impl GatewayVerifier {
    pub(super) fn new(inner: Arc<WebPkiServerVerifier>, anchors: &TrustAnchors) -> Self {
        Self { inner, trust_domain: anchors.trust_domain().clone() }
    }
}

impl ServerCertVerifier for GatewayVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verified = self.inner.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        let facts = facts(end_entity, &self.trust_domain)?;
        let Identity::Gateway { .. } = facts.spiffe_id.identity else {
            tracing::warn!(peer = %facts.spiffe_id, "the server dialled is not a gateway");
            return Err(CertificateError::ApplicationVerificationFailure.into());
        };
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whom a certificate names, if it names anybody of this trust domain.
fn facts(certificate: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<CertificateFacts, TlsError> {
    let facts = CertificateFacts::from_certificate(certificate).map_err(|error| {
        tracing::warn!(%error, "refused a certificate that names nobody");
        TlsError::from(CertificateError::ApplicationVerificationFailure)
    })?;
    if facts.spiffe_id.trust_domain != *trust_domain {
        tracing::warn!(peer = %facts.spiffe_id, %trust_domain, "refused a peer of another trust domain");
        return Err(CertificateError::ApplicationVerificationFailure.into());
    }
    Ok(facts)
}

fn is_expiry(error: &TlsError) -> bool {
    matches!(
        error,
        TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })
    )
}
