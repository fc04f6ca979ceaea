//! Runs a scenario over its seeds, each on a runtime of its own with a paused clock.

use std::{panic::AssertUnwindSafe, time::Duration};

/// A second of simulated time.
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Runs `scenario` for each seed: `count` of them from 1 on, or what the environment says.
///
/// # Panics
/// With the seed, what went wrong, and how to run it again.
pub(crate) fn simulate(name: &str, count: u64, scenario: impl AsyncFn(u64) -> anyhow::Result<()>) {
    listen();
    for seed in seeds(count) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime of one thread can be built");
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(scenario(seed))));
        let wrong = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => format!("{error:#}"),
            // The panic has printed itself.
            Err(_) => "it panicked".to_owned(),
        };
        panic!(
            "seed {seed}: {wrong}\n\nagain: HOLDFAST_SIM_SEED={seed} cargo nextest run -p holdfast-tests --test simulation {name}\n"
        );
    }
}

fn seeds(count: u64) -> Vec<u64> {
    let number =
        |text: &str| text.trim().parse().expect("HOLDFAST_SIM_SEED and HOLDFAST_SIM_SEEDS are numbers");
    if let Ok(list) = std::env::var("HOLDFAST_SIM_SEED") {
        return list.split(',').map(number).collect();
    }
    let count = std::env::var("HOLDFAST_SIM_SEEDS").map_or(count, |text| number(&text));
    (1..=count).collect()
}

/// What the rooms say, where RUST_LOG asks for it, with simulated time.
fn listen() {
    struct Simulated(std::sync::OnceLock<tokio::time::Instant>);
    impl tracing_subscriber::fmt::time::FormatTime for Simulated {
        fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
            // Outside of a runtime there is no paused clock to ask.
            let Ok(_) = tokio::runtime::Handle::try_current() else { return Ok(()) };
            let now = tokio::time::Instant::now();
            write!(w, "{:>10.3}", now.duration_since(*self.0.get_or_init(|| now)).as_secs_f64())
        }
    }
    if std::env::var_os("RUST_LOG").is_some() {
        // A second scenario in this process finds it set already.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_timer(Simulated(std::sync::OnceLock::new()))
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .try_init();
    }
}
