//! What every store must do, as tests: `store_tests!` makes one of each for a store.

use std::time::Duration;

use bytes::Bytes;
use holdfast_wire::{
    api,
    ids::{Epoch, ExecId, Generation, Instance, SandboxId},
};
use jiff::Timestamp;

use super::{
    Admission, Desired, ExecRecord, Finished, MAX_BLOB, SandboxRecord, Sent, Store, StoreError, Why,
};

macro_rules! store_tests {
    ($make:expr) => {
        crate::store::suite::store_tests! {
            @each $make;
            a_sandbox_comes_back_as_it_went_in
            a_name_is_given_once
            the_second_of_two_writers_is_told
            an_update_leaves_the_epoch_alone
            epochs_only_rise
            a_listing_goes_on_where_it_stopped
            an_exec_is_admitted_once
            only_a_sandbox_that_is_there_admits
            a_main_command_is_noted_with_its_admission_and_outlives_it
            the_first_outcome_stays
            a_start_belongs_to_the_instance_it_was_first_sent_to
            an_exec_starts_once_and_not_after_its_end
            unfinished_are_those_without_an_outcome
            a_deleted_sandbox_takes_its_running_execs_along
            ended_execs_are_forgotten_in_time
            an_oversized_record_is_refused
            values_of_the_gateways_own_are_replaced
        }
    };
    (@each $make:expr; $($name:ident)*) => {
        mod behaviour {
            use super::*;
            $(
                #[tokio::test]
                async fn $name() {
                    let store = $make.await;
                    crate::store::suite::$name(&store).await;
                }
            )*
        }
    };
}
pub(super) use store_tests;

pub(super) fn sandbox(name: &str) -> SandboxRecord {
    SandboxRecord {
        id: SandboxId::random(),
        name: name.to_owned(),
        spec: api::SandboxSpec {
            env: [("A".to_owned(), "1".to_owned())].into(),
            labels: [("team".to_owned(), "core".to_owned())].into(),
            ..api::SandboxSpec::default()
        },
        desired: Desired::Running,
        why: Why::Idle,
        grace: Duration::from_secs(5),
        generation: Generation(3),
        made: Generation(2),
        attached: Generation(1),
        epoch: Epoch(0),
        driver: "fake".to_owned(),
        version: 1,
        created_at: at(0),
        last_error: None,
        expires_at: Some(at(3600)),
        active_at: None,
        main: Generation(0),
    }
}

pub(super) fn exec(sandbox: SandboxId) -> ExecRecord {
    ExecRecord {
        exec: ExecId::random(),
        sandbox,
        spec_digest: Bytes::from_static(&[7; 32]),
        command: "sleep 1".to_owned(),
        tty: true,
        on_disconnect: api::OnDisconnect::Kill,
        retain_for: Duration::from_secs(3600),
        accepted_at: at(1),
        start_deadline_at: at(16),
        sent: None,
        pid: 0,
        started_at: None,
        finished: None,
    }
}

fn finished(code: i32, at: Timestamp) -> Finished {
    let kind = api::outcome::Kind::Exited(api::Exited { code });
    Finished {
        outcome: api::Outcome { kind: Some(kind) },
        at,
        stdout_bytes: 70_000,
        stderr_bytes: 3,
        left_processes: true,
    }
}

fn sent() -> Sent {
    Sent { instance: Instance::random(), generation: Generation(1), epoch: Epoch(4) }
}

/// Some seconds after a fixed moment, with microseconds in it.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_microsecond(1_790_000_000_123_456 + seconds * 1_000_000).unwrap()
}

pub(super) async fn a_sandbox_comes_back_as_it_went_in(store: &impl Store) {
    let mut record = sandbox("dev");
    record.last_error = Some(api::LastError {
        reason: "WorkloadGone".to_owned(),
        at: Some(prost_types::Timestamp { seconds: 5, nanos: 7 }),
        ..api::LastError::default()
    });
    store.insert(&record).await.unwrap();
    assert_eq!(store.get(record.id).await.unwrap(), Some(record.clone()));
    assert_eq!(store.find("dev").await.unwrap(), Some(record));
    assert_eq!(store.get(SandboxId::random()).await.unwrap(), None);
    assert_eq!(store.find("other").await.unwrap(), None);
}

