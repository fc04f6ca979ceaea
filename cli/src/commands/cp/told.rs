//! What came of a copy, as it is told.

use std::time::Duration;

use holdfast_files::failure::path_of;
use holdfast_wire::api::{FileProblem, FileProblemKind};
use serde::Serialize;

use super::{Copied, Side};
use crate::{
    failure::Failed,
    output::{Output, Row},
};

/// The exit code where everything came that could be read, and something could not.
const INCOMPLETE: u8 = 1;

/// The copy as it is told.
#[derive(Debug, Serialize)]
struct Told {
    path: String,
    entries: u64,
    files: u64,
    bytes: u64,
    /// SHA-256 of the transfer's stream, as the receiver made it.
    digest: String,
    took_ms: u64,
    problems: Vec<ToldProblem>,
}

#[derive(Debug, Serialize)]
struct ToldProblem {
    path: String,
    reason: &'static str,
    errno: i32,
    message: String,
}

/// Says what came of it, and gives the exit code.
pub(super) fn tell(
    output: Output,
    to: &Side,
    sandbox: Option<String>,
    copied: &Copied,
    took: Duration,
) -> Result<u8, Failed> {
    let Copied { result, problems } = copied;
    for problem in problems {
        let path = path_of(&problem.path);
        output.note(&format!(
            "left out: {}: {}",
            path.display(),
            holdfast_files::failure::clean(&problem.message)
        ));
    }
    let path = path_of(&result.path).display().to_string();
    let told = Told {
        path: match sandbox {
            Some(sandbox) => format!("{sandbox}:{path}"),
            None => path,
        },
        entries: result.entries,
        files: result.files,
        bytes: result.bytes,
        digest: result.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        problems: problems.iter().map(ToldProblem::new).collect(),
    };
    // stdout carries the archive.
    if *to != Side::Archive {
        if output.format == crate::args::Format::Table {
            if !output.quiet {
                output.line(&told.path)?;
            }
        } else {
            output.one("copies", &told)?;
        }
    }
    let verified = format!(
        "copied {} files, {}, in {:.1} s; verified, sha256 {}",
        told.files,
        indicatif::HumanBytes(told.bytes),
        took.as_secs_f64(),
        told.digest.get(..16).unwrap_or_default()
    );
    output.note(&verified);
    let incomplete = problems.iter().any(|problem| problem.kind() != FileProblemKind::Special);
    Ok(if incomplete { INCOMPLETE } else { 0 })
}

impl ToldProblem {
    fn new(problem: &FileProblem) -> Self {
        let reason = match problem.kind() {
            FileProblemKind::Special => "special",
            FileProblemKind::Vanished => "vanished",
            FileProblemKind::Denied => "denied",
            FileProblemKind::Changed => "changed",
            FileProblemKind::Unreadable | FileProblemKind::Unspecified => "unreadable",
        };
        Self {
            path: path_of(&problem.path).display().to_string(),
            reason,
            errno: problem.errno,
            message: problem.message.clone(),
        }
    }
}

impl Row for Told {
    fn header(_: bool) -> Vec<&'static str> {
        vec!["path", "files", "bytes", "digest"]
    }

    fn cells(&self, _: bool) -> Vec<String> {
        vec![self.path.clone(), self.files.to_string(), self.bytes.to_string(), self.digest.clone()]
    }

    fn name(&self) -> String {
        self.path.clone()
    }
}
