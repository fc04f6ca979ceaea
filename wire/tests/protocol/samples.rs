//! One of each message, with values that never change: what the golden bytes are made of.

use bytes::Bytes;
use holdfast_wire::{
    api::{self, exec_spec, outcome},
    control,
    ids::{ExecId, Instance, RelayId, SandboxId, SessionId},
};
use prost_types::{Duration, Timestamp};

/// A UUID of sixteen equal bytes.
fn id(byte: u8) -> uuid::Uuid {
    uuid::Uuid::from_bytes([byte; 16])
}

pub(crate) fn exec_id() -> ExecId {
    ExecId(id(0xe1))
}

pub(crate) fn sandbox_id() -> SandboxId {
    SandboxId(id(0x5a))
}

pub(crate) fn spec() -> api::ExecSpec {
    api::ExecSpec {
        command: Some(exec_spec::Command::Argv(api::Argv {
            args: vec![Bytes::from_static(b"cat"), Bytes::from_static(b"\xff\xfe not UTF-8")],
        })),
        cwd: Bytes::from_static(b"/srv"),
        env: vec![api::EnvVar { name: Bytes::from_static(b"KEY"), value: Bytes::from_static(b"value") }],
        user: "build".to_owned(),
        tty: Some(api::TerminalSize { cols: 80, rows: 24 }),
        stdin: true,
        timeout: Some(Duration { seconds: 60, nanos: 0 }),
        kill_grace: Some(Duration { seconds: 2, nanos: 500_000_000 }),
        on_disconnect: api::OnDisconnect::Kill.into(),
        retain_for: Some(Duration { seconds: 600, nanos: 0 }),
        when_full: api::WhenFull::DropOldest.into(),
    }
}

pub(crate) fn info() -> api::ExecInfo {
    api::ExecInfo {
        exec_id: exec_id().to_string(),
        sandbox_id: sandbox_id().to_string(),
        state: api::ExecState::Ended.into(),
        outcome: Some(exited(3)),
        command: "cat x".to_owned(),
        tty: true,
        pid: 4711,
        accepted_at: Some(Timestamp { seconds: 1_700_000_000, nanos: 1 }),
        started_at: Some(Timestamp { seconds: 1_700_000_001, nanos: 2 }),
        ended_at: Some(Timestamp { seconds: 1_700_000_002, nanos: 3 }),
        stdout_bytes: 1000,
        stderr_bytes: 200,
        stdout_kept_from: 10,
        stderr_kept_from: 20,
        readers: 2,
        spec_digest: Bytes::from_static(&[0xd1; 32]),
        left_processes: true,
    }
}

pub(crate) fn exited(code: i32) -> api::Outcome {
    api::Outcome { kind: Some(outcome::Kind::Exited(api::Exited { code })) }
}

/// Every way in which an exec can end.
pub(crate) fn outcomes() -> Vec<(&'static str, api::Outcome)> {
    use outcome::Kind;
    let of = |kind| api::Outcome { kind: Some(kind) };
    vec![
        ("exited 0", exited(0)),
        ("exited 3", exited(3)),
        ("signaled", of(Kind::Signaled(api::Signaled { signal: 9, core_dumped: true, oom: true }))),
        ("timed out", of(Kind::TimedOut(api::TimedOut { after: Some(Duration { seconds: 60, nanos: 0 }) }))),
        ("cancelled", of(Kind::Cancelled(api::Cancelled { by: "alice".to_owned() }))),
        (
            "start failed",
            of(Kind::StartFailed(api::StartFailed {
                errno: 2,
                kind: api::StartFailure::NotFound.into(),
                message: "no `caat` in PATH".to_owned(),
            })),
        ),
        (
            "lost",
            of(Kind::Lost(api::Lost {
                reason: api::LostReason::WorkloadGone.into(),
                message: "the container is gone".to_owned(),
            })),
        ),
    ]
}