pub(super) async fn a_name_is_given_once(store: &impl Store) {
    let first = sandbox("dev");
    store.insert(&first).await.unwrap();
    let error = store.insert(&sandbox("dev")).await.unwrap_err();
    assert!(matches!(&error, StoreError::NameTaken { name } if name == "dev"), "{error}");
    let again = SandboxRecord { name: "other".to_owned(), ..first.clone() };
    let error = store.insert(&again).await.unwrap_err();
    assert!(matches!(error, StoreError::IdTaken { id } if id == first.id), "{error}");
    store.delete(first.id, at(0)).await.unwrap();
    store.insert(&sandbox("dev")).await.unwrap();
}

pub(super) async fn the_second_of_two_writers_is_told(store: &impl Store) {
    let record = sandbox("dev");
    store.insert(&record).await.unwrap();
    let stopped = SandboxRecord { desired: Desired::Stopped, generation: Generation(4), ..record.clone() };
    assert_eq!(store.update(&stopped).await.unwrap(), 2);
    let error =
        store.update(&SandboxRecord { desired: Desired::Paused, ..record.clone() }).await.unwrap_err();
    assert!(matches!(error, StoreError::Stale { version: 1, .. }), "{error}");
    let stored = store.get(record.id).await.unwrap().unwrap();
    assert_eq!((stored.desired, stored.version), (Desired::Stopped, 2));
    let error = store.update(&sandbox("nobody")).await.unwrap_err();
    assert!(matches!(error, StoreError::SandboxMissing { .. }), "{error}");
}

pub(super) async fn an_update_leaves_the_epoch_alone(store: &impl Store) {
    let record = sandbox("dev");
    store.insert(&record).await.unwrap();
    store.next_epoch(record.id).await.unwrap();
    store.update(&SandboxRecord { epoch: Epoch(99), ..record.clone() }).await.unwrap();
    assert_eq!(store.get(record.id).await.unwrap().unwrap().epoch, Epoch(1));
}

pub(super) async fn epochs_only_rise(store: &impl Store) {
    let record = sandbox("dev");
    store.insert(&record).await.unwrap();
    let all = futures::future::join_all((0..20).map(|_| store.next_epoch(record.id))).await;
    let mut all: Vec<u64> = all.into_iter().map(|epoch| epoch.unwrap().0).collect();
    all.sort_unstable();
    assert_eq!(all, (1..=20).collect::<Vec<u64>>(), "each epoch is given once");
    // Counting does not disturb a writer that holds the record.
    assert_eq!(store.update(&record).await.unwrap(), 2);
    let error = store.next_epoch(SandboxId::random()).await.unwrap_err();
    assert!(matches!(error, StoreError::SandboxMissing { .. }), "{error}");
}

pub(super) async fn a_listing_goes_on_where_it_stopped(store: &impl Store) {
    let mut all: Vec<_> = (0..7).map(|i| sandbox(&format!("box-{i}"))).collect();
    for record in all.iter().rev() {
        store.insert(record).await.unwrap();
    }
    all.sort_by_key(|record| record.id);
    let first = store.list(None, 4).await.unwrap();
    assert_eq!(first, all[..4]);
    assert_eq!(store.list(Some(first[3].id), 4).await.unwrap(), all[4..]);
    assert_eq!(store.list(Some(all[6].id), 4).await.unwrap(), []);
}

pub(super) async fn an_exec_is_admitted_once(store: &impl Store) {
    let home = sandbox("dev");
    store.insert(&home).await.unwrap();
    let record = exec(home.id);
    assert_eq!(store.admit(&record).await.unwrap(), Admission::Admitted);
    assert_eq!(store.exec(record.exec).await.unwrap(), Some(record.clone()));
    let other = ExecRecord { command: "other".to_owned(), spec_digest: Bytes::new(), ..record.clone() };
    assert_eq!(store.admit(&other).await.unwrap(), Admission::Existing(Box::new(record)));
    // Many at once: one of them is the one.
    let racer = exec(home.id);
    let all = futures::future::join_all((0..8).map(|_| store.admit(&racer))).await;
    let admitted = all.into_iter().filter(|admission| matches!(admission, Ok(Admission::Admitted)));
    assert_eq!(admitted.count(), 1);
}

