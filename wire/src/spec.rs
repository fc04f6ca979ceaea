//! Checking an [`ExecSpec`]: the same rules at the gateway (a clear error for the caller, early) and at the
//! supervisor (which trusts nobody). And the digest that decides whether two starts are the same request.

use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};

use crate::{
    api::{EnvVar, ExecSpec, OnDisconnect, WhenFull, exec_spec::Command},
    limits, timing,
};

/// What is wrong with a spec, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SpecError {
    /// The field, as in the proto: `argv`, `env[3].name`, ...
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

fn wrong(field: impl Into<String>, message: impl Into<String>) -> SpecError {
    SpecError { field: field.into(), message: message.into() }
}

/// A spec's times with the defaults filled in. A spec that passed [`check`] always gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From the start; `None`: for ever.
    pub timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// After the end.
    pub retain_for: Duration,
}

/// Checks everything about a spec that needs no look at the sandbox.
pub fn check(spec: &ExecSpec) -> Result<Times, SpecError> {
    let mut total = 0;
    match &spec.command {
        None => {
            return Err(wrong("command", "empty: give an argv with at least one argument, or a shell line"));
        }
        Some(Command::Shell(line)) => {
            if line.is_empty() {
                return Err(wrong("shell", "empty: give a shell line"));
            }
            total += argument("shell", line)?;
        }
        Some(Command::Argv(argv)) => {
            let Some(first) = argv.args.first() else {
                return Err(wrong("argv", "empty: give at least the command's name"));
            };
            if first.is_empty() {
                return Err(wrong("argv[0]", "empty: the command needs a name"));
            }
            if argv.args.len() > limits::MAX_ARG_COUNT {
                let got = argv.args.len();
                return Err(wrong(
                    "argv",
                    format!("{got} arguments, at most {} are allowed", limits::MAX_ARG_COUNT),
                ));
            }
            for (i, arg) in argv.args.iter().enumerate() {
                total += argument(&format!("argv[{i}]"), arg)?;
            }
        }
    }
    if spec.env.len() > limits::MAX_ENV_COUNT {
        let got = spec.env.len();
        return Err(wrong("env", format!("{got} variables, at most {} are allowed", limits::MAX_ENV_COUNT)));
    }
    for (i, variable) in spec.env.iter().enumerate() {
        total += environment(i, variable)?;
    }
    if total > limits::MAX_ARGS_AND_ENV {
        return Err(wrong(
            "argv",
            format!(
                "arguments and environment have {total} bytes together, at most {} are allowed: send data by stdin or a file",
                limits::MAX_ARGS_AND_ENV
            ),
        ));
    }
    if spec.cwd.len() >= limits::MAX_PATH || spec.cwd.contains(&0) {
        return Err(wrong(
            "cwd",
            format!("not a path: at most {} bytes, none of them NUL", limits::MAX_PATH - 1),
        ));
    }
    if spec.user.len() > limits::MAX_USER || spec.user.contains(['\0', '\n']) {
        return Err(wrong(
            "user",
            format!("not a user: a name, a uid or uid:gid of at most {} bytes", limits::MAX_USER),
        ));
    }
    if let Some(size) = &spec.tty
        && (size.cols == 0 || size.rows == 0 || size.cols > 0xffff || size.rows > 0xffff)
    {
        return Err(wrong(
            "tty",
            format!("{} x {} is no terminal's size: 1 to 65535 each", size.cols, size.rows),
        ));
    }
    if OnDisconnect::try_from(spec.on_disconnect).is_err() {
        return Err(wrong("on_disconnect", format!("no such choice: {}", spec.on_disconnect)));
    }
    if WhenFull::try_from(spec.when_full).is_err() {
        return Err(wrong("when_full", format!("no such choice: {}", spec.when_full)));
    }
    let timeout = spec.timeout.map(|d| duration("timeout", d)).transpose()?;
    if timeout == Some(Duration::ZERO) {
        return Err(wrong("timeout", "0: leave it out for no timeout"));
    }
    let kill_grace =
        spec.kill_grace.map(|d| duration("kill_grace", d)).transpose()?.unwrap_or(timing::KILL_GRACE);
    if kill_grace > timing::KILL_GRACE_MAX {
        return Err(wrong("kill_grace", format!("more than {} s", timing::KILL_GRACE_MAX.as_secs())));
    }
    let retain_for =
        spec.retain_for.map(|d| duration("retain_for", d)).transpose()?.unwrap_or(timing::RETAIN_FOR);
    if retain_for > timing::RETAIN_FOR_MAX {
        return Err(wrong("retain_for", format!("more than {} s", timing::RETAIN_FOR_MAX.as_secs())));
    }
    Ok(Times { timeout, kill_grace, retain_for })
}

