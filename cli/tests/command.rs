//! The `holdfast` binary against a fake gateway over mutual TLS: exit codes, streams, signals, errors.

mod fake;

use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use bytes::Bytes;
use fake::{FakeGateway, Script};
use holdfast_certs::{CertificateAuthority, Identity, TrustDomain};
use holdfast_cli::profile::{DEFAULT_SERVER_NAME, Profile};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};
use tonic::transport::{Certificate, Identity as TlsIdentity, ServerTlsConfig};

/// What a command may take on a busy machine before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);

struct Setting {
    gateway: FakeGateway,
    home: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

/// A gateway with certificates of its own authority, and a home directory with a profile for it.
async fn setting(script: Script) -> Setting {
    let home = tempfile::tempdir().unwrap();
    let authority =
        CertificateAuthority::open_or_create(&home.path().join("ca"), TrustDomain::default()).unwrap();
    let hour = Duration::from_secs(3600);
    let issue = |identity| authority.issue(&identity, hour, &[]).unwrap();
    let server = issue(Identity::gateway("fake").unwrap());
    let client = issue(Identity::client("tester").unwrap());

    let ca = authority.anchors().pem().to_owned();
    let tls = ServerTlsConfig::new()
        .identity(TlsIdentity::from_pem(&server.cert_chain_pem, server.private_key_pem.expose()))
        .client_ca_root(Certificate::from_pem(&ca));
    let gateway = FakeGateway::new(script);
    let mut tasks = JoinSet::new();
    let address = gateway.serve(&mut tasks, Some(tls)).await;

    let directory = home.path().join("config/holdfast");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("ca.pem"), ca).unwrap();
    std::fs::write(directory.join("client.pem"), &client.cert_chain_pem).unwrap();
    private(&directory.join("client.key"), client.private_key_pem.expose());
    private(&directory.join("token"), "s3cret\n");
    let profile = Profile {
        address: address.to_string(),
        server_name: DEFAULT_SERVER_NAME.to_owned(),
        ca: "ca.pem".into(),
        cert: Some("client.pem".into()),
        key: Some("client.key".into()),
        token_file: Some("token".into()),
    };
    std::fs::write(directory.join("client.toml"), profile.to_toml().unwrap()).unwrap();
    Setting { gateway, home, _tasks: tasks }
}

