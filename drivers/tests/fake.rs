//! The fake keeps the rules of the trait, so that what the gateway learns from it holds for real drivers.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_drivers::{
    ComputeDriver, Exit, Observed, WorkloadSpec,
    conformance::{Harness, sample_spec},
    conformance_tests,
    fake::{FakeDriver, FakeMachine},
};
use holdfast_wire::ids::SandboxId;

struct Fake(FakeMachine);

async fn fake() -> Fake {
    let machine = FakeMachine::new();
    machine.create_takes(Duration::from_millis(1));
    Fake(machine)
}

#[async_trait]
impl Harness for Fake {
    async fn open(&self) -> Arc<dyn ComputeDriver> {
        Arc::new(FakeDriver::open(&self.0))
    }

    fn invalid_specs(&self) -> Vec<(WorkloadSpec, &'static str)> {
        let spec = sample_spec(SandboxId::random());
        vec![(WorkloadSpec { image: Some("debian".into()), ..spec }, "image")]
    }

    async fn kill(&self, observed: &Observed) {
        self.0.kill(observed.sandbox, Exit::Signal(9));
    }

    async fn write_file(&self, sandbox: SandboxId, name: &str, content: Bytes) {
        self.0.write_file(sandbox, name, content);
    }

    async fn read_file(&self, sandbox: SandboxId, name: &str) -> Option<Bytes> {
        self.0.read_file(sandbox, name)
    }

    async fn write_console(&self, sandbox: SandboxId, text: Bytes) {
        self.0.write_console(sandbox, &text);
    }

    async fn leftovers(&self, observed: &Observed) -> Vec<String> {
        if self.0.has(observed.sandbox) { vec![format!("{}", observed.sandbox)] } else { Vec::new() }
    }
}

conformance_tests!(fake());
