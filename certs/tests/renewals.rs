//! A certificate's life from the first issue through renewals, with the clock set by hand.

mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{ALPN, FakeClock, HOUR, Installation, handshake, some_sandbox, supervisor};
use holdfast_certs::renewal::{Renewal, Step};
use holdfast_certs::tls::{self, LiveIdentity, NothingRefused};
use holdfast_certs::{CertificateAuthority, CertificateBundle, Error, Identity, KeyAndCsr, MAX_CSR_BYTES};
use proptest::prelude::*;

/// What goes over the control stream: a request up, a certificate down.
fn renew(
    authority: &CertificateAuthority,
    now: SystemTime,
    bundle: &CertificateBundle,
    validity: Duration,
) -> CertificateBundle {
    let KeyAndCsr { private_key_pem, csr_der } = KeyAndCsr::generate().unwrap();
    let identity = &bundle.facts().spiffe_id.identity;
    let signed = authority.sign_csr_at(now, &csr_der, identity, validity).unwrap();
    bundle.renewed(&signed.cert_chain_pem, private_key_pem).unwrap()
}

#[test]
fn a_certificate_that_lives_for_seconds_is_always_renewed_before_it_ends() {
    const LIFE: Duration = Duration::from_secs(6);
    let installation = Installation::new();
    let mut now = SystemTime::now();
    let end = now + Duration::from_secs(60);
    let first = installation.authority.issue_at(now, &some_sandbox(), LIFE, &[]).unwrap();
    let mut bundle = first.into_bundle(installation.anchors()).unwrap();
    let live = LiveIdentity::new(&bundle);
    let mut server = installation.quic_server(NothingRefused);
    let client = tls::supervisor_client_config(&live, installation.anchors(), &[ALPN]).unwrap();
    let mut plan = Renewal::plan(bundle.facts(), 40_000);
    let mut renewals = 0;
    while now < end {
        match plan.step(now) {
            Step::Wait(wait) => now += wait,
            Step::Renew => {
                server.time_provider = Arc::new(FakeClock(now));
                let seen = handshake(&server, &client).admitted();
                assert!(!seen.expired_at(now), "renewal came {renewals} times, and then too late");
                bundle = renew(&installation.authority, now, &bundle, LIFE);
                live.replace(&bundle).unwrap();
                assert_eq!(handshake(&server, &client).admitted(), *bundle.facts());
                plan = Renewal::plan(bundle.facts(), 40_000);
                assert!(matches!(plan.step(now), Step::Wait(_)), "a new certificate is not due at once");
                renewals += 1;
            }
        }
    }
    assert!((10..=20).contains(&renewals), "{renewals} renewals of a six-second certificate in a minute");
}

#[test]
fn a_sandbox_that_slept_past_the_end_of_its_certificate_renews_with_it() {
    let installation = Installation::new();
    let bundle = installation.expired_bundle(&some_sandbox());
    let now = SystemTime::now();
    assert_eq!(Renewal::plan(bundle.facts(), 0).step(now), Step::Renew);

    let server = installation.quic_server(NothingRefused);
    let seen = handshake(&server, &supervisor(&bundle)).admitted();
    assert!(seen.expired_at(now));
    let renewed = renew(&installation.authority, now, &bundle, HOUR);
    assert_eq!(renewed.facts().spiffe_id, bundle.facts().spiffe_id);
    assert!(!handshake(&server, &supervisor(&renewed)).admitted().expired_at(now));
}

#[test]
fn the_certificate_names_whom_the_gateway_says_whatever_the_request_asks_for() {
    let installation = Installation::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut asks = rcgen::CertificateParams::new(vec!["gateway.holdfast.internal".to_owned()]).unwrap();
    let uri = "spiffe://holdfast.internal/gateway/gw-1".to_owned().try_into().unwrap();
    asks.subject_alt_names.push(rcgen::SanType::URI(uri));
    asks.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    asks.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let csr = asks.serialize_request(&key).unwrap();

    let sandbox = some_sandbox();
    let signed = installation.authority.sign_csr(csr.der(), &sandbox, HOUR).unwrap();
    assert_eq!(signed.facts.spiffe_id.identity, sandbox);
    let pem = x509_parser::pem::parse_x509_pem(signed.cert_chain_pem.as_bytes()).unwrap().1;
    let x509 = pem.parse_x509().unwrap();
    assert!(!x509.is_ca());
    assert_eq!(x509.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    let purposes = x509.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && !purposes.server_auth);
    assert_eq!(x509.validity().time_to_expiration().map(|left| left.whole_minutes()), Some(59));
}

