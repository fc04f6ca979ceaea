//! Finds the detach keys in what is typed. Pure.
//!
//! A key is one byte (`ctrl-p` is 0x10) or, where the program in the sandbox switched the terminal to the Kitty
//! keyboard protocol, an escape sequence (`CSI 112 ; 5 u`). Keys that begin the sequence are held back until the
//! next key decides; whole keys only, so that a lone Escape is never held.

/// `ctrl-p,ctrl-q`, as in docker.
pub(crate) const DEFAULT: &str = "ctrl-p,ctrl-q";

/// More keys than anybody presses to leave.
const MAX_KEYS: usize = 8;

/// A key: a code point and whether Ctrl is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    code: u32,
    ctrl: bool,
}

/// The keys to leave by. Empty: none.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct DetachKeys {
    keys: Vec<Key>,
}

impl DetachKeys {
    /// `ctrl-p,ctrl-q`, `ctrl-]`, `~,.`; `none` for none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text == "none" {
            return Ok(Self::default());
        }
        let keys = text.split(',').map(|word| {
            let (name, ctrl) = word.strip_prefix("ctrl-").map_or((word, false), |name| (name, true));
            let mut letters = name.chars();
            match (letters.next(), letters.next()) {
                (Some(letter), None) if letter.is_ascii_graphic() => {
                    let code = u32::from(letter.to_ascii_lowercase());
                    if ctrl && !(letter.is_ascii_alphabetic() || "@[\\]^_".contains(letter)) {
                        Err(format!(
                            "ctrl-{letter} is not a key; ctrl- goes with a letter or one of @ [ \\ ] ^ _"
                        ))
                    } else {
                        Ok(Key { code: if ctrl { code } else { u32::from(letter) }, ctrl })
                    }
                }
                _ => Err(format!("{word:?} is not a key; try ctrl-p,ctrl-q or none")),
            }
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        if keys.len() > MAX_KEYS {
            return Err(format!("{} keys, at most {MAX_KEYS} are allowed", keys.len()));
        }
        Ok(Self { keys })
    }
}

impl std::fmt::Display for DetachKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, key) in self.keys.iter().enumerate() {
            let letter = char::from_u32(key.code).unwrap_or('?');
            write!(f, "{}{}{letter}", if i > 0 { "," } else { "" }, if key.ctrl { "ctrl-" } else { "" })?;
        }
        Ok(())
    }
}

/// Passes typed bytes on, and says when the keys were pressed.
#[derive(Debug)]
pub(crate) struct Matcher {
    keys: DetachKeys,
    /// How many keys of the sequence were pressed, and the bytes that they came as.
    matched: usize,
    held: Vec<u8>,
}

impl Matcher {
    pub(crate) fn new(keys: DetachKeys) -> Self {
        Self { keys, matched: 0, held: Vec::new() }
    }

    /// Appends to `out` what is to be passed on. True: the keys were pressed; the rest of `typed` is dropped.
    pub(crate) fn feed(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        let mut rest = typed;
        while !rest.is_empty() {
            let (key, length) = next_key(rest);
            let (bytes, after) = rest.split_at(length);
            rest = after;
            let Some(token) = key else {
                // The release of a held key belongs to it.
                if self.matched > 0 && is_release(bytes) {
                    self.held.extend_from_slice(bytes);
                } else {
                    self.let_go(out);
                    out.extend_from_slice(bytes);
                }
                continue;
            };
            if self.keys.keys.get(self.matched) != Some(&token) {
                self.let_go(out);
            }
            if self.keys.keys.get(self.matched) == Some(&token) {
                self.matched += 1;
                self.held.extend_from_slice(bytes);
                if self.matched == self.keys.keys.len() {
                    (self.matched, self.held) = (0, Vec::new());
                    return true;
                }
            } else {
                out.extend_from_slice(bytes);
            }
        }
        false
    }

    fn let_go(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.matched = 0;
    }
}

/// The next key and its length in bytes; `None` for what is no single key press.
fn next_key(bytes: &[u8]) -> (Option<Key>, usize) {
    let first = bytes[0];
    if let Some(rest) = bytes.strip_prefix(b"\x1b[")
        && let Some(end) = rest.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b';' | b':'))
        && rest[end] == b'u'
    {
        return (csi_u(&rest[..end]).filter(|(_, released)| !released).map(|(key, _)| key), end + 3);
    }
    let key = match first {
        0x1b => None,
        // Ctrl with @, a letter or one of [ \ ] ^ _ : the letter's low five bits.
        0..0x20 => Some(Key { code: u32::from(first | 0x40).to_lowercase_letter(), ctrl: true }),
        0x20..0x7f => Some(Key { code: u32::from(first), ctrl: false }),
        _ => None,
    };
    (key, 1)
}

