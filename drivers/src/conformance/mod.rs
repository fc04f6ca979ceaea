//! The conformance suite: what every driver must do, as facts that can be checked.
//!
//! A driver's test gives a [`Harness`]: how to open the driver, and how to touch a workload behind its back. The
//! suite is a list of named [`Check`]s; [`conformance_tests!`](crate::conformance_tests) makes one test of each,
//! so that a failure names the fact that does not hold.

mod checks;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use holdfast_wire::ids::{Generation, SandboxId};

pub use self::checks::CHECKS;
use crate::{Bootstrap, ComputeDriver, Env, Observed, Resources, Secret, WorkloadSpec};

/// What the suite needs to know of a driver under test.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Opens the driver. Called again after [`ComputeDriver::close`], it opens another over the same storage and
    /// the same machine, as the next gateway would.
    async fn open(&self) -> Arc<dyn ComputeDriver>;

    /// A spec of generation 1, for a sandbox that there was not before, which the driver can make.
    fn spec(&self) -> WorkloadSpec {
        sample_spec(SandboxId::random())
    }

    /// Specs that this driver cannot make, beside those that no driver can, each with the field that is wrong.
    fn invalid_specs(&self) -> Vec<(WorkloadSpec, &'static str)> {
        Vec::new()
    }

    /// Ends the workload's first process by force, behind the driver's back.
    async fn kill(&self, observed: &Observed);

    /// Writes a file at the top of the workspace, as a command in the sandbox would.
    async fn write_file(&self, sandbox: SandboxId, name: &str, content: Bytes);

    /// Reads a file at the top of the workspace; `None` where there is none.
    async fn read_file(&self, sandbox: SandboxId, name: &str) -> Option<Bytes>;

    /// Writes to the console, as the supervisor would.
    async fn write_console(&self, sandbox: SandboxId, text: Bytes);

    /// What the machine still has of a workload: processes, files, containers. Empty when nothing is left.
    /// `observed` is the last level before it was deleted.
    async fn leftovers(&self, observed: &Observed) -> Vec<String>;

    /// How long the suite waits for what must come. Long: on a good day nothing takes it.
    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }
}

/// One fact about a driver.
#[derive(Clone, Copy)]
pub struct Check {
    /// The fact.
    pub name: &'static str,
    run: for<'a> fn(&'a dyn Harness) -> BoxFuture<'a, CheckResult>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How a check went; an error says what was seen instead of the fact.
pub type CheckResult = Result<Verdict, String>;

/// How a check went, when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The fact holds.
    Holds,
    /// The driver says that it cannot do this, and refuses it in the right way.
    Unsupported,
}

impl Check {
    /// Tries whether the fact holds.
    ///
    /// # Errors
    /// What was seen instead.
    pub async fn run(&self, harness: &dyn Harness) -> CheckResult {
        (self.run)(harness).await.map_err(|seen| format!("{}: {seen}", self.name))
    }
}

/// Runs the check of this name, for [`conformance_tests!`](crate::conformance_tests).
///
/// # Panics
/// When the fact does not hold, or when there is no such check.
pub async fn run(name: &str, harness: &dyn Harness) -> Verdict {
    let check = CHECKS.iter().find(|check| check.name == name).expect("a check of this name");
    check.run(harness).await.unwrap_or_else(|seen| panic!("{seen}"))
}

/// A spec that every driver can make: no image, no limits, and a bootstrap that leads nowhere.
#[must_use]
pub fn sample_spec(sandbox: SandboxId) -> WorkloadSpec {
    WorkloadSpec {
        sandbox,
        name: "conformance".to_owned(),
        generation: Generation(1),
        image: None,
        rootfs: None,
        egress: None,
        workspace: None,
        resources: Resources::default(),
        env: Env::from_iter([("HELD", "fast")]),
        user: None,
        labels: BTreeMap::from([("suite".to_owned(), "conformance".to_owned())]),
        mounts: Vec::new(),
        network: None,
        read_only_root: false,
        main: None,
        bootstrap: Bootstrap {
            // The discard port of this machine: nobody answers, and no packet leaves.
            addresses: vec!["127.0.0.1:9".to_owned()],
            server_name: "gateway.holdfast.internal".to_owned(),
            cert_chain_pem: "-----BEGIN CERTIFICATE-----\nsample\n-----END CERTIFICATE-----\n".to_owned(),
            key_pem: Secret::new("-----BEGIN PRIVATE KEY-----\nsample\n-----END PRIVATE KEY-----\n"),
            ca_pem: "-----BEGIN CERTIFICATE-----\nsample\n-----END CERTIFICATE-----\n".to_owned(),
        },
    }
}

/// Makes one test of each check, over the harness that `$make` (an async expression) gives.
#[macro_export]
macro_rules! conformance_tests {
    ($make:expr) => {
        $crate::conformance_tests! {
            @each $make;
            ensure_is_idempotent
            concurrent_ensures_make_one_workload
            an_older_generation_is_refused
            a_newer_generation_takes_over_the_workspace
            delete_is_idempotent
            list_shows_what_ensure_made
            a_boot_is_told_stage_by_stage
            stop_keeps_the_workspace
            stop_is_idempotent
            start_after_stop_has_the_same_workspace
            workload_death_is_observed
            a_dead_generation_stays_dead
            adoption_after_reopen
            a_death_between_two_drivers_is_observed
            pause_is_observed
            a_paused_workload_can_be_stopped
            a_paused_workload_can_be_deleted
            watch_repeats_levels
            watchers_are_told_what_is_gone
            logs_tail_is_bounded
            nothing_is_left_after_delete
            spec_errors_name_the_field
            what_is_not_there_is_not_found
            two_sandboxes_do_not_meet
            a_closed_driver_says_unavailable
        }
    };
    (@each $make:expr; $($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let harness = $make.await;
                $crate::conformance::run(stringify!($name), &harness).await;
            }
        )*

        #[test]
        fn no_check_of_the_suite_is_left_out() {
            let names: Vec<&str> = $crate::conformance::CHECKS.iter().map(|check| check.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}
