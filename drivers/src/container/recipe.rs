//! A spec as the engine reads it: what a container of ours is made of. Pure.
//!
//! ```text
//!   /.holdfast/supervisor         the static binary, read-only; the container's entrypoint, as root
//!   /.holdfast/supervisor.toml    read-only
//!   /.holdfast/identity/          of this generation alone; the supervisor renews its certificate in there
//!   /.holdfast/state/             spool and lock
//!   /workspace                    a volume of the engine's, which outlives the container
//! ```

use std::collections::{BTreeMap, HashMap};

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, ImageConfig, Mount, MountType};
use holdfast_wire::ids::SandboxId;

use super::{
    Shared,
    address::HOST_NAME,
    engine::{Engine, Kind},
    record::Inputs,
};
use crate::{DriverError, MainCommand, WorkloadSpec, spec};

pub(super) const INSTALLATION_LABEL: &str = "dev.holdfast.installation";
pub(super) const SANDBOX_LABEL: &str = "dev.holdfast.sandbox";
pub(super) const GENERATION_LABEL: &str = "dev.holdfast.generation";
pub(super) const NAME_LABEL: &str = "dev.holdfast.name";
/// In front of Holdfast's own labels.
const OWN_LABELS: &str = "dev.holdfast.";

const OWN: &str = "/.holdfast";
const SUPERVISOR: &str = "/.holdfast/supervisor";
const CONFIG: &str = "/.holdfast/supervisor.toml";
pub(super) const IDENTITY: &str = "/.holdfast/identity";
pub(super) const STATE: &str = "/.holdfast/state";
pub(super) const WORKSPACE: &str = "/workspace";

/// The engine's default network.
pub(super) const BRIDGE: &str = "bridge";

/// How much console an engine keeps of a container: some thousand events of a supervisor.
const LOG_SIZE: &str = "1m";
/// The least memory, in bytes. Engines refuse less than 6 MiB, and a supervisor alone needs more.
const LEAST_MEMORY: u64 = 24 << 20;
/// The least processes: a supervisor has some threads, and a command wants one.
const LEAST_PROCESSES: u32 = 16;
/// The kernel's smallest share of a processor, in thousandths.
const LEAST_CPU: u32 = 10;

/// What this driver cannot make, beside what no driver can. Asks nobody.
pub(super) fn check(shared: &Shared, spec: &WorkloadSpec) -> Result<(), DriverError> {
    spec.check()?;
    let invalid = |field: &str, message: &str| Err(DriverError::invalid(field, message));
    if let Some(field) = spec.first_of_a_machine() {
        return invalid(field, "is the vm driver's: leave it out, or choose that driver");
    }
    if image(shared, spec).is_none() {
        return invalid(
            "image",
            "the container driver needs one: name it by --image, or a default for all by image = \"…\" \
             in [container] of the gateway's configuration",
        );
    }
    if spec.resources.disk_bytes.is_some() {
        return invalid(
            "resources.disk_bytes",
            "the container driver cannot limit a volume's size: leave it out",
        );
    }
    let resources = &spec.resources;
    if resources.memory_bytes.is_some_and(|bytes| bytes < LEAST_MEMORY || i64::try_from(bytes).is_err()) {
        let message = format!("is less than {} MiB, which the supervisor itself needs", LEAST_MEMORY >> 20);
        return invalid("resources.memory_bytes", &message);
    }
    if resources.processes.is_some_and(|processes| processes < LEAST_PROCESSES) {
        let message = format!("is less than {LEAST_PROCESSES}, which the supervisor itself needs");
        return invalid("resources.processes", &message);
    }
    if resources.cpu_millis.is_some_and(|millis| millis < LEAST_CPU) {
        return invalid("resources.cpu_millis", "is less than 10, the kernel's smallest share");
    }
    if let Some(label) = spec.labels.keys().find(|label| label.starts_with(OWN_LABELS)) {
        let message = format!("{label:?} is reserved: labels that start with {OWN_LABELS} are Holdfast's");
        return invalid("labels", &message);
    }
    match network(shared, spec) {
        "none" => {
            return invalid(
                "network",
                "none would leave the supervisor without a way to the gateway, so that the sandbox could never be \
                 Ready; for one that reaches the gateway and nothing else, name a network that was made with \
                 --internal",
            );
        }
        "host" => return invalid("network", "host is this machine's own network: nothing would be isolated"),
        other if other.contains(':') || other.contains('/') => {
            return invalid(
                "network",
                "a network is named by its plain name: no namespaces, no other containers",
            );
        }
        _ => {}
    }
    for (i, mount) in spec.mounts.iter().enumerate() {
        let under = |dir: &str| mount.target == dir || mount.target.starts_with(&format!("{dir}/"));
        if under(OWN) {
            let message = format!("{OWN} is Holdfast's own directory in the container");
            return invalid(&format!("mounts[{i}].target"), &message);
        }
        if mount.target == WORKSPACE {
            return invalid(
                &format!("mounts[{i}].target"),
                "is the workspace, which is a volume of the sandbox's own",
            );
        }
        check_source(&shared.settings.mounts, i, mount)?;
    }
    Ok(())
}

