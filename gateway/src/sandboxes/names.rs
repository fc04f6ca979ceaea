//! Names of sandboxes: what is one, and one made up for whoever brings none.

use rand::RngExt as _;

use crate::error::CallError;

/// A DNS label's length: names become parts of container and pod names.
const LONGEST: usize = 63;

/// Whether `name` is a name: `[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?`, and not the text of an id, which would be
/// found instead of it.
pub(super) fn check(name: &str) -> Result<(), CallError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let inner = name.bytes().all(|byte| plain(byte) || byte == b'-');
    let ends = name.bytes().next().is_some_and(plain) && name.bytes().next_back().is_some_and(plain);
    if !(inner && ends && name.len() <= LONGEST) {
        let shown: String = name.chars().take(LONGEST + 1).collect();
        return Err(CallError::invalid(
            "name",
            format!(
                "{shown:?} is no name: use 1 to {LONGEST} lower case letters, digits and '-', with no '-' at either end"
            ),
        ));
    }
    if uuid::Uuid::try_parse(name).is_ok() {
        return Err(CallError::invalid("name", format!("{name:?} reads as an id: choose another name")));
    }
    Ok(())
}

const HOW: [&str; 24] = [
    "amber", "brisk", "calm", "clear", "coral", "early", "fair", "firm", "fleet", "grand", "hardy", "keen",
    "light", "lucid", "merry", "noble", "plain", "quick", "quiet", "sound", "steady", "sunny", "sure",
    "tidy",
];
const WHAT: [&str; 24] = [
    "anchor", "beacon", "bollard", "bridge", "buoy", "cable", "cleat", "compass", "dock", "ferry", "fjord",
    "harbor", "hawser", "island", "keel", "lagoon", "mast", "mooring", "pier", "quay", "rudder", "sail",
    "skiff", "wharf",
];

/// A name that is probably free. The number makes a thousand names of each pair of words.
pub(super) fn made_up() -> String {
    let mut rng = rand::rng();
    let (how, what) = (HOW[rng.random_range(0..HOW.len())], WHAT[rng.random_range(0..WHAT.len())]);
    format!("{how}-{what}-{:03}", rng.random_range(0..1000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_labels() {
        for good in ["a", "7", "dev", "a-b", "0-0", "x--y", &"x".repeat(63)] {
            check(good).unwrap();
        }
        for bad in ["", "-", "-a", "a-", "A", "a_b", "a.b", "ä", "a b", "../etc", &"x".repeat(64)] {
            let error = check(bad).unwrap_err();
            assert!(error.message.starts_with("name: "), "{error}");
        }
    }

    #[test]
    fn a_name_that_reads_as_an_id_is_none() {
        let error = check(&holdfast_wire::ids::SandboxId::random().to_string()).unwrap_err();
        assert!(error.message.contains("reads as an id"), "{error}");
    }

    #[test]
    fn a_made_up_name_is_a_name() {
        for _ in 0..100 {
            check(&made_up()).unwrap();
        }
    }

    proptest! {
        #[test]
        fn what_passes_is_one_harmless_path_component(name in "\\PC{0,70}") {
            if check(&name).is_ok() {
                prop_assert!((1..=63).contains(&name.len()) && !name.contains(['/', '.', '\0']));
            }
        }
    }
}
