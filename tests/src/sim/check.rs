//! What must hold after every scenario, whatever happened in it: no call outlived its bound; each exec has one
//! outcome, and it is the true one; the output is what the command wrote, once and in order; every command was
//! started once; nothing is left over; and the sandboxes work.

use std::{fmt::Write as _, time::Duration};

use anyhow::Context;
use holdfast_gateway::store::Store;
use holdfast_wire::{
    api::{OutputStream, Phase, outcome::Kind},
    timing,
};
use tokio::time::Instant;

use super::{
    caller::{ANSWERED_WITHIN, Record, StreamEnd},
    script::Script,
    world::{Sandbox, World, alive_tasks},
};

/// Within which attached callers are told that their path is silent: the README's bound.
pub const TOLD_WITHIN: Duration = Duration::from_secs(11);

/// From the moment at which the network works again until a new exec has its result: an idle link's longest pause
/// between dials, its jitter and handshake, and the caller's own longest pause.
const WORKS_WITHIN: Duration = Duration::from_secs(45);

/// After which nothing of the past may be left: the idle timeout of connections whose peer is gone (25 s at the
/// supervisor), and a margin.
const TIDY_WITHIN: Duration = Duration::from_secs(40);

/// Between two looks at what is left: nothing tells when a task ends.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl World {
    /// Heals everything, waits for all calls, and checks all invariants.
    ///
    /// # Errors
    /// Every violation, and what happened.
    pub async fn check(mut self) -> anyhow::Result<Vec<Record>> {
        let mut wrong = Vec::new();
        if let Err(error) = self.recover().await {
            wrong.push(format!("{error:#}"));
        }
        let longest = self.longest_call();
        if let Err(error) = self.finish(longest + WORKS_WITHIN).await {
            wrong.push(format!("after everything was healed {error:#}"));
        }
        if wrong.is_empty() {
            self.check_that_it_works(&mut wrong).await;
            self.check_that_nothing_is_left(&mut wrong).await;
        }
        for record in &self.records {
            if let Err(error) = self.check_record(record).await {
                wrong.push(format!("exec {}: {error:#}\n{}", record.plan.exec, self.describe(record)));
            }
        }
        if wrong.is_empty() {
            return Ok(self.records);
        }
        anyhow::bail!(
            "{} violations:\n- {}\n\nwhat happened:\n{}",
            wrong.len(),
            wrong.join("\n- "),
            self.story()
        )
    }

    async fn recover(&mut self) -> anyhow::Result<()> {
        for sandbox in 0..self.sandboxes.len() {
            self.heal(sandbox);
            if self.sandboxes[sandbox].inside.instance().is_none() {
                self.restart_supervisor(sandbox).await?;
            }
        }
        if !self.has_gateway() {
            self.start_gateway().await?;
        }
        Ok(())
    }

    async fn check_that_it_works(&mut self, wrong: &mut Vec<String>) {
        let began = Instant::now();
        for sandbox in 0..self.sandboxes.len() {
            let script = Script::new().emit(1000).err(10).exit(7);
            match self.run(sandbox, script).await {
                Ok(record) => {
                    let took = record.ended - began;
                    if took > WORKS_WITHIN {
                        wrong.push(format!(
                            "a new exec in sandbox {sandbox} had its result only {took:?} after the heal"
                        ));
                    }
                    self.records.push(record);
                }
                Err(error) => wrong.push(format!("a new exec after the heal: {error:#}")),
            }
            if let Err(error) = self.ready(sandbox, timing::PROBE_LEASE).await {
                wrong.push(format!("after a good exec {error:#}"));
            }
        }
    }

    async fn check_that_nothing_is_left(&mut self, wrong: &mut Vec<String>) {
        let until = Instant::now() + TIDY_WITHIN;
        loop {
            let left = match self.leftovers() {
                Ok(left) => left,
                Err(error) => return wrong.push(format!("{error:#}")),
            };
            if left.is_empty() {
                return;
            }
            if Instant::now() >= until {
                return wrong.push(format!("left {TIDY_WITHIN:?} after the last call:{left}"));
            }
            self.pass(LOOK_EVERY).await;
        }
    }

    /// What is there and should not be, a line each.
    fn leftovers(&self) -> anyhow::Result<String> {
        let mut left = String::new();
        let core = &self.gateway()?.core;
        for (number, sandbox) in self.sandboxes.iter().enumerate() {
            let view = core.sandboxes.by_id(sandbox.id).context("the sandbox is known")?.now();
            let mut say = |what: String| {
                let _ = write!(left, "\n    sandbox {number}: {what}");
            };
            match &view.session {
                None => say("no session".to_owned()),
                Some(session) => {
                    if let Some(lost) = session.lost() {
                        say(format!("its session is lost: {lost}"));
                    }
                    if session.open_relays() != 0 {
                        say(format!("{} relays are open", session.open_relays()));
                    }
                    if Some(session.instance()) != sandbox.inside.instance() {
                        say("its session is another supervisor's".to_owned());
                    }
                }
            }
            if view.phase != Phase::Ready {
                say(format!("{:?}", view.phase));
            }
            if let Some(running) = sandbox.inside.execs().map(|execs| *execs.running().borrow())
                && running != 0
            {
                say(format!("{running} execs run"));
            }
            if sandbox.inside.commands() != 0 {
                say(format!("{} commands live", sandbox.inside.commands()));
            }
            if self.net.sockets(sandbox.host) != 1 {
                say(format!("{} sockets are open", self.net.sockets(sandbox.host)));
            }
        }
        // The accept loop, and a task for each session.
        let (tasks, want) = (core.listener.tasks(), 1 + self.sandboxes.len());
        if tasks != want {
            let _ = write!(left, "\n    {tasks} tasks of the listener where {want} belong");
        }
        let (tasks, want) = (alive_tasks(), self.quiet_tasks);
        if tasks > want {
            let _ = write!(left, "\n    {tasks} tasks in all where {want} were at the beginning");
        }
        Ok(left)
    }

    async fn check_record(&self, record: &Record) -> anyhow::Result<()> {
        if let Some(why) = &record.gave_up {
            anyhow::bail!("the caller gave up: {why}");
        }
        let sandbox = self.sandbox_of(record)?;
        self.check_truth(record, sandbox).await?;
        self.check_bounds(record, sandbox)
    }

    async fn check_truth(&self, record: &Record, sandbox: &Sandbox) -> anyhow::Result<()> {
        let (script, exec) = (&record.plan.script, record.plan.exec);
        let outcome = record.outcome.as_ref().context("no outcome was told")?;
        let stored = self.site.store().exec(exec).await?.context("the store does not know it")?;
        let stored = stored.outcome().and_then(|outcome| outcome.kind.as_ref());
        anyhow::ensure!(stored == Some(outcome), "told was {outcome:?}, stored is {stored:?}");
        let starts = sandbox.inside.starts(exec);
        anyhow::ensure!(starts <= 1, "its command was started {starts} times");
        match outcome {
            Kind::StartFailed(failed) => {
                anyhow::ensure!(starts == 0, "its command was started, and told was {failed:?}");
                anyhow::ensure!(
                    record.stdout.is_empty() && record.stderr.is_empty(),
                    "output of a command that never ran"
                );
            }
            Kind::Lost(lost) => {
                let ends = sandbox.inside.deaths.iter().chain(&sandbox.rivals);
                let may_be_lost = ends.into_iter().any(|end| (record.began..=record.ended).contains(end));
                anyhow::ensure!(may_be_lost, "told was {lost:?}, and its supervisor lived on");
                anyhow::ensure!(
                    script.stdout().starts_with(&record.stdout),
                    "its stdout is not a beginning of the truth"
                );
                anyhow::ensure!(
                    script.stderr().starts_with(&record.stderr),
                    "its stderr is not a beginning of the truth"
                );
            }
            outcome => {
                anyhow::ensure!(
                    *outcome == script.outcome(),
                    "told was {outcome:?}, true is {:?}",
                    script.outcome()
                );
                anyhow::ensure!(starts == 1, "its command was never started, and told was {outcome:?}");
                anyhow::ensure!(record.gone == 0, "{} bytes of output are gone", record.gone);
                same(OutputStream::Stdout, &record.stdout, script.stdout())?;
                same(OutputStream::Stderr, &record.stderr, script.stderr())?;
            }
        }
        Ok(())
    }

    fn check_bounds(&self, record: &Record, sandbox: &Sandbox) -> anyhow::Result<()> {
        for stream in &record.streams {
            let answered = stream.attached.unwrap_or(stream.ended);
            let took = answered - stream.asked;
            anyhow::ensure!(took <= ANSWERED_WITHIN, "an attach was answered only after {took:?}");
            let Some(attached) = stream.attached else { continue };
            for silence in sandbox.silences.iter().filter(|silence| silence.from >= attached) {
                let due = silence.from + TOLD_WITHIN;
                // Healed before, or told of something else: nothing is owed.
                let healed = silence.until.is_some_and(|until| until <= due);
                if stream.ended > due && !healed {
                    anyhow::bail!(
                        "the path was silent ({:?}) from {}, and the caller was told only {:?} later",
                        silence.way,
                        self.at(silence.from),
                        stream.ended - silence.from
                    );
                }
            }
        }
        Ok(())
    }

    fn sandbox_of(&self, record: &Record) -> anyhow::Result<&Sandbox> {
        let mut sandboxes = self.sandboxes.iter();
        sandboxes
            .find(|sandbox| sandbox.id.to_string() == record.plan.sandbox)
            .context("a call to no sandbox of this world")
    }

    /// A record for a person.
    fn describe(&self, record: &Record) -> String {
        let mut text = format!(
            "    {:.100}: began {}, ended {}, {} and {} bytes",
            record.plan.script.text(),
            self.at(record.began),
            self.at(record.ended),
            record.stdout.len(),
            record.stderr.len()
        );
        for stream in &record.streams {
            let attached = stream
                .attached
                .map_or_else(|| "never attached".to_owned(), |at| format!("attached {}", self.at(at)));
            let end = match &stream.end {
                StreamEnd::Told { reason, message, .. } => format!("{reason}: {message:.160}"),
                other => format!("{other:?}"),
            };
            let _ = write!(
                text,
                "\n      asked {}, {attached}, ended {}: {end}",
                self.at(stream.asked),
                self.at(stream.ended)
            );
        }
        text
    }
}

fn same(stream: OutputStream, got: &[u8], want: &[u8]) -> anyhow::Result<()> {
    if got == want {
        return Ok(());
    }
    let first = got.iter().zip(want).position(|(got, want)| got != want).unwrap_or(got.len().min(want.len()));
    anyhow::bail!(
        "{stream:?} is {} bytes where {} are true; they differ from byte {first}",
        got.len(),
        want.len()
    )
}
