//! The page.

use std::fmt::Write;

use serde_json::Value;

use super::{Table, Tables};

const INTRODUCTION: &str = "\
# What faults do

Written by `cargo run -p holdfast-tests --bin fault-table` (and, for what needs `sch_netem`, with `--test-host`) from
one run of the lab in `netem-scripts/`: the gateway, the supervisor and the command as they are, in network namespaces
behind a NAT. Callers are attached before each fault; every byte that they read is compared with what the command
wrote.

- **calls**: how many ended with their command's true result, and how many with `SESSION_LOST`, which only a caller
  that said not to attach again gets (in most rows one of three)
- **told**: from the fault to that error, the middle one and the longest
- **latest byte**: of each call the longest that a byte of output was under way, the middle call and the worst; in a
  transfer, the longest pause between two reads
- **lost / extra**: bytes of all calls that should have come and did not, and that came beyond
- **path**: the connection was `kept` with its address, `moved` to new ones, `rebound` by its supervisor to a new
  socket, or `redialled`
- **bound**: what the check allowed for being told, twice the 11 s of a quiet machine; an outcome is given 30 s after
  its command has ended and the network is whole; a transfer has the bound in all

The last two columns are **the same commands under the same faults with what is usual today**: one bidirectional
gRPC stream for each command, over one h2/TLS/TCP connection that the supervisor dials through the same NAT
(`tests/src/baseline/`; tonic, TCP_NODELAY, windows of 2 MiB and 4 MiB, redialled a second after it breaks), without
keepalive and with h2 keepalives on both sides (a PING after 20 s, 10 s for its answer). The NAT is one that does not
pick up a TCP flow in the middle (`nf_conntrack_tcp_loose=0`, what belongs to no flow is dropped), as cloud NATs and
firewalls are; where it forgets after some seconds, it does so for TCP too, which real ones do after 4 to 6 minutes.
*Failed* means that the call ended with an error, so many seconds after the fault began, and its result is lost;
*hung* that it had not ended when it was given up.

";

pub(super) fn page(tables: &Tables) -> anyhow::Result<String> {
    let mut text = INTRODUCTION.to_owned();
    if let Some(lab) = &tables.lab {
        text.push_str("## The lab\n\n");
        rows(&mut text, lab)?;
    }
    if let Some(host) = &tables.test_host {
        text.push_str("## The test host: real delay, reordering, duplicates, corruption\n\n");
        text.push_str(
            "The same in QEMU, whose kernel has `sch_netem`. Emulated, so everything takes longer: *lasted* and *latest \
             byte* are mostly the time that programs need to start there; the promise is what is shown.\n\n",
        );
        rows(&mut text, host)?;
    }
    Ok(text)
}

fn rows(text: &mut String, table: &Table) -> anyhow::Result<()> {
    let about = &table.about;
    writeln!(
        text,
        "{}, Linux {}, {} build, {} processors, {} labs at a time, {} min in all; load {:.1} before, {:.1} at its \
         highest, {:.1} after.\n",
        about.at,
        about.kernel,
        about.build,
        about.processors,
        about.labs,
        about.took_s.div_ceil(60),
        about.load[0],
        about.load[1],
        about.load[2],
    )?;
    text.push_str(
        "| fault | lasted | calls | told | latest byte | lost / extra | path | bound | | h2/TLS/TCP | … with keepalive |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in &table.rows {
        let baseline = match row["baseline"].as_array() {
            Some(both) => both.iter().map(compared).collect::<Vec<_>>().join(" | "),
            None => "not run | not run".to_owned(),
        };
        let fault = row["fault"].as_str().unwrap_or_default();
        let found = &row["finding"];
        if found.is_null() {
            let error = row["error"].as_str().unwrap_or_default().replace('|', "\\|").replace('\n', " ");
            writeln!(text, "| {fault} | | | | | | | | **fail**: {error} | {baseline} |")?;
            continue;
        }
        let mut calls = format!("{} true", found["true_results"]);
        if found["named_errors"] != 0 {
            write!(calls, ", {} named", found["named_errors"])?;
        }
        writeln!(
            text,
            "| {fault} | {} | {calls} | {} | {} | {} / {} | {} | {} | pass | {baseline} |",
            seconds(&found["fault_ms"]),
            spread(&found["told"]),
            spread(&found["latest_byte"]),
            found["bytes_lost"],
            found["bytes_extra"],
            path(found),
            seconds(&found["bound_ms"]),
        )?;
    }
    text.push('\n');
    Ok(())
}

fn path(found: &Value) -> String {
    let words: Vec<_> = [("moved", "migrations"), ("rebound", "rebinds"), ("redialled", "redials")]
        .into_iter()
        .filter(|(_, key)| found[key].as_u64() > Some(0))
        .map(|(word, key)| format!("{word} {}", found[key]))
        .collect();
    if words.is_empty() { "kept".to_owned() } else { words.join(", ") }
}

/// What became of the baseline, in a few words.
fn compared(found: &Value) -> String {
    if let Some(error) = found["failed"].as_str() {
        return format!("could not be run: {}", error.replace('|', "\\|").replace('\n', " "));
    }
    let mut parts = Vec::new();
    let count = |key: &str| found[key].as_u64().unwrap_or_default();
    if count("true_results") > 0 {
        let late = &found["latest_byte"]["max_ms"];
        parts.push(format!("{} true, latest byte {}", count("true_results"), seconds(late)));
    }
    if count("errors") > 0 {
        parts.push(format!("{} failed after {}", count("errors"), spread(&found["told"])));
    }
    if count("hung") > 0 {
        let given_up = count("given_up_s");
        parts.push(match found["still_going_percent"].as_u64() {
            Some(done) => format!("not done after {given_up} s ({done} %)"),
            None => format!("**{} hung > {given_up} s**", count("hung")),
        });
    }
    parts.join(", ")
}

fn spread(spread: &Value) -> String {
    match (&spread["p50_ms"], &spread["max_ms"]) {
        (Value::Null, _) => String::new(),
        (p50, max) if p50 == max => seconds(max),
        (p50, max) => format!("{} / {}", seconds(p50), seconds(max)),
    }
}

fn seconds(milliseconds: &Value) -> String {
    let milliseconds = milliseconds.as_u64().unwrap_or_default();
    format!("{}.{:02} s", milliseconds / 1000, milliseconds % 1000 / 10)
}
