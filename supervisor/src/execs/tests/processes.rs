//! Real commands: what they get, how they end, what is left of them.

use holdfast_wire::api::{StartFailure, TerminalSize, WhenFull};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_output_come_through() {
    let lab = Lab::real().await;
    for code in [0, 1, 7, 124, 125, 255] {
        let report = lab.run(shell(&format!("echo out; echo err >&2; exit {code}"))).await;
        assert_eq!(
            (report.code(), report.stdout().as_str(), report.stderr().as_str()),
            (code, "out\n", "err\n")
        );
        let info = report.ended.unwrap().exec.unwrap();
        assert_eq!((info.stdout_bytes, info.stderr_bytes), (4, 4));
        assert!(info.pid > 0 && info.started_at.is_some() && info.ended_at.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_told_as_one() {
    let lab = Lab::real().await;
    for signal in [9, 15, 6] {
        let report = lab.run(shell(&format!("kill -{signal} $$"))).await;
        let Kind::Signaled(signaled) = report.outcome() else { panic!("{report:?}") };
        assert_eq!(signaled.signal, signal);
    }
}

fn start_failure(report: &Report) -> (StartFailure, i32) {
    assert!(report.started.is_none(), "it never ran");
    match report.outcome() {
        Kind::StartFailed(failed) => (failed.kind(), failed.errno),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let lab = Lab::real().await;
    let workspace = lab.dir.path().join("workspace");
    let script = workspace.join("lost-interpreter");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let plain = workspace.join("plain");
    std::fs::write(&plain, "data").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    use StartFailure::{BadCwd, CannotInvoke, NotFound, UnknownUser};
    let found = |spec| async { start_failure(&lab.run(spec).await) };
    assert_eq!(found(argv(&["no-such-command-anywhere"])).await, (NotFound, libc::ENOENT));
    assert_eq!(found(argv(&["/no/such/file"])).await, (NotFound, libc::ENOENT));
    assert_eq!(found(argv(&[script.to_str().unwrap()])).await, (CannotInvoke, libc::ENOENT));
    assert_eq!(found(argv(&[plain.to_str().unwrap()])).await, (CannotInvoke, libc::EACCES));
    assert_eq!(found(argv(&["/etc"])).await, (CannotInvoke, libc::EACCES));
    let elsewhere = ExecSpec { cwd: "/no/such/dir".into(), ..argv(&["true"]) };
    assert_eq!(found(elsewhere).await, (BadCwd, libc::ENOENT));
    let nobody = ExecSpec { user: "no-such-user".into(), ..argv(&["true"]) };
    assert_eq!(found(nobody).await.0, UnknownUser);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_kills_the_whole_family_even_what_ignores_sigterm() {
    for spawner in [RealSpawner::new(), RealSpawner::without_cgroups()] {
        let lab = Lab::with(|config| config.spawner = Arc::new(spawner)).await;
        let id = ExecId::random();
        // A grandchild that ignores SIGTERM, and one in a session of its own.
        let line = "sh -c 'trap \"\" TERM; while :; do sleep 1; done' & setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' & echo up; sleep 60";
        let spec = ExecSpec { timeout: millis(700), kill_grace: millis(500), ..shell(line) };
        let begun = tokio::time::Instant::now();
        let report = lab.relay(start(id, spec)).await.finish().await;
        assert!(matches!(report.outcome(), Kind::TimedOut(_)), "{report:?}");
        assert!(report.ended.unwrap().exec.unwrap().left_processes);
        assert!(begun.elapsed() >= Duration::from_millis(1200), "SIGKILL came before its grace was over");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        nothing_left(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_that_everybody_obeys_does_not_wait_for_the_grace() {
    let lab = Lab::real().await;
    let spec = ExecSpec { timeout: millis(300), kill_grace: seconds(60), ..shell("sleep 60 & sleep 60") };
    let begun = tokio::time::Instant::now();
    let report = lab.run(spec).await;
    assert!(matches!(report.outcome(), Kind::TimedOut(_)));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grandchild_that_holds_the_pipe_holds_no_outcome_and_lives_on() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let begun = tokio::time::Instant::now();
    // It writes once its exec has ended: that must not kill it.
    let line = "(sleep 1.5; echo late; echo survived > survived; sleep 600) & echo $!";
    let report = lab.relay(start(id, shell(line))).await.finish().await;
    assert_eq!(report.code(), 0);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let child = report.stdout().trim().parse::<i32>().unwrap();
    let file = lab.dir.path().join("workspace/survived");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !file.exists() {
        assert!(tokio::time::Instant::now() < deadline, "the grandchild died of its exec's end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rustix::process::kill_process_group(
        rustix::process::Pid::from_raw(i32::try_from(report.ended.unwrap().exec.unwrap().pid).unwrap())
            .unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let _ = child;
    nothing_left(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_its_output_early_ends_nothing() {
    let lab = Lab::real().await;
    let report = lab.run(shell("echo first; exec >&- 2>&-; sleep 0.4; exit 5")).await;
    assert_eq!((report.code(), report.stdout().as_str()), (5, "first\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_writers_tail_is_complete() {
    let lab = Lab::real().await;
    for _ in 0..5 {
        let report = lab.run(shell("head -c 3000000 /dev/zero; echo end; exit 3")).await;
        assert_eq!((report.code(), report.stdout.len()), (3, 3_000_004));
        assert!(report.stdout.ends_with(b"end\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_pass_a_small_spool_without_loss() {
    const SIZE: usize = 64 << 20;
    let lab = Lab::with(|config| {
        config.spool = SpoolLimits { per_exec_bytes: 2 << 20, total_bytes: 4 << 20 };
    })
    .await;
    let line = format!("seq -f %015.0f 1 {} | head -c {SIZE}; echo done >&2", SIZE / 16);
    let spec = ExecSpec { when_full: WhenFull::Block as i32, ..shell(&line) };
    let mut caller = lab.relay(start(ExecId::random(), spec)).await;
    let (mut next, mut carry, mut total, mut most) = (1_u64, BytesMut::new(), 0_u64, 0);
    let mut acknowledged = 0;
    loop {
        match caller.next().await.unwrap().expect("more") {
            Frame::Output(OutputStream::Stdout, data) => {
                total += data.len() as u64;
                carry.extend_from_slice(&data);
                while carry.len() >= 16 {
                    let line = carry.split_to(16);
                    assert_eq!(line, format!("{next:015}\n").as_bytes());
                    next += 1;
                }
                most = most.max(lab.execs.spool_usage().bytes);
                if total - acknowledged >= holdfast_wire::limits::ACK_EVERY {
                    acknowledged = total;
                    // The exec may have ended meanwhile: what is sent then meets a stop.
                    let _ = caller.send.send_frame(Frame::Ack { stdout: total, stderr: 0 }).await;
                }
            }
            Frame::Ended(ended) => {
                assert!(matches!(ended.outcome.unwrap().kind, Some(Kind::Exited(_))));
                break;
            }
            Frame::Gap { .. } => panic!("a gap under `block`"),
            _ => {}
        }
    }
    assert_eq!(total as usize, SIZE);
    // The bound, and the last pipes' worth that a drain may take beyond it.
    assert!(most <= (2 << 20) + (2 << 20), "{most} bytes were kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_flood_keeps_its_newest_output_and_tells_the_gap() {
    let lab = Lab::with(|config| {
        config.spool = SpoolLimits { per_exec_bytes: 1 << 20, total_bytes: 8 << 20 };
    })
    .await;
    let id = ExecId::random();
    let mut request = start(id, shell("head -c 20000000 /dev/zero; echo end"));
    request.attach = false;
    lab.relay(request).await;
    lab.call(exec_call::Kind::Wait(holdfast_wire::control::WaitCall {
        exec_id: id.to_bytes(),
        at_most_ms: 30_000,
    }))
    .await
    .unwrap();
    let report = lab.relay(attach(id, 0)).await.finish().await;
    let [(OutputStream::Stdout, 0, to)] = report.gaps.as_slice() else { panic!("{:?}", report.gaps) };
    assert_eq!(*to as usize + report.stdout.len(), 20_000_004);
    assert!(report.stdout.ends_with(b"end\n") && report.stdout.len() > 500_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_goes_on_where_it_was_after_a_lost_relay() {
    let lab = Lab::real().await;
    let id = ExecId::random();
    let spec = ExecSpec { stdin: true, ..shell("cat; exit 4") };
    let mut first = lab.relay(start(id, spec)).await;
    first.stdin(0, b"hello ").await;
    first.until_stdout("hello ").await;
    // The session is lost with bytes under way that nobody knows the fate of.
    first.stdin(6, b"wor").await;
    drop(first);
    let mut second = lab.relay(attach(id, 6)).await;
    second.stdin(3, b"lo world").await;
    second.send(Frame::StdinEof { offset: 11 }).await;
    let report = second.finish().await;
    assert_eq!((report.stdout().as_str(), report.code()), ("world", 4));
    assert_eq!(report.stdin_ack, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn much_stdin_arrives_whole() {
    const SIZE: usize = 48 << 20;
    let lab = Lab::real().await;
    let spec = ExecSpec { stdin: true, ..shell("wc -c") };
    let Caller { mut send, mut recv } = lab.relay(start(ExecId::random(), spec)).await;
    let mut acks = JoinSet::new();
    let (acknowledged, mut seen) = tokio::sync::watch::channel(0_u64);
    acks.spawn(async move {
        let mut report = Report::default();
        while let Some(frame) = recv.frame().await.unwrap() {
            report.take(frame);
            acknowledged.send_replace(report.stdin_ack);
        }
        report
    });
    let piece = Bytes::from(vec![b'x'; 64 * 1024 - 8]);
    let mut sent = 0;
    while sent < SIZE {
        let data = piece.slice(..piece.len().min(SIZE - sent));
        let end = (sent + data.len()) as u64;
        // What a caller does: never more than the window beyond what was acknowledged.
        seen.wait_for(|acknowledged| end - acknowledged <= holdfast_wire::limits::STDIN_WINDOW)
            .await
            .unwrap();
        let offset = sent as u64;
        sent += data.len();
        send.send_frame(Frame::Stdin { offset, data }).await.unwrap();
    }
    send.send_frame(Frame::StdinEof { offset: SIZE as u64 }).await.unwrap();
    let report = acks.join_next().await.unwrap().unwrap();
    assert_eq!(report.stdout().trim(), SIZE.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_stdin_reads_nothing() {
    let lab = Lab::real().await;
    let report = lab.run(shell("cat; echo $?")).await;
    assert_eq!(report.stdout(), "0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_echoes_resizes_and_ends_its_input() {
    let lab = Lab::real().await;
    let spec = ExecSpec {
        tty: Some(TerminalSize { cols: 91, rows: 17 }),
        stdin: true,
        ..shell(
            "stty size; tty; read x; stty size; echo got $x; cat; echo $TERM; ps -o tty= -p $$ >/dev/null; exit 9",
        )
    };
    let mut caller = lab.relay(start(ExecId::random(), spec)).await;
    let first = caller.until_stdout("/dev/pts/").await.stdout();
    assert!(first.contains("17 91"), "{first:?}");
    caller.send(Frame::Resize { cols: 120, rows: 40 }).await;
    caller.stdin(0, b"abc\n").await;
    let second = caller.until_stdout("got abc").await.stdout();
    assert!(second.contains("40 120") && second.contains("abc\r\n"), "no echo or no resize: {second:?}");
    caller.send(Frame::StdinEof { offset: 4 }).await;
    let report = caller.finish().await;
    assert_eq!(report.code(), 9);
    assert!(report.stdout().contains("xterm"), "{:?}", report.stdout());
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_on_a_terminal_reaches_the_foreground_group() {
    let lab = Lab::real().await;
    let spec = ExecSpec {
        tty: Some(TerminalSize { cols: 80, rows: 24 }),
        stdin: true,
        ..argv(&["sh", "-c", "echo ready; exec sleep 60"])
    };
    let mut caller = lab.relay(start(ExecId::random(), spec)).await;
    caller.until_stdout("ready").await;
    caller.stdin(0, b"\x03").await;
    let Kind::Signaled(signaled) = caller.finish().await.outcome() else { panic!("not signaled") };
    assert_eq!(signaled.signal, libc::SIGINT);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_gets_its_groups_home_and_limits() {
    if !is_root() {
        skipped("not root");
        return;
    }
    let lab = Lab::real().await;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(lab.dir.path(), private).unwrap();
    let spec = |user: &str| ExecSpec {
        user: user.to_owned(),
        cwd: "/".into(),
        ..shell(
            "id -u; id -g; id -G; echo $HOME $USER; grep NoNewPrivs /proc/self/status; cat /proc/1/environ >/dev/null 2>&1 || echo closed",
        )
    };
    let report = lab.run(spec("nobody")).await;
    let text = report.stdout();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["65534", "65534", "65534"], "{text}");
    assert!(lines[3].ends_with(" nobody") && lines[4].ends_with('1') && lines[5] == "closed", "{text}");
    let report = lab.run(spec("12345:54321")).await;
    let text = report.stdout();
    assert_eq!(text.lines().take(3).collect::<Vec<_>>(), ["12345", "54321", "54321"]);
    // The sandbox's own workspace is for every user, whatever is above it; a directory that the caller names must be
    // open to the user that it names.
    let workspace = lab.dir.path().join("workspace").to_str().unwrap().to_owned();
    let own = ExecSpec { user: "nobody".to_owned(), ..argv(&["sh", "-c", "test . -ef /"]) };
    assert_eq!(lab.run(own.clone()).await.code(), 1, "it is not in the workspace");
    let named = ExecSpec { cwd: workspace.into(), ..own };
    assert_eq!(start_failure(&lab.run(named).await), (StartFailure::BadCwd, libc::EACCES));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_arrives_byte_for_byte() {
    let lab = Lab::real().await;
    let value: &[u8] = b"two\nlines \xff\xfe and 'quotes' $HOME";
    let spec = ExecSpec {
        env: vec![
            EnvVar { name: "ODD".into(), value: Bytes::from_static(value) },
            EnvVar { name: "LAB".into(), value: "overridden".into() },
        ],
        ..argv(&["sh", "-c", "printf %s \"$ODD\"; printf %s \"$LAB $HOLDFAST_EXEC_ID\" >&2"])
    };
    let id = ExecId::random();
    let report = lab.relay(start(id, spec)).await.finish().await;
    assert_eq!(report.stdout, value);
    assert_eq!(report.stderr(), format!("overridden {id}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_arguments_arrive_whole_and_too_large_ones_are_refused() {
    let lab = Lab::real().await;
    let large = "x".repeat(100_000);
    let mut args = vec!["sh", "-c", "echo $#; printf %s \"$1\" | wc -c", "sh"];
    args.extend([large.as_str(); 15]);
    assert_eq!(lab.run(argv(&args)).await.stdout(), "15\n100000\n");
    let too_large = "x".repeat(128 * 1024);
    let refused = lab.try_relay(start(ExecId::random(), argv(&["echo", &too_large]))).await.err().unwrap();
    assert!(refused.message.contains("argv[1]"), "{}", refused.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_supervisors_is_in_reach() {
    let lab = Lab::real().await;
    // Descriptors (ls has one of its own for the directory), signals, session.
    let report = lab
        .run(shell("ls /proc/self/fd | wc -l; grep -E 'SigBlk|SigIgn' /proc/self/status; umask; cut -d' ' -f5,6 /proc/$$/stat; echo $$"))
        .await;
    let text = report.stdout();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "4", "{text}");
    assert!(lines[1].ends_with("0000000000000000") && lines[2].ends_with("0000000000000000"), "{text}");
    assert_eq!(lines[3], "0022");
    assert_eq!(lines[4], format!("{0} {0}", lines[5]), "its own group and session");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_runs_a_real_command() {
    let lab = Lab::real().await;
    let deadline = || tokio::time::Instant::now() + Duration::from_secs(10);
    lab.execs.probe(deadline()).await.unwrap();
    let broken = Lab::with(|config| config.probe = vec!["/no/such/probe".into()]).await;
    let failure = broken.execs.probe(deadline()).await.unwrap_err();
    assert_eq!(failure.errno, libc::ENOENT);
    let mute = Lab::with(|config| config.probe = vec!["/bin/true".into()]).await;
    assert!(mute.execs.probe(deadline()).await.unwrap_err().message.contains("did not arrive"));
    let gone = Lab::real().await;
    std::fs::remove_dir_all(gone.dir.path().join("workspace")).unwrap();
    assert_eq!(gone.execs.probe(deadline()).await.unwrap_err().errno, libc::ENOENT);
    let slow =
        Lab::with(|config| config.probe = vec!["/bin/sh".into(), "-c".into(), "sleep 60".into()]).await;
    let soon = tokio::time::Instant::now() + Duration::from_millis(300);
    assert!(slow.execs.probe(soon).await.unwrap_err().message.contains("did not answer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_every_exec_and_says_so() {
    let lab = Lab::real().await;
    let ids = [ExecId::random(), ExecId::random()];
    let mut callers = Vec::new();
    for (id, line) in
        ids.into_iter().zip(["echo up; sleep 60", "trap '' TERM; echo up; while :; do sleep 1; done"])
    {
        let mut caller = lab.relay(start(id, shell(line))).await;
        caller.until_stdout("up").await;
        callers.push(caller);
    }
    assert_eq!(*lab.execs.running().borrow(), 2);
    lab.execs.shutdown(Duration::from_millis(300)).await;
    assert_eq!(*lab.execs.running().borrow(), 0);
    for mut caller in callers {
        let Kind::Cancelled(cancelled) = caller.finish().await.outcome() else { panic!("not cancelled") };
        assert_eq!(cancelled.by, "sandbox stopped");
    }
    let refused = lab.try_relay(start(ExecId::random(), argv(&["true"]))).await.err().unwrap();
    assert_eq!(refused.code(), holdfast_wire::control::RefusedCode::Stopping);
    for id in ids {
        nothing_left(id).await;
    }
}
