//! Who calls: a client certificate of our CA, or a bearer token from the tokens file.
//!
//! TLS has verified a certificate by the time that this looks at it; without one a token is the only way in.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_certs::{Identity, tls};
use ring::digest::{SHA256, digest};
use tonic::{Request, Status, service::Interceptor};

use super::listener::ApiConnectInfo;
use crate::error::{CallError, Reason};

/// A tokens file beyond this many bytes is a mistake.
const MAX_TOKENS_FILE: u64 = 1 << 20;

/// A token shorter than this can be guessed.
const MIN_TOKEN: usize = 20;

/// Who a request comes from; in its extensions after authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The client's name: from its certificate, or beside its token.
    pub name: Arc<str>,
}

/// The tokens that are good. Only their digests are kept.
#[derive(Clone, Default)]
pub struct Tokens {
    known: Arc<Vec<(Arc<str>, [u8; 32])>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.known.iter().map(|(name, _)| name)).finish()
    }
}

/// The tokens file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// Not readable.
    #[error("reading the tokens file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Readable for too many, or not in the format.
    #[error("the tokens file {}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl Tokens {
    /// Reads a file of lines `NAME TOKEN`; `#` begins a comment. Refuses a file that others can read.
    pub fn load(path: &Path) -> Result<Self, TokensError> {
        use std::os::unix::fs::PermissionsExt;
        let failed = |source| TokensError::Read { path: path.to_owned(), source };
        let invalid = |message: String| TokensError::Invalid { path: path.to_owned(), message };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(invalid("others than its owner may read it: chmod 0600".to_owned()));
        }
        if metadata.len() > MAX_TOKENS_FILE {
            return Err(invalid(format!("larger than {MAX_TOKENS_FILE} bytes")));
        }
        let mut known = Vec::new();
        for (i, line) in std::fs::read_to_string(path).map_err(failed)?.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, token)) = line.split_once(char::is_whitespace) else {
                return Err(invalid(format!("line {}: not `NAME TOKEN`", i + 1)));
            };
            let token = token.trim();
            if token.len() < MIN_TOKEN {
                return Err(invalid(format!(
                    "line {}: the token has fewer than {MIN_TOKEN} characters",
                    i + 1
                )));
            }
            known.push((Arc::from(name), hash(token)));
        }
        if known.is_empty() {
            return Err(invalid("no tokens in it".to_owned()));
        }
        Ok(Self { known: Arc::new(known) })
    }

    /// True: nobody gets in by a token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Digests are compared, so the time taken tells nothing of a token.
    fn find(&self, token: &str) -> Option<Caller> {
        let wanted = hash(token);
        let (name, _) = self.known.iter().find(|(_, known)| *known == wanted)?;
        Some(Caller { name: Arc::clone(name) })
    }
}

fn hash(token: &str) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    out
}

/// Lets authenticated requests through, with a [`Caller`] in their extensions.
#[derive(Clone, Debug)]
pub(super) struct Authenticate {
    tokens: Tokens,
}

impl Authenticate {
    pub(super) fn new(tokens: Tokens) -> Self {
        Self { tokens }
    }

    fn caller(&self, request: &Request<()>) -> Result<Caller, CallError> {
        let refused = |message: &str| CallError::new(Reason::Unauthenticated, message);
        let certificate =
            request.extensions().get::<ApiConnectInfo>().and_then(|info| info.peer_certificate.as_ref());
        if let Some(certificate) = certificate {
            let facts = tls::peer_facts(std::slice::from_ref(certificate))
                .map_err(|error| refused(&format!("the client's certificate: {error}")))?;
            return match facts.spiffe_id.identity {
                Identity::Client { name } | Identity::Gateway { name } => {
                    Ok(Caller { name: Arc::from(name.as_str()) })
                }
                Identity::Sandbox { .. } => {
                    Err(CallError::new(Reason::Forbidden, "a sandbox's identity is not for the API"))
                }
            };
        }
        let Some(header) = request.metadata().get("authorization") else {
            return Err(refused(
                "no client certificate and no bearer token: name a profile with HOLDFAST_PROFILE",
            ));
        };
        let token = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
        token
            .and_then(|token| self.tokens.find(token.trim()))
            .ok_or_else(|| refused("the bearer token is not known"))
    }
}

impl Interceptor for Authenticate {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let caller = self.caller(&request)?;
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

/// The caller that [`Authenticate`] has found.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, CallError> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| CallError::new(Reason::Unauthenticated, "the request was not authenticated"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_known_token_has_a_name_and_another_has_none() {
        let file = file("# who may\nci  0123456789abcdef0123\n", 0o600);
        let tokens = Tokens::load(file.path()).unwrap();
        assert_eq!(&*tokens.find("0123456789abcdef0123").unwrap().name, "ci");
        assert_eq!(tokens.find("0123456789abcdef0124"), None);
        assert!(!format!("{tokens:?}").contains("0123456789"));
    }

    #[test]
    fn a_tokens_file_that_others_read_is_refused() {
        let error = Tokens::load(file("ci 0123456789abcdef0123\n", 0o644).path()).unwrap_err();
        assert!(error.to_string().contains("chmod 0600"));
    }

    #[test]
    fn a_guessable_token_is_refused_by_its_line() {
        let error = Tokens::load(file("ci 0123456789abcdef0123\nme hunter2\n", 0o600).path()).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn without_certificate_and_token_nobody_gets_in() {
        let mut door = Authenticate::new(Tokens::default());
        assert_eq!(door.call(Request::new(())).unwrap_err().code(), tonic::Code::Unauthenticated);
        let mut request = Request::new(());
        request.metadata_mut().insert("authorization", "Bearer 0123456789abcdef0123".parse().unwrap());
        assert_eq!(door.call(request).unwrap_err().code(), tonic::Code::Unauthenticated);
    }
}