fn private(path: &Path, text: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn holdfast(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command
        .args(args)
        .env_clear()
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

impl Setting {
    fn start(&self, args: &[&str]) -> Child {
        holdfast(self.home.path(), args).spawn().unwrap()
    }

    async fn run(&self, args: &[&str]) -> Output {
        finish(self.start(args)).await
    }
}

async fn finish(child: Child) -> Output {
    timeout(PATIENCE, child.wait_with_output()).await.expect("the command hangs").unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// By the kill command: nothing here may be unsafe.
async fn signal(child: &Child, name: &str) {
    let status =
        Command::new("kill").args(["-s", name, &child.id().unwrap().to_string()]).status().await.unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn output_and_exit_code_are_the_commands() {
    let setting = setting(Script::default()).await;
    let output = setting.run(&["exec", "box", "--", "make"]).await;
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n", "err\n"));
    assert_eq!(setting.gateway.record(|record| record.tokens.clone()), ["Bearer s3cret"]);
}

#[tokio::test]
async fn lost_streams_are_told_on_stderr_and_change_nothing_else() {
    let output = [Bytes::from(vec![b'x'; 50_000]), Bytes::new()];
    let setting =
        setting(Script { output: output.clone(), cuts: 3, cut_after: 5000, ..Script::default() }).await;
    let result = setting.home.path().join("result.json");
    let done = setting.run(&["exec", "--result-file", result.to_str().unwrap(), "box", "--", "make"]).await;
    assert_eq!(done.status.code(), Some(7));
    assert!(done.stdout == output[0], "stdout differs");
    let stderr = text(&done.stderr);
    assert_eq!(stderr.matches("holdfast: reattached after").count(), 3, "{stderr}");
    assert_eq!(stderr.matches("0 bytes lost").count(), 3, "{stderr}");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
    assert_eq!(record["schema_version"], 1);
    assert_eq!((&record["state"], &record["exit_code"]), (&"ended".into(), &7.into()));
    assert_eq!((&record["reattached"], &record["truncated"]), (&3.into(), &false.into()));
    assert_eq!(record["outcome"]["kind"], "exited");
}

#[tokio::test]
async fn a_detached_start_prints_the_id_alone_and_is_repeated_safely() {
    let setting = setting(Script { refuse: vec!["START_UNKNOWN"], ..Script::default() }).await;
    let id = "0199b2c0-5e0e-7b3a-9a50-2f8a4c1d9e77";
    let output = setting.run(&["exec", "-d", "--exec-id", id, "box", "--", "make"]).await;
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), format!("{id}\n").as_str()));
    assert_eq!(setting.gateway.record(|record| record.starts), 2);
}

#[tokio::test]
async fn a_refusal_is_125_with_its_reason() {
    let setting = setting(Script { refuse: vec!["SANDBOX_NOT_FOUND"; 2], ..Script::default() }).await;
    let output = setting.run(&["exec", "box", "--", "make"]).await;
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("[SANDBOX_NOT_FOUND]"), "{}", text(&output.stderr));
    let output = setting.run(&["-o", "json", "exec", "box", "--", "make"]).await;
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["reason"], "SANDBOX_NOT_FOUND");
    assert_eq!((&error["schema_version"], &error["error"]["exit_code"]), (&1.into(), &125.into()));
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn stdin_reaches_the_command_and_an_open_one_does_not_hold_it() {
    let echo = setting(Script { stdin: true, ..Script::default() }).await;
    let mut command = holdfast(echo.home.path(), &["exec", "-i", "box", "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    stdin.write_all(&input).await.unwrap();
    drop(stdin);
    assert_eq!(finish(child).await.status.code(), Some(7));
    assert!(echo.gateway.record(|record| record.stdin == input), "stdin differs");

    let other = setting(Script::default()).await;
    let mut command = holdfast(other.home.path(), &["exec", "-i", "box", "--", "true"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let held_open = child.stdin.take().unwrap();
    assert_eq!(finish(child).await.status.code(), Some(7), "with stdin still open");
    drop(held_open);
}

#[tokio::test]
async fn a_reader_that_leaves_ends_it_quietly() {
    for (flag, cancelled) in [(None, false), (Some("--kill-on-disconnect"), true)] {
        let output = [Bytes::from(vec![b'y'; 40 << 20]), Bytes::new()];
        let setting = setting(Script { output, ..Script::default() }).await;
        let args: Vec<_> = ["exec"].into_iter().chain(flag).chain(["box", "--", "yes"]).collect();
        let mut child = setting.start(&args);
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 100]).await.unwrap();
        drop(stdout);
        let output = finish(child).await;
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(141), ""));
        setting.gateway.until(|record| record.cancelled == cancelled && record.detached != cancelled).await;
    }
}

#[tokio::test]
async fn an_interrupt_goes_to_the_command() {
    let setting = setting(Script { until_signal: true, ..Script::default() }).await;
    let mut child = setting.start(&["exec", "box", "--", "sleep", "1000"]);
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).await.unwrap();
    signal(&child, "INT").await;
    let output = finish(child).await;
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(setting.gateway.record(|record| (record.signals.clone(), record.cancelled)), (vec![2], false));
}

#[tokio::test]
async fn a_second_interrupt_cancels() {
    let setting = setting(Script { hang: true, ..Script::default() }).await;
    let mut child = setting.start(&["exec", "box", "--", "sleep", "1000"]);
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).await.unwrap();
    signal(&child, "INT").await;
    setting.gateway.until(|record| record.signals == [2]).await;
    signal(&child, "INT").await;
    assert_eq!(finish(child).await.status.code(), Some(130));
    assert!(setting.gateway.record(|record| record.cancelled));
}

