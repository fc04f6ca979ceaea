//! What an exec costs, beside what it is made of, in one run: `cargo bench -p holdfast-tests --bench exec`.
//!
//! | row | what |
//! | --- | --- |
//! | spawn | this process starts `true` and waits: what any exec must pay |
//! | call | one unary API call over the warm connection: what gRPC and TLS cost |
//! | exec | `true` in a sandbox, attached, over the warm connection: caller, gateway, QUIC, supervisor and back |
//! | pipe | 256 MiB of a command's output through a pipe in this process |
//! | output | 256 MiB of a command's output through supervisor, QUIC, gateway and gRPC |
//!
//! Ratios are what to compare between machines and versions; a loaded machine moves all rows.

#![allow(clippy::print_stdout, missing_debug_implementations)] // a bench's output is its result

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use holdfast_cli::{
    client::{Client, Event, Patience, Target},
    profile::Profile,
};
use holdfast_tests::harness::Cluster;
use holdfast_wire::{
    api::{Argv, ExecSpec, OnPause, StatusRequest, exec_spec::Command, outcome::Kind},
    ids::ExecId,
};
use tokio::io::AsyncReadExt;

/// Rounds of each latency row; p99 is the third slowest of them.
const ROUNDS: usize = 300;

/// Of output.
const BULK: u64 = 256 << 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_holdfast-under-test")).await?;
    cluster.create("box").await?;
    let client = Client::new(&Profile::load(&cluster.data_dir().join("client.toml"))?)?;
    for _ in 0..20 {
        exec(&client, &["true"]).await?;
    }

    let spawn = latency(async || {
        tokio::process::Command::new("true").status().await?;
        Ok(())
    })
    .await?;
    let call = latency(async || {
        client.gateway().status(StatusRequest {}).await?;
        Ok(())
    })
    .await?;
    let run = latency(async || exec(&client, &["true"]).await.map(drop)).await?;
    println!("{:<8} {:>12} {:>12} {:>10}", "", "p50", "p99", "x spawn");
    for (name, (p50, p99)) in [("spawn", spawn), ("call", call), ("exec", run)] {
        println!("{name:<8} {p50:>12.2?} {p99:>12.2?} {:>10.2}", p50.as_secs_f64() / spawn.0.as_secs_f64());
    }

    let count = BULK.to_string();
    let bulk = ["head", "-c", &count, "/dev/zero"];
    let begun = Instant::now();
    let mut child = tokio::process::Command::new(bulk[0])
        .args(&bulk[1..])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut pipe = child.stdout.take().context("stdout was piped")?;
    let (mut got, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        match pipe.read(&mut buffer).await? {
            0 => break,
            n => got += n as u64,
        }
    }
    let piped = begun.elapsed();
    let begun = Instant::now();
    let carried = exec(&client, &bulk).await?;
    let took = begun.elapsed();
    if got != BULK || carried != BULK {
        bail!("{got} bytes piped and {carried} carried, not {BULK}");
    }
    println!("{:<8} {:>12} {:>12} {:>10}", "", "time", "MB/s", "x pipe");
    for (name, time) in [("pipe", piped), ("output", took)] {
        let rate = BULK as f64 / 1e6 / time.as_secs_f64();
        println!("{name:<8} {time:>12.2?} {rate:>12.0} {:>10.3}", piped.as_secs_f64() / time.as_secs_f64());
    }
    println!("gateway: {} KiB resident", cluster.gateway()?.resident_kib()?);
    Ok(())
}

/// Runs a command attached, to its outcome; returns how many bytes it wrote.
async fn exec(client: &Client, args: &[&str]) -> anyhow::Result<u64> {
    let args = args.iter().map(|arg| arg.as_bytes().to_vec().into()).collect();
    let spec = ExecSpec { command: Some(Command::Argv(Argv { args })), ..ExecSpec::default() };
    let target = Target {
        sandbox: "box".to_owned(),
        exec_id: ExecId::random(),
        start: Some(spec),
        start_deadline: None,
        stdin: false,
        stdout_offset: 0,
        stderr_offset: 0,
        on_pause: OnPause::Notice,
    };
    let mut session = client.attach(target, Patience { reattach_for: None });
    let mut bytes = 0;
    while let Some(event) = session.next().await {
        match event? {
            Event::Output { data, .. } => bytes += data.len() as u64,
            Event::Ended { ended, .. } => {
                return match ended.outcome.and_then(|outcome| outcome.kind) {
                    Some(Kind::Exited(exited)) if exited.code == 0 => Ok(bytes),
                    other => bail!("the command ended with {other:?}"),
                };
            }
            _ => {}
        }
    }
    bail!("the stream ended without an outcome")
}

/// p50 and p99 of [`ROUNDS`] rounds.
async fn latency(mut round: impl AsyncFnMut() -> anyhow::Result<()>) -> anyhow::Result<(Duration, Duration)> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        round().await?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok((times[ROUNDS / 2], times[ROUNDS * 99 / 100]))
}
