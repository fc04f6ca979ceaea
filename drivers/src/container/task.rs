//! The keeper: the one task that works on one workload.
//!
//! Every verb on a sandbox comes through its keeper's mailbox, so that two verbs never meet on one container, and a
//! caller that goes away leaves nothing half done. A keeper remembers nothing: each request begins with the record and
//! with what the engine shows. When its mailbox is empty it retires.
//!
//! One thing is not waited for: a pull, which may take as long as a registry likes, ends when a stop or a delete comes in
//! behind it.

use std::{io, sync::Arc, time::Duration};

use holdfast_wire::ids::{Generation, SandboxId};
use jiff::Timestamp;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    task::spawn_blocking,
};

use super::{
    Shared,
    engine::Listed,
    image, oom, recipe,
    record::{self, Record},
    state::{self, Ended, Plan, Seen},
};
use crate::{
    BootStage, DriverError, Observed, Origin, Verb, Workload, WorkloadSpec, WorkloadState,
    keepers::{Door, Reply, without_content},
};

/// What a keeper is asked.
#[derive(Debug)]
pub(super) enum Request {
    Ensure(Box<WorkloadSpec>, Reply<Workload>),
    Stop(Duration, Reply<()>),
    Pause(Reply<()>),
    Resume(Reply<()>),
    Delete(Reply<()>),
    /// The id of the newest container, for its log.
    Container(Reply<Option<String>>),
    /// Look at the container again, and put what is seen on the board.
    Look(Reply<()>),
}

impl Request {
    /// Whether it makes a pull before it useless.
    fn ends_the_workload(&self) -> bool {
        matches!(self, Self::Stop(..) | Self::Delete(_))
    }
}

/// A request, and how many had come that end the workload, itself included.
pub(super) type Letter = (u64, Request);

/// The way to a keeper.
#[derive(Debug)]
pub(super) struct ContainerDoor {
    mailbox: mpsc::Sender<Letter>,
    ends: watch::Sender<u64>,
}

impl Door for ContainerDoor {
    type Request = Request;

    fn is_closed(&self) -> bool {
        self.mailbox.is_closed()
    }

    fn hand_over(&self, request: Request) -> Result<(), TrySendError<()>> {
        let before = *self.ends.borrow();
        let ends = before + u64::from(request.ends_the_workload());
        self.mailbox.try_send((ends, request)).map_err(without_content)?;
        if ends != before {
            self.ends.send_replace(ends);
        }
        Ok(())
    }
}

/// One workload's worker.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    sandbox: SandboxId,
    ends: watch::Receiver<u64>,
}

/// What there is of a workload.
#[derive(Debug)]
struct There {
    record: Option<Record>,
    seen: Seen,
    /// Every container with the sandbox's label.
    containers: Vec<Listed>,
}

impl Keeper {
    pub(super) fn new(
        shared: Arc<Shared>,
        sandbox: SandboxId,
        letters: usize,
    ) -> (ContainerDoor, Self, mpsc::Receiver<Letter>) {
        let (sender, mailbox) = mpsc::channel(letters);
        let (ends, told) = watch::channel(0);
        (ContainerDoor { mailbox: sender, ends }, Self { shared, sandbox, ends: told }, mailbox)
    }

    /// Does what is asked until nothing is, or until the driver closes.
    pub(super) async fn run(self, mut mailbox: mpsc::Receiver<Letter>) {
        let cancel = self.shared.keepers.cancel().clone();
        loop {
            let (ends, request) = match mailbox.try_recv() {
                Ok(letter) => letter,
                Err(_) if self.shared.keepers.retire(self.sandbox, &mailbox) => return,
                Err(_) => continue,
            };
            tokio::select! {
                biased;
                // What is half done then is found so by the next driver, which carries it on.
                () = cancel.cancelled() => return,
                () = self.on_request(ends, request) => {}
            }
        }
    }

