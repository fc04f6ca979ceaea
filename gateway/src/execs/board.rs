//! Who waits for news of which exec. An entry lives as long as somebody waits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_wire::ids::ExecId;
use tokio::sync::watch;

/// News by exec: that there are some, not what. Whoever is woken looks into the store.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    waiting: Arc<Mutex<HashMap<ExecId, watch::Sender<()>>>>,
}

impl Board {
    /// Waits from now on. Subscribe, then look, then wait: nothing that is announced after the look is missed.
    pub(super) fn subscribe(&self, exec: ExecId) -> Subscription {
        let news = self.lock().entry(exec).or_insert_with(|| watch::channel(()).0).subscribe();
        Subscription { board: self.clone(), exec, news: Some(news) }
    }

    /// Wakes whoever waits for news of `exec`.
    pub(super) fn announce(&self, exec: ExecId) {
        if let Some(news) = self.lock().get(&exec) {
            news.send_replace(());
        }
    }

    /// Wakes everybody: the store has changed much at once.
    pub(super) fn announce_all(&self) {
        for news in self.lock().values() {
            news.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ExecId, watch::Sender<()>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits.
#[derive(Debug)]
pub(super) struct Subscription {
    board: Board,
    exec: ExecId,
    /// `None` only while it is dropped.
    news: Option<watch::Receiver<()>>,
}

impl Subscription {
    /// Waits for the next news.
    pub(super) async fn changed(&mut self) {
        // The sender lives in the board for as long as a receiver does, so an error cannot come.
        if let Some(news) = &mut self.news
            && news.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiting = self.board.lock();
        self.news = None;
        if waiting.get(&self.exec).is_some_and(|news| news.receiver_count() == 0) {
            waiting.remove(&self.exec);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn news_between_look_and_wait_are_not_missed() {
        let (board, exec) = (Board::default(), ExecId::random());
        let mut waiting = board.subscribe(exec);
        board.announce(exec);
        waiting.changed().await;
        assert!(waiting.changed().now_or_never().is_none(), "no second news");
    }

    #[tokio::test]
    async fn an_entry_goes_with_the_last_who_waits() {
        let (board, exec) = (Board::default(), ExecId::random());
        let (first, second) = (board.subscribe(exec), board.subscribe(exec));
        drop(first);
        assert_eq!(board.lock().len(), 1);
        drop(second);
        assert!(board.lock().is_empty());
        board.announce(exec);
    }
}
