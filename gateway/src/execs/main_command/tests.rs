//! Main commands over the real wire, with a paused clock. That gateways may die at any moment of them: the simulation.

use std::{sync::Arc, time::Duration};

use holdfast_wire::{
    api::{self, ConditionStatus, ExecState, SandboxSpec},
    close::CloseCode,
    control::{ExecReport, RefusedCode, up},
    ids::{ExecId, Generation},
};
use jiff::Timestamp;

use crate::{
    error::{Reason, key},
    execs::CallerInfo,
    sandboxes::{ConditionKind, View},
    sessions::fake::{Act, FakeWorld},
};

const BOX: &str = "box";

fn with_main(args: &[&str]) -> SandboxSpec {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    SandboxSpec { main: Some(api::MainCommand { args }), ..SandboxSpec::default() }
}

fn exec_of(world: &FakeWorld) -> ExecId {
    ExecId::of_main(world.sandboxes.resolve(BOX).unwrap().id(), Generation(1))
}

/// Waits until the condition says so.
async fn told(world: &FakeWorld, status: ConditionStatus, reason: &str) -> Arc<View> {
    let mut view = world.sandboxes.resolve(BOX).unwrap().view();
    let like = |view: &Arc<View>| {
        let main = view.condition(ConditionKind::MainCommand).unwrap();
        (main.status, main.reason.as_str()) == (status, reason)
    };
    match tokio::time::timeout(Duration::from_secs(900), view.wait_for(like)).await {
        Ok(Ok(view)) => view.clone(),
        other => panic!("it does not come: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn it_runs_once_as_soon_as_the_sandbox_is_ready_and_not_again_on_a_new_session() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox_with(BOX, with_main(&["serve", "--all"])).await;
    let exec = exec_of(&world);
    let view = told(&world, ConditionStatus::Unknown, "NotStarted").await;
    assert_eq!(view.to_api().status.unwrap().main_exec_id, exec.to_string());

    let link = supervisor.attach().await;
    let view = told(&world, ConditionStatus::True, "Running").await;
    assert_eq!(view.condition(ConditionKind::MainCommand).unwrap().message, "serve --all");
    let info = world.execs.get(BOX, exec).await.unwrap();
    assert_eq!((info.command.as_str(), info.state()), ("serve --all", ExecState::Running));

    link.connection.close(CloseCode::INTERNAL, "scripted");
    let link = supervisor.attach().await;
    world.session(BOX, 2).await;
    let info = supervisor.end(exec, 7);
    link.say(up::Body::Execs(ExecReport { complete: false, execs: vec![info] })).await;
    let view = told(&world, ConditionStatus::False, "Exited").await;
    let conditions = view.to_api().status.unwrap().conditions;
    assert_eq!(conditions.last().map(|main| main.message.as_str()), Some("exit code 7"));

    // Its end is no end of the sandbox, and when it is forgotten, that it was is not.
    world.store.forget_before(Timestamp::MAX).await.unwrap();
    assert_eq!(world.store.exec(exec).await.unwrap(), None);
    link.connection.close(CloseCode::INTERNAL, "scripted");
    let _link = supervisor.attach().await;
    told(&world, ConditionStatus::False, "Forgotten").await;
    world
        .sandboxes
        .wait_until(BOX, "ready", tokio::time::Instant::now() + Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(supervisor.begun(exec), 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_lost_on_its_way_is_repeated_and_begins_nothing_twice() {
    for first in [Act::Vanish, Act::StartAndVanish] {
        let world = FakeWorld::new().await;
        let supervisor = world.sandbox_with(BOX, with_main(&["serve"])).await;
        supervisor.script([first]);
        let link = supervisor.attach().await;
        link.connection.closed().await;
        let _link = supervisor.attach().await;
        told(&world, ConditionStatus::True, "Running").await;
        assert_eq!(supervisor.begun(exec_of(&world)), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_refused_is_an_end_with_a_name() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox_with(BOX, with_main(&["serve"])).await;
    supervisor.script([Act::Refuse(RefusedCode::Exhausted)]);
    let _link = supervisor.attach().await;
    let view = told(&world, ConditionStatus::False, "StartFailed").await;
    assert_eq!(view.condition(ConditionKind::MainCommand).unwrap().message, "scripted");
    assert_eq!(supervisor.begun(exec_of(&world)), 0);
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_it_before_it_is_started_waits_for_it() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox_with(BOX, with_main(&["serve"])).await;
    let exec = exec_of(&world);
    let asked = world.execs.get(BOX, exec);
    let attached = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        supervisor.attach().await
    };
    let (asked, _link) = tokio::join!(asked, attached);
    assert_eq!(asked.unwrap().state(), ExecState::Running);
    // Any other id is not waited for.
    let error = world.execs.get(BOX, ExecId::random()).await.unwrap_err();
    assert_eq!(error.reason, Reason::ExecNotFound);
}

/// Nobody who ends it can know whether its start has reached the supervisor: there is none to ask before.
#[tokio::test(start_paused = true)]
async fn who_ends_it_while_it_is_being_started_waits_until_it_runs() {
    let world = FakeWorld::new().await;
    let supervisor = world.sandbox_with(BOX, with_main(&["serve"])).await;
    supervisor.script([Act::Vanish]);
    let link = supervisor.attach().await;
    link.connection.closed().await;
    let exec = exec_of(&world);
    assert_eq!(world.store.exec(exec).await.unwrap().unwrap().state(), ExecState::Accepted);
    let caller = CallerInfo::default();
    let ended = world.execs.cancel(BOX, exec, &caller);
    let attached = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        supervisor.attach().await
    };
    let (ended, _link) = tokio::join!(ended, attached);
    assert_eq!(ended.unwrap().state(), ExecState::Running, "the fake lets it run on");
    assert_eq!(supervisor.begun(exec), 1);
}

#[tokio::test(start_paused = true)]
async fn without_images_the_command_has_to_be_given() {
    let world = FakeWorld::new().await;
    let error = world.sandboxes.create(BOX, with_main(&[])).await.unwrap_err();
    assert_eq!((error.reason, error.metadata[key::VERB].as_str()), (Reason::UnsupportedByDriver, "main"));
    assert!(error.message.contains("the fake driver") && error.message.contains("--main --"), "{error}");
    let error = world.sandboxes.create(BOX, with_main(&[""])).await.unwrap_err();
    assert_eq!(error.reason, Reason::InvalidArgument);
    let error = world.sandboxes.create(BOX, with_main(&["a", "\0"])).await.unwrap_err();
    assert_eq!(error.metadata[key::FIELD], "main.args[1]");
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_without_a_main_command_has_no_such_condition_and_is_not_waited_for() {
    let world = FakeWorld::new().await;
    let _supervisor = world.sandbox(BOX).await;
    let view = world.sandboxes.get(BOX).unwrap();
    let status = view.to_api().status.unwrap();
    assert!(status.main_exec_id.is_empty() && view.condition(ConditionKind::MainCommand).is_none());
    let until = tokio::time::Instant::now() + Duration::from_secs(600);
    let error = world.sandboxes.wait_until(BOX, "condition=MainCommand", until).await.unwrap_err();
    assert_eq!(error.reason, Reason::WrongPhase);
}