/// Every message of a supervisor.
pub(crate) fn ups() -> Vec<(&'static str, control::Up)> {
    use control::up::Body;
    let bodies = vec![
        ("hello", Body::Hello(hello())),
        (
            "health",
            Body::Health(control::Health {
                nonce: 7,
                exec: Some(control::ProbeResult { ok: true, errno: 0, message: String::new(), took_ms: 12 }),
                filesystem: Some(control::ProbeResult {
                    ok: false,
                    errno: 5,
                    message: "writing /workspace/.probe: input/output error".to_owned(),
                    took_ms: 3,
                }),
                spool_bytes: 1 << 20,
                spool_limit_bytes: 512 << 20,
                execs_running: 4,
                spool_error: "no space left".to_owned(),
                memory: None,
            }),
        ),
        ("heartbeat", Body::Heartbeat(control::Heartbeat { seq: 300, echo: true })),
        ("execs", Body::Execs(control::ExecReport { complete: true, execs: vec![info()] })),
        ("suspending", Body::Suspending(control::Suspending { grace_ms: 250 })),
        ("resumed", Body::Resumed(control::Resumed { away_ms: 60_000 })),
        (
            "certificate_request",
            Body::CertificateRequest(control::CertificateRequest { csr: Bytes::from_static(b"\x30\x82") }),
        ),
        ("rebound", Body::Rebound(control::Rebound { rebinds: 3, reason: "silence".to_owned() })),
        ("leaving", Body::Leaving(control::Leaving { reason: "SIGTERM".to_owned() })),
    ];
    bodies.into_iter().map(|(name, body)| (name, control::Up { body: Some(body) })).collect()
}

/// Every message of a gateway.
pub(crate) fn downs() -> Vec<(&'static str, control::Down)> {
    use control::down::Body;
    let settings = control::Settings {
        heartbeat_ms: 1000,
        poke_after_ms: 500,
        suspect_after_ms: 3000,
        probe_every_ms: 10_000,
        redial_cap_idle_ms: 30_000,
        redial_cap_busy_ms: 5000,
        max_execs: 1024,
    };
    let bodies = vec![
        (
            "welcome",
            Body::Welcome(control::Welcome {
                session_id: SessionId(id(0x5e)).to_bytes(),
                epoch: 42,
                settings: Some(settings),
                gateway_version: "0.1.0".to_owned(),
                gateway_name: "gw-1".to_owned(),
            }),
        ),
        (
            "refuse",
            Body::Refuse(control::Refuse {
                code: control::RefuseCode::StaleGeneration.into(),
                reason: "generation 4 runs".to_owned(),
                retry_after_ms: 0,
            }),
        ),
        ("heartbeat", Body::Heartbeat(control::Heartbeat { seq: 1, echo: false })),
        ("settings", Body::Settings(settings)),
        (
            "go_away",
            Body::GoAway(control::GoAway {
                reconnect_after_ms: 2000,
                to: "gw-2:7443".to_owned(),
                reason: "upgrade".to_owned(),
            }),
        ),
        ("renew_certificate", Body::RenewCertificate(control::RenewCertificate {})),
        (
            "certificate",
            Body::Certificate(control::Certificate { chain: "-----BEGIN".to_owned(), error: String::new() }),
        ),
        ("probe_now", Body::ProbeNow(control::ProbeNow { nonce: 7 })),
        ("suspending", Body::Suspending(control::Suspending { grace_ms: 250 })),
        ("resumed", Body::Resumed(control::Resumed { away_ms: 60_000 })),
        ("chaos", Body::Chaos(control::Chaos { kind: control::ChaosKind::DropPath.into(), for_ms: 2000 })),
    ];
    bodies.into_iter().map(|(name, body)| (name, control::Down { body: Some(body) })).collect()
}

pub(crate) fn hello() -> control::Hello {
    control::Hello {
        sandbox_id: sandbox_id().to_bytes(),
        instance: Instance(id(0x1d)).to_bytes(),
        boot_id: "b007".to_owned(),
        version: "0.1.0".to_owned(),
        workload_generation: 3,
        capabilities: vec!["exec".to_owned(), "pty".to_owned()],
        execs: 2,
        dial_reason: "start".to_owned(),
        away_ms: 1500,
        dial: 5,
        rebinds: 0,
    }
}

