//! The client profile: where a gateway is, how to know it, and how to prove who is calling.
//!
//! A small TOML file. The gateway writes one for its own machine (`DATA_DIR/client.toml`); people copy it and
//! its three PEM files to other machines as one directory. The exact format:
//!
//! ```toml
//! # host:port of the gateway's API; an IPv6 literal in brackets. A leading https:// is tolerated.
//! address = "127.0.0.1:7443"
//! # The name that the gateway's certificate must carry, whatever the address is. Default: gateway.holdfast.internal
//! server_name = "gateway.holdfast.internal"
//! # PEM: the authority that signs the gateway's certificate.
//! ca = "ca.pem"
//! # PEM: the caller's certificate and its private key. Both or neither.
//! cert = "client.pem"
//! key = "client.key"
//! # Instead of (or besides) a certificate: a file whose first line is a bearer token.
//! token_file = "token"
//! ```
//!
//! Relative paths are relative to the profile's own directory. Unknown keys are errors, with a suggestion.
//! Secrets are never in the file itself, so it may be shown; the key and the token are files of their own, and a
//! key or token that others may read is refused.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::suggest;

/// The name in every gateway's certificate, for the default trust domain.
pub const DEFAULT_SERVER_NAME: &str = "gateway.holdfast.internal";

/// A profile, a PEM file or a token: the largest that is read, in bytes. A chain of five RSA-4096 certificates
/// has about 10 kB.
const MAX_FILE: u64 = 256 * 1024;

/// The keys of a profile, for suggestions.
const KEYS: &[&str] = &["address", "server_name", "ca", "cert", "key", "token_file"];

/// A client profile as it is in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `host:port` of the gateway's API.
    pub address: String,
    /// The DNS name that the gateway's certificate must carry.
    #[serde(default = "default_server_name")]
    pub server_name: String,
    /// The authority's certificate, PEM.
    pub ca: PathBuf,
    /// The caller's certificate, PEM. Together with `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// The caller's private key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// A file whose first line is a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

fn default_server_name() -> String {
    DEFAULT_SERVER_NAME.to_owned()
}

/// Why a profile cannot be used. Each says which file, what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// There is none.
    #[error(
        "no client profile at {0}: start a gateway on this machine (`holdfast gateway`), or copy its profile directory here and name it by HOLDFAST_PROFILE or --profile"
    )]
    Missing(PathBuf),
    /// A file that it needs cannot be read.
    #[error("cannot read {what} {path}: {source}")]
    Read {
        /// Which of the files.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not TOML of this format.
    #[error("the client profile {path} is wrong: {message}")]
    Malformed {
        /// The profile.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// Others could read a secret.
    #[error(
        "{path} can be read by others (mode {mode:03o}): run `chmod 600 {path}`, and replace the {what} if it may have leaked"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What is in it.
        what: &'static str,
    },
}

impl Profile {
    /// Reads and checks the profile at `path`, and makes its paths absolute. The files that it names are read by
    /// [`Profile::credentials`] only.
    ///
    /// # Errors
    /// The file is missing, cannot be read, or is not a profile.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = match read(path, "the client profile") {
            Err(ProfileError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(ProfileError::Missing(path.to_owned()));
            }
            other => other?,
        };
        let malformed = |message: String| ProfileError::Malformed { path: path.to_owned(), message };
        let text = String::from_utf8(text).map_err(|_| malformed("not UTF-8 text".to_owned()))?;
        let profile: Self =
            toml::from_str(&text).map_err(|error| malformed(suggest::toml_error(&error, KEYS)))?;
        profile.check().map_err(malformed)?;
        // A path without a parent is a bare file name: its directory is the current one.
        let base = path.parent().unwrap_or(Path::new(""));
        Ok(profile.relative_to(base))
    }

    /// The profile as TOML, for the gateway (or a person) to write.
    ///
    /// # Errors
    /// A path that is not UTF-8 cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Reads the files that the profile names.
    ///
    /// # Errors
    /// A file is missing, too large or unreadable; a secret can be read by others.
    pub fn credentials(&self) -> Result<Credentials, ProfileError> {
        let ca = read(&self.ca, "the authority's certificate")?;
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                Some((read(cert, "the client certificate")?, read_secret(key, "private key")?))
            }
            _ => None,
        };
        let token = self.token_file.as_deref().map(token).transpose()?;
        Ok(Credentials { ca, identity, token })
    }

    fn check(&self) -> Result<(), String> {
        let address = self.host_port();
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if port.and_then(|port| port.parse::<u16>().ok()).is_none_or(|port| port == 0) {
            return Err(format!("address = {:?} is not host:port, such as 127.0.0.1:7443", self.address));
        }
        if self.server_name.is_empty() {
            return Err("server_name is empty: leave it out for the default".to_owned());
        }
        match (&self.cert, &self.key, &self.token_file) {
            (Some(_), None, _) => Err("cert without key: give both, or token_file".to_owned()),
            (None, Some(_), _) => Err("key without cert: give both, or token_file".to_owned()),
            (None, None, None) => Err("no credentials: give cert and key, or token_file".to_owned()),
            _ => Ok(()),
        }
    }

    fn relative_to(mut self, base: &Path) -> Self {
        self.ca = base.join(&self.ca);
        for path in [&mut self.cert, &mut self.key, &mut self.token_file].into_iter().flatten() {
            *path = base.join(&*path);
        }
        self
    }

    /// `address` without a scheme.
    pub(crate) fn host_port(&self) -> &str {
        self.address.strip_prefix("https://").unwrap_or(&self.address).trim_end_matches('/')
    }
}

