//! Who gets through which door, by whole TLS handshakes in memory.

mod common;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::{
    ALPN, FakeClock, HOUR, Installation, api_client, handshake, handshake_with, some_sandbox, supervisor,
};
use holdfast_certs::tls::{self, LiveIdentity, NothingRefused, Refusal};
use holdfast_certs::{Identity, SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Purpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::{AlertDescription, HandshakeKind};

#[test]
fn a_sandbox_gets_in_and_both_sides_know_each_other() {
    let installation = Installation::new();
    let sandbox = some_sandbox();
    let bundle = installation.bundle(&sandbox);
    let ended = handshake(&installation.quic_server(NothingRefused), &supervisor(&bundle));

    assert_eq!(ended.alpn.as_deref(), Some(ALPN));
    assert_eq!(*ended.client.as_ref().unwrap(), installation.gateway.facts().fingerprint);
    let facts = ended.admitted();
    assert_eq!(facts, *bundle.facts());
    assert_eq!(facts.spiffe_id.identity, sandbox);
    assert!(!facts.expired_at(SystemTime::now()));
}

#[test]
fn a_client_gets_into_the_api_over_h2() {
    let installation = Installation::new();
    let bundle = installation.bundle(&Identity::client("ada").unwrap());
    let ended = handshake(&installation.api_server(false), &api_client(&bundle));
    assert_eq!(ended.alpn.as_deref(), Some(&b"h2"[..]));
    assert_eq!(ended.admitted().spiffe_id.to_string(), "spiffe://holdfast.internal/client/ada");
}

#[test]
fn a_client_without_a_certificate_gets_into_the_api_only_where_that_is_allowed() {
    let installation = Installation::new();
    let anonymous = tls::api_client_config(None, installation.anchors()).unwrap();
    let ended = handshake(&installation.api_server(true), &anonymous);
    assert_eq!(ended.server, Ok(None));

    let refused = handshake(&installation.api_server(false), &anonymous);
    assert_eq!(refused.alert(), AlertDescription::CertificateRequired);
}

#[test]
fn a_supervisor_without_a_certificate_is_refused() {
    let installation = Installation::new();
    let mut anonymous = tls::api_client_config(None, installation.anchors()).unwrap();
    anonymous.alpn_protocols = vec![ALPN.to_vec()];
    let refused = handshake(&installation.quic_server(NothingRefused), &anonymous);
    assert_eq!(refused.alert(), AlertDescription::CertificateRequired);
}

#[test]
fn a_sandbox_of_another_authority_is_refused() {
    let installation = Installation::new();
    let stranger = Installation::new().bundle(&some_sandbox());
    // It would not accept our gateway either, so let it trust ours: the question is what we say.
    let identity = LiveIdentity::new(&stranger);
    let client = tls::supervisor_client_config(&identity, installation.anchors(), &[ALPN]).unwrap();
    let refused = handshake(&installation.quic_server(NothingRefused), &client);
    let alert = refused.alert();
    assert_eq!(Refusal::from_alert(u8::from(alert)), Some(Refusal::UnknownAuthority), "{alert:?}");
}

#[test]
fn a_gateway_of_another_authority_is_refused_by_the_supervisor() {
    let installation = Installation::new();
    let other = Installation::new();
    let ended =
        handshake(&other.quic_server(NothingRefused), &supervisor(&installation.bundle(&some_sandbox())));
    assert!(matches!(ended.client, Err(rustls::Error::InvalidCertificate(_))), "{:?}", ended.client);
    assert_eq!(ended.server, Err(rustls::Error::AlertReceived(AlertDescription::UnknownCA)));
}

#[test]
fn a_gateway_of_another_trust_domain_does_not_have_the_name() {
    let other = Installation::of("other.internal".parse().unwrap());
    let ended = handshake(&other.quic_server(NothingRefused), &supervisor(&other.bundle(&some_sandbox())));
    // The handshake asks for gateway.holdfast.internal, and this one is gateway.other.internal.
    assert_eq!(ended.server, Err(rustls::Error::AlertReceived(AlertDescription::BadCertificate)));
}

#[test]
fn clients_and_gateways_have_no_business_at_the_supervisors_port() {
    let installation = Installation::new();
    for identity in [Identity::client("ada").unwrap(), Identity::gateway("gw-2").unwrap()] {
        let refused = handshake(
            &installation.quic_server(NothingRefused),
            &supervisor(&installation.bundle(&identity)),
        );
        assert_eq!(refused.alert(), AlertDescription::AccessDenied, "{identity}");
    }
}

#[test]
fn a_sandbox_has_no_business_at_the_api() {
    let installation = Installation::new();
    for optional in [false, true] {
        let bundle = installation.bundle(&some_sandbox());
        let refused = handshake(&installation.api_server(optional), &api_client(&bundle));
        assert_eq!(refused.alert(), AlertDescription::AccessDenied);
    }
}

#[test]
fn an_expired_sandbox_gets_in_and_is_seen_to_be_expired() {
    let installation = Installation::new();
    let bundle = installation.expired_bundle(&some_sandbox());
    let facts = handshake(&installation.quic_server(NothingRefused), &supervisor(&bundle)).admitted();
    assert!(facts.expired_at(SystemTime::now()));
    assert_eq!(facts.remaining_at(SystemTime::now()), Duration::ZERO);
}

#[test]
fn an_expired_client_is_refused_also_where_certificates_are_optional() {
    let installation = Installation::new();
    let bundle = installation.expired_bundle(&Identity::client("ada").unwrap());
    for optional in [false, true] {
        let refused = handshake(&installation.api_server(optional), &api_client(&bundle));
        assert_eq!(refused.alert(), AlertDescription::CertificateExpired);
    }
    // Nor does the patience with sandboxes extend to others at the same port.
    let refused = handshake(&installation.quic_server(NothingRefused), &supervisor(&bundle));
    assert_eq!(refused.alert(), AlertDescription::CertificateExpired);
}

#[test]
fn an_expired_gateway_is_refused_by_everybody() {
    let installation = Installation::new();
    let gateway = installation.expired_bundle(&Identity::gateway("gw-1").unwrap());
    installation.gateway.replace(&gateway).unwrap();
    let sandbox = supervisor(&installation.bundle(&some_sandbox()));
    let client = api_client(&installation.bundle(&Identity::client("ada").unwrap()));
    for ended in [
        handshake(&installation.quic_server(NothingRefused), &sandbox),
        handshake(&installation.api_server(true), &client),
    ] {
        assert_eq!(ended.server, Err(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)));
    }
}

