//! Names: the trust domain, what kinds of holder there are, and the SPIFFE id that joins the two.
//!
//! What enters is text or a certificate from outside; what leaves is a value that is valid by its
//! type. Parsing is exact: one spelling for each identity, so that comparing text and comparing
//! values never disagree.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a SPIFFE id starts with. Lower case only: one spelling an identity.
const SCHEME: &str = "spiffe://";

/// Who somebody is, in the world of one trust domain.
///
/// ```
/// use holdfast_certs::{Identity, SpiffeId, TrustDomain};
///
/// let id = SpiffeId::new(TrustDomain::default(), Identity::client("ada")?);
/// assert_eq!(id.to_string(), "spiffe://holdfast.internal/client/ada");
/// assert_eq!("spiffe://holdfast.internal/client/ada".parse::<SpiffeId>()?, id);
/// # Ok::<(), holdfast_certs::IdentityError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SpiffeId {
    /// The installation, or federation of installations, in which the name means something.
    pub trust_domain: TrustDomain,
    /// Who, within it.
    pub identity: Identity,
}

impl SpiffeId {
    /// Longest accepted text: `spiffe://`, a trust domain, and the longest path with a name in it.
    const MAX_BYTES: usize = SCHEME.len() + TrustDomain::MAX_BYTES + "/gateway/".len() + Name::MAX_BYTES;

    /// Puts the two parts together.
    pub fn new(trust_domain: TrustDomain, identity: Identity) -> Self {
        Self { trust_domain, identity }
    }

    /// Reads the identity out of a certificate, which must carry exactly one URI.
    ///
    /// Says nothing about whether the certificate is valid or who signed it.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, crate::Error> {
        Ok(crate::CertificateFacts::from_certificate(certificate)?.spiffe_id)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.trust_domain, self.identity)
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > Self::MAX_BYTES {
            return Err(IdentityError::new("SPIFFE id", text, "it is too long"));
        }
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return Err(IdentityError::new("SPIFFE id", text, "it does not start with spiffe://"));
        };
        let Some((domain, path)) = rest.split_once('/') else {
            return Err(IdentityError::new("SPIFFE id", text, "it names a trust domain but nobody in it"));
        };
        Ok(Self { trust_domain: domain.parse()?, identity: path.parse()? })
    }
}

/// One holder of a certificate. Text form: `sandbox/<uuid>`, `client/<name>`, `gateway/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// The supervisor in one sandbox, and in no other.
    Sandbox {
        /// The sandbox's id.
        id: Uuid,
    },
    /// Somebody who uses the public API.
    Client {
        /// The client's name.
        name: Name,
    },
    /// A gateway process.
    Gateway {
        /// The gateway's name, unique in its installation.
        name: Name,
    },
}

impl Identity {
    /// The supervisor of sandbox `id`.
    pub fn sandbox(id: impl Into<Uuid>) -> Self {
        Self::Sandbox { id: id.into() }
    }

    /// The client called `name`.
    pub fn client(name: &str) -> Result<Self, IdentityError> {
        Ok(Self::Client { name: name.parse()? })
    }

    /// The gateway called `name`.
    pub fn gateway(name: &str) -> Result<Self, IdentityError> {
        Ok(Self::Gateway { name: name.parse()? })
    }

