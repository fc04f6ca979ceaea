//! Runs every fault of the lab's list and writes what was seen: `docs/faults.md` and `docs/faults.json`.
//!
//! ```text
//! cargo build -p holdfast-tests --bins && cargo run -p holdfast-tests --bin fault-table
//! cargo run -p holdfast-tests --bin fault-table -- --test-host       # rung three; its rows beside the lab's
//! ```
//!
//! A fault waits more than it works, so several run at a time, each in a lab of its own; those that move bulk run
//! alone. The baseline gets the same faults, in labs of its own, at the same time.

mod host;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Parser;
use holdfast_tests::lab::{
    self, Compared, Finding, Scale,
    faults::{self, Fault},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;

/// Labs of the baseline at a time: they wait for calls that hang.
const BASELINE_LABS: usize = 12;

/// Runs every fault of the lab's list and writes a table of what happened, with a baseline beside it.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  fault-table                                  all that this kernel can make, about 20 minutes
  fault-table --only 'silence' --out /tmp      some of it, elsewhere
  fault-table --short --skip-baseline          as in CI
  fault-table --test-host                      what needs sch_netem, in the test host

A run replaces its own part of faults.json and faults.md (the lab's or the test host's) and keeps the other.
Exit code: 0 if every promise was kept.")]
struct Args {
    /// Where `faults.md` and `faults.json` go
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"))]
    out: PathBuf,
    /// How many labs at a time
    #[arg(long, default_value_t = 4)]
    labs: usize,
    /// Only faults with this in their name; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// Only the product
    #[arg(long)]
    skip_baseline: bool,
    /// Transfers as small as in CI
    #[arg(long)]
    short: bool,
    /// Also what takes ten minutes
    #[arg(long)]
    long: bool,
    /// What needs sch_netem, in the test host
    #[arg(long)]
    test_host: bool,
    /// This is inside of the test host
    #[arg(long, hide = true)]
    inside: bool,
}

/// `faults.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Tables {
    /// Of the lab on this kernel.
    lab: Option<Table>,
    /// Of the test host.
    test_host: Option<Table>,
}

/// One run.
#[derive(Debug, Serialize, Deserialize)]
struct Table {
    /// When, where, and how busy the machine was.
    about: About,
    /// A line for each fault.
    rows: Vec<Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct About {
    at: String,
    kernel: String,
    build: String,
    processors: usize,
    /// One-minute load at the beginning, in the middle of the run at its highest, and at the end.
    load: [f64; 3],
    took_s: u64,
    labs: usize,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    fault: &'static str,
    pass: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<Finding>,
    /// Without keepalive, and with.
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<[Outcome; 2]>,
}

/// What became of the baseline, or why nobody knows.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Outcome {
    Seen(Compared),
    Failed { failed: String },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.out)?;
    let mut tables: Tables = match std::fs::read(args.out.join("faults.json")) {
        // Of an older form: it is replaced.
        Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
        Err(_) => Tables::default(),
    };
    // Whatever ends this, its labs go with it.
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let run = async { if args.test_host { host::run(&args).await } else { here(&args).await } };
    let table = tokio::select! {
        table = run => table?,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        _ = terminated.recv() => anyhow::bail!("terminated"),
    };
    let failed = table.rows.iter().filter(|row| row["pass"] != true).count();
    let all = table.rows.len();
    *(if args.test_host || args.inside { &mut tables.test_host } else { &mut tables.lab }) = Some(table);
    std::fs::write(args.out.join("faults.json"), serde_json::to_string_pretty(&tables)? + "\n")?;
    std::fs::write(args.out.join("faults.md"), table::page(&tables)?)?;
    ensure!(failed == 0, "{failed} of {all} faults broke a promise");
    Ok(())
}

