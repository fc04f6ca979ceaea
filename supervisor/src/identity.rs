//! Who this supervisor is: its certificate and key, on disk and in use, and their renewal.
//!
//! ```text
//!   load ──▶ in use ── due, or asked ──▶ request (new key, kept here) ── certificate ──▶ on disk, then in use
//! ```
//!
//! The files change before the identity in use does: a supervisor that is killed in between starts again with the
//! new pair. A connection that is open keeps what it has shown; the next dial shows the new one. The plan of
//! renewals lives here and not in a session, so that a lost link neither forgets nor repeats one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use holdfast_certs::{
    BundleFiles, CertificateBundle, Error as CertsError, KeyAndCsr, PrivateKeyPem,
    renewal::{Renewal, Step},
    tls::{self, LiveIdentity},
};
use holdfast_wire::{ALPN, bootstrap::IdentityFiles, ids::SandboxId};

/// The identity could not be loaded or renewed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Files, keys or certificates that do not do.
    #[error(transparent)]
    Certs(#[from] CertsError),
    /// The certificate speaks for somebody else.
    #[error("the certificate {path} is for {found}, but the configuration is for sandbox {wanted}")]
    OtherSandbox {
        /// The file.
        path: String,
        /// Whom it names.
        found: String,
        /// Whom it should name.
        wanted: SandboxId,
    },
    /// The gateway answered a request with a refusal.
    #[error("the gateway refused to renew the certificate: {0}")]
    Refused(String),
    /// A certificate came that nobody had asked for.
    #[error("a certificate came without a request for it")]
    Unasked,
    /// The task that writes the files failed.
    #[error("writing the renewed certificate: the task failed: {0}")]
    Task(String),
}

/// This supervisor's identity. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Identity {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    files: BundleFiles,
    live: Arc<LiveIdentity>,
    changing: Mutex<Changing>,
}

#[derive(Debug)]
struct Changing {
    bundle: CertificateBundle,
    plan: Renewal,
    /// The key of the request that is under way.
    requested: Option<PrivateKeyPem>,
}

impl Identity {
    /// Reads the files and checks that they speak for `sandbox`. Blocking, milliseconds.
    pub fn load(files: &IdentityFiles, sandbox: SandboxId) -> Result<Self, IdentityError> {
        let files =
            BundleFiles { certificate: files.cert.clone(), key: files.key.clone(), ca: files.ca.clone() };
        let bundle = files.load()?;
        if bundle.facts().spiffe_id.identity.sandbox_id() != Some(sandbox.0) {
            return Err(IdentityError::OtherSandbox {
                path: files.certificate.display().to_string(),
                found: bundle.facts().spiffe_id.to_string(),
                wanted: sandbox,
            });
        }
        let plan = Renewal::plan(bundle.facts(), rand::random());
        let live = LiveIdentity::new(&bundle);
        let changing = Mutex::new(Changing { bundle, plan, requested: None });
        Ok(Self { shared: Arc::new(Shared { files, live, changing }) })
    }

    /// What a dial shows and demands.
    pub(crate) fn client_config(&self) -> Result<rustls::ClientConfig, IdentityError> {
        let anchors = self.lock().bundle.anchors().clone();
        Ok(tls::supervisor_client_config(&self.shared.live, &anchors, &[ALPN])?)
    }

    /// How long until the certificate is to be renewed; zero: now. Never more than five minutes, because the wall
    /// clock may jump meanwhile.
    pub(crate) fn renewal_due_in(&self) -> Duration {
        match self.lock().plan.step(SystemTime::now()) {
            Step::Wait(wait) => wait,
            Step::Renew => Duration::ZERO,
        }
    }

    /// A new key and the request to certify it (PKCS#10, DER). An earlier request is forgotten.
    pub(crate) fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let KeyAndCsr { private_key_pem, csr_der } = KeyAndCsr::generate()?;
        self.lock().requested = Some(private_key_pem);
        Ok(csr_der)
    }

    /// The gateway's answer: a chain in PEM form, or why not. On disk and in use when this returns.
    pub(crate) async fn answer(&self, chain_pem: &str, refusal: &str) -> Result<SystemTime, IdentityError> {
        let (bundle, key) = {
            let mut changing = self.lock();
            (changing.bundle.clone(), changing.requested.take().ok_or(IdentityError::Unasked)?)
        };
        if chain_pem.is_empty() {
            return Err(IdentityError::Refused(refusal.chars().take(256).collect()));
        }
        let renewed = bundle.renewed(chain_pem, key)?;
        // In use first: whoever sees the file may count on the next dial to show it. Should writing it fail, the old
        // one on disk is still good, and the next renewal writes again.
        self.shared.live.replace(&renewed)?;
        let (files, written) = (self.shared.files.clone(), renewed.clone());
        tokio::task::spawn_blocking(move || files.write(&written))
            .await
            .map_err(|error| IdentityError::Task(error.to_string()))??;
        let ends = renewed.facts().not_after;
        let mut changing = self.lock();
        changing.plan = Renewal::plan(renewed.facts(), rand::random());
        changing.bundle = renewed;
        Ok(ends)
    }

    /// A renewal came to nothing: plans the next try.
    pub(crate) fn renewal_failed(&self) {
        let mut changing = self.lock();
        changing.requested = None;
        changing.plan.failed(SystemTime::now());
    }

    fn lock(&self) -> MutexGuard<'_, Changing> {
        // Each change is one assignment, so the value is whole whatever panicked meanwhile.
        self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
