//! Who dials, and whether it may come in: the certificate, the control stream, `Hello`, and the answer.

use std::time::{Duration, SystemTime};

use holdfast_certs::CertificateFacts;
use holdfast_wire::{
    close::CloseCode,
    control::{self, Down, Refuse, RefuseCode, Up, down, up},
    ids::{Generation, Instance, SandboxId},
    limits, timing,
    transport::{Connection, MessageReader, SendStream},
};
use tokio::time::timeout;

use super::{Hello, Sessions};

/// Bounds on a supervisor's own words, in bytes: real ones are below 40.
const MAX_WORD: usize = 128;
/// Why it dialled is a sentence.
const MAX_REASON: usize = 512;
/// Capabilities that a supervisor may name.
const MAX_CAPABILITIES: usize = 64;

/// The control stream goes before everything else on the connection.
const PRIORITY: i32 = 100;

/// Who is at the other end, by its certificate.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) sandbox: SandboxId,
    pub(super) facts: CertificateFacts,
}

/// The control stream.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) send: SendStream,
    pub(super) recv: MessageReader,
}

/// A connection that is not let in: what the supervisor is told, by message and by code.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) code: RefuseCode,
    pub(super) reason: String,
    /// When it may try again; `None`: never.
    pub(super) retry_after: Option<Duration>,
}

impl Refused {
    pub(super) fn new(code: RefuseCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), retry_after: None }
    }

    /// The code that the connection is closed with.
    fn close_code(&self) -> CloseCode {
        match self.code {
            RefuseCode::UnknownSandbox => CloseCode::SANDBOX_DELETED,
            RefuseCode::WrongSandbox | RefuseCode::CertificateExpired => CloseCode::UNAUTHORIZED,
            RefuseCode::StaleGeneration => CloseCode::STALE_GENERATION,
            RefuseCode::Protocol => CloseCode::PROTOCOL,
            RefuseCode::Busy | RefuseCode::Unspecified => CloseCode::BUSY,
        }
    }
}

/// Reads the peer's certificate. An error is a sentence for the log and the peer.
pub(super) fn identify(connection: &Connection) -> Result<Peer, String> {
    let Some(certificate) = connection.peer_certificate() else {
        return Err("no certificate was shown".to_owned());
    };
    let facts = CertificateFacts::from_certificate(&certificate).map_err(|error| error.to_string())?;
    match facts.spiffe_id.identity.sandbox_id() {
        Some(id) => Ok(Peer { sandbox: SandboxId(id), facts }),
        None => Err(format!("{} is no sandbox", facts.spiffe_id)),
    }
}

/// Waits for the control stream and its first message, at most [`timing::HELLO_TIMEOUT`] for both. An error is
/// what to close with.
pub(super) async fn listen(
    connection: &Connection,
) -> Result<(Control, control::Hello), (CloseCode, String)> {
    let first = async {
        let (send, recv) =
            connection.accept_bi().await.map_err(|lost| (CloseCode::DROPPED, lost.to_string()))?;
        send.set_priority(PRIORITY);
        let mut control = Control { send, recv: MessageReader::new(recv) };
        match control.recv.message::<Up>(limits::MAX_MESSAGE).await {
            Ok(Some(Up { body: Some(up::Body::Hello(hello)) })) => Ok((control, hello)),
            Ok(_) => Err((CloseCode::PROTOCOL, "the first message must be Hello".to_owned())),
            Err(error) => Err((CloseCode::PROTOCOL, format!("reading Hello: {error}"))),
        }
    };
    match timeout(timing::HELLO_TIMEOUT, first).await {
        Ok(first) => first,
        Err(_) => Err((CloseCode::PROTOCOL, format!("no Hello within {:?}", timing::HELLO_TIMEOUT))),
    }
}

/// Checks what a supervisor says of itself. Nothing of it is trusted but what the certificate says too.
pub(super) fn check(peer: &Peer, hello: control::Hello) -> Result<Hello, Refused> {
    let wrong = |what: String| Refused::new(RefuseCode::Protocol, format!("Hello: {what}"));
    let said = SandboxId::from_slice(&hello.sandbox_id).map_err(|error| wrong(error.to_string()))?;
    if said != peer.sandbox {
        let reason = format!("the certificate is for the sandbox {}, and Hello says {said}", peer.sandbox);
        return Err(Refused::new(RefuseCode::WrongSandbox, reason));
    }
    let instance = Instance::from_slice(&hello.instance).map_err(|error| wrong(error.to_string()))?;
    for (name, text, most) in [
        ("boot_id", &hello.boot_id, MAX_WORD),
        ("version", &hello.version, MAX_WORD),
        ("dial_reason", &hello.dial_reason, MAX_REASON),
    ] {
        if text.len() > most || text.contains(char::is_control) {
            return Err(wrong(format!("{name}: at most {most} bytes, none of them a control character")));
        }
    }
    if hello.capabilities.len() > MAX_CAPABILITIES
        || hello.capabilities.iter().any(|word| word.len() > MAX_WORD || word.contains(char::is_control))
    {
        return Err(wrong(format!("capabilities: at most {MAX_CAPABILITIES} words of {MAX_WORD} bytes")));
    }
    Ok(Hello {
        instance,
        generation: Generation(hello.workload_generation),
        boot_id: hello.boot_id,
        version: hello.version,
        capabilities: hello.capabilities,
        dial_reason: hello.dial_reason,
        dial: hello.dial,
        rebinds: hello.rebinds,
        away: Duration::from_millis(hello.away_ms),
        execs: hello.execs,
    })
}

