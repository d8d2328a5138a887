//! The state that a consumer shares with the task that owns the file.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::broker::Queue;

use super::table::Row;

/// One opening of the broker: ackers of an older one are dead.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Cancelled when the broker is closed.
    pub(super) ended: CancellationToken,
    /// Wakes the worker when a consumer wants messages.
    pub(super) demand: Notify,
}

/// One consumer's queues and the messages that it has of them.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) session: Arc<Session>,
    pub(super) queues: Vec<Queue>,
    prefetch: usize,
    state: Mutex<State>,
    /// Wakes the consumer when messages have arrived.
    pub(super) arrived: Notify,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Messages the consumer waits for; kept when its call is dropped half way.
    wanted: usize,
    /// Claimed but not returned, with the position of their queue in `queues`.
    buffer: VecDeque<(usize, Row)>,
    /// Ids of the claimed and unsettled messages of each of `queues`.
    unsettled: Vec<HashSet<i64>>,
    /// The queue that is served first next time, so that none starves.
    first: usize,
}

impl Subscription {
    pub(super) fn new(session: Arc<Session>, queues: &[Queue], prefetch: u16) -> Self {
        let state = State {
            unsettled: vec![HashSet::new(); queues.len()],
            ..State::default()
        };
        Self {
            session,
            queues: queues.to_vec(),
            prefetch: prefetch.max(1).into(),
            state: Mutex::new(state),
            arrived: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Asks the worker for messages until `max` wait in the buffer.
    pub(super) fn want(&self, max: usize) {
        let mut state = self.lock();
        state.wanted = max.saturating_sub(state.buffer.len());
        if state.wanted > 0 {
            self.session.demand.notify_one();
        }
    }

    /// How many messages wait in the buffer.
    pub(super) fn waiting(&self) -> usize {
        self.lock().buffer.len()
    }

    /// Takes up to `max` messages out of the buffer and ends the demand.
    pub(super) fn take(&self, max: usize) -> Vec<(usize, Row)> {
        let mut state = self.lock();
        state.wanted = 0;
        let taken = state.buffer.len().min(max);
        state.buffer.drain(..taken).collect()
    }

    /// The queue to claim from next, and how many messages; the first `asked` queues are skipped.
    pub(super) fn room(&self, asked: usize) -> Option<(usize, usize)> {
        let state = self.lock();
        if state.wanted == 0 || asked == self.queues.len() || self.is_closed() {
            return None;
        }
        let place = (state.first + asked) % self.queues.len();
        let room = self.prefetch.saturating_sub(state.unsettled[place].len());
        Some((place, room.min(state.wanted)))
    }

    /// Hands claimed messages over.
    pub(super) fn fill(&self, place: usize, rows: Vec<Row>) {
        if rows.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.wanted = state.wanted.saturating_sub(rows.len());
        state.first = (place + 1) % self.queues.len();
        state.unsettled[place].extend(rows.iter().map(|row| row.id));
        state
            .buffer
            .extend(rows.into_iter().map(|row| (place, row)));
        drop(state);
        self.arrived.notify_one();
    }

    /// Frees a place of the prefetch.
    pub(super) fn settled(&self, place: usize, id: i64) {
        self.lock().unsettled[place].remove(&id);
    }

    /// Ends the subscription; the worker requeues what was never returned.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.session.demand.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The ids that a closed subscription requeues: messages never returned, and with `all` also
    /// those that can no longer be settled.
    pub(super) fn abandon(&self, all: bool) -> Vec<i64> {
        let mut state = self.lock();
        let buffer = std::mem::take(&mut state.buffer);
        let mut ids: Vec<i64> = Vec::with_capacity(buffer.len());
        for (place, row) in buffer {
            state.unsettled[place].remove(&row.id);
            ids.push(row.id);
        }
        if all {
            ids.extend(state.unsettled.iter_mut().flat_map(HashSet::drain));
        }
        ids
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settles one delivery of the embedded broker.
#[derive(Debug)]
pub struct EmbeddedAcker {
    pub(super) id: i64,
    /// Position of its queue in the subscription.
    pub(super) place: usize,
    pub(super) subscription: Arc<Subscription>,
}

impl EmbeddedAcker {
    /// False once the broker that delivered it is closed.
    pub fn is_live(&self) -> bool {
        !self.subscription.session.ended.is_cancelled()
    }
}