pub(super) async fn only_a_sandbox_that_is_there_admits(store: &impl Store) {
    let error = store.admit(&exec(SandboxId::random())).await.unwrap_err();
    assert!(matches!(error, StoreError::SandboxMissing { .. }), "{error}");
}

pub(super) async fn the_first_outcome_stays(store: &impl Store) {
    let home = sandbox("dev");
    store.insert(&home).await.unwrap();
    let record = exec(home.id);
    store.admit(&record).await.unwrap();
    let ends: Vec<_> = (0..8).map(|code| finished(code, at(20))).collect();
    let won = futures::future::join_all(ends.iter().map(|end| store.finish(record.exec, end))).await;
    let won: Vec<_> = won.into_iter().map(Result::unwrap).collect();
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
    let winner = &ends[won.iter().position(|won| *won).unwrap()];
    let stored = store.exec(record.exec).await.unwrap().unwrap();
    assert_eq!(stored.finished.as_ref(), Some(winner));
    assert_eq!(stored.retain_until(), Some(at(3620)));
    let error = store.finish(ExecId::random(), winner).await.unwrap_err();
    assert!(matches!(error, StoreError::ExecMissing { .. }), "{error}");
}

pub(super) async fn a_start_belongs_to_the_instance_it_was_first_sent_to(store: &impl Store) {
    let home = sandbox("dev");
    store.insert(&home).await.unwrap();
    let record = exec(home.id);
    store.admit(&record).await.unwrap();
    let (first, second) = (sent(), sent());
    assert_eq!(store.sent(record.exec, first).await.unwrap(), Some(first));
    assert_eq!(store.sent(record.exec, second).await.unwrap(), Some(first));
    assert_eq!(store.exec(record.exec).await.unwrap().unwrap().sent, Some(first));
    let error = store.sent(ExecId::random(), second).await.unwrap_err();
    assert!(matches!(error, StoreError::ExecMissing { .. }), "{error}");
}

pub(super) async fn an_exec_starts_once_and_not_after_its_end(store: &impl Store) {
    let home = sandbox("dev");
    store.insert(&home).await.unwrap();
    let (record, ended) = (exec(home.id), exec(home.id));
    store.admit(&record).await.unwrap();
    store.admit(&ended).await.unwrap();
    assert!(store.started(record.exec, 17, at(2)).await.unwrap());
    assert!(!store.started(record.exec, 18, at(3)).await.unwrap());
    let stored = store.exec(record.exec).await.unwrap().unwrap();
    assert_eq!((stored.pid, stored.started_at), (17, Some(at(2))));
    assert_eq!(stored.state(), api::ExecState::Running);
    assert!(store.finish(ended.exec, &finished(0, at(2))).await.unwrap());
    assert!(!store.started(ended.exec, 17, at(3)).await.unwrap());
    assert!(store.started(ExecId::random(), 1, at(0)).await.is_err());
}

pub(super) async fn unfinished_are_those_without_an_outcome(store: &impl Store) {
    let (home, other) = (sandbox("dev"), sandbox("other"));
    store.insert(&home).await.unwrap();
    store.insert(&other).await.unwrap();
    let mut execs = Vec::new();
    for second in 0..5 {
        let record = ExecRecord { accepted_at: at(second), ..exec(home.id) };
        store.admit(&record).await.unwrap();
        execs.push(record);
    }
    store.admit(&exec(other.id)).await.unwrap();
    store.finish(execs[1].exec, &finished(0, at(9))).await.unwrap();
    let ids = |records: Vec<ExecRecord>| records.into_iter().map(|record| record.exec).collect::<Vec<_>>();
    let unfinished = ids(store.unfinished(home.id).await.unwrap());
    assert_eq!(unfinished, [execs[0].exec, execs[2].exec, execs[3].exec, execs[4].exec]);
    let newest = ids(store.execs_of(home.id, 2).await.unwrap());
    assert_eq!(newest, [execs[4].exec, execs[3].exec]);
}

