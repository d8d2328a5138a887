//! What the consumer and the worker share: demand on one side, messages on the other.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{super::Queue, table::Row};

/// One opening of the broker: ackers of an older one are dead.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Cancelled when the broker is closed.
    pub(super) ended: CancellationToken,
    /// Rings the worker when a consumer wants messages.
    pub(super) demand: Notify,
}

/// One consumer's queues and what it holds of them.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) session: Arc<Session>,
    pub(super) queues: Vec<Queue>,
    prefetch: usize,
    held: Mutex<Held>,
    /// Rings the consumer when messages have arrived.
    pub(super) arrived: Notify,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Held {
    /// Messages the consumer waits for; stays when its call is dropped half way.
    wanted: usize,
    /// Claimed but not returned, with the place of their queue in `queues`.
    buffer: VecDeque<(usize, Row)>,
    /// Ids of everything claimed and not settled, for each of `queues`.
    unsettled: Vec<HashSet<i64>>,
    /// The queue that is asked first next time, so that none starves.
    first: usize,
}

impl Subscription {
    pub(super) fn new(session: Arc<Session>, queues: &[Queue], prefetch: u16) -> Self {
        let held = Held {
            unsettled: vec![HashSet::new(); queues.len()],
            ..Held::default()
        };
        Self {
            session,
            queues: queues.to_vec(),
            prefetch: prefetch.max(1).into(),
            held: Mutex::new(held),
            arrived: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Asks the worker for messages until `max` wait in the buffer.
    pub(super) fn want(&self, max: usize) {
        let mut held = self.lock();
        held.wanted = max.saturating_sub(held.buffer.len());
        if held.wanted > 0 {
            self.session.demand.notify_one();
        }
    }

    /// How many messages wait in the buffer.
    pub(super) fn waiting(&self) -> usize {
        self.lock().buffer.len()
    }

    /// Takes up to `max` messages out of the buffer and withdraws what was still wanted.
    pub(super) fn take(&self, max: usize) -> Vec<(usize, Row)> {
        let mut held = self.lock();
        held.wanted = 0;
        let taken = held.buffer.len().min(max);
        held.buffer.drain(..taken).collect()
    }

    /// Which queue may be claimed from next, and how much. Places already asked are skipped.
    pub(super) fn room(&self, asked: usize) -> Option<(usize, usize)> {
        let held = self.lock();
        if held.wanted == 0 || asked == self.queues.len() || self.is_closed() {
            return None;
        }
        let place = (held.first + asked) % self.queues.len();
        let room = self.prefetch.saturating_sub(held.unsettled[place].len());
        Some((place, room.min(held.wanted)))
    }

    /// Hands claimed messages over.
    pub(super) fn fill(&self, place: usize, rows: Vec<Row>) {
        if rows.is_empty() {
            return;
        }
        let mut held = self.lock();
        held.wanted = held.wanted.saturating_sub(rows.len());
        held.first = (place + 1) % self.queues.len();
        held.unsettled[place].extend(rows.iter().map(|row| row.id));
        held.buffer.extend(rows.into_iter().map(|row| (place, row)));
        drop(held);
        self.arrived.notify_one();
    }

    /// Makes room for another message.
    pub(super) fn settled(&self, place: usize, id: i64) {
        self.lock().unsettled[place].remove(&id);
    }

    /// Ends the subscription; the worker puts back what was never returned.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.session.demand.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes the ids of a closed subscription that go back: what was never returned, and with
    /// `all` also what nobody can settle any more.
    pub(super) fn abandon(&self, all: bool) -> Vec<i64> {
        let mut held = self.lock();
        let buffer = std::mem::take(&mut held.buffer);
        let mut ids: Vec<i64> = Vec::with_capacity(buffer.len());
        for (place, row) in buffer {
            held.unsettled[place].remove(&row.id);
            ids.push(row.id);
        }
        if all {
            ids.extend(held.unsettled.iter_mut().flat_map(HashSet::drain));
        }
        ids
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