/// Why it dialled, as a metric's label: one of a few words, whatever was said.
pub(super) fn reason_label(reason: &str) -> &'static str {
    for word in ["start", "lost", "suspect", "go away", "renewed", "resumed"] {
        if reason.starts_with(word) {
            return word;
        }
    }
    "other"
}

/// Why it took a new socket, likewise.
pub(super) fn rebind_label(reason: &str) -> &'static str {
    for word in ["silence", "network changed", "on request"] {
        if reason.starts_with(word) {
            return word;
        }
    }
    "other"
}

/// Says no, waits until that has arrived, and closes.
pub(super) async fn refuse(connection: &Connection, mut control: Control, refused: &Refused) {
    say_no(&mut control, refused).await;
    part(connection, control, refused.close_code(), &refused.reason).await;
}

async fn say_no(control: &mut Control, refused: &Refused) {
    // At least 1, because 0 means never.
    let ms = |after: Duration| u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1);
    let retry_after_ms = refused.retry_after.map_or(0, ms);
    let refuse = Refuse { code: refused.code.into(), reason: refused.reason.clone(), retry_after_ms };
    let message = Down { body: Some(down::Body::Refuse(refuse)) };
    // The close says it too, more briefly. A peer that opens no window for it must not keep a connection that way.
    let _ = timeout(timing::HELLO_TIMEOUT, control.send.send_message(&message, limits::MAX_MESSAGE)).await;
}

/// Ends a connection whose last message must arrive: waits for that, bounded, then closes.
async fn part(connection: &Connection, mut control: Control, code: CloseCode, reason: &str) {
    if control.send.finish().is_ok() {
        let _ = timeout(timing::WAIT_IDLE, control.send.stopped()).await;
    }
    connection.close(code, reason);
}

impl Sessions {
    /// A known sandbox whose certificate has run out, and that has just proven its key: it gets a new certificate
    /// over this connection, and nothing else.
    pub(super) async fn renew_only(&self, connection: &Connection, peer: &Peer, mut control: Control) {
        let reason = format!("the certificate ran out {:?} ago: renew it here", {
            SystemTime::now().duration_since(peer.facts.not_after).unwrap_or_default()
        });
        say_no(&mut control, &Refused::new(RefuseCode::CertificateExpired, reason)).await;
        let asked = timeout(timing::HELLO_TIMEOUT, async {
            loop {
                match control.recv.message::<Up>(limits::MAX_MESSAGE).await {
                    Ok(Some(Up { body: Some(up::Body::CertificateRequest(request)) })) => return Ok(request),
                    // What it had sent before it read the refusal.
                    Ok(Some(_)) => {}
                    Ok(None) => return Err("its stream ended".to_owned()),
                    Err(error) => return Err(error.to_string()),
                }
            }
        });
        let request = match asked.await {
            Ok(Ok(request)) => request,
            Ok(Err(why)) => {
                return connection.close(CloseCode::UNAUTHORIZED, &format!("no CertificateRequest: {why}"));
            }
            Err(_) => return connection.close(CloseCode::UNAUTHORIZED, "no CertificateRequest in time"),
        };
        let certificate = self.sign(peer.sandbox, &request.csr);
        let code = if certificate.error.is_empty() { CloseCode::RENEWED } else { CloseCode::UNAUTHORIZED };
        let message = Down { body: Some(down::Body::Certificate(certificate)) };
        let _ =
            timeout(timing::HELLO_TIMEOUT, control.send.send_message(&message, limits::MAX_MESSAGE)).await;
        part(connection, control, code, "an expired certificate may only be renewed").await;
    }

    /// Signs a supervisor's key.
    pub(super) fn sign(&self, sandbox: SandboxId, csr: &[u8]) -> control::Certificate {
        let signed = if csr.len() > holdfast_certs::MAX_CSR_BYTES {
            Err(format!("a request of {} bytes: at most {}", csr.len(), holdfast_certs::MAX_CSR_BYTES))
        } else {
            self.signer.sign(sandbox, csr)
        };
        match signed {
            Ok(chain) => {
                tracing::info!("certificate renewed");
                control::Certificate { chain, error: String::new() }
            }
            Err(error) => {
                tracing::warn!(error, "a certificate was not renewed");
                control::Certificate { chain: String::new(), error }
            }
        }
    }
}
