//! Progress of a copy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use indicatif::ProgressBar;

use crate::output::Output;

/// How often progress is drawn.
pub(super) const REDRAW: Duration = Duration::from_millis(200);

/// The bar, and the count that it shows.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    pub(super) bytes: Arc<AtomicU64>,
}

impl Shown {
    pub(super) fn new(output: Output, what: &str) -> Self {
        Self { bar: output.bytes_bar(what), bytes: Arc::default() }
    }

    pub(super) async fn beside<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => {
                    if let Some(bar) = &self.bar {
                        bar.finish_and_clear();
                    }
                    return done;
                }
                () = tokio::time::sleep(REDRAW), if self.bar.is_some() => {
                    if let Some(bar) = &self.bar {
                        bar.set_position(self.bytes.load(Ordering::Relaxed));
                    }
                }
            }
        }
    }
}