/// A header of every kind of relay and call.
pub(crate) fn headers() -> Vec<(&'static str, control::RelayHeader)> {
    use control::{exec_call, files_relay, relay_header::Kind};
    let exec_id = exec_id().to_bytes();
    let call = |kind| Kind::ExecCall(control::ExecCall { kind: Some(kind) });
    let files = |kind| Kind::Files(control::FilesRelay { kind: Some(kind) });
    let kinds = vec![
        (
            "exec",
            Kind::Exec(control::ExecRelay {
                exec_id: exec_id.clone(),
                start: Some(spec()),
                attach: true,
                stdout_offset: 100,
                stderr_offset: 7,
                stdin_writer: true,
            }),
        ),
        ("list", call(exec_call::Kind::List(control::ListCall {}))),
        ("get", call(exec_call::Kind::Get(exec_id.clone()))),
        (
            "signal",
            call(exec_call::Kind::Signal(control::SignalCall { exec_id: exec_id.clone(), signal: 15 })),
        ),
        (
            "resize",
            call(exec_call::Kind::Resize(control::ResizeCall {
                exec_id: exec_id.clone(),
                size: Some(api::TerminalSize { cols: 132, rows: 50 }),
            })),
        ),
        (
            "cancel",
            call(exec_call::Kind::Cancel(control::CancelCall {
                exec_id: exec_id.clone(),
                by: "alice".to_owned(),
            })),
        ),
        (
            "read",
            call(exec_call::Kind::Read(control::ReadCall {
                exec_id: exec_id.clone(),
                stream: api::OutputStream::Stderr.into(),
                offset: 4096,
                max_bytes: 65_536,
            })),
        ),
        (
            "wait",
            call(exec_call::Kind::Wait(control::WaitCall { exec_id: exec_id.clone(), at_most_ms: 60_000 })),
        ),
        (
            "upload",
            files(files_relay::Kind::Upload(control::FilesUpload {
                transfer_id: exec_id.clone(),
                start: Some(api::UploadSpec {
                    path: Bytes::from_static(b"/srv"),
                    name: Bytes::from_static(b"src"),
                    placement: api::UploadPlacement::Contents.into(),
                    archive: true,
                    user: "build".to_owned(),
                }),
                offset: 9,
            })),
        ),
        (
            "download",
            files(files_relay::Kind::Download(control::FilesDownload {
                transfer_id: exec_id.clone(),
                start: Some(api::DownloadSpec {
                    path: Bytes::from_static(b"/srv"),
                    follow: true,
                    user: "build".to_owned(),
                    file_only: true,
                    range_offset: 7,
                    range_length: 8,
                }),
                offset: 9,
            })),
        ),
        (
            "list files",
            files(files_relay::Kind::Call(control::FilesCall {
                user: "build".to_owned(),
                kind: Some(control::files_call::Kind::List(control::FileList {
                    path: Bytes::from_static(b"/srv"),
                    after: Bytes::from_static(b"a"),
                    limit: 10,
                })),
            })),
        ),
    ];
    kinds
        .into_iter()
        .map(|(name, kind)| {
            let header = control::RelayHeader {
                relay_id: RelayId(id(0x2e)).to_bytes(),
                accept_within_ms: 5000,
                traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
                kind: Some(kind),
            };
            (name, header)
        })
        .collect()
}

/// Both answers to a header, and the answer to a call.
pub(crate) fn replies() -> Vec<(&'static str, control::RelayReply)> {
    use control::relay_reply::Kind;
    vec![
        ("accepted", control::RelayReply { kind: Some(Kind::Accepted(control::Accepted {})) }),
        (
            "refused",
            control::RelayReply {
                kind: Some(Kind::Refused(control::Refused {
                    code: control::RefusedCode::Conflict.into(),
                    message: "another spec".to_owned(),
                })),
            },
        ),
    ]
}

pub(crate) fn answer() -> control::ExecAnswer {
    control::ExecAnswer {
        execs: vec![info()],
        read: Some(api::ReadExecResponse { offset: 4096, data: Bytes::from_static(b"tail"), eof: true }),
    }
}
