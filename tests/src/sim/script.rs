//! What a command does, and therefore what is true of it: the text for the fake spawner, and beside it the output
//! and the outcome that a caller must get.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_supervisor::execs::spawn::fake::pattern_bytes;
use holdfast_wire::api::{ExecSpec, Exited, Signaled, exec_spec, outcome::Kind};

/// A command for the fake spawner, and the truth about it.
#[derive(Clone, Debug, Default)]
pub struct Script {
    steps: Vec<String>,
    stdout: BytesMut,
    stderr: BytesMut,
    emitted: (u64, u64),
    stdin: Option<Bytes>,
    exit: i32,
    signal: Option<i32>,
    takes: Duration,
}

impl Script {
    /// A command that ends at once with code 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says nothing for so long.
    #[must_use]
    pub fn sleep(mut self, time: Duration) -> Self {
        self.takes += time;
        self.step(format!("sleep {}ms", time.as_millis()))
    }

    /// Writes so many bytes to stdout.
    #[must_use]
    pub fn emit(mut self, bytes: u64) -> Self {
        self.stdout
            .put(pattern_bytes(self.emitted.0, usize::try_from(bytes).expect("a test's output fits memory")));
        self.emitted.0 += bytes;
        self.step(format!("emit {bytes}"))
    }

    /// Writes so many bytes to stderr.
    #[must_use]
    pub fn err(mut self, bytes: u64) -> Self {
        self.stderr
            .put(pattern_bytes(self.emitted.1, usize::try_from(bytes).expect("a test's output fits memory")));
        self.emitted.1 += bytes;
        self.step(format!("err {bytes}"))
    }

    /// Copies stdin, which is this, to stdout.
    #[must_use]
    pub fn cat(mut self, stdin: Bytes) -> Self {
        self.stdout.put(stdin.clone());
        self.stdin = Some(stdin);
        self.step("cat".to_owned())
    }

    /// Ends with this code.
    #[must_use]
    pub fn exit(mut self, code: i32) -> Self {
        self.exit = code;
        self.step(format!("exit {code}"))
    }

    /// Ends by this signal.
    #[must_use]
    pub fn die(mut self, signal: i32) -> Self {
        self.signal = Some(signal);
        self.step(format!("die {signal}"))
    }

    /// `times` times: `bytes` to stdout, 7 to stderr, a pause. A command that talks.
    #[must_use]
    pub fn talk(mut self, times: u64, bytes: u64, pause: Duration) -> Self {
        for _ in 0..times {
            self = self.emit(bytes).err(7).sleep(pause);
        }
        self
    }

    fn step(mut self, step: String) -> Self {
        self.steps.push(step);
        self
    }

    /// What the gateway is asked for.
    #[must_use]
    pub fn spec(&self) -> ExecSpec {
        ExecSpec {
            command: Some(exec_spec::Command::Shell(self.text().into_bytes().into())),
            stdin: self.stdin.is_some(),
            ..ExecSpec::default()
        }
    }

    /// The fake spawner's text.
    #[must_use]
    pub fn text(&self) -> String {
        // An empty line is no command.
        if self.steps.is_empty() { "sleep 0ms".to_owned() } else { self.steps.join(";") }
    }

    /// All that it writes to stdout.
    #[must_use]
    pub fn stdout(&self) -> &[u8] {
        &self.stdout
    }

    /// All that it writes to stderr.
    #[must_use]
    pub fn stderr(&self) -> &[u8] {
        &self.stderr
    }

    /// What it is to be given.
    #[must_use]
    pub fn stdin(&self) -> Option<&Bytes> {
        self.stdin.as_ref()
    }

    /// How long it sleeps in all.
    #[must_use]
    pub fn takes(&self) -> Duration {
        self.takes
    }

    /// How it ends, if it ends by itself.
    #[must_use]
    pub fn outcome(&self) -> Kind {
        match self.signal {
            Some(signal) => Kind::Signaled(Signaled { signal, core_dumped: false, oom: false }),
            None => Kind::Exited(Exited { code: self.exit }),
        }
    }
}