    async fn on_request(&self, ends: u64, request: Request) {
        match request {
            Request::Ensure(spec, reply) => {
                let made = Box::pin(self.ensure(&spec, ends)).await;
                if let Err(error) = &made {
                    tracing::warn!(sandbox = %self.sandbox, generation = %spec.generation, %error, "the workload was not made");
                }
                let _ = reply.send(made);
            }
            Request::Stop(grace, reply) => {
                let _ = reply.send(self.stop(grace).await);
            }
            Request::Pause(reply) => {
                let _ = reply.send(self.pause().await);
            }
            Request::Resume(reply) => {
                let _ = reply.send(self.resume().await);
            }
            Request::Delete(reply) => {
                let _ = reply.send(self.delete().await);
            }
            Request::Container(reply) => {
                let _ = reply.send(self.container().await);
            }
            Request::Look(reply) => {
                let _ = reply.send(self.look().await.map(drop));
            }
        }
    }

    async fn ensure(&self, spec: &WorkloadSpec, ends: u64) -> Result<Workload, DriverError> {
        let attempted = || format!("ensure {} generation {}", spec.sandbox, spec.generation);
        let there = self.there().await?;
        let newest = there.record.as_ref().map(|record| record.generation).unwrap_or_default();
        let origin = match state::plan(there.record.as_ref(), &there.seen, spec.generation) {
            Plan::Refuse => {
                let message = format!("generation {newest} is there already");
                return Err(DriverError::conflict(attempted(), message));
            }
            Plan::Adopt => Origin::Adopted,
            Plan::Create => {
                for old in &there.containers {
                    self.shared.engine.remove(&old.id).await?;
                }
                let has_workspace = there.record.is_some_and(|record| record.has_workspace);
                self.create(spec, has_workspace, ends).await?;
                Origin::Created
            }
        };
        let observed = self.look().await?;
        // Made, and gone again behind our back: that is this generation's end, and no reason to make it anew.
        let observed = observed.unwrap_or_else(|| Observed::gone(spec.sandbox, spec.generation));
        Ok(Workload { origin, observed })
    }

    /// Makes and starts the container. What cannot be made leaves nothing but its record.
    async fn create(&self, spec: &WorkloadSpec, has_workspace: bool, ends: u64) -> Result<(), DriverError> {
        let mut record = Record { has_workspace, ..Record::new(spec.sandbox, spec.generation, &spec.name) };
        self.save(&record).await?;
        self.publish(&record, &Seen::Absent);
        let made = self.make(spec, &mut record, ends).await;
        if let Err(error) = &made {
            // A container without a start would be taken for one that is being made.
            if let Some(container) = record.container.take()
                && let Err(error) = self.shared.engine.remove(&container).await
            {
                tracing::warn!(sandbox = %self.sandbox, %error, "the container that did not start cannot be removed");
            }
            record.started = false;
            record.failed = Some(error.to_string());
            self.save(&record).await?;
            self.publish(&record, &Seen::Absent);
        }
        made
    }

    async fn make(&self, spec: &WorkloadSpec, record: &mut Record, ends: u64) -> Result<(), DriverError> {
        let shared = &self.shared;
        let engine = &shared.engine;
        // Checked before: a spec without an image and a gateway without a default are refused.
        let image = recipe::image(shared, spec).unwrap_or_default();
        let tell = |message: String| {
            let creating = state::level(record, &Seen::Absent);
            let Some(creating) = creating else { return };
            shared.board.put(Observed { reason: "PullingImage".to_owned(), message, ..creating });
        };
        let image = tokio::select! {
            image = image::ensure(engine, image, shared.settings.pull_silence, tell) => image?,
            () = self.unwanted(ends) => {
                let attempted = format!("making the workload of {}", spec.sandbox);
                return Err(DriverError::conflict(attempted, "it was to end before its image was there"));
            }
        };
        record.main = recipe::main_command(spec, &image)?;
        record.boot.reach(BootStage::Image);
        self.publish(record, &Seen::Absent);
        let network = recipe::network(shared, spec);
        let Some(found) = engine.network(network).await? else {
            return Err(DriverError::invalid("network", format!("the engine has no network {network:?}")));
        };
        record.dials = shared.settings.reach.dials_on(&found.gateways);
        let volume = recipe::volume_name(spec.sandbox);
        if record.has_workspace && !engine.has_volume(&volume).await? {
            // An empty one under the old name would pass for it.
            let message = format!(
                "the workspace is gone: the engine has no volume {volume}; put it back, then start the sandbox"
            );
            return Err(DriverError::conflict(format!("making the workload of {}", spec.sandbox), message));
        }
        engine.create_volume(&volume, recipe::labels(shared, spec.sandbox, &spec.name)).await?;
        record.has_workspace = true;
        let user = recipe::default_user(spec, &image);
        let (files, wanted, dials) = (shared.clone(), spec.clone(), record.dials.clone());
        let laid = spawn_blocking(move || record::lay_out(&files, &wanted, &dials, user)).await;
        let inputs = laid
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(|error| DriverError::io("writing the supervisor's files", error))?;
        let body = recipe::body(shared, spec, &inputs);
        let id = engine.create(&recipe::container_name(spec), body).await?;
        record.container = Some(id.clone());
        record.boot.reach(BootStage::Created);
        self.publish(record, &Seen::Created);
        // Before it is: a gateway that dies in between must not make this generation twice.
        record.started = true;
        record.since = Timestamp::now();
        self.save(record).await?;
        engine.start(&id).await?;
        tracing::info!(sandbox = %self.sandbox, generation = %spec.generation, container = %id, "workload started");
        Ok(())
    }