/// What a profile's files hold. Its `Debug` shows no secret.
#[derive(Clone)]
pub struct Credentials {
    /// The authority's certificate, PEM.
    pub ca: Vec<u8>,
    /// Certificate and private key, PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The bearer token.
    pub token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("certificate", &self.identity.is_some())
            .field("token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

fn token(path: &Path) -> Result<String, ProfileError> {
    let text = read_secret(path, "token")?;
    let wrong =
        |message: &str| ProfileError::Malformed { path: path.to_owned(), message: message.to_owned() };
    let text = String::from_utf8(text).map_err(|_| wrong("the token is not UTF-8 text"))?;
    let token = text.lines().next().unwrap_or_default().trim();
    if token.is_empty() {
        return Err(wrong("its first line, the token, is empty"));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("the token has characters that no HTTP header can carry"));
    }
    Ok(token.to_owned())
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, ProfileError> {
    let failed = |source| ProfileError::Read { what, path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(failed)?;
    bounded(file).map_err(failed)
}

fn read_secret(path: &Path, what: &'static str) -> Result<Vec<u8>, ProfileError> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |source| ProfileError::Read { what: "the secret", path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(failed)?;
    // Asked of the open file: the one at the path may be another by now.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    // Kubernetes mounts secrets group-readable for the pod's own group, so only "others" are refused.
    if mode & 0o007 != 0 {
        return Err(ProfileError::Exposed { path: path.to_owned(), mode, what });
    }
    bounded(file).map_err(failed)
}

fn bounded(file: fs::File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("more than {} KiB", MAX_FILE / 1024)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn load(text: &str) -> Result<Profile, ProfileError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        fs::write(&path, text).unwrap();
        Profile::load(&path)
    }

    fn message(text: &str) -> String {
        load(text).unwrap_err().to_string()
    }

    #[test]
    fn paths_are_relative_to_the_profile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        fs::write(&path, "address = '127.0.0.1:7443'\nca = 'ca.pem'\ncert = 'c.pem'\nkey = '/abs/c.key'\n")
            .unwrap();
        let profile = Profile::load(&path).unwrap();
        assert_eq!(profile.ca, dir.path().join("ca.pem"));
        assert_eq!(profile.key.as_deref(), Some(Path::new("/abs/c.key")));
        assert_eq!(profile.server_name, DEFAULT_SERVER_NAME);
        assert_eq!(profile.host_port(), "127.0.0.1:7443");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        let written = Profile {
            address: "[::1]:7443".into(),
            server_name: "gateway.example.org".into(),
            ca: "/a/ca.pem".into(),
            cert: None,
            key: None,
            token_file: Some("/a/token".into()),
        };
        fs::write(&path, written.to_toml().unwrap()).unwrap();
        assert_eq!(Profile::load(&path).unwrap(), written);
    }

    #[test]
    fn an_unknown_key_gets_a_suggestion() {
        let text = message("adress = 'h:1'\nca = 'a'\ntoken_file = 't'\n");
        assert!(text.contains("adress") && text.contains("did you mean `address`?"), "{text}");
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(message("ca = 'a'\ntoken_file = 't'\n").contains("address"));
        assert!(message("address = 'h'\nca = 'a'\ntoken_file = 't'\n").contains("not host:port"));
        assert!(message("address = 'h:0'\nca = 'a'\ntoken_file = 't'\n").contains("not host:port"));
        assert!(message("address = 'h:1'\nca = 'a'\n").contains("no credentials"));
        assert!(message("address = 'h:1'\nca = 'a'\ncert = 'c'\n").contains("cert without key"));
    }

    #[test]
    fn no_profile_says_how_to_get_one() {
        let error = Profile::load(Path::new("/nonexistent/client.toml")).unwrap_err();
        assert!(matches!(error, ProfileError::Missing(_)));
        assert!(error.to_string().contains("holdfast gateway"));
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "s3cret\nrest").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(token(&path), Err(ProfileError::Exposed { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(token(&path).unwrap(), "s3cret");
    }

    #[test]
    fn no_secret_is_in_debug() {
        let credentials = Credentials {
            ca: vec![],
            identity: Some((vec![1], b"hush".to_vec())),
            token: Some("hush".into()),
        };
        assert!(!format!("{credentials:?}").contains("hush"));
    }
}