/// SHA-256 of the encoded spec: two starts with one exec_id are the same request if this is equal.
#[must_use]
pub fn digest(spec: &ExecSpec) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&Sha256::digest(spec.encode_to_vec()))
}

/// The command as a person may read it: at most 256 bytes, never an environment value.
#[must_use]
pub fn display(spec: &ExecSpec) -> String {
    const MOST: usize = 256;
    // One byte more than is shown, so that the cut shows.
    let lossy_head = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(MOST + 1)]).into_owned();
    let mut text = String::new();
    match &spec.command {
        None => {}
        Some(Command::Shell(line)) => {
            text.push_str("sh -c ");
            text.push_str(&lossy_head(line));
        }
        Some(Command::Argv(argv)) => {
            for arg in &argv.args {
                if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(&lossy_head(arg));
                if text.len() > MOST {
                    break;
                }
            }
        }
    }
    limits::cut(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(), MOST)
}

fn argument(field: &str, bytes: &[u8]) -> Result<usize, SpecError> {
    if bytes.contains(&0) {
        return Err(wrong(field, "has a NUL byte, which no argument can carry"));
    }
    if bytes.len() >= limits::MAX_ARG {
        return Err(wrong(
            field,
            format!(
                "{} bytes, at most {} are allowed: send data by stdin or a file",
                bytes.len(),
                limits::MAX_ARG - 1
            ),
        ));
    }
    Ok(bytes.len() + 1)
}

fn environment(i: usize, variable: &EnvVar) -> Result<usize, SpecError> {
    if variable.name.is_empty() || variable.name.iter().any(|byte| *byte == 0 || *byte == b'=') {
        return Err(wrong(format!("env[{i}].name"), "must not be empty, and have no `=` and no NUL"));
    }
    let name = String::from_utf8_lossy(&variable.name[..variable.name.len().min(64)]);
    if variable.value.contains(&0) {
        return Err(wrong(format!("env {name}"), "its value has a NUL byte, which no variable can carry"));
    }
    let length = variable.name.len() + variable.value.len() + 2;
    if length > limits::MAX_ARG {
        return Err(wrong(
            format!("env {name}"),
            format!("name and value have {length} bytes, at most {} are allowed", limits::MAX_ARG),
        ));
    }
    Ok(length)
}

fn duration(field: &str, d: prost_types::Duration) -> Result<Duration, SpecError> {
    Duration::try_from(d).map_err(|_| wrong(field, "negative or out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Argv;

    fn argv(args: &[&[u8]]) -> ExecSpec {
        let args = args.iter().map(|arg| bytes::Bytes::copy_from_slice(arg)).collect();
        ExecSpec { command: Some(Command::Argv(Argv { args })), ..ExecSpec::default() }
    }

    fn field_of(spec: &ExecSpec) -> String {
        check(spec).unwrap_err().field
    }

    #[test]
    fn a_plain_command_gets_the_defaults() {
        let times = check(&argv(&[b"true"])).unwrap();
        assert_eq!(
            times,
            Times { timeout: None, kill_grace: timing::KILL_GRACE, retain_for: timing::RETAIN_FOR }
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(field_of(&ExecSpec::default()), "command");
        assert_eq!(field_of(&argv(&[])), "argv");
        assert_eq!(field_of(&argv(&[b""])), "argv[0]");
        assert_eq!(field_of(&argv(&[b"echo", b"a\0b"])), "argv[1]");
        assert_eq!(field_of(&argv(&[b"echo", &vec![b'x'; 128 * 1024]])), "argv[1]");
        let long = vec![b'x'; 120 * 1024];
        assert_eq!(field_of(&argv(&vec![&long[..]; 90])), "argv", "10 MiB in all");
        let env = |name: &'static [u8], value: &'static [u8]| ExecSpec {
            env: vec![EnvVar { name: name.into(), value: value.into() }],
            ..argv(&[b"true"])
        };
        assert_eq!(field_of(&env(b"A=B", b"")), "env[0].name");
        assert_eq!(field_of(&env(b"A", b"\0")), "env A");
        assert!(check(&env(b"A", b"two\nlines, and \xff\xfe")).is_ok());
    }

    #[test]
    fn the_same_request_has_the_same_digest() {
        assert_eq!(digest(&argv(&[b"a", b"b"])), digest(&argv(&[b"a", b"b"])));
        assert_ne!(digest(&argv(&[b"a", b"b"])), digest(&argv(&[b"a b"])));
    }

    #[test]
    fn a_command_is_shown_short_and_printable() {
        assert_eq!(display(&argv(&[b"echo", b"a\nb"])), "echo a b");
        let shown = display(&argv(&[b"echo", "ü".repeat(500).as_bytes()]));
        assert!(shown.len() <= 256 && shown.ends_with('…'), "{shown}");
    }
}
