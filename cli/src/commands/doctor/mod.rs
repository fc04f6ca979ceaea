//! `doctor`: what could be wrong between this machine, the gateway and its sandboxes, one line each.
//!
//! ```text
//!   profile, files ─▶ TLS (TCP) ─▶ API: clock, version ─▶ UDP to the QUIC port ─▶ sessions, or one sandbox
//!        │ nothing to go on            │ no answer: UDP is still asked
//! ```
//!
//! Looking is all it does. For one sandbox it has the supervisor run its probe, as the supervisor does by itself
//! every ten seconds.

mod udp;
mod verdict;

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use holdfast_certs::{CertificateBundle, TrustAnchors, tls};
use holdfast_wire::api::{GetSandboxRequest, StatusRequest, StatusResponse};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use self::verdict::{Finding, Level};
use super::{Context, chaos};
use crate::{
    args::{DoctorArgs, Format},
    client::Client,
    failure::Failed,
    profile::{Credentials, Profile},
};

/// For TCP and TLS together, and for each call: whoever asks for a doctor does not want to wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// What gateways speak (RFC 9000).
const QUIC_1: u32 = 1;

pub(super) async fn doctor(args: &DoctorArgs, context: &Context) -> Result<u8, Failed> {
    let found = context.output.during("looking", examine(args, context)).await;
    let count = |level| found.iter().filter(|finding| finding.level == level).count();
    let (warned, failed) = (count(Level::Warn), count(Level::Fail));
    context.output.list("checks", &found)?;
    if matches!(context.output.format, Format::Table | Format::Wide) {
        context.output.note(&format!("{} checks: {failed} failed, {warned} warnings", found.len()));
    }
    Ok(u8::from(failed > 0))
}

async fn examine(args: &DoctorArgs, context: &Context) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some((profile, credentials)) = profile(&context.config.profile, &mut found) else { return found };
    let now = SystemTime::now();
    let anchors = String::from_utf8_lossy(&credentials.ca).into_owned();
    let identity = own_certificate(&credentials, &anchors, now, &mut found);
    gateway_tls(&profile, &anchors, identity.as_ref(), now, &mut found).await;

    let answered = match Client::new(&profile) {
        Ok(client) => status(&client, &mut found).await.map(|status| (client, status)),
        Err(error) => {
            found.push(Finding::fail("API", error.to_string(), error.hint().unwrap_or_default()));
            None
        }
    };
    quic(args.quic.as_deref().unwrap_or_else(|| profile.host_port()), &mut found).await;
    let attached = answered.iter().flat_map(|(_, status)| &status.attached);
    found.push(verdict::keepalive(attached.filter_map(|attached| attached.session.as_ref()), now));
    let Some((client, status)) = answered else { return found };
    match &args.sandbox {
        Some(name) => sandbox(&client, name, &status.version, &mut found).await,
        None => sessions(&status, &mut found),
    }
    found
}

/// The profile and its files.
fn profile(path: &Path, found: &mut Vec<Finding>) -> Option<(Profile, Credentials)> {
    let profile = match Profile::load(path) {
        Ok(profile) => profile,
        Err(error) => {
            let advice = "start a gateway here, or name its profile by --profile";
            found.push(Finding::fail("profile", error.to_string(), advice));
            return None;
        }
    };
    found.push(Finding::ok("profile", format!("{}, gateway {}", path.display(), profile.host_port())));
    let secrets = [("key", &profile.key), ("token", &profile.token_file)];
    for (what, path) in secrets.into_iter().filter_map(|(what, path)| Some((what, path.as_ref()?))) {
        found.push(secret(what, path));
    }
    match profile.credentials() {
        Ok(credentials) => Some((profile, credentials)),
        Err(error) => {
            found.push(Finding::fail(
                "profile's files",
                error.to_string(),
                "copy the profile's directory again",
            ));
            None
        }
    }
}

fn secret(what: &str, path: &Path) -> Finding {
    let check = format!("profile's {what}");
    let shown = path.display();
    match std::fs::metadata(path) {
        Err(error) => Finding::fail(check, format!("{shown}: {error}"), "copy the profile's directory again"),
        Ok(file) => {
            let mode = file.permissions().mode() & 0o777;
            let found = format!("{shown}, mode {mode:04o}");
            let advice = format!("chmod 600 {shown}");
            match mode {
                mode if mode & 0o007 != 0 => Finding::fail(check, found, advice),
                mode if mode & 0o070 != 0 => Finding::warn(check, found, advice),
                _ => Finding::ok(check, found),
            }
        }
    }
}

