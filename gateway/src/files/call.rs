//! One question about a path, one answer.

use holdfast_wire::{
    api::FileInfo,
    close::CloseCode,
    control::{
        FileList, FileMkdir, FileMove, FileRemove, FileStat, FilesAnswer, FilesCall, files_call, files_relay,
    },
    limits,
};
use tokio::time::Duration;

use super::{Files, check, explain, failed, lost_session};
use crate::{
    error::{CallError, Reason},
    relays::RelayError,
};

/// An answer. A tree of a million files takes minutes to remove; everything else takes milliseconds, unless a disk
/// hangs.
const ANSWER: Duration = Duration::from_secs(300);

impl Files {
    /// What is at a path.
    ///
    /// # Errors
    /// What the sandbox's system says, by the table of reasons; so with all of these.
    pub async fn stat(&self, sandbox: &str, user: &str, stat: FileStat) -> Result<FileInfo, CallError> {
        check("path", &stat.path, user)?;
        one(self.ask(sandbox, user, files_call::Kind::Stat(stat)).await?)
    }

    /// A page of a directory; true: there is more.
    pub async fn list(
        &self,
        sandbox: &str,
        user: &str,
        list: FileList,
    ) -> Result<(Vec<FileInfo>, bool), CallError> {
        check("path", &list.path, user)?;
        if list.limit as usize > limits::MAX_LIST {
            return Err(CallError::invalid("limit", format!("at most {}", limits::MAX_LIST)));
        }
        if list.after.len() > limits::MAX_PATH {
            return Err(CallError::invalid("after", "too long"));
        }
        let answer = self.ask(sandbox, user, files_call::Kind::List(list)).await?;
        Ok((answer.entries, answer.more))
    }

    /// Makes a directory.
    pub async fn mkdir(&self, sandbox: &str, user: &str, mkdir: FileMkdir) -> Result<FileInfo, CallError> {
        check("path", &mkdir.path, user)?;
        one(self.ask(sandbox, user, files_call::Kind::Mkdir(mkdir)).await?)
    }

    /// Removes a file or a directory.
    pub async fn remove(&self, sandbox: &str, user: &str, remove: FileRemove) -> Result<(), CallError> {
        check("path", &remove.path, user)?;
        self.ask(sandbox, user, files_call::Kind::Remove(remove)).await.map(drop)
    }

    /// Renames.
    pub async fn rename(&self, sandbox: &str, user: &str, rename: FileMove) -> Result<FileInfo, CallError> {
        check("from", &rename.from, user)?;
        check("to", &rename.to, user)?;
        one(self.ask(sandbox, user, files_call::Kind::Move(rename)).await?)
    }

    async fn ask(&self, sandbox: &str, user: &str, kind: files_call::Kind) -> Result<FilesAnswer, CallError> {
        let call = files_relay::Kind::Call(FilesCall { user: user.to_owned(), kind: Some(kind) });
        let mut relay = self.open(sandbox, call, None, "").await?;
        // Nothing more will be said.
        let _ = relay.send.finish();
        let session = relay.session.clone();
        let answer = tokio::select! {
            biased;
            answer = relay.recv.message::<FilesAnswer>(limits::MAX_MESSAGE) => match answer {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => Err(explain(RelayError::Protocol("its stream ended without an answer".to_owned()))),
                Err(error) => Err(explain(RelayError::of_stream(error, &session))),
            },
            lost = session.closed() => Err(lost_session(&lost)),
            () = tokio::time::sleep(ANSWER) => {
                let message = format!("the sandbox's file system did not answer within {ANSWER:?}");
                Err(CallError::new(Reason::RelayDeadline, message))
            }
        };
        relay.guard.ended(if answer.is_ok() { "done" } else { "failed" });
        let answer = answer?;
        relay.recv.stop(CloseCode::DONE);
        match &answer.failure {
            Some(failure) => Err(failed(failure)),
            None => Ok(answer),
        }
    }
}

fn one(answer: FilesAnswer) -> Result<FileInfo, CallError> {
    answer
        .entries
        .into_iter()
        .next()
        .ok_or_else(|| CallError::internal("asking about a file", &"an empty answer"))
}
