//! Threads that compute a step together.
//!
//! A step has some hundred products, each of some ten to some hundred microseconds, so that a
//! thread must begin within about a microsecond. Hence helpers look for work for a while before
//! they sleep, and whoever has work never waits for a helper that has not begun.

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

/// Looks for work, first in a tight loop, then giving way to other threads, before a helper sleeps:
/// together some tens of microseconds where nobody else wants the CPU.
const SPINS: usize = 2_000;
const YIELDS: usize = 100;

/// In [`Team::gate`]: helpers may come in.
const OPEN: u64 = 1 << 31;
/// In [`Team::gate`]: the helpers inside.
const INSIDE: u64 = OPEN - 1;

type Work<'a> = &'a (dyn Fn() + Sync);

/// The helpers of this process, one less than there are threads to compute with.
static TEAM: Team = Team::new();

/// Computes `0..pieces` on all threads, each with a state of its own from `start`. Every thread
/// takes a run of neighbours, so that it can fetch from memory what comes next, and then what the
/// others have not come to. When another thread has the helpers already, or this is one of them,
/// the caller computes alone.
///
/// # Panics
/// When `work` panicked, on whichever thread.
pub(in crate::engine) fn share<S>(
    pieces: usize,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) + Sync,
) {
    let threads = threads();
    let first = |thread: usize| (thread * pieces / threads) as u32;
    let spans: Vec<Span> = (0..threads)
        .map(|thread| Span::new(first(thread)..first(thread + 1)))
        .collect();
    let next_thread = AtomicUsize::new(0);
    TEAM.run(&|| {
        let mut state = start();
        let own = next_thread.fetch_add(1, Ordering::Relaxed);
        while let Some(piece) = spans.get(own).and_then(Span::take_first) {
            work(&mut state, piece);
        }
        for span in &spans {
            while let Some(piece) = span.take_last() {
                work(&mut state, piece);
            }
        }
    });
}

/// Pieces that nobody has taken yet: the first in the upper half, the end in the lower.
struct Span(AtomicU64);

impl Span {
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

    /// The pieces before one was taken.
    fn take(&self, rest: impl Fn(u64) -> u64) -> Option<u64> {
        // Pieces are claimed here; what they are is known to all since the gate opened.
        let order = Ordering::Relaxed;
        let take = |pieces: u64| ((pieces >> 32) < (pieces & 0xffff_ffff)).then(|| rest(pieces));
        self.0.fetch_update(order, order, take).ok()
    }
}

/// As [`share`], for pieces that are lent, such as parts of a slice.
///
/// # Panics
/// As [`share`].
pub(in crate::engine) fn share_parts<P: Send>(
    parts: impl Iterator<Item = P> + Send,
    work: impl Fn(P) + Sync,
) {
    let parts = Mutex::new(parts);
    // A function of its own, so that the lock is free while a part is worked on.
    let next = || lock(&parts).next();
    TEAM.run(&|| {
        while let Some(part) = next() {
            work(part);
        }
    });
}

/// Threads that compute together, the caller included: as many as rayon has, so that one setting
/// (`RAYON_NUM_THREADS`, else the CPUs that the process may use) holds for both.
pub(in crate::engine) fn threads() -> usize {
    rayon::current_num_threads()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left behind is whole: nothing is changed in two steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work of one caller at a time, done by it and its helpers.
struct Team {
    /// Held by the caller.
    caller: Mutex<()>,
    /// The number of the work in the upper half; below it [`OPEN`] and the helpers [`INSIDE`].
    gate: AtomicU64,
    /// Set by the caller while the gate is shut and nobody is inside.
    work: UnsafeCell<Option<Work<'static>>>,
    /// What a helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleeping: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
    started: Once,
}

#[expect(unsafe_code, reason = "the work is in a cell that the gate guards")]
// SAFETY: `work` is written by the one caller while nobody is inside the gate, and read inside.
unsafe impl Sync for Team {}

/// Shuts the gate and waits for those inside, even when the caller's own part panics.
struct Shut<'a>(&'a Team);

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.0.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while self.0.gate.load(Ordering::Acquire) & INSIDE > 0 {
            looks += 1;
            rest(looks);
        }
    }
}

/// A moment between two looks.
fn rest(looks: usize) {
    if looks < SPINS {
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
            bed: Mutex::new(()),
            wake: Condvar::new(),
            started: Once::new(),
        }
    }

    /// Runs `work` here and on every helper that is there in time; all have left it on return.
    #[expect(
        unsafe_code,
        reason = "helpers outlive what is lent to them for a moment"
    )]
    fn run(&'static self, work: Work<'_>) {
        let caller = match self.caller.try_lock() {
            Ok(caller) => caller,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
            Err(TryLockError::WouldBlock) => return work(),
        };
        self.started.call_once(|| self.start());
        // SAFETY: only the lifetime changes, and `Shut` keeps this frame until nobody is inside.
        let lent = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: the gate is shut and nobody is inside, so that nobody reads; `caller` is held, so
        // that nobody else writes.
        unsafe { *self.work.get() = Some(lent) };
        // The caller's own panic may have come before a helper's was taken.
        *lock(&self.panic) = None;
        let number = (self.gate.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        let shut = Shut(self);
        self.gate.store(number | OPEN, Ordering::SeqCst);
        // Either a helper about to sleep sees the open gate, or it is counted here.
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.bed));
            self.wake.notify_all();
        }
        work();
        drop(shut);
        drop(caller);
        if let Some(panic) = lock(&self.panic).take() {
            resume_unwind(panic);
        }
    }

    fn start(&'static self) {
        for helper in 1..threads() {
            let thread = thread::Builder::new().name(format!("compute-{helper}"));
            if let Err(error) = thread.spawn(|| self.help()) {
                tracing::warn!("computing on {helper} threads: {error}");
                return;
            }
        }
    }

    fn help(&self) {
        let mut done = 0;
        loop {
            let seen = self.await_work(done);
            // Fails when another helper came in at the same time, or the gate was shut.
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
        // SAFETY: this thread is inside the gate, so that the caller waits and does not write.
        let work = unsafe { *self.work.get() };
        let Some(work) = work else { return };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            *lock(&self.panic) = Some(panic);
        }
    }

    /// The gate, once it is open for other work than that numbered `done`.
    fn await_work(&self, done: u64) -> u64 {
        let look = |order| {
            let gate = self.gate.load(order);
            (gate & OPEN > 0 && gate >> 32 != done).then_some(gate)
        };
        for looks in 0..SPINS + YIELDS {
            if let Some(gate) = look(Ordering::Relaxed) {
                return gate;
            }
            rest(looks);
        }
        let mut bed = lock(&self.bed);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        let gate = loop {
            if let Some(gate) = look(Ordering::SeqCst) {
                break gate;
            }
            bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
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
    fn each_piece_is_computed_once_however_many_callers_there_are() {
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
    fn lent_parts_are_all_written() {
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
    fn a_panic_on_any_thread_reaches_the_caller_and_the_next_work_is_done() {
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
    fn work_within_work_is_done_alone() {
        let done = AtomicUsize::new(0);
        let inner = |_: &mut (), _| _ = done.fetch_add(1, Ordering::Relaxed);
        share(5, || (), |_, _| share(3, || (), inner));
        assert_eq!(done.into_inner(), 15);
    }
}