/// The caller's certificate, where there is one.
fn own_certificate(
    credentials: &Credentials,
    anchors: &str,
    now: SystemTime,
    found: &mut Vec<Finding>,
) -> Option<CertificateBundle> {
    let (chain, key) = credentials.identity.as_ref()?;
    let (chain, key) = (String::from_utf8_lossy(chain), String::from_utf8_lossy(key));
    match CertificateBundle::from_pem(&chain, &key, anchors) {
        Ok(bundle) => {
            let renew = "the gateway writes a new client profile when it starts: restart it, or copy its profile again";
            found.push(verdict::certificate("client certificate", bundle.facts(), now, renew));
            Some(bundle)
        }
        Err(error) => {
            let advice = "certificate, key and authority must be of one profile: copy its directory again";
            found.push(Finding::fail("client certificate", error.to_string(), advice));
            None
        }
    }
}

/// TCP, TLS, and the gateway's certificate.
async fn gateway_tls(
    profile: &Profile,
    anchors: &str,
    identity: Option<&CertificateBundle>,
    now: SystemTime,
    found: &mut Vec<Finding>,
) {
    let address = profile.host_port();
    let began = Instant::now();
    let shaken = match timeout(PATIENCE, handshake(profile, anchors, identity)).await {
        Ok(shaken) => shaken,
        Err(_) => Err(format!("nothing came within {} s", PATIENCE.as_secs())),
    };
    match shaken {
        Ok(certificate) => {
            let took = began.elapsed().as_secs_f64() * 1000.0;
            found.push(Finding::ok("TLS to the API", format!("{address} in {took:.1} ms")));
            found.push(match tls::peer_facts(std::slice::from_ref(&certificate)) {
                Ok(facts) => {
                    let renew = "the gateway renews it by itself: see its log";
                    verdict::certificate("gateway's certificate", &facts, now, renew)
                }
                Err(error) => {
                    Finding::fail("gateway's certificate", error.to_string(), "is this a Holdfast gateway?")
                }
            });
        }
        Err(cause) => {
            let advice = format!("is the gateway running, and may TCP reach {address} from here?");
            found.push(Finding::fail("TLS to the API", format!("{address}: {cause}"), advice));
        }
    }
}

async fn handshake(
    profile: &Profile,
    anchors: &str,
    identity: Option<&CertificateBundle>,
) -> Result<CertificateDer<'static>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let anchors = TrustAnchors::from_pem(anchors, "the profile's ca").map_err(|e| text(&e))?;
    let identity = identity.map(tls::LiveIdentity::new);
    let config = tls::api_client_config(identity.as_ref(), &anchors).map_err(|e| text(&e))?;
    let name = ServerName::try_from(profile.server_name.clone()).map_err(|e| text(&e))?;
    let tcp = TcpStream::connect(profile.host_port()).await.map_err(|e| text(&e))?;
    let stream =
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| text(&e))?;
    let chain = stream.get_ref().1.peer_certificates();
    chain
        .and_then(|chain| chain.first())
        .map(|leaf| leaf.clone().into_owned())
        .ok_or_else(|| "the gateway showed no certificate".to_owned())
}

/// What the gateway says of itself.
async fn status(client: &Client, found: &mut Vec<Finding>) -> Option<StatusResponse> {
    let mut gateway = client.gateway();
    // Once without looking, so that the second answer's time is the network's and not the handshake's.
    let mut asked = (SystemTime::now(), Instant::now());
    let mut answer =
        client.call("ask for the gateway's status", PATIENCE, gateway.status(StatusRequest {})).await;
    if answer.is_ok() {
        asked = (SystemTime::now(), Instant::now());
        answer =
            client.call("ask for the gateway's status", PATIENCE, gateway.status(StatusRequest {})).await;
    }
    let took = asked.1.elapsed();
    let status = match answer {
        Ok(status) => status,
        Err(error) => {
            found.push(Finding::fail("API", error.to_string(), error.hint().unwrap_or_default()));
            return None;
        }
    };
    let up =
        format!("{} answers in {:.1} ms, driver {}", status.name, took.as_secs_f64() * 1000.0, status.driver);
    found.push(if status.draining {
        Finding::warn("API", format!("{up}; it is stopping"), "wait for the next one")
    } else {
        Finding::ok("API", up)
    });
    found.push(verdict::version("client's version", env!("CARGO_PKG_VERSION"), "gateway", &status.version));
    found.push(match status.server_time.and_then(|at| SystemTime::try_from(at).ok()) {
        Some(theirs) => {
            let here = asked.0 + took / 2;
            let ahead = match theirs.duration_since(here) {
                Ok(ahead) => ahead.as_secs_f64(),
                Err(behind) => -behind.duration().as_secs_f64(),
            };
            verdict::clock(ahead, took)
        }
        None => Finding::warn("gateway's clock", "the gateway does not say", "upgrade the gateway"),
    });
    Some(status)
}

