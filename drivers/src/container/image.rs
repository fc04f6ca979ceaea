//! The image: there, or pulled with its progress told, or a clear word why it cannot be had.

use std::{collections::HashMap, time::Duration};

use bollard::{
    errors::Error,
    models::{CreateImageInfo, ImageConfig},
    query_parameters::CreateImageOptions,
};
use futures::StreamExt as _;
use tokio::time::{Instant, timeout};

use super::engine::{Engine, is_status, late, within};
use crate::DriverError;

/// Looking for an image.
const ASK: Duration = Duration::from_secs(20);
/// How often progress is told: enough for a person to see it move.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// The most layers that are counted. Images have at most 127.
const MOST_LAYERS: usize = 512;

/// Ends with the image at the engine, and says what is configured in it. `tell` hears how a pull comes along; one that
/// says nothing for `silence` hangs.
pub(super) async fn ensure(
    engine: &Engine,
    image: &str,
    silence: Duration,
    tell: impl FnMut(String),
) -> Result<ImageConfig, DriverError> {
    if let Some(config) = look(engine, image).await? {
        return Ok(config);
    }
    pull(engine, image, silence, tell).await?;
    match look(engine, image).await? {
        Some(config) => Ok(config),
        None => Err(not_there(engine, image, "it was pulled, and is still not there")),
    }
}

/// What is configured in the image; `None`: the engine has it not.
pub(super) async fn look(engine: &Engine, image: &str) -> Result<Option<ImageConfig>, DriverError> {
    let attempted = format!("inspecting image {image}");
    match timeout(ASK, engine.docker().inspect_image(image)).await {
        Err(_) => Err(late(&attempted, ASK)),
        Ok(Err(error)) if is_status(&error, 404) => Ok(None),
        Ok(answer) => {
            let found = within(&attempted, ASK, async { answer }).await?;
            Ok(Some(found.config.unwrap_or_default()))
        }
    }
}

async fn pull(
    engine: &Engine,
    image: &str,
    silence: Duration,
    mut tell: impl FnMut(String),
) -> Result<(), DriverError> {
    let options = CreateImageOptions { from_image: Some(with_tag(image)), ..CreateImageOptions::default() };
    let mut steps = engine.docker().create_image(Some(options), None, None);
    let mut progress = Progress::default();
    let mut told = Instant::now();
    tell(format!("pulling {image}"));
    loop {
        let step = match timeout(silence, steps.next()).await {
            Err(_) => {
                let why = format!("the registry said nothing for {} s ({progress})", silence.as_secs());
                return Err(not_there(engine, image, &why));
            }
            Ok(None) => return Ok(()),
            Ok(Some(step)) => step,
        };
        match step {
            Ok(step) => progress.add(&step),
            Err(
                Error::DockerStreamError { error: message }
                | Error::DockerResponseServerError { message, .. },
            ) => {
                return Err(not_there(engine, image, &message));
            }
            Err(error) => return Err(super::engine::sort(&format!("pulling image {image}"), error)),
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(format!("pulling {image}: {progress}"));
        }
    }
}

fn not_there(engine: &Engine, image: &str, why: &str) -> DriverError {
    let message = format!(
        "pulling it failed: {}. Name an image that a registry has, or load it into the engine: {} load -i FILE",
        why.trim().trim_end_matches('.'),
        engine.kind
    );
    DriverError::Image { image: image.to_owned(), message }
}

/// Without a tag, Docker's API means all tags there are; its command means `latest`.
fn with_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

/// How far a pull is.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes here, and bytes in all, of each layer that says so.
    layers: HashMap<String, (u64, u64)>,
    last: String,
}

impl Progress {
    fn add(&mut self, step: &CreateImageInfo) {
        if let Some(status) = &step.status {
            self.last = status.chars().take(100).collect();
        }
        let Some(id) = &step.id else { return };
        if !self.layers.contains_key(id) && self.layers.len() >= MOST_LAYERS {
            return;
        }
        let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
        let detail = step.progress_detail.as_ref();
        let (here, all) = (detail.and_then(|d| number(d.current)), detail.and_then(|d| number(d.total)));
        let layer = self.layers.entry(id.clone()).or_default();
        match (step.status.as_deref(), here, all) {
            (Some("Downloading"), Some(here), all) => *layer = (here, all.unwrap_or(layer.1)),
            (Some("Download complete" | "Pull complete"), ..) => layer.0 = layer.1,
            _ => {}
        }
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (here, all) =
            self.layers.values().fold((0, 0), |(here, all), layer| (here + layer.0, all + layer.1));
        if all == 0 {
            return f.write_str(&self.last);
        }
        let mib = |bytes: u64| bytes as f64 / 1048576.0;
        write!(f, "{:.1} of {:.1} MiB", mib(here), mib(all))
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    #[test]
    fn an_image_without_a_tag_is_the_latest_one_and_not_all() {
        assert_eq!(with_tag("debian"), "debian:latest");
        assert_eq!(with_tag("localhost:5000/debian"), "localhost:5000/debian:latest");
        assert_eq!(with_tag("debian:13"), "debian:13");
        assert_eq!(with_tag("debian@sha256:00"), "debian@sha256:00");
    }

    #[test]
    fn progress_is_the_sum_of_the_layers() {
        let step = |id: &str, status: &str, current, total| CreateImageInfo {
            id: Some(id.into()),
            status: Some(status.into()),
            progress_detail: Some(ProgressDetail { current, total }),
            ..CreateImageInfo::default()
        };
        let mut progress = Progress::default();
        progress.add(&step("a", "Pulling fs layer", None, None));
        assert_eq!(progress.to_string(), "Pulling fs layer");
        progress.add(&step("a", "Downloading", Some(1 << 20), Some(2 << 20)));
        progress.add(&step("b", "Downloading", Some(0), Some(6 << 20)));
        assert_eq!(progress.to_string(), "1.0 of 8.0 MiB");
        progress.add(&step("b", "Download complete", None, None));
        assert_eq!(progress.to_string(), "7.0 of 8.0 MiB");
    }
}