#[test]
fn a_certificate_from_the_future_is_refused_even_for_a_sandbox() {
    let installation = Installation::new();
    let tomorrow = SystemTime::now() + 24 * HOUR;
    let issued = installation.authority.issue_at(tomorrow, &some_sandbox(), HOUR, &[]).unwrap();
    let bundle = issued.into_bundle(installation.anchors()).unwrap();
    let refused = handshake(&installation.quic_server(NothingRefused), &supervisor(&bundle));
    assert_eq!(refused.alert(), AlertDescription::CertificateExpired);
}

#[test]
fn a_peer_whose_clock_is_four_minutes_behind_accepts_a_new_certificate() {
    let installation = Installation::new();
    let mut behind = supervisor(&installation.bundle(&some_sandbox()));
    behind.time_provider = Arc::new(FakeClock(SystemTime::now() - Duration::from_secs(4 * 60)));
    handshake(&installation.quic_server(NothingRefused), &behind).admitted();
}

#[test]
fn a_deleted_sandbox_is_refused_and_told_so_expired_or_not() {
    let installation = Installation::new();
    let deleted = some_sandbox();
    let id = SpiffeId::new(TrustDomain::default(), deleted.clone());
    let server = installation.quic_server(move |peer: &SpiffeId| *peer == id);

    for bundle in [installation.bundle(&deleted), installation.expired_bundle(&deleted)] {
        let alert = handshake(&server, &supervisor(&bundle)).alert();
        assert_eq!(Refusal::from_alert(u8::from(alert)), Some(Refusal::Revoked));
    }
    handshake(&server, &supervisor(&installation.bundle(&some_sandbox()))).admitted();
}

#[test]
fn a_deleted_sandbox_cannot_come_back_by_resuming_its_session() {
    let installation = Installation::new();
    let sandbox = some_sandbox();
    let refused: Arc<Mutex<HashSet<SpiffeId>>> = Arc::default();
    let policy = {
        let refused = Arc::clone(&refused);
        move |peer: &SpiffeId| refused.lock().unwrap().contains(peer)
    };
    let server = Arc::new(installation.quic_server(policy));
    // A client that would resume if only it were given a ticket.
    let mut client = supervisor(&installation.bundle(&sandbox));
    client.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let client = Arc::new(client);

    for _ in 0..2 {
        let ended = handshake_with(&server, &client);
        assert_eq!(ended.tickets, 0);
        assert_eq!(ended.kind, Some(HandshakeKind::Full));
        ended.admitted();
    }
    refused.lock().unwrap().insert(SpiffeId::new(TrustDomain::default(), sandbox));
    assert_eq!(handshake_with(&server, &client).alert(), AlertDescription::CertificateRevoked);
}

