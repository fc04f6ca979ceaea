//! One question about a path, one answer.

use std::sync::Arc;

use holdfast_files::{Failure, calls};
use holdfast_wire::{
    close::CloseCode,
    control::{FilesAnswer, FilesCall, RefusedCode, files_call::Kind},
    limits::{MAX_MESSAGE, MAX_USER},
    transport::{MessageReader, SendStream},
};
use tokio::sync::oneshot;

use super::{Inner, user};
use crate::execs::{Refusal, accept, finish, refuse};

/// Questions at once. On a mount that hangs, one holds its thread for as long as it hangs, whoever has given it up.
pub(super) const CALLS: usize = 64;

/// Serves one call to its end. What it does to the file system is done also when the caller goes away.
pub(super) async fn serve(room: &Arc<Inner>, call: FilesCall, mut send: SendStream, mut recv: MessageReader) {
    if call.kind.is_none() || call.user.len() > MAX_USER {
        let refusal = match call.kind {
            None => Refusal::new(
                RefusedCode::UnknownKind,
                "this supervisor does not know this question about files",
            ),
            Some(_) => Refusal::new(RefusedCode::Invalid, format!("user: at most {MAX_USER} bytes")),
        };
        return refuse(refusal, send, recv).await;
    }
    let Ok(place) = Arc::clone(&room.calls).try_acquire_owned() else {
        let message = format!("{CALLS} questions about files have no answer from the file system yet");
        return refuse(Refusal::new(RefusedCode::Exhausted, message), send, recv).await;
    };
    let (tell, told) = oneshot::channel();
    let work = {
        let room = Arc::clone(room);
        move || {
            let _place = place;
            // Nobody waits any more: done it is.
            let _ = tell.send(answer(&room, call));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("files call".to_owned()).spawn(work) {
        let message = format!("no thread for a question about files: {error}");
        return refuse(Refusal::new(RefusedCode::Exhausted, message), send, recv).await;
    }
    recv.on_drop(CloseCode::DONE);
    if accept(&mut send).await.is_err() {
        return;
    }
    let answer = tokio::select! {
        answer = told => answer,
        _ = send.stopped() => return,
    };
    let answer = answer.unwrap_or_else(|_| failed(&Failure::abandoned("the thread for it has panicked")));
    match send.send_message(&answer, MAX_MESSAGE).await {
        Ok(()) => finish(&mut send).await,
        // Dropping the stream resets it.
        Err(error) => tracing::debug!(%error, "an answer about files could not be delivered"),
    }
}

fn answer(room: &Inner, call: FilesCall) -> FilesAnswer {
    match user::become_user(&call.user, &room.etc).and_then(|()| ask(room, call.kind)) {
        Ok(answer) => answer,
        Err(failure) => failed(&failure),
    }
}

fn failed(failure: &Failure) -> FilesAnswer {
    FilesAnswer { failure: Some(failure.to_wire()), ..FilesAnswer::default() }
}

fn ask(room: &Inner, kind: Option<Kind>) -> Result<FilesAnswer, Failure> {
    let one = |info| FilesAnswer { entries: vec![info], ..FilesAnswer::default() };
    match kind {
        Some(Kind::Stat(stat)) => calls::stat(&room.path(&stat.path)?, stat.follow).map(one),
        Some(Kind::List(list)) => {
            let limit = usize::try_from(list.limit).unwrap_or(usize::MAX);
            let (entries, more) = calls::list(&room.path(&list.path)?, &list.after, limit)?;
            Ok(FilesAnswer { entries, more, failure: None })
        }
        Some(Kind::Mkdir(mkdir)) => {
            calls::mkdir(&room.path(&mkdir.path)?, mkdir.mode, mkdir.parents).map(one)
        }
        Some(Kind::Remove(remove)) => {
            calls::remove(&room.path(&remove.path)?, remove.recursive, remove.force)?;
            Ok(FilesAnswer::default())
        }
        Some(Kind::Move(rename)) => {
            calls::rename(&room.path(&rename.from)?, &room.path(&rename.to)?, rename.no_replace).map(one)
        }
        None => Ok(FilesAnswer::default()),
    }
}