/// Mounts give away what they show, and every client of the API may ask for them: so the operator says which.
fn check_source(allowed: &[String], i: usize, mount: &spec::Mount) -> Result<(), DriverError> {
    let field = format!("mounts[{i}].source");
    let refused = || {
        let message = format!(
            "{:?} is not among what sandboxes may mount: the gateway's operator lists paths and volumes in mounts = [\"…\"] \
             of [container]",
            mount.source
        );
        DriverError::invalid(&field, message)
    };
    if !mount.source.starts_with('/') {
        return if allowed.contains(&mount.source) { Ok(()) } else { Err(refused()) };
    }
    // Where a symbolic link leads is what counts.
    let real = std::fs::canonicalize(&mount.source);
    let real = real.map_err(|error| DriverError::invalid(&field, format!("{}: {error}", mount.source)))?;
    let inside = allowed
        .iter()
        .filter(|path| path.starts_with('/'))
        .any(|path| std::fs::canonicalize(path).is_ok_and(|path| real.starts_with(path)));
    if inside { Ok(()) } else { Err(refused()) }
}

/// The image that is asked for, or the gateway's default.
pub(super) fn image<'a>(shared: &'a Shared, spec: &'a WorkloadSpec) -> Option<&'a str> {
    spec.image.as_deref().or(shared.settings.image.as_deref())
}

/// The network that is asked for, or the gateway's default.
pub(super) fn network<'a>(shared: &'a Shared, spec: &'a WorkloadSpec) -> &'a str {
    spec.network.as_deref().or(shared.settings.network.as_deref()).unwrap_or(BRIDGE)
}

/// Who runs a command that names nobody: as asked, else as the image says, else root.
pub(super) fn default_user(spec: &WorkloadSpec, image: &ImageConfig) -> Option<String> {
    spec.user
        .clone()
        .or_else(|| image.user.clone())
        .filter(|user| !user.is_empty() && user != "0" && user != "root")
}

/// What is asked for as the main command, with what the image says of it: docker's rules. Its user and environment are
/// those of every command.
pub(super) fn main_command(
    spec: &WorkloadSpec,
    image: &ImageConfig,
) -> Result<Option<MainCommand>, DriverError> {
    let Some(args) = &spec.main else { return Ok(None) };
    let mut argv = image.entrypoint.clone().unwrap_or_default();
    match args.as_slice() {
        [] => argv.extend(image.cmd.iter().flatten().cloned()),
        args => argv.extend_from_slice(args),
    }
    let invalid = |message: String| Err(DriverError::invalid("main", message));
    if argv.first().is_none_or(String::is_empty) {
        return invalid(
            "the image has neither an entrypoint nor a command: name the command, --main -- COMMAND"
                .to_owned(),
        );
    }
    let bytes: usize = argv.iter().map(|arg| arg.len() + 1).sum();
    if bytes > spec::MAX_MAIN_BYTES || argv.iter().any(|arg| arg.contains('\0')) {
        return invalid(format!(
            "the image's entrypoint and command have {bytes} bytes with their arguments, more than the {} allowed, or a \
             NUL in them",
            spec::MAX_MAIN_BYTES
        ));
    }
    // As engines have it: without one it is the root, and a relative one begins there.
    let dir = image.working_dir.as_deref().unwrap_or_default();
    Ok(Some(MainCommand { argv, cwd: format!("/{}", dir.trim_start_matches('/')) }))
}

