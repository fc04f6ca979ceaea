//! The client's settings: flag, then environment, then file, then default. clap has merged flags and environment
//! already; here the file comes in.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{
    args::{Format, Globals},
    suggest,
    terminal::detach::{self, DetachKeys},
    values,
};

/// A configuration file: the largest that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Its keys, for suggestions.
const KEYS: &[&str] = &["profile", "output", "detach_keys", "reattach_for", "start_deadline"];

/// The file as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    profile: Option<PathBuf>,
    output: Option<Format>,
    detach_keys: Option<String>,
    reattach_for: Option<String>,
    start_deadline: Option<String>,
}

/// The settings that commands use.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The client profile, and whether somebody asked for it (or it is merely where one would be).
    pub(crate) profile: PathBuf,
    pub(crate) profile_asked_for: bool,
    pub(crate) output: Format,
    pub(crate) detach_keys: DetachKeys,
    pub(crate) reattach_for: Option<Duration>,
    pub(crate) start_deadline: Option<Duration>,
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {path} is wrong: {message}")]
    Malformed { path: PathBuf, message: String },
    #[error(
        "neither HOME nor XDG_CONFIG_HOME is set: name the client profile by --profile or HOLDFAST_PROFILE"
    )]
    Homeless,
}

impl Config {
    /// Reads the file that `HOLDFAST_CONFIG` names, or the default one if it exists, and merges.
    pub(crate) fn load(globals: &Globals) -> Result<Self, ConfigError> {
        let home = directories();
        let (path, asked_for) = match std::env::var_os("HOLDFAST_CONFIG").filter(|path| !path.is_empty()) {
            Some(path) => (Some(PathBuf::from(path)), true),
            None => (home.as_ref().map(|(config, _)| config.join("config.toml")), false),
        };
        let file = match &path {
            Some(path) => read(path, asked_for)?,
            None => None,
        };
        let base = path.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        let home = home.map(|(config, data)| default_profile(&config, &data));
        Self::merge(
            globals,
            file.as_deref(),
            path.as_deref().unwrap_or(Path::new("")),
            &base,
            home.as_deref(),
        )
    }

    fn merge(
        globals: &Globals,
        file: Option<&str>,
        path: &Path,
        base: &Path,
        default_profile: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let malformed = |message: String| ConfigError::Malformed { path: path.to_owned(), message };
        let file: File = match file {
            Some(text) => {
                toml::from_str(text).map_err(|error| malformed(suggest::toml_error(&error, KEYS)))?
            }
            None => File::default(),
        };
        let time = |key: &str, text: Option<&str>| {
            text.map(values::duration).transpose().map_err(|why| malformed(format!("{key}: {why}")))
        };
        let asked = globals.profile.clone().or_else(|| file.profile.map(|path| base.join(path)));
        let keys = DetachKeys::parse(file.detach_keys.as_deref().unwrap_or(detach::DEFAULT))
            .map_err(|why| malformed(format!("detach_keys: {why}")))?;
        Ok(Self {
            profile_asked_for: asked.is_some(),
            profile: asked.or_else(|| default_profile.map(Path::to_owned)).ok_or(ConfigError::Homeless)?,
            output: globals.output.or(file.output).unwrap_or_default(),
            detach_keys: keys,
            reattach_for: time("reattach_for", file.reattach_for.as_deref())?,
            start_deadline: time("start_deadline", file.start_deadline.as_deref())?,
        })
    }
}

/// `$XDG_CONFIG_HOME/holdfast` and `$XDG_DATA_HOME/holdfast`.
fn directories() -> Option<(PathBuf, PathBuf)> {
    use etcetera::BaseStrategy as _;
    let xdg = etcetera::base_strategy::Xdg::new().ok()?;
    Some((xdg.config_dir().join("holdfast"), xdg.data_dir().join("holdfast")))
}

/// The user's own profile; or, where there is none, that of a gateway which runs here with its default data
/// directory. So `holdfast gateway` and `holdfast create` find each other without a word.
fn default_profile(config: &Path, data: &Path) -> PathBuf {
    let own = config.join("client.toml");
    let beside = data.join("client.toml");
    if !own.exists() && beside.exists() { beside } else { own }
}

fn read(path: &Path, asked_for: bool) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !asked_for => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(std::io::Error::other("more than 64 KiB")));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globals() -> Globals {
        Globals { profile: None, output: None, quiet: false, verbose: 0, no_color: false }
    }

    fn merge(globals: &Globals, file: &str) -> Result<Config, ConfigError> {
        let base = Path::new("/etc/me");
        Config::merge(
            globals,
            Some(file),
            &base.join("config.toml"),
            base,
            Some(Path::new("/home/me/.config/holdfast/client.toml")),
        )
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let default = merge(&globals(), "").unwrap();
        assert_eq!((default.output, default.profile_asked_for), (Format::Table, false));
        assert_eq!(default.profile, Path::new("/home/me/.config/holdfast/client.toml"));

        let file = "output = 'yaml'\nprofile = 'other/client.toml'\nreattach_for = '5m'\n";
        let from_file = merge(&globals(), file).unwrap();
        assert_eq!(from_file.output, Format::Yaml);
        assert_eq!(from_file.profile, Path::new("/etc/me/other/client.toml"));
        assert_eq!(from_file.reattach_for, Some(Duration::from_secs(300)));

        let flags = Globals { output: Some(Format::Json), profile: Some("/p".into()), ..globals() };
        let from_flags = merge(&flags, file).unwrap();
        assert_eq!((from_flags.output, from_flags.profile.as_path()), (Format::Json, Path::new("/p")));
        assert!(from_flags.profile_asked_for);
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_suggestion() {
        let error = merge(&globals(), "detach_key = 'ctrl-a'\n").unwrap_err().to_string();
        assert!(
            error.contains("/etc/me/config.toml") && error.contains("did you mean `detach_keys`?"),
            "{error}"
        );
    }

    #[test]
    fn a_wrong_value_names_its_key() {
        let error = merge(&globals(), "start_deadline = 'soon'\n").unwrap_err().to_string();
        assert!(error.contains("start_deadline"), "{error}");
        assert!(merge(&globals(), "output = 'xml'\n").is_err());
    }

    #[test]
    fn the_users_profile_comes_before_the_local_gateways() {
        let dir = tempfile::tempdir().unwrap();
        let (config, data) = (dir.path().join("config"), dir.path().join("data"));
        for path in [&config, &data] {
            std::fs::create_dir(path).unwrap();
        }
        assert_eq!(default_profile(&config, &data), config.join("client.toml"), "where it would be");
        std::fs::write(data.join("client.toml"), "").unwrap();
        assert_eq!(default_profile(&config, &data), data.join("client.toml"));
        std::fs::write(config.join("client.toml"), "").unwrap();
        assert_eq!(default_profile(&config, &data), config.join("client.toml"));
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist() {
        assert!(read(Path::new("/nonexistent/config.toml"), false).unwrap().is_none());
        assert!(read(Path::new("/nonexistent/config.toml"), true).is_err());
    }
}
