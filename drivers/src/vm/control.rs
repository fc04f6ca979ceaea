//! The control port: one serial line between a machine's holder and the supervisor inside.
//!
//! The holder says `stop`. The supervisor says `init` when the machine is set up, `failed WHY` when it cannot be, and
//! `stopped` when it has ended everything and written everything, just before it resets the machine. It needs no
//! network, so that a machine without one can still be stopped in order.

/// The longest line. A guest may write what it wants; this much of it is kept.
pub const MAX_LINE: usize = 4096;

/// What the holder asks.
pub const STOP: &str = "stop\n";

/// What a supervisor reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// File systems and network are there.
    Init,
    /// They are not.
    Failed(String),
    /// Everything has ended, and is on the disk.
    Stopped,
}

impl Report {
    /// Reads a line; `None` for what no supervisor of this build says.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = String::from_utf8_lossy(line.get(..line.len().min(MAX_LINE))?);
        let line = line.trim_end_matches(['\n', '\r']);
        match line.split_once(' ').unwrap_or((line, "")) {
            ("init", "") => Some(Self::Init),
            ("stopped", "") => Some(Self::Stopped),
            ("failed", why) => Some(Self::Failed(why.chars().filter(|c| !c.is_control()).collect())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_whole_words_and_a_guests_nonsense_is_none() {
        assert_eq!(Report::parse(b"init\n"), Some(Report::Init));
        assert_eq!(Report::parse(b"stopped\r\n"), Some(Report::Stopped));
        assert_eq!(Report::parse(b"failed no disk\x1b[2J\n"), Some(Report::Failed("no disk[2J".into())));
        for nonsense in [&b""[..], b"\n", b"init now\n", b"stop\n", b"\xff\xfe\n"] {
            assert_eq!(Report::parse(nonsense), None);
        }
    }
}
