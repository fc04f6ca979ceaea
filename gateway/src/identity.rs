//! Who the gateway is, and whom it lets in: the CA, the gateway's own certificate and its rotation, the secret
//! behind QUIC's keys, the first client's profile.
//!
//! ```text
//! data-dir/ca/              the CA (key 0600)
//!          gateway/         the gateway's certificate and key, replaced at two thirds of their life
//!          quic.secret      32 bytes: with them a restarted gateway can reset its former connections
//!          client/          the first client's certificate and key
//!          client.toml      the profile that `holdfast` reads
//! ```

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use holdfast_certs::{
    AlternativeName, BundleFiles, CertificateAuthority, CertificateBundle, Identity, TrustDomain,
    renewal::{Renewal, Step},
    tls::{self, LiveIdentity, RevocationPolicy},
};
use holdfast_wire::{ALPN, ids::SandboxId, transport::ServerKeys};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// How long the gateway's own certificate is valid. It is replaced while the gateway runs, and at every start.
const GATEWAY_CERTIFICATE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long the first client's certificate is valid: until the user makes another one. Each start renews it.
const CLIENT_CERTIFICATE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The CA and what it has issued to the gateway itself.
#[derive(Debug)]
pub struct Identities {
    authority: CertificateAuthority,
    live: Arc<LiveIdentity>,
    name: Identity,
    names: Vec<AlternativeName>,
    keys: ServerKeys,
    sandbox_validity: Duration,
}

/// What went wrong with identities at start.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A certificate or key.
    #[error(transparent)]
    Certificate(#[from] holdfast_certs::Error),
    /// A name that cannot be one.
    #[error("{0}")]
    Name(String),
    /// A file.
    #[error("{attempted} {}: {source}", path.display())]
    File {
        /// What was attempted.
        attempted: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The QUIC secret is not what this gateway wrote.
    #[error("{} is not a QUIC secret of 32 bytes: remove it to make a new one (supervisors then notice a restart only after their idle timeout, once)", .0.display())]
    BadSecret(PathBuf),
}

/// What [`Identities::open`] needs to know.
#[derive(Debug)]
pub struct IdentitySettings<'a> {
    /// Everything the gateway keeps.
    pub data_dir: &'a Path,
    /// The installation's trust domain.
    pub trust_domain: &'a str,
    /// The gateway's name.
    pub name: &'a str,
    /// Further names and addresses for the gateway's certificate.
    pub names: &'a [String],
    /// How long a sandbox's certificate is valid.
    pub sandbox_validity: Duration,
}

impl Identities {
    /// Opens what the data directory has, makes what it lacks.
    pub fn open(settings: &IdentitySettings<'_>) -> Result<Self, IdentityError> {
        let trust_domain: TrustDomain = settings
            .trust_domain
            .parse()
            .map_err(|error| IdentityError::Name(format!("trust domain: {error}")))?;
        let authority = CertificateAuthority::open_or_create(&settings.data_dir.join("ca"), trust_domain)?;
        let name = Identity::gateway(settings.name)
            .map_err(|error| IdentityError::Name(format!("the gateway's name: {error}")))?;
        let names = settings.names.iter().filter_map(|name| name.parse().ok()).collect::<Vec<_>>();
        let bundle = authority.issue(&name, GATEWAY_CERTIFICATE, &names)?.into_bundle(authority.anchors())?;
        let secret = open_secret(&settings.data_dir.join("quic.secret"))?;
        Ok(Self {
            live: LiveIdentity::new(&bundle),
            authority,
            name,
            names,
            keys: ServerKeys::derive(&secret),
            sandbox_validity: settings.sandbox_validity,
        })
    }

    /// The keys that outlive the process.
    #[must_use]
    pub fn server_keys(&self) -> &ServerKeys {
        &self.keys
    }

    /// The name that every gateway certificate carries and every peer verifies.
    #[must_use]
    pub fn server_name(&self) -> String {
        self.authority.trust_domain().gateway_dns_name()
    }

    /// TLS for the supervisors' port. `policy` says which sandboxes are refused.
    pub fn quic_config(
        &self,
        policy: Arc<dyn RevocationPolicy>,
    ) -> Result<rustls::ServerConfig, IdentityError> {
        Ok(tls::gateway_quic_server_config(&self.live, self.authority.anchors(), policy, &[ALPN])?)
    }

    /// TLS for the API. A caller without a certificate must bring a bearer token, if any are configured.
    pub fn api_config(&self, certificate_optional: bool) -> Result<rustls::ServerConfig, IdentityError> {
        let nothing_refused = Arc::new(tls::NothingRefused);
        Ok(tls::api_server_config(
            &self.live,
            self.authority.anchors(),
            nothing_refused,
            certificate_optional,
        )?)
    }

    /// A new identity for a sandbox.
    pub fn issue_sandbox(&self, sandbox: SandboxId) -> Result<CertificateBundle, IdentityError> {
        let issued = self.authority.issue(&Identity::sandbox(sandbox.0), self.sandbox_validity, &[])?;
        Ok(issued.into_bundle(self.authority.anchors())?)
    }

    /// Signs a sandbox's request for a renewed certificate: the chain, PEM.
    pub fn sign_sandbox(&self, sandbox: SandboxId, csr: &[u8]) -> Result<String, IdentityError> {
        let signed = self.authority.sign_csr(csr, &Identity::sandbox(sandbox.0), self.sandbox_validity)?;
        Ok(signed.cert_chain_pem)
    }