#[test]
fn the_gateway_shows_its_renewed_certificate_in_the_next_handshake() {
    let installation = Installation::new();
    let server = Arc::new(installation.quic_server(NothingRefused));
    let client = Arc::new(supervisor(&installation.bundle(&some_sandbox())));
    let before = handshake_with(&server, &client).client.unwrap();

    let renewed = installation.bundle(&Identity::gateway("gw-1").unwrap());
    installation.gateway.replace(&renewed).unwrap();
    let after = handshake_with(&server, &client).client.unwrap();
    assert_ne!(before, after);
    assert_eq!(after, renewed.facts().fingerprint);
}

#[test]
fn a_live_identity_never_becomes_somebody_else() {
    let installation = Installation::new();
    let before = installation.gateway.facts();
    let other = installation.bundle(&Identity::gateway("gw-2").unwrap());
    let error = installation.gateway.replace(&other).unwrap_err().to_string();
    assert!(error.contains("/gateway/gw-2, not for spiffe://holdfast.internal/gateway/gw-1"), "{error}");
    assert_eq!(installation.gateway.facts(), before);
}

// From here on: certificates that the authority would never issue, signed with its key or a forged one.

#[test]
fn a_forged_authority_of_the_same_name_gets_nobody_in_not_even_the_expired() {
    let installation = Installation::new();
    let forger = Forger::with_a_key_of_its_own(&installation);
    let id = format!("spiffe://holdfast.internal/{}", some_sandbox());
    for expired in [false, true] {
        let forged = forger.sign(Forged { uris: &[&id], expired, ..Forged::default() });
        let alert = forger.knock(&installation, forged);
        assert!(
            matches!(alert, AlertDescription::DecryptError | AlertDescription::UnknownCA),
            "expired {expired}: {alert:?}"
        );
    }
}

#[test]
fn a_certificate_for_another_purpose_gets_nobody_in() {
    let installation = Installation::new();
    let forger = Forger::with_the_authoritys_key(&installation);
    let id = format!("spiffe://holdfast.internal/{}", some_sandbox());
    for expired in [false, true] {
        let purpose = Purpose::ServerAuth;
        let forged = forger.sign(Forged { uris: &[&id], expired, purpose, ..Forged::default() });
        assert_eq!(forger.knock(&installation, forged), AlertDescription::UnsupportedCertificate);
    }
}

#[test]
fn a_certificate_that_names_two_or_nobody_or_a_stranger_gets_nobody_in() {
    let installation = Installation::new();
    let forger = Forger::with_the_authoritys_key(&installation);
    let one = format!("spiffe://holdfast.internal/{}", some_sandbox());
    let two = format!("spiffe://holdfast.internal/{}", some_sandbox());
    let stranger = format!("spiffe://other.internal/{}", some_sandbox());
    let cases: [&[&str]; 5] =
        [&[&one, &two], &[], &["https://example.com/sandbox"], &[&stranger], &["spiffe://holdfast.internal"]];
    for uris in cases {
        let forged = forger.sign(Forged { uris, ..Forged::default() });
        assert_eq!(forger.knock(&installation, forged), AlertDescription::AccessDenied, "{uris:?}");
    }
}

#[test]
fn a_leaf_cannot_sign_for_another() {
    let installation = Installation::new();
    let sandbox = installation.bundle(&some_sandbox());
    let key = KeyPair::from_pem(sandbox.key().expose()).unwrap();
    let leaf = leaf_der(sandbox.chain_pem());
    let forger = Forger {
        issuer: Issuer::from_ca_cert_der(&leaf.as_slice().into(), key).unwrap(),
        intermediates: vec![leaf],
    };
    let id = format!("spiffe://holdfast.internal/{}", some_sandbox());
    for expired in [false, true] {
        let forged = forger.sign(Forged { uris: &[&id], expired, ..Forged::default() });
        let alert = forger.knock(&installation, forged);
        assert_ne!(alert, AlertDescription::CertificateExpired);
        assert!(Refusal::from_alert(u8::from(alert)).is_some(), "{alert:?}");
    }
}

