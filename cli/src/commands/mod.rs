//! The commands, one file for each family. Each takes what was said and gives an exit code, or says why not.

mod chaos;
mod cp;
mod doctor;
mod events;
mod exec;
mod execs;
mod foreground;
mod result_file;
mod run;
mod sandboxes;
mod signals;
mod stdin;

use std::time::Duration;

use clap::CommandFactory as _;
use serde::Serialize;

use crate::{
    args::{Cli, Command, Format},
    client::{CALL_TIMEOUT, Client},
    config::Config,
    failure::Failed,
    output::{Output, Row},
    profile::{Profile, ProfileError},
    show,
};

/// What every command has.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) output: Output,
}

impl Context {
    /// A client for the configured gateway.
    pub(crate) fn client(&self) -> Result<Client, Failed> {
        let profile = Profile::load(&self.config.profile).map_err(crate::client::Error::from)?;
        Ok(Client::new(&profile)?)
    }

    /// As [`Self::client`]; `None` where no profile is configured at all.
    pub(crate) fn client_if_configured(&self) -> Result<Option<Client>, Failed> {
        match Profile::load(&self.config.profile) {
            Err(ProfileError::Missing(_)) if !self.config.profile_asked_for => Ok(None),
            other => Ok(Some(Client::new(&other.map_err(crate::client::Error::from)?)?)),
        }
    }
}

/// Does what the command line says.
pub(crate) async fn dispatch(command: Command, context: &Context) -> Result<u8, Failed> {
    match command {
        // Boxed: as large as all that it waits for.
        Command::Run(args) => Box::pin(run::run(*args, context)).await,
        Command::Exec(args) => exec::exec(*args, context).await,
        Command::Attach(args) => exec::attach(args, context).await,
        Command::Cp(args) => cp::cp(args, context).await,
        Command::Execs(args) => execs::list(&args, context).await,
        Command::Kill(args) => execs::kill(&args, context).await,
        Command::Logs(args) => execs::logs(&args, context).await,
        Command::Create(args) => Box::pin(sandboxes::create(args, context)).await,
        Command::List(args) => sandboxes::list(args, context).await,
        Command::Get(args) => sandboxes::get(&args, context).await,
        Command::Wait(args) => sandboxes::wait(&args, context).await,
        Command::Delete(args) => sandboxes::delete(&args, context).await,
        Command::Stop(args) => sandboxes::stop(&args, context).await,
        Command::Start(args) => sandboxes::change(&args, sandboxes::Change::Start, context).await,
        Command::Pause(args) => sandboxes::change(&args, sandboxes::Change::Pause, context).await,
        Command::Resume(args) => sandboxes::change(&args, sandboxes::Change::Resume, context).await,
        Command::Update(args) => sandboxes::update(&args, context).await,
        Command::Events(args) => events::events(&args, context).await,
        Command::Status => status(context).await,
        Command::Doctor(args) => doctor::doctor(&args, context).await,
        Command::Chaos(args) => chaos::chaos(&args, context).await,
        Command::Completions { shell } => completions(shell, context),
        Command::Version => version(context),
        // main runs these before there is a context: they bring their own runtime.
        #[cfg(feature = "embedded")]
        Command::Gateway(_) | Command::Supervisor(_) => {
            Err(Failed::Usage("the gateway and the supervisor run on their own".to_owned()))
        }
    }
}

async fn status(context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    let mut gateway = client.gateway();
    let asked = client.call(
        "ask for the gateway's status",
        CALL_TIMEOUT,
        gateway.status(holdfast_wire::api::StatusRequest {}),
    );
    let response = context.output.during("asking the gateway", asked).await?;
    let status = show::Status::new(client.address(), response);
    context.output.one("gateways", &status)?;
    if matches!(context.output.format, Format::Table | Format::Wide) {
        if !status.driver_notes.is_empty() {
            context.output.line(&format!("\ndriver {}: {}", status.driver, status.driver_notes))?;
        }
        if context.output.format == Format::Wide {
            let paths = format!(
                "listens on {}, http {}, data in {}",
                status.listen, status.http_listen, status.data_dir
            );
            context.output.line(&paths)?;
        }
        if !status.attached.is_empty() {
            context.output.line("")?;
            context.output.list("attached", &status.attached)?;
        }
    }
    Ok(0)
}

fn completions(shell: clap_complete::Shell, context: &Context) -> Result<u8, Failed> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "holdfast", &mut script);
    context.output.data(&script)?;
    Ok(0)
}

fn version(context: &Context) -> Result<u8, Failed> {
    #[derive(Serialize)]
    struct Version {
        version: &'static str,
        protocol: String,
        embedded_gateway: bool,
    }
    impl Row for Version {
        fn header(_: bool) -> Vec<&'static str> {
            vec!["version", "protocol", "embedded gateway"]
        }
        fn cells(&self, _: bool) -> Vec<String> {
            vec![self.version.to_owned(), self.protocol.clone(), self.embedded_gateway.to_string()]
        }
        fn name(&self) -> String {
            self.version.to_owned()
        }
    }
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        protocol: String::from_utf8_lossy(holdfast_wire::ALPN).into_owned(),
        embedded_gateway: cfg!(feature = "embedded"),
    };
    if context.output.format == Format::Table {
        context.output.line(&format!("holdfast {} ({})", version.version, version.protocol))?;
    } else {
        context.output.one("versions", &version)?;
    }
    Ok(0)
}

/// A wait that the gateway answers at least so often: a lost connection costs at most one round.
const POLL: Duration = Duration::from_secs(60);
