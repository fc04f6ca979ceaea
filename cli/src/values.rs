//! What people type for durations, sizes, signals, variables and labels, and what it means.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use holdfast_wire::api::{EnvVar, Mount};

/// An environment file: the largest that is read, in bytes. What execve takes fits twice.
const MAX_ENV_FILE: u64 = 4 << 20;

/// `30s`, `5m`, `1h 30m`, `500ms`; a plain number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds)
            .map_err(|_| "a duration cannot be negative or endless".to_owned());
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; try 30s, 5m or 1h"))
}

/// `512Mi`, `4Gi`, `1G`, `100k`; a plain number is bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; try 512Mi or 4Gi");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().trim_end_matches(['b', 'B']);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" => 1,
        // Docker's `m` and `g` mean powers of two, and so do Kubernetes' `Mi` and `Gi`; `M` and `G` follow Docker.
        "k" | "ki" => 1 << 10,
        "m" | "mi" => 1 << 20,
        "g" | "gi" => 1 << 30,
        "t" | "ti" => 1 << 40,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| format!("{text:?} is more than 2^64 bytes"));
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * factor as f64;
    // Beyond 2^53 a fraction of a byte has no meaning anyway.
    if bytes.is_finite() && bytes < 9.0e18 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Cores: `2`, `0.5`. In thousandths.
pub(crate) fn cpus(text: &str) -> Result<u64, String> {
    let cores: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of cores; try 2 or 0.5"))?;
    if cores.is_finite() && cores > 0.0 && cores < 100_000.0 {
        Ok((cores * 1000.0).round() as u64)
    } else {
        Err(format!("{text:?} is not a number of cores; try 2 or 0.5"))
    }
}

/// The signals that people send, by Linux's numbers: they are the sandbox's, whatever this machine is.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// `TERM`, `SIGTERM`, `term` or `15`.
pub(crate) fn signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        // 64 is SIGRTMAX.
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(format!("{number} is no signal: 1 to 64"))
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let names: Vec<_> = SIGNALS.iter().map(|(name, _)| *name).collect();
    Err(match crate::suggest::nearest(name, &names) {
        Some(near) => format!("no signal {text:?}; did you mean {near}?"),
        None => format!("no signal {text:?}; try TERM, INT, HUP, KILL, USR1, or a number"),
    })
}

/// `SIGTERM` of 15; `signal 40` of one without a name here.
pub(crate) fn signal_name(number: i32) -> String {
    SIGNALS
        .iter()
        .find(|(_, known)| *known == number)
        .map_or_else(|| format!("signal {number}"), |(name, _)| format!("SIG{name}"))
}

/// `key=value`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label; try key=value")),
    }
}

/// `SOURCE:TARGET`, `SOURCE:TARGET:ro` or `SOURCE:TARGET:rw`, as docker's `-v`.
pub(crate) fn mount(text: &str) -> Result<Mount, String> {
    let wrong = || format!("{text:?} is no mount; try /data:/data or /data:/data:ro");
    let mut parts = text.split(':');
    let (source, target) = (parts.next().unwrap_or_default(), parts.next().ok_or_else(wrong)?);
    let read_only = match parts.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(wrong()),
    };
    if source.is_empty() || !target.starts_with('/') || parts.next().is_some() {
        return Err(wrong());
    }
    Ok(Mount { source: source.to_owned(), target: target.to_owned(), read_only })
}

/// The variables of `-e NAME=value` or `-e NAME` (this program's own value), after those of the files. As in
/// docker, a `NAME` that is not set here is left out, and a later one replaces an earlier one.
pub(crate) fn environment(files: &[impl AsRef<Path>], given: &[OsString]) -> Result<Vec<EnvVar>, String> {
    let mut variables: Vec<EnvVar> = Vec::new();
    let mut put = |name: &[u8], value: &[u8]| {
        variables.retain(|known| known.name != name);
        variables.push(EnvVar { name: Bytes::copy_from_slice(name), value: Bytes::copy_from_slice(value) });
    };
    for path in files {
        let path = path.as_ref();
        for (i, line) in env_file(path)?.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            one(line, &mut put).map_err(|why| format!("{}, line {}: {why}", path.display(), i + 1))?;
        }
    }
    for text in given {
        one(text.as_bytes(), &mut put).map_err(|why| format!("-e: {why}"))?;
    }
    Ok(variables)
}

fn one(text: &[u8], put: &mut impl FnMut(&[u8], &[u8])) -> Result<(), String> {
    let (name, value) = match text.iter().position(|byte| *byte == b'=') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    // The value may be a secret: only the name is ever shown.
    if name.is_empty() || name.contains(&0) || name.iter().any(u8::is_ascii_whitespace) {
        return Err(format!("{:?} is no variable's name; give NAME=value", String::from_utf8_lossy(name)));
    }
    match value {
        Some(value) => put(name, value),
        None => {
            if let Some(value) = std::env::var_os(OsStr::from_bytes(name)) {
                put(name, &value.into_vec());
            }
        }
    }
    Ok(())
}

fn env_file(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let failed =
        |error: std::io::Error| format!("cannot read the environment file {}: {error}", path.display());
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(failed)?
        .take(MAX_ENV_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_ENV_FILE {
        return Err(format!("the environment file {} has more than 4 MiB", path.display()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert!(duration("-1").unwrap_err().contains("negative"));
        assert!(duration("soon").unwrap_err().contains("try 30s"));
    }

    #[test]
    fn sizes_are_powers_of_two() {
        assert_eq!(size("512Mi"), Ok(512 << 20));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("4096"), Ok(4096));
        assert!(size("4 bananas").is_err());
        assert!(size("99999999999Ti").is_err());
        assert!(size("").is_err());
    }

    #[test]
    fn a_mount_is_written_as_for_docker() {
        let mount = |source: &str, target: &str, read_only| {
            Ok(Mount { source: source.to_owned(), target: target.to_owned(), read_only })
        };
        assert_eq!(super::mount("/a:/b"), mount("/a", "/b", false));
        assert_eq!(super::mount("cache:/b:ro"), mount("cache", "/b", true));
        for wrong in ["/a", "/a:b", ":/b", "/a:/b:rx", "/a:/b:ro:z"] {
            assert!(super::mount(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cores_are_thousandths() {
        assert_eq!(cpus("0.5"), Ok(500));
        assert!(cpus("0").is_err() && cpus("-1").is_err() && cpus("NaN").is_err());
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal("SIGTERM"), Ok(15));
        assert_eq!(signal("usr1"), Ok(10));
        assert_eq!(signal("9"), Ok(9));
        assert!(signal("TREM").unwrap_err().contains("did you mean TERM?"));
        assert!(signal("65").is_err());
        assert_eq!(signal_name(2), "SIGINT");
    }

    #[test]
    fn a_later_variable_replaces_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# comment\nA=1\nB=x=y\r\n\nHOLDFAST_SURELY_NOT_SET\n").unwrap();
        let given = ["A=2".into(), OsString::from_vec(b"C=\xff".to_vec())];
        let variables = environment(&[&file], &given).unwrap();
        let flat: Vec<_> = variables.iter().map(|v| (&v.name[..], &v.value[..])).collect();
        assert_eq!(flat, [(&b"B"[..], &b"x=y"[..]), (b"A", b"2"), (b"C", b"\xff")]);
    }

    #[test]
    fn a_bad_variable_is_named_without_its_value() {
        let error = environment(&[] as &[&Path], &["=secret".into()]).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
}
