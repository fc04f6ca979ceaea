//! Writing: data to stdout, prose to stderr, and nothing else writes.

use std::{
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::sleep;

use crate::{args::Format, failure::Failed};

/// The version of every JSON and YAML document. Fields are added without a new one; none is taken or changed.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// Progress is shown for what takes longer: shorter would flicker.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// How often it is asked how something comes along: a person sees it move, a gateway does not notice.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Where and how this process writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) quiet: bool,
    color: bool,
    progress: bool,
}

impl Output {
    pub(crate) fn new(format: Format, quiet: bool, no_color: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = !no_color && !set("NO_COLOR") && ((terminal && !dumb) || set("CLICOLOR_FORCE"));
        Self { format, quiet, color, progress: terminal && !dumb && !quiet && !format.is_json() }
    }

    /// Data.
    pub(crate) fn data(self, bytes: &[u8]) -> Result<(), Failed> {
        write_all(io::stdout().lock(), bytes).map_err(Failed::stdout)
    }

    /// A line of data.
    pub(crate) fn line(self, text: &str) -> Result<(), Failed> {
        self.data(format!("{text}\n").as_bytes())
    }

    /// Prose: something worth knowing that is no error.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            let end = if crate::terminal::is_raw() { "\r\n" } else { "\n" };
            complain(&format!("holdfast: {text}{end}"));
        }
    }

    /// Why the command failed.
    pub(crate) fn failure(self, failed: &Failed) {
        let Some(report) = failed.report() else { return };
        if self.format.is_json() {
            #[derive(Serialize)]
            struct Document<'a> {
                schema_version: u32,
                error: &'a crate::failure::Report,
            }
            let document = Document { schema_version: SCHEMA_VERSION, error: &report };
            complain(&format!("{}\n", serde_json::to_string(&document).unwrap_or_default()));
            return;
        }
        let (red, bold, plain) = if self.color { ("\x1b[1;31m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
        let mut text = format!("{red}error:{plain} {}\n", report.message);
        if let Some(hint) = &report.hint {
            text.push_str(&format!("  {bold}try:{plain} {hint}\n"));
        }
        complain(&text);
    }

    /// Several things of one kind: a document, lines, names or a table.
    pub(crate) fn list<T: Serialize + Row>(self, kind: &str, items: &[T]) -> Result<(), Failed> {
        match self.format {
            Format::Json | Format::Yaml => {
                let mut document = serde_json::Map::new();
                document.insert("schema_version".to_owned(), SCHEMA_VERSION.into());
                document.insert(kind.to_owned(), serde_json::to_value(items).map_err(Failed::render)?);
                self.document(&document)
            }
            Format::Jsonl => items.iter().try_for_each(|item| self.json_line(item)),
            Format::Name => items.iter().try_for_each(|item| self.line(&item.name())),
            Format::Table | Format::Wide => {
                let wide = self.format == Format::Wide;
                self.line(&table(&T::header(wide), items.iter().map(|item| item.cells(wide))))
            }
        }
    }

    /// One thing: as in a list, but the document is the thing itself.
    pub(crate) fn one<T: Serialize + Row>(self, kind: &str, item: &T) -> Result<(), Failed> {
        match self.format {
            Format::Json | Format::Yaml => self.document(&versioned(item)?),
            _ => self.list(kind, std::slice::from_ref(item)),
        }
    }

    /// One object a line.
    pub(crate) fn json_line<T: Serialize>(self, item: &T) -> Result<(), Failed> {
        self.line(&serde_json::to_string(&versioned(item)?).map_err(Failed::render)?)
    }

    fn document<T: Serialize>(self, document: &T) -> Result<(), Failed> {
        if self.format == Format::Yaml {
            let text = serde_yaml_ng::to_string(document).map_err(Failed::render)?;
            return self.data(text.as_bytes());
        }
        self.line(&serde_json::to_string_pretty(document).map_err(Failed::render)?)
    }

    /// Waits for `what`; says what it waits for once that takes more than a moment.
    pub(crate) async fn during<T>(self, text: &str, what: impl Future<Output = T>) -> T {
        tokio::pin!(what);
        tokio::select! {
            biased;
            done = &mut what => return done,
            () = sleep(PATIENCE) => {}
        }
        let _spinner = self.spinner(text);
        what.await
    }

    /// The same, of something that can be asked how it comes along, which is shown beside it.
    pub(crate) async fn following<T>(
        self,
        text: &str,
        what: impl Future<Output = T>,
        mut ask: impl AsyncFnMut() -> Option<String>,
    ) -> T {
        tokio::pin!(what);
        tokio::select! {
            biased;
            done = &mut what => return done,
            () = sleep(PATIENCE) => {}
        }
        let spinner = self.spinner(text);
        let asking = async {
            // Only where somebody sees it.
            let Some(bar) = &spinner.0 else { return std::future::pending().await };
            loop {
                if let Some(now) = ask().await {
                    bar.set_message(format!("{text}: {now}"));
                }
                sleep(ASK_EVERY).await;
            }
        };
        tokio::select! {
            biased;
            done = &mut what => done,
            () = asking => what.await,
        }
    }

    /// Progress of something with bytes, on stderr, until it is dropped.
    pub(crate) fn bytes_bar(self, text: &str) -> Option<ProgressBar> {
        if !self.progress {
            return None;
        }
        let bar = ProgressBar::new_spinner().with_message(text.to_owned());
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {msg} {binary_bytes} ({binary_bytes_per_sec}, {elapsed})")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Some(bar)
    }

    /// A line on stderr that lives until it is dropped.
    pub(crate) fn spinner(self, text: &str) -> Spinner {
        if !self.progress {
            return Spinner(None);
        }
        let bar = ProgressBar::new_spinner().with_message(text.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Spinner(Some(bar))
    }
}

/// Progress of unknown length; gone when dropped.
#[derive(Debug)]
pub(crate) struct Spinner(Option<ProgressBar>);

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// What can be a row of a table.
pub(crate) trait Row {
    fn header(wide: bool) -> Vec<&'static str>;
    fn cells(&self, wide: bool) -> Vec<String>;
    /// For `-o name`.
    fn name(&self) -> String;
}

/// The object with `schema_version` in front.
fn versioned<T: Serialize>(item: &T) -> Result<serde_json::Map<String, serde_json::Value>, Failed> {
    let mut document = serde_json::Map::new();
    document.insert("schema_version".to_owned(), SCHEMA_VERSION.into());
    if let serde_json::Value::Object(fields) = serde_json::to_value(item).map_err(Failed::render)? {
        document.extend(fields);
    }
    Ok(document)
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_header(header.iter().map(|name| name.to_ascii_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    // As kubectl and docker do: two spaces between columns, none at the ends.
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    text.join("\n")
}

/// Writes all of it past every buffer, and waits where the system does not take it yet: another program may have left a
/// descriptor that it shares with this one non-blocking.
pub(crate) fn write_all(out: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    use rustix::{
        event::{PollFd, PollFlags, poll},
        io::Errno,
    };
    while !bytes.is_empty() {
        match rustix::io::write(&out, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&out, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn complain(text: &str) {
    // Nothing can be said where stderr is gone.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_pipe_that_does_not_block_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let text = vec![b'x'; 1 << 20];
        let length = text.len();
        // The pipe holds 64 KiB: the rest has to be waited for.
        let writing = std::thread::spawn(move || write_all(&writer, &text));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        writing.join().unwrap().unwrap();
        assert_eq!(read.len(), length);
    }
}