#[test]
fn a_server_with_the_gateways_name_that_is_not_a_gateway_is_refused() {
    let installation = Installation::new();
    let forger = Forger::with_the_authoritys_key(&installation);
    for (uri, accepted) in [
        ("spiffe://holdfast.internal/gateway/gw-1", true),
        ("spiffe://holdfast.internal/client/ada", false),
        ("spiffe://other.internal/gateway/gw-1", false),
    ] {
        let forged = forger.sign(Forged {
            uris: &[uri],
            dns: &["gateway.holdfast.internal"],
            purpose: Purpose::ServerAuth,
            ..Forged::default()
        });
        let mut server = installation.quic_server(NothingRefused);
        server.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(forged));
        let ended = handshake(&server, &supervisor(&installation.bundle(&some_sandbox())));
        match accepted {
            true => drop(ended.admitted()),
            false => {
                let alert = ended.server.expect_err("the supervisor gives up");
                assert_eq!(alert, rustls::Error::AlertReceived(AlertDescription::AccessDenied), "{uri}");
            }
        }
    }
}

#[test]
fn an_intermediate_gets_nobody_in_even_if_the_authority_signed_it() {
    // No such thing is ever issued, so one that exists was made by somebody who should not have.
    let installation = Installation::new();
    let forger = Forger::with_the_authoritys_key(&installation);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let intermediate = params.signed_by(&key, &forger.issuer).unwrap();
    let issuer = Issuer::from_ca_cert_der(intermediate.der(), key).unwrap();
    let forger = Forger { issuer, intermediates: vec![intermediate.der().to_vec()] };
    let id = format!("spiffe://holdfast.internal/{}", some_sandbox());
    let forged = forger.sign(Forged { uris: &[&id], ..Forged::default() });
    let alert = forger.knock(&installation, forged);
    assert!(Refusal::from_alert(u8::from(alert)).is_some(), "{alert:?}");
}

#[test]
fn a_bundle_signed_by_somebody_else_is_not_put_together() {
    let installation = Installation::new();
    let other = Installation::new();
    let issued = other.authority.issue(&some_sandbox(), HOUR, &[]).unwrap();
    let error = issued.into_bundle(installation.anchors()).unwrap_err();
    assert!(matches!(error, holdfast_certs::Error::UnknownIssuer { .. }), "{error}");
}

/// Somebody who makes certificates of any form.
struct Forger {
    issuer: Issuer<'static, KeyPair>,
    intermediates: Vec<Vec<u8>>,
}

struct Forged<'a> {
    uris: &'a [&'a str],
    dns: &'a [&'a str],
    purpose: Purpose,
    expired: bool,
}

impl Default for Forged<'_> {
    fn default() -> Self {
        Self { uris: &[], dns: &[], purpose: Purpose::ClientAuth, expired: false }
    }
}

impl Forger {
    fn with_the_authoritys_key(installation: &Installation) -> Self {
        let key = std::fs::read_to_string(installation.directory.path().join("ca/ca-key.pem")).unwrap();
        let key = KeyPair::from_pem(&key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(installation.anchors().pem(), key).unwrap();
        Self { issuer, intermediates: Vec::new() }
    }

    fn with_a_key_of_its_own(installation: &Installation) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_ca_cert_pem(installation.anchors().pem(), key).unwrap();
        Self { issuer, intermediates: Vec::new() }
    }

    fn sign(&self, forged: Forged<'_>) -> rustls::sign::CertifiedKey {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        params.not_before = (now - 3 * HOUR).into();
        params.not_after = if forged.expired { now - HOUR } else { now + HOUR }.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![forged.purpose];
        let uris = forged.uris.iter().map(|uri| SanType::URI(uri.to_string().try_into().unwrap()));
        let dns = forged.dns.iter().map(|name| SanType::DnsName(name.to_string().try_into().unwrap()));
        params.subject_alt_names = uris.chain(dns).collect();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.intermediates.iter().map(|der| der.clone().into()));
        let key = rustls::crypto::ring::sign::any_supported_type(&key.serialize_der().try_into().unwrap());
        rustls::sign::CertifiedKey::new(chain, key.unwrap())
    }

    /// Tries to get in at the supervisors' port, and returns how it was refused.
    fn knock(&self, installation: &Installation, forged: rustls::sign::CertifiedKey) -> AlertDescription {
        let mut client = supervisor(&installation.bundle(&some_sandbox()));
        client.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(forged));
        handshake(&installation.quic_server(NothingRefused), &client).alert()
    }
}

fn leaf_der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}
