//! `events`: what happened, and with `-f` what happens, over any number of streams.

use std::{cmp::Ordering, collections::HashSet, time::Duration};

use holdfast_wire::api::{EventsRequest, SandboxEvent};
use prost_types::Timestamp;

use super::{Context, signals::Signals};
use crate::{
    args::{EventsArgs, Format},
    client::{CALL_TIMEOUT, Client, Error},
    failure::Failed,
    output::Row,
    show::Event,
};

/// Between tries while the gateway is away.
const RETRY: Duration = Duration::from_secs(1);

/// Events of one instant, remembered to tell a repeat from a new one. The gateway keeps 256 of a sandbox.
const MAX_SAME: usize = 10_000;

impl Row for Event {
    fn header(_: bool) -> Vec<&'static str> {
        vec![]
    }
    fn cells(&self, _: bool) -> Vec<String> {
        vec![]
    }
    fn name(&self) -> String {
        self.sandbox().to_owned()
    }
}

pub(super) async fn events(args: &EventsArgs, context: &Context) -> Result<u8, Failed> {
    let client = context.client()?;
    if !args.follow {
        let mut found = Vec::new();
        let mut stream = open(&client, args, args.tail.unwrap_or(0)).await?;
        while let Some(event) =
            stream.message().await.map_err(|status| client.error("read events", &status))?
        {
            found.push(Event::from(event));
        }
        return match context.output.format {
            Format::Table | Format::Wide => {
                found.iter().try_for_each(|event| context.output.line(&event.line()))
            }
            _ => context.output.list("events", &found),
        }
        .map(|()| 0);
    }
    let mut signals = Signals::new().map_err(|error| Failed::local("listen for signals", error))?;
    tokio::select! {
        done = follow(&client, args, context) => done,
        caught = signals.leave() => Ok(caught.exit_code()),
    }
}

async fn follow(client: &Client, args: &EventsArgs, context: &Context) -> Result<u8, Failed> {
    let mut seen = Seen::default();
    let mut tail = args.tail.unwrap_or(0);
    let mut reached = false;
    loop {
        let lost = match open(client, args, tail).await {
            Ok(mut stream) => {
                if reached {
                    context.output.note("connected again");
                }
                reached = true;
                seen.begins_again();
                // After a loss, all that is kept: what was seen already is left out.
                tail = 0;
                loop {
                    match stream.message().await {
                        Ok(Some(event)) => {
                            if seen.is_new(&event) {
                                say(event, context)?;
                            }
                        }
                        Ok(None) => break None,
                        Err(status) => break Some(client.error("follow events", &status)),
                    }
                }
            }
            Err(error) => Some(error),
        };
        match lost {
            Some(error) if !reached || !error.is_transient() => return Err(error.into()),
            lost => tracing::debug!(?lost, "events stream lost"),
        }
        context.output.note("the stream of events was lost; connecting again");
        loop {
            tokio::time::sleep(RETRY).await;
            match open(client, args, 1).await {
                Ok(_) => break,
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn say(event: SandboxEvent, context: &Context) -> Result<(), Failed> {
    let event = Event::from(event);
    match context.output.format {
        Format::Table | Format::Wide => context.output.line(&event.line()),
        // A document that never ends cannot be read: one object a line.
        Format::Json | Format::Jsonl | Format::Yaml => context.output.json_line(&event),
        Format::Name => context.output.line(event.sandbox()),
    }
}

async fn open(
    client: &Client,
    args: &EventsArgs,
    tail: u32,
) -> Result<tonic::Streaming<SandboxEvent>, Error> {
    let mut sandboxes = client.sandboxes();
    let sandbox = args.sandbox.clone().unwrap_or_default();
    let request = EventsRequest { sandbox, follow: args.follow, tail };
    client.call("read events", CALL_TIMEOUT, sandboxes.events(request)).await
}

/// Tells new events from those that a new stream repeats: the kept past comes first on it, in order. Whatever follows
/// the first new one is new, however its clock stands.
#[derive(Debug, Default)]
struct Seen {
    newest: Option<Timestamp>,
    /// Those of the newest instant.
    same: HashSet<(String, String, String)>,
    repeating: bool,
}

impl Seen {
    /// What comes next begins with what was seen already.
    fn begins_again(&mut self) {
        self.repeating = self.newest.is_some();
    }

    fn is_new(&mut self, event: &SandboxEvent) -> bool {
        let Some(at) = event.at else { return true };
        let order = |at: &Timestamp| (at.seconds, at.nanos);
        let compared = self.newest.as_ref().map(|newest| order(&at).cmp(&order(newest)));
        let named = (event.sandbox_id.clone(), event.reason.clone(), event.message.clone());
        if self.repeating {
            match compared {
                Some(Ordering::Less) => return false,
                Some(Ordering::Equal) if self.same.contains(&named) => return false,
                _ => self.repeating = false,
            }
        }
        if !matches!(compared, Some(Ordering::Less | Ordering::Equal)) || self.same.len() >= MAX_SAME {
            self.newest = Some(at);
            self.same.clear();
        }
        if compared != Some(Ordering::Less) {
            self.same.insert(named);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seconds: i64, message: &str) -> SandboxEvent {
        SandboxEvent {
            at: Some(Timestamp { seconds, nanos: 0 }),
            message: message.into(),
            ..Default::default()
        }
    }

    #[test]
    fn after_a_loss_only_new_events_are_shown() {
        let mut seen = Seen::default();
        assert!(seen.is_new(&event(1, "a")) && seen.is_new(&event(2, "b")) && seen.is_new(&event(2, "c")));
        // The gateway starts over.
        seen.begins_again();
        assert!(!seen.is_new(&event(1, "a")) && !seen.is_new(&event(2, "b")) && !seen.is_new(&event(2, "c")));
        assert!(seen.is_new(&event(2, "d")) && seen.is_new(&event(3, "a")));
    }

    #[test]
    fn nothing_on_one_stream_is_a_repeat_however_its_clock_stands() {
        let mut seen = Seen::default();
        // A reader that is behind is told so with the time of the telling, before what still waits.
        let order = [(1, "a"), (2, "b"), (9, "missed"), (3, "c"), (4, "d"), (4, "d")];
        assert!(order.iter().all(|(at, message)| seen.is_new(&event(*at, message))));
    }
}