    /// Writes the first client's identity and its profile into the data directory; returns the profile's path.
    pub fn write_client_profile(&self, data_dir: &Path, address: &str) -> Result<PathBuf, IdentityError> {
        let dir = data_dir.join("client");
        private_dir(&dir)?;
        let files = BundleFiles::within(&dir);
        // A good one stays: whoever copied it elsewhere shall not be locked out by a restart.
        let good = files.load().is_ok_and(|bundle| {
            bundle.facts().remaining_at(SystemTime::now()) > CLIENT_CERTIFICATE / 3
                && bundle.anchors().pem() == self.authority.anchors().pem()
        });
        if !good {
            let client = Identity::client("admin").map_err(|error| IdentityError::Name(error.to_string()))?;
            let issued = self.authority.issue(&client, CLIENT_CERTIFICATE, &[])?;
            files.write(&issued.into_bundle(self.authority.anchors())?)?;
        }
        let path = data_dir.join("client.toml");
        let relative = |file: &Path| match file.strip_prefix(data_dir) {
            Ok(relative) => toml::Value::String(relative.to_string_lossy().into_owned()),
            Err(_) => toml::Value::String(file.to_string_lossy().into_owned()),
        };
        let text = format!(
            "# Written by the gateway at each start. Use it with HOLDFAST_PROFILE, or copy it with its files.\n\
             address = {}\nserver_name = {}\nca = {}\ncert = {}\nkey = {}\n",
            toml::Value::String(address.to_owned()),
            toml::Value::String(self.server_name()),
            relative(&files.ca),
            relative(&files.certificate),
            relative(&files.key),
        );
        write_private(&path, text.as_bytes())?;
        Ok(path)
    }

    /// Replaces the gateway's own certificate at two thirds of its life, until `token` ends it.
    pub async fn keep_fresh(self: Arc<Self>, token: CancellationToken) {
        loop {
            let mut renewal = Renewal::plan(&self.live.facts(), rand::random());
            loop {
                match renewal.step(SystemTime::now()) {
                    Step::Wait(delay) => tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        () = token.cancelled() => return,
                    },
                    Step::Renew => match self.rotate() {
                        Ok(()) => break,
                        Err(error) => {
                            tracing::error!(%error, "renewing the gateway's certificate");
                            renewal.failed(SystemTime::now());
                        }
                    },
                }
            }
        }
    }

    fn rotate(&self) -> Result<(), IdentityError> {
        let issued = self.authority.issue(&self.name, GATEWAY_CERTIFICATE, &self.names)?;
        self.live.replace(&issued.into_bundle(self.authority.anchors())?)?;
        tracing::info!("the gateway's certificate has been renewed");
        Ok(())
    }
}

fn open_secret(path: &Path) -> Result<Zeroizing<[u8; 32]>, IdentityError> {
    let failed = |attempted| move |source| IdentityError::File { attempted, path: path.to_owned(), source };
    match fs::File::open(path) {
        Ok(mut file) => {
            let mut bytes = Zeroizing::new(Vec::new());
            Read::take(&mut file, 33).read_to_end(&mut bytes).map_err(failed("reading"))?;
            let secret: [u8; 32] =
                bytes.as_slice().try_into().map_err(|_| IdentityError::BadSecret(path.to_owned()))?;
            Ok(Zeroizing::new(secret))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut secret = Zeroizing::new([0; 32]);
            ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), secret.as_mut_slice())
                .map_err(|_| failed("drawing random bytes for")(io::Error::other("no randomness")))?;
            write_private(path, secret.as_slice())?;
            Ok(secret)
        }
        Err(error) => Err(failed("reading")(error)),
    }
}

/// Creates `path` and its parents, for its owner alone where it does not exist yet.
pub fn private_dir(path: &Path) -> Result<(), IdentityError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| IdentityError::File {
        attempted: "creating",
        path: path.to_owned(),
        source,
    })
}

/// Writes a file of mode 0600 in one step: a crash leaves the old one or the new one.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let attempt = || {
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().map_err(|source| IdentityError::File { attempted: "writing", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Identities {
        Identities::open(&IdentitySettings {
            data_dir: dir,
            trust_domain: "holdfast.internal",
            name: "gateway",
            names: &[],
            sandbox_validity: Duration::from_secs(60),
        })
        .unwrap()
    }

    fn private_tempdir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn the_quic_secret_outlives_the_process() {
        let dir = private_tempdir();
        let path = dir.path().join("quic.secret");
        let first = *open_secret(&path).unwrap();
        assert_eq!(*open_secret(&path).unwrap(), first);
        fs::write(&path, b"short").unwrap();
        assert!(open_secret(&path).unwrap_err().to_string().contains("32 bytes"));
    }

    #[test]
    fn a_restart_keeps_the_clients_identity_and_updates_the_address() {
        let dir = private_tempdir();
        let path = open(dir.path()).write_client_profile(dir.path(), "127.0.0.1:1").unwrap();
        let key = fs::read(dir.path().join("client/key.pem")).unwrap();
        let again = open(dir.path()).write_client_profile(dir.path(), "127.0.0.1:2").unwrap();
        assert_eq!(path, again);
        assert!(fs::read_to_string(path).unwrap().contains("127.0.0.1:2"));
        assert_eq!(fs::read(dir.path().join("client/key.pem")).unwrap(), key);
    }

    #[test]
    fn a_sandbox_is_issued_its_own_name_alone() {
        let dir = private_tempdir();
        let sandbox = SandboxId::random();
        let bundle = open(dir.path()).issue_sandbox(sandbox).unwrap();
        assert_eq!(bundle.facts().spiffe_id.identity.sandbox_id(), Some(sandbox.0));
    }
}
