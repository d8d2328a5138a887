//! A team of threads that compute a step together.
//!
//! A step has hundreds of products of about ten to a hundred microseconds each, so a thread must
//! start within about a microsecond. Hence helpers spin before they sleep, and the caller never
//! waits for a helper that has not started.

use std::{
    any::Any,
    cell::UnsafeCell,
    hint::spin_loop,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Condvar, Mutex, MutexGuard, Once, PoisonError, TryLockError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

/// How long an idle helper polls for work before it sleeps: first spinning, then yielding, together
/// some tens of microseconds on an idle CPU.
const SPINS: usize = 2_000;
const YIELDS: usize = 100;

/// In [`Team::gate`]: helpers may enter.
const OPEN: u64 = 1 << 31;
/// In [`Team::gate`]: number of helpers inside.
const INSIDE: u64 = OPEN - 1;

type SharedWork<'a> = &'a (dyn Fn() + Sync);

/// The helpers of this process, one fewer than computing threads.
static TEAM: Team = Team::new();

/// Computes pieces `0..pieces` on all threads, each with its own state from `start`. Every thread
/// takes a contiguous range first, so that the hardware prefetches well, and then pieces left in
/// other threads' ranges. If another thread is using the helpers, or this thread is a helper, the
/// caller computes alone.
///
/// # Panics
/// When `work` panicked on any thread.
pub(in crate::engine) fn share<S>(
    pieces: usize,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) + Sync,
) {
    let threads = threads();
    let first = |thread: usize| (thread * pieces / threads) as u32;
    let spans: Vec<PieceRange> = (0..threads)
        .map(|thread| PieceRange::new(first(thread)..first(thread + 1)))
        .collect();
    let next_thread = AtomicUsize::new(0);
    TEAM.run(&|| {
        let mut state = start();
        let own = next_thread.fetch_add(1, Ordering::Relaxed);
        while let Some(piece) = spans.get(own).and_then(PieceRange::take_first) {
            work(&mut state, piece);
        }
        for span in &spans {
            while let Some(piece) = span.take_last() {
                work(&mut state, piece);
            }
        }
    });
}

/// Pieces not taken yet: the first in the upper half, the end in the lower.
struct PieceRange(AtomicU64);

impl PieceRange {
    fn new(pieces: Range<u32>) -> Self {
        Self(AtomicU64::new(
            u64::from(pieces.start) << 32 | u64::from(pieces.end),
        ))
    }

    fn take_first(&self) -> Option<usize> {
        let taken = self.take(|pieces| pieces + (1 << 32))?;
        Some((taken >> 32) as usize)
    }

    fn take_last(&self) -> Option<usize> {
        let taken = self.take(|pieces| pieces - 1)?;
        Some((taken as u32 - 1) as usize)
    }

    /// Takes a piece; returns the range before it.
    fn take(&self, pause: impl Fn(u64) -> u64) -> Option<u64> {
        // Only claims pieces; opening the gate has published what they are.
        let order = Ordering::Relaxed;
        let take = |pieces: u64| ((pieces >> 32) < (pieces & 0xffff_ffff)).then(|| pause(pieces));
        self.0.fetch_update(order, order, take).ok()
    }
}

/// Like [`share`], for borrowed pieces such as parts of a slice.
///
/// # Panics
/// As [`share`].
pub(in crate::engine) fn share_parts<P: Send>(
    parts: impl Iterator<Item = P> + Send,
    work: impl Fn(P) + Sync,
) {
    let parts = Mutex::new(parts);
    // A closure of its own, so that the lock is released before a part is worked on.
    let next = || lock(&parts).next();
    TEAM.run(&|| {
        while let Some(part) = next() {
            work(part);
        }
    });
}

/// Threads that compute together, the caller included: as many as rayon's, so that one setting
/// (`RAYON_NUM_THREADS`, else the CPUs available to the process) applies to both.
pub(in crate::engine) fn threads() -> usize {
    rayon::current_num_threads()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Consistent after a panic: no update takes two steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one caller's work at a time, on its thread and the helpers.
struct Team {
    /// Held by the caller.
    caller: Mutex<()>,
    /// The work's number in the upper half; below it [`OPEN`] and the number of helpers [`INSIDE`].
    gate: AtomicU64,
    /// Set by the caller while the gate is closed and no helper is inside.
    work: UnsafeCell<Option<SharedWork<'static>>>,
    /// A helper's panic.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleeping: AtomicUsize,
    sleep_lock: Mutex<()>,
    wake: Condvar,
    started: Once,
}

#[expect(unsafe_code, reason = "the work is in a cell that the gate guards")]
// SAFETY: `work` is written by the only caller while no helper is inside the gate, and read inside.
unsafe impl Sync for Team {}

/// Closes the gate and waits for the helpers inside, even if the caller's own part panics.
struct CloseOnDrop<'a>(&'a Team);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut polls = 0;
        while self.0.gate.load(Ordering::Acquire) & INSIDE > 0 {
            polls += 1;
            pause(polls);
        }
    }
}

/// Pauses between two polls.
fn pause(polls: usize) {
    if polls < SPINS {
        spin_loop();
    } else {
        thread::yield_now();
    }
}