    /// Waits until somebody wants the workload to end who came after a request of this number.
    async fn unwanted(&self, ends: u64) {
        let mut told = self.ends.clone();
        if told.wait_for(|now| *now > ends).await.is_err() {
            // The door is gone: nobody can come any more.
            std::future::pending::<()>().await;
        }
    }

    async fn stop(&self, grace: Duration) -> Result<(), DriverError> {
        let there = self.there().await?;
        let Some((mut record, id)) = self.of_a_container(Verb::Stop, &there)? else { return Ok(()) };
        let alive = matches!(there.seen, Seen::Running { .. } | Seen::Paused { .. });
        if !alive {
            return Ok(());
        }
        record.stop_asked = true;
        self.save(&record).await?;
        self.publish(&record, &there.seen);
        if matches!(there.seen, Seen::Paused { .. }) {
            // What is frozen hears no signal.
            self.shared.engine.unpause(&id).await?;
        }
        let stopped = self.shared.engine.stop(&id, grace).await;
        self.look().await?;
        stopped
    }

    async fn pause(&self) -> Result<(), DriverError> {
        let there = self.there().await?;
        let (mut record, id) = self.alive(Verb::Pause, &there)?;
        // Before it is: a gateway that finds the container frozen must know that it was asked for.
        record.pause_asked = true;
        self.save(&record).await?;
        if let (Seen::Running { .. }, Err(error)) = (&there.seen, self.shared.engine.pause(&id).await) {
            record.pause_asked = false;
            self.save(&record).await?;
            self.look().await?;
            return Err(error);
        }
        self.look().await?;
        Ok(())
    }

    async fn resume(&self) -> Result<(), DriverError> {
        let there = self.there().await?;
        let (mut record, id) = self.alive(Verb::Resume, &there)?;
        if matches!(there.seen, Seen::Paused { .. }) {
            self.shared.engine.unpause(&id).await?;
        }
        record.pause_asked = false;
        self.save(&record).await?;
        self.look().await?;
        Ok(())
    }

    async fn delete(&self) -> Result<(), DriverError> {
        let engine = &self.shared.engine;
        for container in engine.list(&self.shared.installation, Some(self.sandbox)).await? {
            if container.paused {
                // Some engines cannot remove what is frozen; what it does in that moment goes with it.
                let _ = engine.unpause(&container.id).await;
            }
            engine.remove(&container.id).await?;
        }
        engine.remove_volumes(&self.shared.installation, self.sandbox).await?;
        let (shared, sandbox) = (self.shared.clone(), self.sandbox);
        let removed = spawn_blocking(move || record::remove(&shared.root, sandbox)).await;
        removed
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(|error| DriverError::io(format!("delete {}", self.sandbox), error))?;
        self.shared.board.take(self.sandbox);
        Ok(())
    }

    async fn container(&self) -> Result<Option<String>, DriverError> {
        Ok(self.there().await?.record.and_then(|record| record.container))
    }

    async fn look(&self) -> Result<Option<Observed>, DriverError> {
        let there = self.there().await?;
        let Some(record) = &there.record else {
            self.shared.board.take(self.sandbox);
            return Ok(None);
        };
        Ok(self.publish(record, &there.seen))
    }

