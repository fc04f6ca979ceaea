//! The keepers of a driver: for each sandbox that somebody wants something of, one task that alone works on its
//! workload.
//!
//! ```text
//!   a verb ── call ──▶ door ── mailbox ──▶ keeper (the driver's own task) ── reply ──▶ the verb's answer
//!                       │                     │
//!                       └─ made when needed   └─ retires when its mailbox is empty and nothing is left to keep
//! ```
//!
//! So two verbs never meet on one workload, and a caller that goes away leaves nothing half done. A request is put into a
//! mailbox under the lock under which a keeper retires: none goes to a keeper that has looked for the last time.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
};

use holdfast_wire::ids::SandboxId;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{DriverError, Verb};

/// Where the answer goes. A caller that is gone does not want it any more.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, DriverError>>;

/// The way to a keeper: the sender of its mailbox, with whatever a driver adds to it.
pub(crate) trait Door {
    type Request;

    /// The keeper is gone: it has retired, or panicked.
    fn is_closed(&self) -> bool;

    /// Puts a request into the mailbox; never waits.
    fn hand_over(&self, request: Self::Request) -> Result<(), TrySendError<()>>;
}

impl<R> Door for mpsc::Sender<R> {
    type Request = R;

    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }

    fn hand_over(&self, request: R) -> Result<(), TrySendError<()>> {
        self.try_send(request).map_err(without_content)
    }
}

/// The error, without what could not be sent.
pub(crate) fn without_content<T>(error: TrySendError<T>) -> TrySendError<()> {
    match error {
        TrySendError::Full(_) => TrySendError::Full(()),
        TrySendError::Closed(_) => TrySendError::Closed(()),
    }
}

/// All keepers of one driver.
#[derive(Debug)]
pub(crate) struct Keepers<D> {
    driver: &'static str,
    doors: Mutex<HashMap<SandboxId, D>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl<D: Door> Keepers<D> {
    /// None yet. `driver` names it in errors.
    pub(crate) fn new(driver: &'static str) -> Self {
        Self { driver, doors: Mutex::default(), tasks: TaskTracker::new(), cancel: CancellationToken::new() }
    }

    /// What ends keepers, and everything else that the driver does beside them.
    pub(crate) fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// The driver's tasks: keepers, and whatever else must be over when it is closed.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// # Errors
    /// `Unavailable` once the driver is closed.
    pub(crate) fn is_open(&self, verb: Verb) -> Result<(), DriverError> {
        if self.cancel.is_cancelled() { Err(self.closed(verb)) } else { Ok(()) }
    }

    /// Hands a request to the sandbox's keeper, which `hire` makes and starts where there is none, and waits for its
    /// answer.
    pub(crate) async fn call<T>(
        &self,
        verb: Verb,
        sandbox: SandboxId,
        hire: impl FnOnce() -> D,
        request: impl FnOnce(Reply<T>) -> D::Request,
    ) -> Result<T, DriverError> {
        let attempted = || format!("{verb} {sandbox}");
        self.is_open(verb)?;
        let (reply, answer) = oneshot::channel();
        self.hand_over(sandbox, hire, request(reply))
            .map_err(|message| DriverError::unavailable(attempted(), message))?;
        match answer.await {
            Ok(answer) => answer,
            Err(_) if self.cancel.is_cancelled() => Err(self.closed(verb)),
            Err(_) => {
                Err(DriverError::internal(attempted(), "the workload's keeper ended while it was at work"))
            }
        }
    }

    /// Hands over a request whose answer nobody waits for here.
    pub(crate) fn hand_over(
        &self,
        sandbox: SandboxId,
        hire: impl FnOnce() -> D,
        request: D::Request,
    ) -> Result<(), &'static str> {
        let mut doors = self.doors();
        match open(&mut doors, sandbox, hire).hand_over(request) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(())) => Err("too many requests wait for it already"),
            Err(TrySendError::Closed(())) => Err("its keeper is gone"),
        }
    }

    /// Has a keeper for the sandbox, asked for nothing: it finds out for itself what is to be done.
    pub(crate) fn wake(&self, sandbox: SandboxId, hire: impl FnOnce() -> D) {
        open(&mut self.doors(), sandbox, hire);
    }

    /// Strikes the sandbox's keeper off, unless somebody wants something of it. True: it has looked for the last time.
    pub(crate) fn retire<L>(&self, sandbox: SandboxId, mailbox: &mpsc::Receiver<L>) -> bool {
        let mut doors = self.doors();
        let idle = mailbox.is_empty();
        if idle {
            doors.remove(&sandbox);
        }
        idle
    }

    /// Ends all keepers where they are, and waits until they are over.
    pub(crate) async fn close(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn closed(&self, verb: Verb) -> DriverError {
        DriverError::unavailable(verb.to_string(), format!("the {} driver is closed", self.driver))
    }

    fn doors(&self) -> MutexGuard<'_, HashMap<SandboxId, D>> {
        // A panic while holding the lock cannot leave half an entry.
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open<D: Door>(doors: &mut HashMap<SandboxId, D>, sandbox: SandboxId, hire: impl FnOnce() -> D) -> &D {
    match doors.entry(sandbox) {
        Entry::Vacant(vacant) => vacant.insert(hire()),
        Entry::Occupied(mut there) => {
            if there.get().is_closed() {
                there.insert(hire());
            }
            there.into_mut()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    type Request = (u32, Reply<u32>);
    type Crew = Arc<Keepers<mpsc::Sender<Request>>>;

    /// Answers what it is asked, and retires whenever nothing is.
    fn hire(crew: &Crew, sandbox: SandboxId) -> mpsc::Sender<Request> {
        let (door, mut mailbox) = mpsc::channel::<Request>(1);
        let mine = crew.clone();
        crew.tasks().spawn(async move {
            loop {
                match mailbox.try_recv() {
                    Ok((asked, reply)) => drop(reply.send(Ok(asked))),
                    Err(_) if mine.retire(sandbox, &mailbox) => return,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        door
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_request_goes_to_a_keeper_that_has_retired() {
        let crew: Crew = Arc::new(Keepers::new("test"));
        let sandbox = SandboxId::random();
        for asked in 0..2000 {
            let answer =
                crew.call(Verb::Stop, sandbox, || hire(&crew, sandbox), |reply| (asked, reply)).await;
            assert_eq!(answer.unwrap(), asked);
        }
        crew.close().await;
        let answer = crew.call(Verb::Stop, sandbox, || hire(&crew, sandbox), |reply| (0, reply)).await;
        assert!(answer.unwrap_err().to_string().contains("the test driver is closed"));
    }

    #[tokio::test]
    async fn a_full_mailbox_refuses_and_a_keeper_that_panicked_is_replaced() {
        let crew: Crew = Arc::new(Keepers::new("test"));
        let sandbox = SandboxId::random();
        let (door, mailbox) = mpsc::channel(1);
        let ask = |hire: Box<dyn FnOnce() -> mpsc::Sender<Request>>| {
            crew.hand_over(sandbox, hire, (1, oneshot::channel().0))
        };
        assert_eq!(ask(Box::new(|| door)), Ok(()));
        assert_eq!(ask(Box::new(|| panic!("it has a keeper"))), Err("too many requests wait for it already"));
        assert!(!crew.retire(sandbox, &mailbox), "somebody wants something of it");
        drop(mailbox);
        let (door, mut mailbox) = mpsc::channel(1);
        assert_eq!(ask(Box::new(|| door)), Ok(()));
        assert_eq!(mailbox.recv().await.unwrap().0, 1);
        assert!(crew.retire(sandbox, &mailbox));
    }
}