    /// The sandbox's id, if this is a sandbox.
    pub fn sandbox_id(&self) -> Option<Uuid> {
        match self {
            Self::Sandbox { id } => Some(*id),
            Self::Client { .. } | Self::Gateway { .. } => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox { id } => write!(f, "sandbox/{}", id.hyphenated()),
            Self::Client { name } => write!(f, "client/{name}"),
            Self::Gateway { name } => write!(f, "gateway/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        match text.split_once('/') {
            Some(("sandbox", id)) => {
                // Uuid also reads braces, URNs, upper case and bare hex; one identity has one spelling.
                let parsed = Uuid::try_parse(id).ok().filter(|uuid| uuid.hyphenated().to_string() == id);
                let Some(id) = parsed else {
                    return Err(IdentityError::new(
                        "sandbox id",
                        id,
                        "it is not a lower-case UUID with hyphens",
                    ));
                };
                Ok(Self::Sandbox { id })
            }
            Some(("client", name)) => Self::client(name),
            Some(("gateway", name)) => Self::gateway(name),
            _ => Err(IdentityError::new(
                "identity",
                text,
                "it is none of sandbox/<uuid>, client/<name>, gateway/<name>",
            )),
        }
    }
}

/// The name of a client or a gateway: 1 to 48 of `A-Z a-z 0-9 . _ -`, and neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name(String);

impl Name {
    /// The certificate's common name is `gateway/<name>`, and X.509 ends that at 64 characters.
    const MAX_BYTES: usize = 48;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let refuse = |reason| Err(IdentityError::new("name", text, reason));
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > Self::MAX_BYTES {
            return refuse("it is longer than 48 characters");
        }
        if text == "." || text == ".." {
            return refuse("a dot alone is not a name");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return refuse("only letters, digits, dot, underscore and hyphen may be in it");
        }
        Ok(Self(text.to_owned()))
    }
}

/// The domain within which identities mean something: a lower-case DNS name.
///
/// It is DNS, though SPIFFE would allow more, because `gateway.<trust domain>` is the name that every
/// dialler verifies.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// A DNS name has at most 253 characters, and `gateway.` goes in front.
    const MAX_BYTES: usize = 253 - "gateway.".len();

    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The DNS name that each gateway's certificate carries and each dialler verifies.
    pub fn gateway_dns_name(&self) -> String {
        format!("gateway.{}", self.0)
    }

    /// The same name, as rustls wants it.
    pub fn gateway_server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.gateway_dns_name()).expect("a trust domain is a DNS name by construction")
    }

    /// The URI that the authority's own certificate carries.
    pub(crate) fn uri(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }

    pub(crate) fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        match uri.strip_prefix(SCHEME) {
            Some(domain) => domain.parse(),
            None => Err(IdentityError::new("trust domain", uri, "it does not start with spiffe://")),
        }
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self("holdfast.internal".to_owned())
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let refuse = |reason| Err(IdentityError::new("trust domain", text, reason));
        if text.is_empty() || text.len() > Self::MAX_BYTES {
            return refuse("it must have 1 to 245 characters");
        }
        for label in text.split('.') {
            if label.is_empty() || label.len() > 63 {
                return refuse("each part between dots must have 1 to 63 characters");
            }
            if label.starts_with('-') || label.ends_with('-') {
                return refuse("no part may start or end with a hyphen");
            }
            if !label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
                return refuse("only lower-case letters, digits, hyphens and dots may be in it");
            }
        }
        // "10.0.0.1" would be an address to every resolver and verifier.
        if text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return refuse("the last part must not be a number");
        }
        Ok(Self(text.to_owned()))
    }
}

/// Text that is not an identity: what it should have been, what it was, and why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: {reason}")]
pub struct IdentityError {
    what: &'static str,
    text: String,
    reason: &'static str,
}

impl IdentityError {
    fn new(what: &'static str, text: &str, reason: &'static str) -> Self {
        // The text may come from a peer: quote enough to recognise it, not all that it sent.
        let text = text.chars().take(80).collect();
        Self { what, text, reason }
    }
}