impl Team {
    const fn new() -> Self {
        Self {
            caller: Mutex::new(()),
            gate: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleeping: AtomicUsize::new(0),
            sleep_lock: Mutex::new(()),
            wake: Condvar::new(),
            started: Once::new(),
        }
    }

    /// Runs `work` here and on every helper that arrives in time; all have left it on return.
    #[expect(unsafe_code, reason = "helpers outlive the work that they borrow")]
    fn run(&'static self, work: SharedWork<'_>) {
        let caller = match self.caller.try_lock() {
            Ok(caller) => caller,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
            Err(TryLockError::WouldBlock) => return work(),
        };
        self.started.call_once(|| self.start());
        // SAFETY: only the lifetime changes, and `CloseOnDrop` keeps this frame until no helper is inside.
        let lent = unsafe { std::mem::transmute::<SharedWork<'_>, SharedWork<'static>>(work) };
        // SAFETY: the gate is closed and no helper is inside, so nobody reads; `caller` is held, so nobody
        // else writes.
        unsafe { *self.work.get() = Some(lent) };
        // The caller's own panic may have left a helper's behind.
        *lock(&self.panic) = None;
        let number = (self.gate.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        let close = CloseOnDrop(self);
        self.gate.store(number | OPEN, Ordering::SeqCst);
        // A helper about to sleep either sees the open gate or is counted here.
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.sleep_lock));
            self.wake.notify_all();
        }
        work();
        drop(close);
        drop(caller);
        if let Some(panic) = lock(&self.panic).take() {
            resume_unwind(panic);
        }
    }

    fn start(&'static self) {
        for helper in 1..threads() {
            let thread = thread::Builder::new().name(format!("compute-{helper}"));
            if let Err(error) = thread.spawn(|| self.help()) {
                tracing::warn!(%error, "cannot start compute thread {helper}; computing on {helper} threads");
                return;
            }
        }
    }

    fn help(&self) {
        let mut done = 0;
        loop {
            let seen = self.await_work(done);
            // Fails when another helper entered at the same time or the gate was closed.
            let (taken, missed) = (Ordering::Acquire, Ordering::Relaxed);
            let entered = self.gate.compare_exchange(seen, seen + 1, taken, missed);
            if entered.is_ok() {
                self.take_part();
                self.gate.fetch_sub(1, Ordering::Release);
                done = seen >> 32;
            }
        }
    }

    #[expect(unsafe_code, reason = "see `Team::work`")]
    fn take_part(&self) {
        // SAFETY: this thread is inside the gate, so the caller waits and does not write.
        let work = unsafe { *self.work.get() };
        let Some(work) = work else { return };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            *lock(&self.panic) = Some(panic);
        }
    }

    /// Waits until the gate is open for work other than number `done`; returns the gate.
    fn await_work(&self, done: u64) -> u64 {
        let poll = |order| {
            let gate = self.gate.load(order);
            (gate & OPEN > 0 && gate >> 32 != done).then_some(gate)
        };
        for polls in 0..SPINS + YIELDS {
            if let Some(gate) = poll(Ordering::Relaxed) {
                return gate;
            }
            pause(polls);
        }
        let mut sleep_lock = lock(&self.sleep_lock);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        let gate = loop {
            if let Some(gate) = poll(Ordering::SeqCst) {
                break gate;
            }
            sleep_lock = self
                .wake
                .wait(sleep_lock)
                .unwrap_or_else(PoisonError::into_inner);
        };
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        gate
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::engine::local::cpu::kernels::team::*;

    #[test]
    fn concurrent_callers_compute_each_piece_once() {
        thread::scope(|scope| {
            for caller in 0..4 {
                scope.spawn(move || {
                    for round in 0..300 {
                        let pieces = (caller * 37 + round) % 50;
                        let seen: Vec<AtomicUsize> =
                            (0..pieces).map(|_| AtomicUsize::new(0)).collect();
                        let count = |_: &mut (), piece: usize| {
                            seen[piece].fetch_add(1, Ordering::Relaxed);
                        };
                        share(pieces, || (), count);
                        assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed) == 1));
                        if round % 100 == 0 {
                            // Long enough for helpers to fall asleep.
                            thread::sleep(Duration::from_millis(5));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn all_borrowed_parts_are_written() {
        let mut numbers = vec![0; 1_000];
        share_parts(numbers.chunks_mut(7).enumerate(), |(at, part)| {
            part.fill(at)
        });
        assert!(
            numbers
                .iter()
                .enumerate()
                .all(|(at, number)| *number == at / 7)
        );
    }

    #[test]
    fn a_panic_reaches_the_caller_and_later_work_succeeds() {
        for unlucky in 0..20 {
            let panics = |_: &mut (), piece: usize| assert_ne!(piece, unlucky);
            let outcome = catch_unwind(|| share(20, || (), panics));
            assert!(outcome.is_err());
            let done = AtomicUsize::new(0);
            let count = |_: &mut (), _| _ = done.fetch_add(1, Ordering::Relaxed);
            share(20, || (), count);
            assert_eq!(done.into_inner(), 20);
        }
    }

    #[test]
    fn nested_work_is_computed_alone() {
        let done = AtomicUsize::new(0);
        let inner = |_: &mut (), _| _ = done.fetch_add(1, Ordering::Relaxed);
        share(5, || (), |_, _| share(3, || (), inner));
        assert_eq!(done.into_inner(), 15);
    }
}
