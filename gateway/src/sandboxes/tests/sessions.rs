//! Who may enter, who supersedes whom, and who waits for it.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_newest_epoch_supersedes_and_an_old_end_changes_nothing() {
    let mut bench = Bench::new().await;
    let (handle, first, _down) = bench.ready("dev").await;
    let (second, _down) = bench.attach(&handle, first.instance()).await;
    assert_eq!(code(&first), Some(CloseCode::SUPERSEDED));
    assert!(second.lost().is_none());
    handle.session_lost(first.epoch(), Lost::here(CloseCode::SUPERSEDED, "late")).await;
    handle.health(second.epoch(), healthy()).await;
    bench.reach(&handle, "ready").await;
    assert_eq!(handle.now().epoch, second.epoch());

    // Two are let in; the newer attaches first.
    let hello = bench.hello(first.instance(), Generation(1));
    let older = handle.hello(hello.clone()).await.unwrap().epoch;
    let (newest, _down) = bench.attach(&handle, first.instance()).await;
    let (late, _down) = bench.sessions.session(handle.id(), older, hello);
    handle.attached(older, late.clone()).await;
    assert_eq!(late.closed().await.code(), Some(CloseCode::SUPERSEDED));
    assert!(newest.lost().is_none());
}

#[tokio::test(start_paused = true)]
async fn who_may_enter_is_decided_by_comparison() {
    let mut bench = Bench::new().await;
    let (handle, session, _down) = bench.ready("dev").await;
    let instance = session.instance();

    let stale = bench.hello(instance, Generation(0));
    let refusal = handle.hello(stale).await.unwrap_err();
    assert_eq!((refusal.code, refusal.retry_after), (RefuseCode::StaleGeneration, None));

    let unknown = bench.hello(instance, Generation(7));
    let refusal = handle.hello(unknown).await.unwrap_err();
    assert_eq!(refusal.code, RefuseCode::Busy);
    assert!(refusal.retry_after.is_some());

    // An older dial of the same process, that was long on its way.
    let old = Hello { dial: 1, ..bench.hello(instance, Generation(1)) };
    assert_eq!(handle.hello(old).await.unwrap_err().code, RefuseCode::Busy);
    assert!(session.lost().is_none(), "nobody who is refused takes a place");

    // Another process of the same workload takes over, and the first does not come back.
    let (second, _down) = bench.attach(&handle, Instance::random()).await;
    assert_eq!(code(&session), Some(CloseCode::SUPERSEDED));
    let again = bench.hello(instance, Generation(1));
    let refusal = handle.hello(again).await.unwrap_err();
    assert_eq!((refusal.code, refusal.retry_after), (RefuseCode::StaleGeneration, None));
    assert!(second.lost().is_none());

    bench.sandboxes.stop("dev", Duration::ZERO).await.unwrap();
    bench.reach(&handle, "phase=stopped").await;
    assert_eq!(code(&second), Some(CloseCode::SANDBOX_STOPPED));
    let stopped = bench.hello(second.instance(), Generation(1));
    assert_eq!(handle.hello(stopped).await.unwrap_err().retry_after, None);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_cannot_be_stored_is_not_given() {
    let mut bench = Bench::new().await;
    let handle = bench.create("dev").await;
    // What became of the workload is being stored; only then is the store's failure the epoch's.
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.store.fail_writes(1);
    let hello = bench.hello(Instance::random(), Generation(1));
    let refusal = handle.hello(hello.clone()).await.unwrap_err();
    assert_eq!(refusal.code, RefuseCode::Busy);
    assert!(refusal.retry_after.is_some());
    let again = Hello { dial: 99, ..hello };
    assert_eq!(handle.hello(again).await.unwrap().epoch, Epoch(1));
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_the_session_and_are_woken_by_it() {
    let mut bench = Bench::new().await;
    let handle = bench.create("dev").await;
    let begun = Instant::now();
    let waiter = handle.wait_for_session(begun + Duration::from_secs(15));
    let attacher = async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        bench.attach(&handle, Instance::random()).await
    };
    let (session, (attached, _down)) = tokio::join!(waiter, attacher);
    assert_eq!(session.unwrap().id(), attached.id());
    assert_eq!(begun.elapsed(), Duration::from_secs(7));

    // A session that is lost is none, from that moment on.
    attached.close(CloseCode::RESET_ON_REQUEST, "a test");
    let begun = Instant::now();
    let error = handle.wait_for_session(begun + Duration::from_secs(15)).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::from_secs(15));
    assert_eq!(error.reason, Reason::NoSession);
    for part in
        ["Reconnecting", "SupervisorConnected=False/SessionLost", "attached with epoch 1", "RESET_ON_REQUEST"]
    {
        assert!(error.message.contains(part), "{part} is not in: {}", error.message);
    }
    assert_eq!(error.metadata[key::PHASE], "Reconnecting");
}

#[tokio::test(start_paused = true)]
async fn where_waiting_is_pointless_nobody_waits() {
    let mut bench = Bench::new().await;
    let (handle, ..) = bench.ready("dev").await;
    bench.sandboxes.stop("dev", Duration::ZERO).await.unwrap();
    bench.reach(&handle, "phase=stopped").await;
    let begun = Instant::now();
    let far = begun + Duration::from_secs(600);
    let error = handle.wait_for_session(far).await.unwrap_err();
    assert_eq!((error.reason, error.metadata[key::PHASE].as_str()), (Reason::WrongPhase, "Stopped"));
    let error = bench.sandboxes.wait_until("dev", "ready", far).await.unwrap_err();
    assert_eq!(error.reason, Reason::WrongPhase);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let error =
        bench.sandboxes.wait_until("dev", "phase=Paused", begun + Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(error.reason, Reason::WaitTimeout);
    assert_eq!(
        bench.sandboxes.wait_until("nobody", "deleted", far).await.unwrap().map(|view| view.id()),
        None
    );
}
