//! The process's metrics. One recorder a process, however many gateways run in it (tests run several).

use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// From 0.5 ms to 30 s: results within a machine up to the callers' bound and a restart.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 11.0, 30.0];

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder, once. Without it (another program has its own) `/metrics` says so.
pub fn install() -> Option<&'static PrometheusHandle> {
    HANDLE
        .get_or_init(|| {
            let builder = match PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            {
                Ok(builder) => builder,
                Err(error) => {
                    tracing::warn!(%error, "metrics are off");
                    return None;
                }
            };
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            match metrics::set_global_recorder(recorder) {
                Ok(()) => {
                    describe();
                    Some(handle)
                }
                Err(error) => {
                    tracing::warn!(%error, "metrics are off: this process has another recorder");
                    None
                }
            }
        })
        .as_ref()
}

fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram};
    gauge!("holdfast_build_info", "1, with the version as a label");
    gauge!("holdfast_sessions", "Sessions attached now");
    counter!("holdfast_attaches_total", "Sessions attached, by the supervisor's reason to dial");
    counter!("holdfast_session_losses_total", "Sessions that ended, by reason");
    counter!(
        "holdfast_session_migrations_total",
        "Changes of a supervisor's address while its session lived"
    );
    counter!(
        "holdfast_session_rebinds_total",
        "New UDP sockets that supervisors took for their sessions, by reason"
    );
    counter!("holdfast_chaos_total", "Faults that admins ordered, by kind");
    counter!("holdfast_handshakes_total", "QUIC handshakes, by result");
    gauge!("holdfast_relays_open", "Relays open now");
    counter!("holdfast_relays_total", "Relays opened, by kind and result");
    counter!("holdfast_relay_bytes_total", "Payload bytes carried, by direction");
    counter!("holdfast_execs_finished_total", "Execs that reached an outcome, by outcome");
    histogram!(
        "holdfast_exec_result_delay_seconds",
        "From a command's end to its outcome being handed to the caller"
    );
    counter!("holdfast_probes_total", "Probe results, by kind and result");
    gauge!("holdfast_sandboxes", "Sandboxes, by phase");
    metrics::gauge!("holdfast_build_info", "version" => holdfast_wire::VERSION).set(1.0);
}