#[test]
fn a_request_that_does_not_prove_its_key_is_refused() {
    let installation = Installation::new();
    let sign =
        |csr: &[u8]| installation.authority.sign_csr(csr, &some_sandbox(), HOUR).unwrap_err().to_string();
    let good = KeyAndCsr::generate().unwrap().csr_der;
    assert!(good.len() < MAX_CSR_BYTES / 4, "the bound leaves ample room");

    // Another key's public half in place of one's own: the last bytes of the request are its signature.
    let other = KeyAndCsr::generate().unwrap().csr_der;
    let point = |csr: &[u8]| csr.windows(4).position(|four| four == [0x03, 0x42, 0x00, 0x04]).unwrap() + 4;
    let mut stolen = good.clone();
    let (from, to) = (point(&other), point(&good));
    stolen[to..to + 64].copy_from_slice(&other[from..from + 64]);
    assert!(sign(&stolen).contains("possession"), "{}", sign(&stolen));

    let mut trailing = good.clone();
    trailing.push(0);
    assert!(sign(&trailing).contains("after its end"));
    assert!(sign(&good[..good.len() - 1]).contains("not PKCS#10"));
    assert!(sign(&[]).contains("not PKCS#10"));
    assert!(sign(&vec![0x30; MAX_CSR_BYTES + 1]).contains("more than 4096"));
}

#[test]
fn a_request_for_a_key_of_another_kind_is_refused() {
    let installation = Installation::new();
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let error = installation.authority.sign_csr(csr.der(), &some_sandbox(), HOUR).unwrap_err();
        assert!(error.to_string().contains("P-256"), "{error}");
    }
}

#[test]
fn a_renewal_for_somebody_else_or_for_another_key_is_not_accepted() {
    let installation = Installation::new();
    let bundle = installation.bundle(&some_sandbox());
    let request = KeyAndCsr::generate().unwrap();

    let other = installation.authority.sign_csr(&request.csr_der, &some_sandbox(), HOUR).unwrap();
    let error = bundle.renewed(&other.cert_chain_pem, request.private_key_pem.clone()).unwrap_err();
    assert!(matches!(error, Error::WrongIdentity { .. }), "{error}");

    let identity = &bundle.facts().spiffe_id.identity;
    let own = installation.authority.sign_csr(&request.csr_der, identity, HOUR).unwrap();
    let error = bundle.renewed(&own.cert_chain_pem, bundle.key().clone()).unwrap_err();
    assert!(matches!(error, Error::KeyMismatch { .. }), "{error}");
    bundle.renewed(&own.cert_chain_pem, request.private_key_pem).unwrap();

    let stranger = Installation::new();
    let request = KeyAndCsr::generate().unwrap();
    let foreign = stranger.authority.sign_csr(&request.csr_der, identity, HOUR).unwrap();
    let error = bundle.renewed(&foreign.cert_chain_pem, request.private_key_pem).unwrap_err();
    assert!(matches!(error, Error::UnknownIssuer { .. }), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_authority_panic_or_sign(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let installation = shared();
        prop_assert!(installation.authority.sign_csr(&bytes, &some_sandbox(), HOUR).is_err());
    }

    /// Whatever happens to a request on its way, the key that is signed is the one whose holder asked.
    #[test]
    fn a_damaged_request_never_changes_the_key(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let installation = shared();
        let sandbox = Identity::sandbox(uuid::Uuid::nil());
        let request = KeyAndCsr::generate().unwrap();
        let mut damaged = request.csr_der.clone();
        let at = at.index(damaged.len());
        damaged[at] ^= flip;
        if let Ok(signed) = installation.authority.sign_csr(&damaged, &sandbox, HOUR) {
            let pem = installation.anchors().pem();
            prop_assert!(CertificateBundle::from_pem(
                &signed.cert_chain_pem, request.private_key_pem.expose(), pem).is_ok());
        }
    }

    #[test]
    fn damaged_pem_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let installation = shared();
        let bundle = installation.bundle(&Identity::sandbox(uuid::Uuid::nil()));
        let parts = [bundle.chain_pem(), bundle.key().expose(), bundle.anchors().pem()];
        for damaged in 0..3 {
            let mut parts = parts.map(|part| part.as_bytes().to_vec());
            let at = at.index(parts[damaged].len());
            if cut { parts[damaged].truncate(at) } else { parts[damaged][at] = byte }
            let [chain, key, ca] = parts.map(|part| String::from_utf8_lossy(&part).into_owned());
            // Either it is refused, or the damage was to something that means nothing.
            if let Ok(read) = CertificateBundle::from_pem(&chain, &key, &ca) {
                prop_assert_eq!(read.facts(), bundle.facts());
            }
        }
    }
}

fn shared() -> &'static Installation {
    static SHARED: std::sync::OnceLock<Installation> = std::sync::OnceLock::new();
    SHARED.get_or_init(Installation::new)
}
