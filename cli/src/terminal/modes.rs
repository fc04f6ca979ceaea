//! Remembers which modes of the terminal the program in the sandbox switched on, so that leaving it can switch
//! them off. Pure: output goes in, and at the end the undoing escape sequences come out.
//!
//! A program that ends by itself tidies up by itself. One that was left (detached, killed, lost) cannot: without
//! this the user's shell would be left on the alternate screen, with mouse reports or Kitty keyboard codes.

/// DEC private modes that are off in a shell, and that a program may have switched on: cursor keys, mouse (seven
/// of them), focus reports, alternate screens, bracketed paste, synchronised output.
const OFF: &[u16] = &[1, 9, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 47, 1047, 1049, 2004, 2026];
/// Those that are on: line wrap, a visible cursor.
const ON: &[u16] = &[7, 25];

/// Parameters of one sequence, in bytes: more is no sequence that switches a mode.
const MAX_PARAMETERS: usize = 64;
/// Kitty's own limit is smaller.
const MAX_KITTY: usize = 32;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Place {
    #[default]
    Text,
    Escape,
    Sequence,
}

/// What was switched so far.
#[derive(Debug, Default)]
pub(crate) struct Modes {
    place: Place,
    parameters: Vec<u8>,
    /// Modes that are not as a shell wants them.
    changed: Vec<u16>,
    /// Kitty keyboard flags pushed and not popped.
    kitty: usize,
    /// `ESC =`: application keypad.
    keypad: bool,
    /// Colours or attributes were used.
    styled: bool,
}

impl Modes {
    /// The next output.
    pub(crate) fn feed(&mut self, output: &[u8]) {
        let mut rest = output;
        while let Some(&byte) = rest.first() {
            rest = &rest[1..];
            match (self.place, byte) {
                (_, 0x1b) => self.place = Place::Escape,
                (Place::Text, _) => {
                    // Text is most of it: go on at the next escape.
                    let next = rest.iter().position(|byte| *byte == 0x1b).unwrap_or(rest.len());
                    rest = &rest[next..];
                }
                (Place::Escape, b'[') => {
                    self.place = Place::Sequence;
                    self.parameters.clear();
                }
                (Place::Escape, b'=') => (self.keypad, self.place) = (true, Place::Text),
                (Place::Escape, b'>') => (self.keypad, self.place) = (false, Place::Text),
                // RIS: everything is as at the beginning.
                (Place::Escape, b'c') => *self = Self::default(),
                (Place::Escape, _) => self.place = Place::Text,
                (Place::Sequence, 0x40..=0x7e) => {
                    self.place = Place::Text;
                    let parameters = std::mem::take(&mut self.parameters);
                    self.on_sequence(&parameters, byte);
                    self.parameters = parameters;
                }
                (Place::Sequence, _) if self.parameters.len() < MAX_PARAMETERS => self.parameters.push(byte),
                (Place::Sequence, _) => self.place = Place::Text,
            }
        }
    }

    /// What puts the terminal back; empty if there is nothing to do.
    pub(crate) fn undo(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for mode in &self.changed {
            let end = if ON.contains(mode) { 'h' } else { 'l' };
            out.extend_from_slice(format!("\x1b[?{mode}{end}").as_bytes());
        }
        if self.kitty > 0 {
            out.extend_from_slice(format!("\x1b[<{}u", self.kitty).as_bytes());
        }
        if self.keypad {
            out.extend_from_slice(b"\x1b>");
        }
        if self.styled {
            out.extend_from_slice(b"\x1b[0m");
        }
        out
    }

    fn on_sequence(&mut self, parameters: &[u8], end: u8) {
        match (parameters.first(), end) {
            (Some(b'?'), b'h' | b'l') => {
                for mode in parameters[1..].split(|byte| *byte == b';') {
                    if let Some(mode) = std::str::from_utf8(mode).ok().and_then(|text| text.parse().ok()) {
                        self.switch(mode, end == b'h');
                    }
                }
            }
            (Some(b'>'), b'u') => self.kitty = (self.kitty + 1).min(MAX_KITTY),
            (Some(b'<'), b'u') => {
                let count = std::str::from_utf8(&parameters[1..]).ok().and_then(|text| text.parse().ok());
                self.kitty = self.kitty.saturating_sub(count.unwrap_or(1));
            }
            (first, b'm') if first.is_none_or(u8::is_ascii_digit) => {
                self.styled = !(parameters.is_empty() || parameters == b"0");
            }
            _ => {}
        }
    }

    fn switch(&mut self, mode: u16, on: bool) {
        let usual = if OFF.contains(&mode) {
            false
        } else if ON.contains(&mode) {
            true
        } else {
            return;
        };
        self.changed.retain(|known| *known != mode);
        if on != usual {
            self.changed.push(mode);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn undo(output: &[u8]) -> String {
        let mut modes = Modes::default();
        modes.feed(output);
        String::from_utf8(modes.undo()).unwrap()
    }

    #[test]
    fn a_full_screen_program_that_was_left_is_undone() {
        let vim = b"\x1b[?1049h\x1b[?1h\x1b=\x1b[?2004h\x1b[>1u\x1b[?25l\x1b[31mhello";
        assert_eq!(undo(vim), "\x1b[?1049l\x1b[?1l\x1b[?2004l\x1b[?25h\x1b[<1u\x1b>\x1b[0m");
    }

    #[test]
    fn one_that_tidied_up_needs_nothing() {
        let tidy = b"\x1b[?1049;25h\x1b[?2004h\x1b[>1u\x1b[1mx\x1b[0m\x1b[<u\x1b[?2004l\x1b[?1049l";
        assert_eq!(undo(tidy), "");
        assert_eq!(undo(b"plain text\n"), "");
        assert_eq!(undo(b"\x1b[?1049h\x1bc"), "", "a reset resets");
    }

    proptest! {
        #[test]
        fn where_reads_end_does_not_matter(output in "[ -~\\x1b\\[?;0-9hlu<>=m]{0,200}", cuts in prop::collection::vec(0..200usize, 0..8)) {
            let (mut whole, mut pieces) = (Modes::default(), Modes::default());
            whole.feed(output.as_bytes());
            let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut <= output.len()).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for cut in cuts { pieces.feed(&output.as_bytes()[from..cut]); from = cut; }
            pieces.feed(&output.as_bytes()[from..]);
            prop_assert_eq!(whole.undo(), pieces.undo());
        }
    }
}
