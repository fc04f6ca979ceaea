//! rustls configurations for every connection that Holdfast makes.
//!
//! | connection | server | client | who is admitted |
//! | --- | --- | --- | --- |
//! | supervisor to gateway, QUIC | [`gateway_quic_server_config`] | [`supervisor_client_config`] | sandboxes |
//! | client to gateway, gRPC | [`api_server_config`] | [`api_client_config`] | clients and gateways |
//!
//! All of them: TLS 1.3, the `ring` provider named explicitly (so that no process-wide default is
//! needed), the installation's own anchors alone, and **no resumption**. A resumed session skips the
//! verification of certificates, so a deleted sandbox or an expired client could come back with a ticket
//! from better days. Connections here live for days; the millisecond that a ticket saves is not worth it.

mod live;
mod refusal;
mod verifier;

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

pub use live::LiveIdentity;
pub use refusal::Refusal;
pub use verifier::{NothingRefused, RevocationPolicy};

use crate::anchors::TrustAnchors;
use crate::error::Error;
use crate::facts::CertificateFacts;
use verifier::{Door, GatewayVerifier, PeerVerifier};

/// The only protocol of the public API.
pub const API_ALPN: &[u8] = b"h2";

/// The gateway's side of the supervisors' port. QUIC brings the ALPN, so the caller gives it.
///
/// Only sandboxes get in, and each must show a certificate. One that has *run out* is let in too, because
/// it can be renewed only over a connection: **the caller must look at
/// [`CertificateFacts::expired_at`] and allow such a peer its renewal alone** (see [`peer_facts`]).
/// Whom `policy` refuses gets the alert `certificate_revoked`.
pub fn gateway_quic_server_config(
    identity: &Arc<LiveIdentity>,
    anchors: &TrustAnchors,
    policy: Arc<dyn RevocationPolicy>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, Error> {
    server_config(identity, anchors, policy, Door::Supervisors, alpn)
}

/// The supervisor's side of it. The server's name is
/// [`TrustDomain::gateway_server_name`](crate::TrustDomain::gateway_server_name), whatever the address.
///
/// Keep the configuration over reconnects: after a renewal, [`LiveIdentity::replace`] is enough.
pub fn supervisor_client_config(
    identity: &Arc<LiveIdentity>,
    anchors: &TrustAnchors,
    alpn: &[&[u8]],
) -> Result<ClientConfig, Error> {
    client_config("the supervisor's connection", anchors, Some(identity), alpn)
}

/// The gateway's side of the public API, over HTTP/2.
///
/// A client certificate may be left out if `client_auth_optional`, and then the caller has to ask for a
/// bearer token; one that is shown must be good, and a sandbox's is not: a sandbox has no business here.
pub fn api_server_config(
    identity: &Arc<LiveIdentity>,
    anchors: &TrustAnchors,
    policy: Arc<dyn RevocationPolicy>,
    client_auth_optional: bool,
) -> Result<ServerConfig, Error> {
    server_config(identity, anchors, policy, Door::Api { optional: client_auth_optional }, &[API_ALPN])
}

/// A client's side of it, with a client certificate or, for bearer tokens, without.
pub fn api_client_config(
    identity: Option<&Arc<LiveIdentity>>,
    anchors: &TrustAnchors,
) -> Result<ClientConfig, Error> {
    client_config("the API client", anchors, identity, &[API_ALPN])
}

/// Who is at the other end, from the certificates that the TLS library hands out after a handshake. The
/// first is the peer's own and has been verified by then.
pub fn peer_facts(chain: &[CertificateDer<'_>]) -> Result<CertificateFacts, Error> {
    match chain.first() {
        Some(leaf) => CertificateFacts::read(leaf, "the peer's handshake"),
        None => Err(Error::certificate("the peer's handshake", "the peer has shown none")),
    }
}

fn server_config(
    identity: &Arc<LiveIdentity>,
    anchors: &TrustAnchors,
    policy: Arc<dyn RevocationPolicy>,
    door: Door,
    alpn: &[&[u8]],
) -> Result<ServerConfig, Error> {
    let what = door.what();
    let provider = provider();
    let verifier = PeerVerifier::new(anchors, policy, door, &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|source| Error::Tls { what, source })?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::clone(identity) as _);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    what: &'static str,
    anchors: &TrustAnchors,
    identity: Option<&Arc<LiveIdentity>>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, Error> {
    let provider = provider();
    let inner = WebPkiServerVerifier::builder_with_provider(anchors.roots(), Arc::clone(&provider))
        .build()
        .map_err(|error| Error::certificate(anchors.origin(), error))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|source| Error::Tls { what, source })?
        // "Dangerous" is any verifier of one's own; this one only adds to what rustls does itself.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(GatewayVerifier::new(inner, anchors)));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::clone(identity) as _),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