/// Runs what this kernel can make.
async fn here(args: &Args) -> anyhow::Result<Table> {
    if let Some(obstacle) = lab::obstacle() {
        anyhow::bail!("no lab can be made here: {obstacle}");
    }
    let own = std::env::current_exe()?;
    let beside = |name: &str| -> anyhow::Result<PathBuf> {
        let program = own.parent().context("a program is in a directory")?.join(name);
        let advice = "build it: cargo build -p holdfast-tests --bins";
        ensure!(program.exists(), "{} is not there; {advice}", program.display());
        Ok(program)
    };
    let (program, peer) = (beside("holdfast-under-test")?, beside("baseline-peer")?);

    let mut list = faults::all();
    if args.long {
        list.extend(faults::long());
    }
    list.retain(|fault| fault.netem == args.inside);
    list.retain(|fault| {
        args.only.is_empty() || args.only.iter().any(|only| fault.name.contains(only.as_str()))
    });
    ensure!(!list.is_empty(), "no fault has that in its name");

    let began = std::time::Instant::now();
    let before = load();
    let mut highest = before;
    let run = async {
        let machine = Machine::new(args.labs.max(1), args, program, peer);
        // Those that work run after those that wait.
        let (heavy, light): (Vec<_>, Vec<_>) = list.iter().copied().partition(|fault| fault.heavy);
        let mut rows = futures::future::join_all(light.into_iter().map(|fault| machine.run(fault))).await;
        for fault in heavy {
            rows.push(machine.run(fault).await);
        }
        rows.sort_by_key(|row| list.iter().position(|fault| fault.name == row.fault));
        rows
    };
    let watch = async {
        let mut tick = tokio::time::interval(std::time::Duration::from_secs(5));
        loop {
            tick.tick().await;
            highest = highest.max(load());
        }
    };
    let rows: Vec<Row> = tokio::select! { rows = run => rows, never = watch => never };
    Ok(Table {
        about: About {
            at: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            processors: std::thread::available_parallelism()?.get(),
            load: [before, highest, load()],
            took_s: began.elapsed().as_secs(),
            labs: args.labs,
        },
        rows: rows.iter().map(serde_json::to_value).collect::<Result<_, _>>()?,
    })
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// What runs, and how much of it at a time.
struct Machine {
    labs: Semaphore,
    of_labs: u32,
    baselines: Semaphore,
    program: PathBuf,
    peer: Option<PathBuf>,
    scale: Scale,
}

impl Machine {
    fn new(labs: usize, args: &Args, program: PathBuf, peer: PathBuf) -> Self {
        Self {
            labs: Semaphore::new(labs),
            of_labs: u32::try_from(labs).unwrap_or(u32::MAX),
            baselines: Semaphore::new(BASELINE_LABS),
            program,
            peer: (!args.skip_baseline).then_some(peer),
            scale: if args.short || args.inside { Scale::Short } else { Scale::Full },
        }
    }

    async fn run(&self, fault: Fault) -> Row {
        let product = async {
            let permits = if fault.heavy { self.of_labs } else { 1 };
            let _permit = self.labs.acquire_many(permits).await;
            fault.run(&self.program, self.scale).await
        };
        // The product alone where it moves bulk.
        let (result, baseline) = if fault.heavy {
            let result = product.await;
            let (plain, keepalive) = tokio::join!(self.compare(fault, false), self.compare(fault, true));
            (result, plain.zip(keepalive))
        } else {
            let (result, plain, keepalive) =
                tokio::join!(product, self.compare(fault, false), self.compare(fault, true));
            (result, plain.zip(keepalive))
        };
        let error = result.as_ref().err().map(|error| error.root_cause().to_string());
        match &result {
            Err(error) => say(&format!("FAILED {}: {error:#}", fault.name)),
            Ok(_) => say(&format!("passed {}", fault.name)),
        }
        Row {
            fault: fault.name,
            pass: error.is_none(),
            error,
            finding: result.ok(),
            baseline: baseline.map(|(plain, keepalive)| [plain, keepalive]),
        }
    }

    async fn compare(&self, fault: Fault, keepalive: bool) -> Option<Outcome> {
        let peer: &Path = self.peer.as_ref()?;
        let _permit = self.baselines.acquire().await;
        Some(match fault.run_baseline(peer, self.scale, keepalive).await {
            Ok(seen) => Outcome::Seen(seen),
            Err(error) => {
                say(&format!("the baseline could not be run: {}: {error:#}", fault.name));
                Outcome::Failed { failed: format!("{error:#}") }
            }
        })
    }
}

/// On stderr: how far it is.
fn say(line: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
}
