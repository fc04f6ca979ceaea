//! What follows from facts, fact by fact, and then from facts in any order.

mod boot;
mod facts;
mod memory;
mod properties;
mod wishes;

use holdfast_wire::ids::SandboxId;
use proptest::prelude::*;

use super::{known::Known, *};

const BOOT: Duration = Duration::from_secs(60);

fn wanted(desired: Desired) -> Wanted {
    Wanted {
        desired,
        why: Why::Asked,
        grace: Duration::from_secs(5),
        generation: Generation(1),
        made: Generation(0),
        attached: Generation(0),
        foreign: false,
        ephemeral: false,
    }
}

/// A state with a clock of its own.
struct Bench {
    state: State,
    now: Instant,
}

impl Bench {
    fn new(wanted: Wanted) -> Self {
        let now = Instant::now();
        let boot = vec![BootStage::Created, BootStage::Started];
        let can = Can { stop: true, logs: true, own_memory: true, boot };
        Self { state: State::new(wanted, can, BOOT, Epoch(0), now), now }
    }

    /// One that has been asked for just now.
    fn asked_for() -> Self {
        Self::new(wanted(Desired::Running))
    }

    /// One that was attached before this gateway started.
    fn of_before(desired: Desired) -> Self {
        let past = wanted(desired);
        Self::new(Wanted { made: Generation(1), attached: Generation(1), ..past })
    }

    /// One that is Ready.
    fn ready() -> Self {
        let mut bench = Self::asked_for();
        bench.ensured();
        bench.attached(1);
        bench.health(1, true, true);
        assert_eq!(bench.phase(), Phase::Ready);
        bench
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn assess(&self) -> Assessment {
        self.state.assess(self.now)
    }

    fn phase(&self) -> Phase {
        self.assess().phase
    }

    fn told(&self) -> (Phase, String) {
        let assessment = self.assess();
        (assessment.phase, assessment.reason)
    }

    fn steps(&self) -> Vec<Step> {
        self.assess().steps
    }

    fn level(&mut self, generation: u64, state: WorkloadState) {
        self.state.on_level(Level::Seen(seen(generation, state)), self.now);
    }

    fn absent(&mut self) {
        self.state.on_level(Level::Absent { asked: self.now }, self.now);
    }

    fn want(&mut self, desired: Desired) {
        let wanted = Wanted { desired, ..self.state.wanted };
        self.state.on_wanted(wanted);
    }

    fn start_anew(&mut self) {
        let wanted = self.state.wanted;
        let generation = wanted.generation.next();
        self.state.on_wanted(Wanted { desired: Desired::Running, generation, ..wanted });
    }

    /// The call that is due, begun.
    fn call(&mut self) -> Call {
        let call = self.steps().into_iter().find_map(|step| match step {
            Step::Call(call) => Some(call),
            _ => None,
        });
        let call = call.unwrap_or_else(|| panic!("no call is due: {:?}", self.assess()));
        self.state.on_called(call);
        call
    }

    fn answer(&mut self, answer: Result<Option<Observed>, Failure>) {
        self.state.on_answer(answer, Duration::from_secs(1), self.now);
    }

    fn ensured(&mut self) {
        let generation = self.state.wanted.generation;
        assert_eq!(self.call(), Call::Ensure { generation });
        self.answer(Ok(Some(seen(generation.0, WorkloadState::Running))));
    }

    fn attached(&mut self, epoch: u64) -> bool {
        self.state.on_attached(Epoch(epoch), self.state.wanted.generation, self.now)
    }

    fn lost(&mut self, epoch: u64) -> bool {
        self.state.on_lost(Epoch(epoch), "timed out".to_owned())
    }

    fn health(&mut self, epoch: u64, exec: bool, filesystem: bool) {
        let result = |ok| Some(ProbeResult { ok, errno: 5, message: "tried".to_owned(), took_ms: 1 });
        let health = Health { exec: result(exec), filesystem: result(filesystem), ..Health::default() };
        self.state.on_health(Epoch(epoch), &health, self.now);
    }
}

fn seen(generation: u64, state: WorkloadState) -> Observed {
    Observed { state, ..Observed::gone(SandboxId::from(uuid::Uuid::nil()), Generation(generation)) }
}

fn failure(retryable: bool) -> Failure {
    Failure { reason: "DriverUnavailable", message: "no answer".to_owned(), retryable, not_found: false }
}