#[tokio::test]
async fn termination_detaches_or_cancels_as_the_flags_say() {
    for (flag, cancelled) in [(None, false), (Some("--kill-on-disconnect"), true)] {
        let setting = setting(Script { hang: true, ..Script::default() }).await;
        let args: Vec<_> = ["exec"].into_iter().chain(flag).chain(["box", "--", "sleep"]).collect();
        let mut child = setting.start(&args);
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).await.unwrap();
        signal(&child, "TERM").await;
        let output = finish(child).await;
        assert_eq!((output.status.code(), output.status.signal()), (Some(143), None));
        let said = text(&output.stderr).contains("holdfast attach box");
        assert_eq!(said, !cancelled, "{}", text(&output.stderr));
        assert_eq!(
            setting.gateway.record(|record| (record.cancelled, record.detached)),
            (cancelled, !cancelled)
        );
    }
}

#[tokio::test]
async fn no_gateway_is_told_with_what_to_do() {
    let setting = setting(Script::default()).await;
    let profile = setting.home.path().join("config/holdfast/client.toml");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut toml = std::fs::read_to_string(&profile).unwrap();
    let old = toml.lines().find(|line| line.starts_with("address")).unwrap().to_owned();
    toml = toml.replace(&old, &format!("address = \"{address}\""));
    std::fs::write(&profile, toml).unwrap();
    let output = setting.run(&["list"]).await;
    assert_eq!(output.status.code(), Some(125));
    let stderr = text(&output.stderr);
    assert!(stderr.contains(&address) && stderr.contains("holdfast gateway"), "{stderr}");
}

#[tokio::test]
async fn a_gateway_of_another_authority_is_refused() {
    let (one, other) = (setting(Script::default()).await, setting(Script::default()).await);
    let ca = "config/holdfast/ca.pem";
    std::fs::copy(other.home.path().join(ca), one.home.path().join(ca)).unwrap();
    let output = one.run(&["exec", "box", "--", "make"]).await;
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("certificate"), "{}", text(&output.stderr));
    assert_eq!(one.gateway.record(|record| record.opens), 0);
}

#[tokio::test]
async fn a_gateway_that_refuses_the_certificate_is_not_tried_for_ever() {
    let (one, other) = (setting(Script::default()).await, setting(Script::default()).await);
    for file in ["client.pem", "client.key"] {
        let file = format!("config/holdfast/{file}");
        std::fs::copy(other.home.path().join(&file), one.home.path().join(&file)).unwrap();
    }
    // TLS 1.3: this side has finished its handshake by then, and may hear of a closed connection alone.
    let output = one.run(&["exec", "--start-deadline", "1s", "box", "--", "make"]).await;
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("TLS with the gateway") || stderr.contains("could not attach"), "{stderr}");
}

#[tokio::test]
async fn a_result_that_could_not_be_written_is_told_before_anything_runs() {
    let setting = setting(Script::default()).await;
    let output = setting.run(&["exec", "--result-file", "/no/such/result.json", "box", "--", "make"]).await;
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("/no/such/result.json"), "{}", text(&output.stderr));
    assert_eq!(setting.gateway.record(|record| record.opens), 0);
}

#[tokio::test]
async fn wrong_usage_is_2_and_wrong_settings_are_named() {
    let home = tempfile::tempdir().unwrap();
    let usage = finish(holdfast(home.path(), &["exec", "box"]).spawn().unwrap()).await;
    assert_eq!(usage.status.code(), Some(2));
    let missing = finish(holdfast(home.path(), &["list"]).spawn().unwrap()).await;
    assert_eq!(missing.status.code(), Some(125));
    assert!(text(&missing.stderr).contains("HOLDFAST_PROFILE"), "{}", text(&missing.stderr));
    std::fs::create_dir_all(home.path().join("config/holdfast")).unwrap();
    std::fs::write(home.path().join("config/holdfast/config.toml"), "ouput = 'json'\n").unwrap();
    let config = finish(holdfast(home.path(), &["version"]).spawn().unwrap()).await;
    assert!(text(&config.stderr).contains("did you mean `output`?"), "{}", text(&config.stderr));
}

#[tokio::test]
async fn completions_are_written_for_each_shell() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = finish(holdfast(home.path(), &["completions", shell]).spawn().unwrap()).await;
        assert!(output.status.success() && text(&output.stdout).contains("attach"), "{shell}");
    }
}
