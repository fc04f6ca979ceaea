//! Where the engine answers: as its own tools find it, or as the configuration says.
//!
//! ```text
//!   configured ──▶ that and nothing else
//!   DOCKER_HOST, CONTAINER_HOST ──▶ the first that is set, and nothing else
//!   /run/docker.sock, /run/podman/podman.sock, $XDG_RUNTIME_DIR/{docker.sock,podman/podman.sock} ──▶ the first that answers
//! ```

use std::{ffi::OsString, fmt, path::PathBuf};

/// An address of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A socket of this machine.
    Unix(PathBuf),
    /// `host:port`, without TLS: for a tunnel that ends on this machine.
    Tcp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl Address {
    /// `unix:///path`, a plain path, `tcp://host:port` or `http://host:port`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Self::parse(path).map_err(|_| format!("{text:?} has no absolute path"));
        }
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        for scheme in ["tcp://", "http://"] {
            if let Some(address) = text.strip_prefix(scheme) {
                let address = address.trim_end_matches('/');
                return match address.rsplit_once(':') {
                    Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                        Ok(Self::Tcp(address.to_owned()))
                    }
                    _ => Err(format!("{text:?} is not {scheme}HOST:PORT")),
                };
            }
        }
        if text.starts_with("ssh://") || text.starts_with("https://") {
            return Err(format!(
                "{text:?}: an engine on another machine cannot mount this machine's files into containers; \
                 run a gateway there"
            ));
        }
        Err(format!("{text:?} is no engine's address: unix:///PATH, /PATH or tcp://HOST:PORT"))
    }
}

/// Where to look, in order, and who said so.
pub(super) fn candidates(
    configured: Option<&str>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<(String, Address)>, String> {
    let named = |source: &str, text: &str| {
        let address = Address::parse(text).map_err(|message| format!("{source}: {message}"))?;
        Ok(vec![(source.to_owned(), address)])
    };
    if let Some(text) = configured {
        return named("the configured engine", text);
    }
    for name in ["DOCKER_HOST", "CONTAINER_HOST"] {
        if let Some(text) = env(name).filter(|text| !text.is_empty()) {
            return named(name, &text.to_string_lossy());
        }
    }
    let mut paths = vec![PathBuf::from("/run/docker.sock"), PathBuf::from("/run/podman/podman.sock")];
    if let Some(runtime) = env("XDG_RUNTIME_DIR").filter(|text| !text.is_empty()).map(PathBuf::from) {
        paths.push(runtime.join("docker.sock"));
        paths.push(runtime.join("podman/podman.sock"));
    }
    Ok(paths.into_iter().map(|path| ("the usual place".to_owned(), Address::Unix(path))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(configured: Option<&str>, env: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Ok(candidates(configured, env)?.iter().map(|(_, address)| address.to_string()).collect())
    }

    #[test]
    fn what_is_configured_beats_the_environment_and_the_environment_the_usual_places() {
        let env = [("DOCKER_HOST", "unix:///env.sock"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(found(Some("/mine.sock"), &env).unwrap(), ["unix:///mine.sock"]);
        assert_eq!(found(None, &env).unwrap(), ["unix:///env.sock"]);
        assert_eq!(found(None, &[("CONTAINER_HOST", "tcp://127.0.0.1:1")]).unwrap(), ["tcp://127.0.0.1:1"]);
        assert_eq!(
            found(None, &env[1..]).unwrap(),
            [
                "unix:///run/docker.sock",
                "unix:///run/podman/podman.sock",
                "unix:///run/user/7/docker.sock",
                "unix:///run/user/7/podman/podman.sock"
            ]
        );
    }

    #[test]
    fn an_address_that_cannot_be_says_who_gave_it() {
        let error = found(None, &[("DOCKER_HOST", "ssh://build")]).unwrap_err();
        assert!(error.starts_with("DOCKER_HOST: ") && error.contains("run a gateway there"), "{error}");
        assert!(found(Some("docker.sock"), &[]).unwrap_err().contains("unix:///PATH"));
        assert!(found(Some("tcp://nowhere"), &[]).unwrap_err().contains("HOST:PORT"));
    }
}