    /// The record, and what the engine shows of its container.
    async fn there(&self) -> Result<There, DriverError> {
        let (shared, sandbox) = (self.shared.clone(), self.sandbox);
        let read = spawn_blocking(move || Record::read(&shared.root, sandbox)).await;
        let record = match read.unwrap_or_else(|panic| Err(panic.to_string())) {
            Ok(record) => record,
            Err(message) => {
                // Kept as it is until somebody deletes it.
                let failed = Observed {
                    state: WorkloadState::Failed,
                    reason: "RecordUnreadable".to_owned(),
                    message: message.clone(),
                    ..Observed::gone(self.sandbox, Generation(0))
                };
                self.shared.board.put(failed);
                let attempted = format!("looking for the workload of {}", self.sandbox);
                return Err(DriverError::conflict(attempted, format!("{message}; delete it first")));
            }
        };
        let mut containers = self.shared.engine.list(&self.shared.installation, Some(self.sandbox)).await?;
        containers.sort_by_key(|container| std::cmp::Reverse(container.generation));
        // A container whose record is lost says by its labels what it is; so does one whose maker died before it
        // had written down the id.
        let record = match (record, containers.first()) {
            (None, Some(newest)) => Some(adopted(self.sandbox, newest)),
            (Some(record), Some(newest)) if newest.generation > record.generation => {
                Some(adopted(self.sandbox, newest))
            }
            (Some(record), Some(newest)) if newest.generation == record.generation => {
                Some(Record { container: Some(newest.id.clone()), ..record })
            }
            (record, _) => record,
        };
        let seen = match record.as_ref().and_then(|record| record.container.as_deref()) {
            Some(id) => self.shared.engine.inspect(id).await?,
            None => Seen::Absent,
        };
        match (record, seen) {
            (Some(record), Seen::Ended(ended)) => {
                let (record, ended) = self.cause(record, ended).await?;
                Ok(There { record: Some(record), seen: Seen::Ended(ended), containers })
            }
            (record, seen) => Ok(There { record, seen, containers }),
        }
    }

    /// Why a container was killed that nobody asked to end, where the engine does not know.
    async fn cause(&self, mut record: Record, mut ended: Ended) -> Result<(Record, Ended), DriverError> {
        let killed = state::is_killed(&ended) && !record.stop_asked && !ended.oom;
        let Some(id) = record.container.clone().filter(|_| killed) else { return Ok((record, ended)) };
        if !record.oom_killed && spawn_blocking(move || oom::killed(&id)).await.unwrap_or(false) {
            record.oom_killed = true;
            self.save(&record).await?;
        }
        ended.oom = record.oom_killed;
        Ok((record, ended))
    }

    /// The container that a verb is about; `None`: there is nothing left of it that could be asked for anything.
    fn of_a_container(&self, verb: Verb, there: &There) -> Result<Option<(Record, String)>, DriverError> {
        let Some(record) = &there.record else {
            return Err(DriverError::NotFound { verb, sandbox: self.sandbox });
        };
        let id = record.container.clone().filter(|_| there.seen != Seen::Absent);
        Ok(id.map(|id| (record.clone(), id)))
    }

    /// The container, if its processes are there, frozen or not.
    fn alive(&self, verb: Verb, there: &There) -> Result<(Record, String), DriverError> {
        let found = self.of_a_container(verb, there)?;
        let alive = matches!(there.seen, Seen::Running { .. } | Seen::Paused { .. });
        found.filter(|_| alive).ok_or_else(|| {
            DriverError::conflict(format!("{verb} {}", self.sandbox), "its container does not run")
        })
    }

    async fn save(&self, record: &Record) -> Result<(), DriverError> {
        let (shared, record) = (self.shared.clone(), record.clone());
        let saved = spawn_blocking(move || record.write(&shared.root)).await;
        saved
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(|error| DriverError::io(format!("writing the record of {}", self.sandbox), error))
    }

    fn publish(&self, record: &Record, seen: &Seen) -> Option<Observed> {
        let Some(observed) = state::level(record, seen) else {
            self.shared.board.take(self.sandbox);
            return None;
        };
        self.shared.board.put(observed.clone());
        // What was on the board before may say the same, with an older time stamp.
        self.shared.board.get(self.sandbox).or(Some(observed))
    }
}

/// A record of what a container's labels say.
fn adopted(sandbox: SandboxId, container: &Listed) -> Record {
    Record {
        container: Some(container.id.clone()),
        started: true,
        has_workspace: true,
        ..Record::new(sandbox, container.generation, &container.name)
    }
}
