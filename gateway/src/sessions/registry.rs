//! All sessions that are attached, for whoever speaks to all of them: the drain and the status.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use holdfast_wire::ids::SessionId;

use super::Session;

/// The attached sessions. Clones are the same registry.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    sessions: Arc<Mutex<HashMap<SessionId, Session>>>,
}

impl Registry {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All of them, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Session> {
        self.lock().values().cloned().collect()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Holds `session` until the entry is dropped.
    pub(super) fn enter(&self, session: &Session) -> Entry {
        let mut sessions = self.lock();
        sessions.insert(session.id(), session.clone());
        metrics::gauge!("holdfast_sessions").set(sessions.len() as f64);
        Entry { registry: self.clone(), id: session.id() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place in the registry.
#[derive(Debug)]
pub(super) struct Entry {
    registry: Registry,
    id: SessionId,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut sessions = self.registry.lock();
        sessions.remove(&self.id);
        metrics::gauge!("holdfast_sessions").set(sessions.len() as f64);
    }
}
