//! An attached exec over a gateway that loses its streams: output, input and outcome stay exact.

mod fake;

use std::time::Duration;

use bytes::Bytes;
use fake::{FakeGateway, Script};
use holdfast_cli::client::{Client, Error, Event, ExecSession, Patience, Target, tuned};
use holdfast_wire::{
    api::{ExecSpec, OnPause, OutputStream, outcome},
    ids::ExecId,
    reason::Reason,
};
use tokio::task::JoinSet;

fn target(stdin: bool) -> Target {
    Target {
        sandbox: "box".into(),
        exec_id: ExecId::random(),
        start: Some(ExecSpec::default()),
        start_deadline: None,
        stdin,
        stdout_offset: 0,
        stderr_offset: 0,
        on_pause: OnPause::Notice,
    }
}

struct Setting {
    gateway: FakeGateway,
    client: Client,
    _tasks: JoinSet<()>,
}

async fn setting(script: Script) -> Setting {
    let gateway = FakeGateway::new(script);
    let mut tasks = JoinSet::new();
    let address = gateway.serve(&mut tasks, None).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let client = Client::over(tuned(endpoint).connect_lazy(), &address.to_string());
    Setting { gateway, client, _tasks: tasks }
}

#[derive(Debug, Default)]
struct Seen {
    output: [Vec<u8>; 2],
    code: Option<i32>,
    reattached: usize,
    lost: u64,
}

async fn read_to_end(session: &mut ExecSession) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    let all = async {
        while let Some(event) = session.next().await {
            match event? {
                Event::Output { stream, data } => {
                    seen.output[usize::from(stream == OutputStream::Stderr)].extend_from_slice(&data);
                }
                Event::Reattached(back) => {
                    seen.reattached += 1;
                    seen.lost += back.lost;
                }
                Event::Lost { bytes, .. } => seen.lost += bytes,
                Event::Ended { ended, missing } => {
                    seen.lost += missing;
                    let Some(outcome::Kind::Exited(exited)) = ended.outcome.unwrap().kind else {
                        panic!("not exited")
                    };
                    seen.code = Some(exited.code);
                }
                _ => {}
            }
        }
        Ok::<(), Error>(())
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("the session never ended")?;
    Ok(seen)
}

fn noise(length: usize, salt: u8) -> Bytes {
    (0..length).map(|i| ((i * 31 + i / 251) % 256) as u8 ^ salt).collect::<Vec<_>>().into()
}

#[tokio::test]
async fn output_is_exact_over_random_cuts() {
    for seed in 0..6 {
        let output = [noise(200_000, 0), noise(90_000, 0x5a)];
        let script = Script { output: output.clone(), cuts: 5, cut_after: 20_000, seed, ..Script::default() };
        let setting = setting(script).await;
        let mut session = setting.client.attach(target(false), Patience::default());
        let seen = read_to_end(&mut session).await.unwrap();
        assert!(seen.output[0] == output[0], "seed {seed}: stdout differs");
        assert!(seen.output[1] == output[1], "seed {seed}: stderr differs");
        assert_eq!((seen.code, seen.lost), (Some(7), 0), "seed {seed}");
        assert_eq!(seen.reattached, 5, "seed {seed}: each cut was told of");
        assert_eq!(setting.gateway.record(|record| record.starts), 1, "seed {seed}: started once");
    }
}

#[tokio::test]
async fn input_is_exact_over_random_cuts() {
    let input = noise(9 << 20, 3);
    let script = Script {
        output: [noise(300_000, 0), noise(1, 0)],
        cuts: 4,
        cut_after: 30_000,
        stdin: true,
        ..Script::default()
    };
    let setting = setting(script).await;
    let mut session = setting.client.attach(target(true), Patience::default());
    let writer = session.input();
    let mut tasks = JoinSet::new();
    let whole = input.clone();
    tasks.spawn(async move {
        for piece in whole.chunks(50_000) {
            assert!(writer.stdin(Bytes::copy_from_slice(piece)).await);
        }
        assert!(writer.stdin_eof().await);
    });
    let seen = read_to_end(&mut session).await.unwrap();
    assert_eq!(seen.code, Some(7));
    assert!(setting.gateway.record(|record| record.stdin == input), "stdin differs");
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_start_that_may_be_lost_is_repeated_with_the_same_id() {
    let refuse = vec!["START_UNKNOWN", "NO_SESSION", "SESSION_LOST"];
    let setting = setting(Script { refuse, ..Script::default() }).await;
    let mut session = setting.client.attach(target(false), Patience::default());
    let seen = read_to_end(&mut session).await.unwrap();
    assert_eq!(seen.code, Some(7));
    assert_eq!(setting.gateway.record(|record| (record.opens, record.starts)), (4, 4));
}

#[tokio::test]
async fn a_refusal_that_will_not_change_is_the_answer() {
    let setting = setting(Script { refuse: vec!["SANDBOX_NOT_FOUND"], ..Script::default() }).await;
    let mut session = setting.client.attach(target(false), Patience::default());
    let error = read_to_end(&mut session).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::SandboxNotFound), "{error}");
    assert!(session.next().await.is_none(), "nothing follows the last word");
}

