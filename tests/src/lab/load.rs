//! What goes on while a fault happens: calls that are silent, that talk, or that carry bulk.

use std::time::Duration;

/// What one command does: its lines, the pause after each, and whether its caller attaches again.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    /// How many lines.
    pub lines: usize,
    /// What it waits between two.
    pub pause: Duration,
    /// Its caller does not attach again.
    pub strict: bool,
}

impl Talk {
    /// A line twice a second.
    #[must_use]
    pub fn steady(seconds: u64) -> Self {
        let lines = usize::try_from(seconds * 2).unwrap_or(usize::MAX);
        Self { lines, pause: Duration::from_millis(500), strict: false }
    }

    /// A line, silence, a line.
    #[must_use]
    pub fn silent(seconds: u64) -> Self {
        Self { lines: 2, pause: Duration::from_secs(seconds), strict: false }
    }

    /// How long it takes where nothing happens: no pause follows the last line.
    #[must_use]
    pub fn lasts(self) -> Duration {
        self.pause * u32::try_from(self.lines.saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// The same, and its caller does not attach again.
    #[must_use]
    pub fn strict(self) -> Self {
        Self { strict: true, ..self }
    }
}

/// How much a fault is given to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As in CI: transfers are cut to what shows the same within seconds.
    Short,
    /// As the table's names say.
    Full,
}

/// What is attached when a fault begins.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// For so many seconds: one call that talks, one that is silent, and one that talks and does not attach again.
    Usual(u64),
    /// The same without the last: where the gateway itself is hit, the connection of the caller breaks as well.
    Patient(u64),
    /// So many silent calls, for so many seconds.
    Silent {
        /// Calls.
        calls: usize,
        /// Seconds.
        seconds: u64,
        /// In CI.
        seconds_short: u64,
    },
    /// So many sandboxes with a silent call each.
    Herd {
        /// Sandboxes.
        sandboxes: usize,
        /// Seconds.
        seconds: u64,
    },
    /// So many MiB to a command and back.
    Bulk {
        /// As the table has it.
        mib: u64,
        /// In CI.
        mib_short: u64,
    },
}

impl Load {
    /// The sandbox of each call, and what the call does; none for a transfer.
    pub(super) fn talks(self, scale: Scale) -> Vec<(String, Talk)> {
        let on_box = |talks: Vec<Talk>| talks.into_iter().map(|talk| ("box".to_owned(), talk)).collect();
        match self {
            Self::Usual(seconds) => {
                let steady = Talk::steady(seconds);
                on_box(vec![steady, Talk::silent(seconds), steady.strict()])
            }
            Self::Patient(seconds) => on_box(vec![Talk::steady(seconds), Talk::silent(seconds)]),
            Self::Silent { calls, seconds, seconds_short } => {
                let seconds = if scale == Scale::Full { seconds } else { seconds_short };
                on_box(vec![Talk::silent(seconds); calls])
            }
            Self::Herd { sandboxes, seconds } => {
                (0..sandboxes).map(|number| (herd(number), Talk::silent(seconds))).collect()
            }
            Self::Bulk { .. } => Vec::new(),
        }
    }

    /// The bytes of a transfer.
    pub(super) fn bytes(self, scale: Scale) -> Option<u64> {
        let Self::Bulk { mib, mib_short } = self else { return None };
        Some(if scale == Scale::Full { mib } else { mib_short } << 20)
    }
}

/// The name of a herd's sandbox; the first is there anyway.
pub(super) fn herd(number: usize) -> String {
    if number == 0 { "box".to_owned() } else { format!("box{number}") }
}

/// The exit code of call `number`, and its script: what it says goes to `file`, too.
pub(super) fn script(number: usize, talk: Talk, file: &str) -> (i32, String) {
    let code = 1 + i32::try_from(number % 100).unwrap_or_default();
    let script = format!(
        "i=0; while :; do l=\"$i $(date +%s%N)\"; echo \"$l\"; echo \"$l\" >> {file}; i=$((i+1)); \
         [ $i -lt {} ] || exit {code}; sleep {}; done",
        talk.lines,
        talk.pause.as_secs_f64()
    );
    (code, script)
}