macro_rules! text_conversions {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = IdentityError;
            fn try_from(text: String) -> Result<Self, IdentityError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

text_conversions!(SpiffeId, Name, TrustDomain);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SANDBOX: &str = "spiffe://holdfast.internal/sandbox/0192f0c1-2b3c-7d4e-8f5a-6b7c8d9e0f1a";

    #[test]
    fn each_identity_has_one_spelling() {
        for text in [SANDBOX, "spiffe://acme.example/client/ada", "spiffe://a/gateway/GW_1.eu-west"] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
        for other_spelling in [
            SANDBOX.to_uppercase().as_str(),
            &SANDBOX.replace("spiffe", "SPIFFE"),
            &SANDBOX.replace("internal", "Internal"),
            &SANDBOX.replace("7d4e", "7D4E"),
            &SANDBOX.replace("2b3c-", "2b3c"),
            "spiffe://holdfast.internal/sandbox/0192f0c12b3c7d4e8f5a6b7c8d9e0f1a",
            "spiffe://holdfast.internal/sandbox/{0192f0c1-2b3c-7d4e-8f5a-6b7c8d9e0f1a}",
        ] {
            assert!(other_spelling.parse::<SpiffeId>().is_err(), "{other_spelling}");
        }
    }

    #[test]
    fn what_is_not_an_identity_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "does not start with spiffe://"),
            ("https://holdfast.internal/client/ada", "does not start with spiffe://"),
            ("spiffe://holdfast.internal", "nobody in it"),
            ("spiffe:///client/ada", "1 to 245 characters"),
            ("spiffe://holdfast.internal:443/client/ada", "only lower-case letters"),
            ("spiffe://user@holdfast.internal/client/ada", "only lower-case letters"),
            ("spiffe://holdfast.internal/", "none of sandbox/"),
            ("spiffe://holdfast.internal/root/ada", "none of sandbox/"),
            ("spiffe://holdfast.internal//client/ada", "none of sandbox/"),
            ("spiffe://holdfast.internal/client/", "empty"),
            ("spiffe://holdfast.internal/client/..", "a dot alone"),
            ("spiffe://holdfast.internal/client/ada/", "only letters"),
            ("spiffe://holdfast.internal/client/ada?x", "only letters"),
            ("spiffe://holdfast.internal/client/ada#x", "only letters"),
            ("spiffe://holdfast.internal/client/%61da", "only letters"),
            ("spiffe://holdfast.internal/client/ada\n", "only letters"),
            ("spiffe://holdfast.internal/client/ada\0", "only letters"),
            ("spiffe://holdfast.internal/sandbox/1", "not a lower-case UUID"),
            ("spiffe://10.0.0.1/client/ada", "must not be a number"),
        ] {
            let error = text.parse::<SpiffeId>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_error_quotes_only_the_start_of_what_a_peer_sent() {
        let error = "x".repeat(100_000).parse::<SpiffeId>().unwrap_err();
        assert!(error.to_string().len() < 200);
    }

    #[test]
    fn a_trust_domain_is_a_dns_name() {
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(53)].join(".");
        assert_eq!(longest.len(), TrustDomain::MAX_BYTES);
        for text in ["a", "holdfast.internal", "xn--bcher-kva.example", "1.example", &longest] {
            let server_name = text.parse::<TrustDomain>().unwrap().gateway_server_name();
            assert_eq!(server_name.to_str(), format!("gateway.{text}"));
        }
        let too_long = format!("{longest}e");
        for text in ["", ".", "a.", ".a", "a..b", "-a", "a-", "A", "a_b", "ä", "a b", "1", "a.1", &too_long]
        {
            assert!(text.parse::<TrustDomain>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn serde_checks_what_it_reads() {
        let id: SpiffeId = serde_json::from_str(&format!("\"{SANDBOX}\"")).unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{SANDBOX}\""));
        assert!(serde_json::from_str::<TrustDomain>("\"Not A Domain\"").is_err());
        assert!(serde_json::from_str::<Name>("\"a/b\"").is_err());
    }

    fn identities() -> impl Strategy<Value = Identity> {
        let name = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,47}";
        prop_oneof![
            any::<u128>().prop_map(|id| Identity::sandbox(Uuid::from_u128(id))),
            name.prop_map(|name| Identity::client(&name).unwrap()),
            name.prop_map(|name| Identity::gateway(&name).unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn an_identity_survives_being_written_and_read(
            domain in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z]([a-z0-9-]{0,20}[a-z0-9])?){1,3}",
            identity in identities(),
        ) {
            let id = SpiffeId::new(domain.parse().unwrap(), identity);
            prop_assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
        }

        #[test]
        fn what_is_read_is_written_the_same(
            text in "(spiffe://)?[a-zA-Z0-9.:@_-]{0,12}/(sandbox|client|gateway|x)?/?[a-f0-9A-F{}.%/?#_-]{0,40}",
        ) {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn every_trust_domain_has_a_gateway_name(text in "[a-z0-9.-]{1,40}") {
            if let Ok(domain) = text.parse::<TrustDomain>() {
                // The conversion says that it cannot fail; this is where it would.
                domain.gateway_server_name();
            }
        }
    }
}
