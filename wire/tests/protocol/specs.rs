//! Checking and showing a spec, whatever a caller puts into it.

use bytes::Bytes;
use holdfast_wire::{
    api::{Argv, EnvVar, ExecSpec, TerminalSize, exec_spec::Command},
    limits, spec, timing,
};
use proptest::prelude::*;
use prost_types::Duration;

/// Bytes with a taste for what is special: NUL, `=`, line ends, pieces of UTF-8, and sometimes much of it.
fn bytes() -> impl Strategy<Value = Bytes> {
    let byte =
        prop_oneof![6 => any::<u8>(), 1 => Just(0u8), 1 => Just(b'='), 1 => Just(b'\n'), 1 => Just(0xc3)];
    let short = prop::collection::vec(byte, 0..40);
    let long = (200..limits::MAX_ARG + 10, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]);
    let utf8 = "\\PC{0,300}".prop_map(String::into_bytes);
    prop_oneof![8 => short, 2 => utf8, 1 => long].prop_map(Bytes::from)
}

fn duration() -> impl Strategy<Value = Duration> {
    let seconds = prop_oneof![3 => -5..10_000i64, 1 => any::<i64>()];
    let nanos = prop_oneof![3 => 0..1_000_000_000i32, 1 => any::<i32>()];
    (seconds, nanos).prop_map(|(seconds, nanos)| Duration { seconds, nanos })
}

fn command() -> impl Strategy<Value = Option<Command>> {
    prop_oneof![
        1 => Just(None),
        2 => bytes().prop_map(|line| Some(Command::Shell(line))),
        6 => prop::collection::vec(bytes(), 0..6).prop_map(|args| Some(Command::Argv(Argv { args }))),
    ]
}

fn any_spec() -> impl Strategy<Value = ExecSpec> {
    let env =
        prop::collection::vec((bytes(), bytes()).prop_map(|(name, value)| EnvVar { name, value }), 0..4);
    let tty =
        prop::option::of((0..70_000u32, 0..70_000u32).prop_map(|(cols, rows)| TerminalSize { cols, rows }));
    let times = (prop::option::of(duration()), prop::option::of(duration()), prop::option::of(duration()));
    (command(), bytes(), env, "\\PC{0,80}", tty, any::<bool>(), times, -1..5i32, -1..5i32).prop_map(
        |(
            command,
            cwd,
            env,
            user,
            tty,
            stdin,
            (timeout, kill_grace, retain_for),
            on_disconnect,
            when_full,
        )| {
            let user = user.clone();
            ExecSpec {
                command,
                cwd,
                env,
                user,
                tty,
                stdin,
                timeout,
                kill_grace,
                on_disconnect,
                retain_for,
                when_full,
            }
        },
    )
}

proptest! {
    #[test]
    fn every_spec_is_taken_or_refused_by_field(spec in any_spec()) {
        match spec::check(&spec) {
            Ok(times) => {
                prop_assert!(times.kill_grace <= timing::KILL_GRACE_MAX);
                prop_assert!(times.retain_for <= timing::RETAIN_FOR_MAX);
                prop_assert_ne!(times.timeout, Some(std::time::Duration::ZERO));
            }
            Err(error) => {
                prop_assert!(!error.field.is_empty() && !error.message.is_empty());
                // A refusal names; it does not repeat a caller's megabyte.
                prop_assert!(error.to_string().len() < 500, "{}", error);
            }
        }
    }

    #[test]
    fn a_spec_is_shown_in_256_printable_bytes(spec in any_spec()) {
        let shown = spec::display(&spec);
        prop_assert!(shown.len() <= 256, "{} bytes", shown.len());
        prop_assert!(!shown.chars().any(char::is_control), "{shown:?}");
    }

    #[test]
    fn an_environment_value_is_never_shown(name in "[A-Z]{1,8}", value in "[a-z0-9]{12,40}") {
        let spec = ExecSpec {
            command: Some(Command::Shell(Bytes::from_static(b"env"))),
            env: vec![EnvVar { name: name.into(), value: value.clone().into() }],
            ..ExecSpec::default()
        };
        let debug = format!("{spec:?}");
        prop_assert!(!debug.contains(&value), "{}", debug);
        prop_assert!(!spec::display(&spec).contains(&value));
        let wrong = ExecSpec {
            env: vec![EnvVar { name: Bytes::from_static(b"A"), value: format!("{value}\0").into() }],
            ..spec
        };
        prop_assert!(!spec::check(&wrong).unwrap_err().to_string().contains(&value));
    }
}

#[test]
fn a_command_that_was_cut_says_so() {
    let argv = |args: &[&[u8]]| ExecSpec {
        command: Some(Command::Argv(Argv {
            args: args.iter().map(|arg| Bytes::copy_from_slice(arg)).collect(),
        })),
        ..ExecSpec::default()
    };
    assert_eq!(spec::display(&argv(&[&[b'x'; 256]])), "x".repeat(256));
    assert_eq!(spec::display(&argv(&[&[b'x'; 257]])), "x".repeat(253) + "…");
    assert!(spec::display(&argv(&[&[b'x'; 256], b"y"])).ends_with("x…"));
}