/// A container's name: one that people recognise, and that no two workloads share.
pub(super) fn container_name(spec: &WorkloadSpec) -> String {
    let id: String = spec.sandbox.to_string();
    format!("holdfast-{}-{}-{}", spec.name, id, spec.generation)
}

pub(super) fn volume_name(sandbox: SandboxId) -> String {
    format!("holdfast-{sandbox}")
}

/// What marks a thing of the engine's as this sandbox's.
pub(super) fn labels(shared: &Shared, sandbox: SandboxId, name: &str) -> HashMap<String, String> {
    HashMap::from([
        (INSTALLATION_LABEL.to_owned(), shared.installation.clone()),
        (SANDBOX_LABEL.to_owned(), sandbox.to_string()),
        (NAME_LABEL.to_owned(), name.to_owned()),
    ])
}

/// The whole of it.
pub(super) fn body(shared: &Shared, spec: &WorkloadSpec, inputs: &Inputs) -> ContainerCreateBody {
    let engine = &shared.engine;
    let mut all = labels(shared, spec.sandbox, &spec.name);
    all.insert(GENERATION_LABEL.to_owned(), spec.generation.to_string());
    all.extend(spec.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
    ContainerCreateBody {
        hostname: Some(spec.name.clone()),
        image: image(shared, spec).map(str::to_owned),
        // The supervisor reads its own key, and changes the user for each command: root of the container it is.
        user: Some("0:0".to_owned()),
        env: Some(environment(&spec.env.0)),
        entrypoint: Some(vec![SUPERVISOR.to_owned(), "--config".to_owned(), CONFIG.to_owned()]),
        cmd: Some(Vec::new()),
        // Not the image's: it need not exist where the image is empty, and commands start in the workspace.
        working_dir: Some("/".to_owned()),
        labels: Some(all),
        // Not the image's: this is what the supervisor ends at.
        stop_signal: Some("SIGTERM".to_owned()),
        host_config: Some(host_config(shared, engine, spec, inputs)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(shared: &Shared, engine: &Engine, spec: &WorkloadSpec, inputs: &Inputs) -> HostConfig {
    let resources = &spec.resources;
    let memory = resources.memory_bytes.and_then(|bytes| i64::try_from(bytes).ok());
    HostConfig {
        nano_cpus: resources.cpu_millis.map(|millis| i64::from(millis) * 1_000_000),
        memory,
        // Memory and swap together: none may be swapped out beside the limit.
        memory_swap: memory.filter(|_| engine.swap_limit),
        pids_limit: resources.processes.map(i64::from),
        network_mode: Some(network(shared, spec).to_owned()),
        mounts: Some(mounts(shared, spec, inputs)),
        readonly_rootfs: Some(spec.read_only_root),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        log_config: Some(log_config(engine.kind)),
        // Podman has its own entry of that name.
        extra_hosts: (engine.kind == Kind::Docker).then(|| vec![format!("{HOST_NAME}:host-gateway")]),
        cgroup_parent: shared.settings.cgroup_parent.clone(),
        ..HostConfig::default()
    }
}

fn log_config(kind: Kind) -> HostConfigLogConfig {
    let (name, files) = match kind {
        Kind::Docker => ("json-file", Some("2")),
        // Keeps one file.
        Kind::Podman => ("k8s-file", None),
    };
    let mut config = HashMap::from([("max-size".to_owned(), LOG_SIZE.to_owned())]);
    config.extend(files.map(|files| ("max-file".to_owned(), files.to_owned())));
    HostConfigLogConfig { typ: Some(name.to_owned()), config: Some(config) }
}

fn mounts(shared: &Shared, spec: &WorkloadSpec, inputs: &Inputs) -> Vec<Mount> {
    let own = |source: &std::path::Path, target: &str, read_only: bool| Mount {
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(read_only),
        ..Mount::default()
    };
    let mut all = vec![
        own(&shared.supervisor, SUPERVISOR, true),
        own(&inputs.config, CONFIG, true),
        own(&inputs.identity, IDENTITY, false),
        own(&inputs.state, STATE, false),
        Mount {
            source: Some(volume_name(spec.sandbox)),
            target: Some(WORKSPACE.to_owned()),
            typ: Some(MountType::VOLUME),
            read_only: Some(false),
            ..Mount::default()
        },
    ];
    all.extend(spec.mounts.iter().map(|mount| Mount {
        source: Some(mount.source.clone()),
        target: Some(mount.target.clone()),
        typ: Some(if mount.source.starts_with('/') { MountType::BIND } else { MountType::VOLUME }),
        read_only: Some(mount.read_only),
        ..Mount::default()
    }));
    all
}

fn environment(env: &BTreeMap<String, String>) -> Vec<String> {
    env.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::sample_spec;

    fn image(entrypoint: &[&str], cmd: &[&str], dir: &str) -> ImageConfig {
        let list =
            |words: &[&str]| (!words.is_empty()).then(|| words.iter().map(|w| (*w).to_owned()).collect());
        ImageConfig {
            entrypoint: list(entrypoint),
            cmd: list(cmd),
            working_dir: Some(dir.to_owned()),
            ..ImageConfig::default()
        }
    }

    fn asked(args: &[&str]) -> WorkloadSpec {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        WorkloadSpec { main: Some(args), ..sample_spec(SandboxId::random()) }
    }

    fn argv(args: &[&str], image: &ImageConfig) -> Vec<String> {
        main_command(&asked(args), image).unwrap().unwrap().argv
    }

    #[test]
    fn arguments_take_the_place_of_the_images_command_and_its_entrypoint_stays() {
        let both = image(&["/entry", "-e"], &["serve", "--all"], "/app");
        assert_eq!(argv(&[], &both), ["/entry", "-e", "serve", "--all"]);
        assert_eq!(argv(&["check"], &both), ["/entry", "-e", "check"]);
        assert_eq!(argv(&[], &image(&[], &["sh"], "")), ["sh"]);
        assert_eq!(argv(&["id", "-u"], &image(&[], &["sh"], "")), ["id", "-u"]);
        assert_eq!(argv(&["id"], &image(&[], &[], "")), ["id"]);
        let unasked = sample_spec(SandboxId::random());
        assert_eq!(main_command(&unasked, &both).unwrap(), None);
    }

    #[test]
    fn it_runs_where_the_image_says_else_in_the_root() {
        for (dir, cwd) in [("/app", "/app"), ("", "/"), ("app/x", "/app/x"), ("/", "/")] {
            let main = main_command(&asked(&[]), &image(&["x"], &[], dir)).unwrap().unwrap();
            assert_eq!(main.cwd, cwd);
        }
    }

    #[test]
    fn an_image_that_says_nothing_needs_a_command() {
        for (entrypoint, cmd) in [(&[][..], &[][..]), (&[""][..], &["x"][..])] {
            let error = main_command(&asked(&[]), &image(entrypoint, cmd, "")).unwrap_err().to_string();
            assert!(error.contains("main: the image has neither") && error.contains("--main --"), "{error}");
        }
        let long = "x".repeat(spec::MAX_MAIN_BYTES);
        assert!(main_command(&asked(&[]), &image(&["x"], &[&long], "")).is_err());
    }
}