pub(super) async fn a_deleted_sandbox_takes_its_running_execs_along(store: &impl Store) {
    let home = sandbox("dev");
    store.insert(&home).await.unwrap();
    let (running, ended) = (exec(home.id), exec(home.id));
    store.admit(&running).await.unwrap();
    store.admit(&ended).await.unwrap();
    store.finish(ended.exec, &finished(3, at(4))).await.unwrap();
    assert!(store.delete(home.id, at(30)).await.unwrap());
    assert!(!store.delete(home.id, at(31)).await.unwrap());
    assert_eq!(store.get(home.id).await.unwrap(), None);
    let lost = store.exec(running.exec).await.unwrap().unwrap();
    let Some(api::outcome::Kind::Lost(reason)) = lost.outcome().and_then(|outcome| outcome.kind.clone())
    else {
        panic!("the running exec ended as {:?}", lost.outcome());
    };
    assert_eq!(reason.reason(), api::LostReason::SandboxDeleted);
    assert_eq!(lost.retain_until(), Some(at(3630)));
    assert_eq!(store.exec(ended.exec).await.unwrap().unwrap().finished, Some(finished(3, at(4))));
    assert!(store.unfinished(home.id).await.unwrap().is_empty());
}

pub(super) async fn a_main_command_is_noted_with_its_admission_and_outlives_it(store: &impl Store) {
    let (home, nowhere) = (sandbox("dev"), sandbox("nobody"));
    store.insert(&home).await.unwrap();
    let main = async || store.get(home.id).await.unwrap().unwrap().main;
    let record = exec(home.id);
    assert_eq!(store.admit_main(&record, Generation(3)).await.unwrap(), Admission::Admitted);
    assert_eq!(main().await, Generation(3));
    assert!(matches!(
        store.admit_main(&record, Generation(4)).await.unwrap(),
        Admission::Existing(there) if *there == record
    ));
    assert_eq!(main().await, Generation(3), "nothing was taken in");
    // Whoever writes the sandbox does not know of it.
    store.update(&home).await.unwrap();
    store.finish(record.exec, &finished(0, at(10))).await.unwrap();
    assert_eq!(store.forget_before(at(1_000_000)).await.unwrap(), 1);
    assert_eq!((store.exec(record.exec).await.unwrap(), main().await), (None, Generation(3)));
    store.admit_main(&exec(home.id), Generation(2)).await.unwrap();
    assert_eq!(main().await, Generation(3), "it only rises");
    let error = store.admit_main(&exec(nowhere.id), Generation(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::SandboxMissing { .. }), "{error}");
}

pub(super) async fn ended_execs_are_forgotten_in_time(store: &impl Store) {
    let home = sandbox("dev");
    store.insert(&home).await.unwrap();
    let (old, young, running) = (exec(home.id), exec(home.id), exec(home.id));
    for record in [&old, &young, &running] {
        store.admit(record).await.unwrap();
    }
    store.finish(old.exec, &finished(0, at(10))).await.unwrap();
    store.finish(young.exec, &finished(0, at(20))).await.unwrap();
    assert_eq!(store.forget_before(at(3610)).await.unwrap(), 0, "kept to the end of its time");
    assert_eq!(store.forget_before(at(3615)).await.unwrap(), 1);
    assert_eq!(store.exec(old.exec).await.unwrap(), None);
    assert!(store.exec(young.exec).await.unwrap().is_some());
    assert_eq!(store.forget_before(at(1_000_000)).await.unwrap(), 1);
    assert!(store.exec(running.exec).await.unwrap().is_some(), "what runs is never forgotten");
}

pub(super) async fn an_oversized_record_is_refused(store: &impl Store) {
    let mut record = sandbox("dev");
    record.spec.image = "x".repeat(MAX_BLOB);
    let error = store.insert(&record).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    let home = sandbox("home");
    store.insert(&home).await.unwrap();
    let error = store.admit(&ExecRecord { command: "x".repeat(2000), ..exec(home.id) }).await.unwrap_err();
    assert!(error.to_string().contains("command has 2000 bytes"), "{error}");
}

pub(super) async fn values_of_the_gateways_own_are_replaced(store: &impl Store) {
    assert_eq!(store.meta("started").await.unwrap(), None);
    store.set_meta("started", Bytes::from_static(b"once")).await.unwrap();
    store.set_meta("started", Bytes::from_static(b"twice")).await.unwrap();
    assert_eq!(store.meta("started").await.unwrap().as_deref(), Some(&b"twice"[..]));
    store.ping().await.unwrap();
}