#[tokio::test]
async fn nobody_at_the_address_is_told_at_once() {
    // A port that was free a moment ago; nothing else binds to this address.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let client = Client::over(tuned(endpoint).connect_lazy(), &address.to_string());
    let error = read_to_end(&mut client.attach(target(false), Patience::default())).await.unwrap_err();
    assert!(matches!(error, Error::Connect { refused: true, .. }), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()));
}

#[tokio::test]
async fn a_caller_gives_up_when_it_said_it_would() {
    let refuse = vec!["SESSION_LOST"; 1000];
    let setting = setting(Script { refuse, ..Script::default() }).await;
    let patience = Patience { reattach_for: Some(Duration::from_millis(700)) };
    let mut session = setting.client.attach(target(false), patience);
    let error = read_to_end(&mut session).await.unwrap_err();
    let Error::GaveUp { exec_id, after, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*exec_id, session.exec_id());
    assert!(*after >= Duration::from_millis(700) && *after < Duration::from_secs(5), "{after:?}");
}

#[tokio::test]
async fn a_slow_reader_slows_the_stream() {
    let length = 64 << 20;
    let output = [noise(length, 0), Bytes::new()];
    let setting = setting(Script { output, ..Script::default() }).await;
    let mut session = setting.client.attach(target(false), Patience::default());
    assert!(matches!(session.next().await, Some(Ok(Event::Started(_)))));
    // The fake goes on until every buffer between it and this reader is full; then it stands still.
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let sent = setting.gateway.record(|record| record.sent);
        if sent == last {
            break;
        }
        last = sent;
    }
    assert!(last < 8 << 20, "{last} bytes were taken from the gateway for a reader that reads nothing");
    let seen = read_to_end(&mut session).await.unwrap();
    assert_eq!(seen.output[0].len(), length);
}

#[tokio::test]
async fn what_was_used_is_confirmed() {
    let output = [noise(700_000, 0), noise(1000, 0)];
    let setting = setting(Script { output, hang: true, ..Script::default() }).await;
    let mut session = setting.client.attach(target(false), Patience::default());
    let (mut got, whole) = (0, 701_000);
    while got < whole {
        if let Event::Output { data, .. } = session.next().await.unwrap().unwrap() {
            got += data.len();
        }
    }
    // Coming for more says that the last piece was used.
    let more = session.next();
    tokio::select! {
        more = more => panic!("the command hangs: {more:?}"),
        () = setting.gateway.until(|record| record.acked == (700_000, 1000)) => {}
    }
}

#[tokio::test]
async fn signals_and_sizes_arrive_and_detach_is_said() {
    let setting = setting(Script { hang: true, ..Script::default() }).await;
    let mut session = setting.client.attach(target(false), Patience::default());
    let input = session.input();
    assert!(input.signal(2));
    input.resize(132, 43);
    let steps = async {
        setting.gateway.until(|record| record.signals == [2] && record.sizes == [(132, 43)]).await;
        input.detach().await;
    };
    let (seen, ()) = tokio::join!(read_to_end(&mut session), steps);
    assert_eq!(seen.unwrap().code, None);
    assert!(setting.gateway.record(|record| record.detached));
}

#[tokio::test]
async fn a_dropped_session_leaves_at_once() {
    let setting = setting(Script { hang: true, ..Script::default() }).await;
    let mut session = setting.client.attach(target(false), Patience::default());
    assert!(matches!(session.next().await, Some(Ok(Event::Started(_)))));
    drop(session);
    setting.gateway.until(|record| record.dropped == 1).await;
}