/// Every address of the QUIC port: a supervisor tries them all, so one that answers is enough.
async fn quic(host_port: &str, found: &mut Vec<Finding>) {
    let check = "UDP to QUIC";
    let addresses: Vec<SocketAddr> = match tokio::net::lookup_host(host_port).await {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            found.push(Finding::fail(
                check,
                format!("{host_port}: {error}"),
                "look at the name and the port",
            ));
            return;
        }
    };
    let mut silent = Vec::new();
    for address in &addresses {
        match udp::ask(*address, udp::WAIT).await {
            Ok(answer) => {
                let text = format!("{address} in {:.1} ms", answer.took.as_secs_f64() * 1000.0);
                found.push(if !answer.versions.contains(&QUIC_1) {
                    let advice = "something else speaks QUIC there: name the gateway's port by --quic";
                    Finding::fail(check, format!("{text}, without QUIC version 1"), advice)
                } else if answer.tries > 1 {
                    let advice = "packets are lost on the way; look again";
                    Finding::warn(check, format!("{text}, at question {}", answer.tries), advice)
                } else {
                    Finding::ok(check, text)
                });
                return;
            }
            Err(error) => silent.push(format!("{address}: {error}")),
        }
    }
    let advice = format!("let UDP to {host_port} through, or name the QUIC port by --quic");
    found.push(Finding::fail(check, silent.join("; "), advice));
}

/// All sessions, a line each.
fn sessions(status: &StatusResponse, found: &mut Vec<Finding>) {
    let text = format!("{} of {} sandboxes have one", status.sessions, status.sandboxes);
    found.push(Finding::ok("sessions", text));
    let now = SystemTime::now();
    for attached in &status.attached {
        let Some(session) = &attached.session else { continue };
        let name = &attached.sandbox_name;
        let findings = verdict::session(name, session, &status.version, now);
        found.push(verdict::in_one_line(name, findings));
    }
}

/// One sandbox in detail.
async fn sandbox(client: &Client, name: &str, gateway: &str, found: &mut Vec<Finding>) {
    let mut sandboxes = client.sandboxes();
    let request = GetSandboxRequest { sandbox: name.to_owned() };
    let sandbox = match client.call(&format!("get {name}"), PATIENCE, sandboxes.get(request)).await {
        Ok(response) => response.sandbox.unwrap_or_default(),
        Err(error) => {
            let advice = error.hint().unwrap_or_default();
            found.push(Finding::fail(format!("{name}: phase"), error.to_string(), advice));
            return;
        }
    };
    found.push(verdict::phase(name, &sandbox));
    let Some(session) = sandbox.status.and_then(|status| status.session) else {
        found.push(Finding::fail(
            format!("{name}: session"),
            "none",
            format!("see `holdfast events {name}` and `holdfast logs {name}`"),
        ));
        return;
    };
    found.extend(verdict::session(name, &session, gateway, SystemTime::now()));
    let check = format!("{name}: exec and files");
    let advice = format!("see `holdfast get {name} -o yaml`");
    found.push(match chaos::prove(client, name, PATIENCE).await {
        Ok(proof) => match chaos::failing(&proof) {
            Some(why) => Finding::fail(check, why, advice),
            None => {
                let took = proof.took.and_then(|took| Duration::try_from(took).ok()).unwrap_or_default();
                Finding::ok(check, format!("proven in {:.0} ms", took.as_secs_f64() * 1000.0))
            }
        },
        Err(error) => Finding::fail(check, error.to_string(), advice),
    });
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_secret_is_judged_by_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.key");
        let level = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            secret("key", &path).level
        };
        fs::write(&path, "x").unwrap();
        assert_eq!(level(0o600), Level::Ok);
        assert_eq!(level(0o640), Level::Warn);
        assert_eq!(level(0o644), Level::Fail);
        fs::remove_file(&path).unwrap();
        assert_eq!(secret("key", &path).level, Level::Fail);
    }

    #[test]
    fn without_a_profile_there_is_one_finding_and_it_says_what_to_do() {
        let mut found = Vec::new();
        assert!(profile(Path::new("/nonexistent/client.toml"), &mut found).is_none());
        assert_eq!(found.len(), 1);
        assert!(found[0].level == Level::Fail && !found[0].advice.is_empty());
    }

    #[tokio::test]
    async fn a_port_without_quic_fails_with_its_address() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        drop(taken);
        let mut found = Vec::new();
        quic(&address, &mut found).await;
        assert_eq!(found[0].level, Level::Fail);
        assert!(found[0].found.contains(&address) && found[0].advice.contains("--quic"), "{found:?}");
    }
}