fn is_release(bytes: &[u8]) -> bool {
    bytes
        .strip_prefix(b"\x1b[")
        .and_then(|rest| rest.strip_suffix(b"u"))
        .and_then(csi_u)
        .is_some_and(|(_, released)| released)
}

/// `code[:alternates] [; modifiers[:event] [; text]]`: the key, and whether it was released.
fn csi_u(parameters: &[u8]) -> Option<(Key, bool)> {
    let text = std::str::from_utf8(parameters).ok()?;
    let mut fields = text.split(';');
    let code: u32 = fields.next()?.split(':').next()?.parse().ok()?;
    let mut modifiers = fields.next().unwrap_or("1").split(':');
    let bits = modifiers
        .next()
        .filter(|text| !text.is_empty())
        .unwrap_or("1")
        .parse::<u32>()
        .ok()?
        .checked_sub(1)?;
    let released = modifiers.next() == Some("3");
    // 1 shift, 2 alt, 4 ctrl, 8 super, 16 hyper, 32 meta; 64 and 128 are the locks, which say nothing.
    let held = bits & 0x3f;
    matches!(held, 0 | 4).then_some((Key { code, ctrl: held == 4 }, released))
}

trait Letter {
    fn to_lowercase_letter(self) -> u32;
}

impl Letter for u32 {
    fn to_lowercase_letter(self) -> u32 {
        char::from_u32(self).map_or(self, |letter| u32::from(letter.to_ascii_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(keys: &str) -> Matcher {
        Matcher::new(DetachKeys::parse(keys).unwrap())
    }

    fn feed(matcher: &mut Matcher, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let left = matcher.feed(typed, &mut out);
        (out, left)
    }

    #[test]
    fn the_default_keys_leave_in_one_read_or_two() {
        assert_eq!(feed(&mut matcher(DEFAULT), b"ls\x10\x11x"), (b"ls".to_vec(), true));
        let mut two = matcher(DEFAULT);
        assert_eq!(feed(&mut two, b"\x10"), (vec![], false));
        assert_eq!(feed(&mut two, b"\x11"), (vec![], true));
    }

    #[test]
    fn a_held_key_goes_through_when_another_follows() {
        let mut keys = matcher(DEFAULT);
        assert_eq!(feed(&mut keys, b"\x10"), (vec![], false));
        assert_eq!(feed(&mut keys, b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(feed(&mut keys, b"\x10\x10\x11"), (b"\x10".to_vec(), true), "the second one begins anew");
    }

    #[test]
    fn the_kitty_forms_count_too() {
        assert_eq!(feed(&mut matcher(DEFAULT), b"\x1b[112;5u\x1b[113;5u"), (vec![], true));
        let with_releases = b"\x1b[112;5:1u\x1b[112;5:3u\x1b[113;133:1u";
        assert_eq!(feed(&mut matcher(DEFAULT), with_releases), (vec![], true), "num lock is on");
        let mut shifted = matcher(DEFAULT);
        assert_eq!(feed(&mut shifted, b"\x1b[112;6u"), (b"\x1b[112;6u".to_vec(), false));
    }

    #[test]
    fn escape_is_never_held_back() {
        let mut keys = matcher(DEFAULT);
        assert_eq!(feed(&mut keys, b"\x1b"), (b"\x1b".to_vec(), false));
        assert_eq!(feed(&mut keys, b"\x1b[A\x1b[11"), (b"\x1b[A\x1b[11".to_vec(), false));
    }

    #[test]
    fn keys_are_read_and_shown() {
        assert_eq!(DetachKeys::parse("ctrl-p,ctrl-q").unwrap().to_string(), DEFAULT);
        assert_eq!(DetachKeys::parse("none").unwrap(), DetachKeys::default());
        assert!(DetachKeys::parse("ctrl-1").is_err() && DetachKeys::parse("esc").is_err());
        assert_eq!(feed(&mut matcher("~,."), b"a~."), (b"a".to_vec(), true));
        assert_eq!(feed(&mut matcher("none"), b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }

    proptest! {
        #[test]
        fn without_the_keys_nothing_is_lost(typed in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..20)) {
            let mut keys = matcher("ctrl-p,ctrl-q,ctrl-p");
            let (mut out, mut all) = (Vec::new(), Vec::new());
            for chunk in &typed {
                let before = all.len();
                all.extend_from_slice(chunk);
                if keys.feed(chunk, &mut out) {
                    prop_assert!(all[before..].contains(&0x10));
                    return Ok(());
                }
            }
            out.append(&mut keys.held);
            prop_assert_eq!(out, all);
        }
    }
}
