//! A sign of life of a thread that computes in steps.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Tells how long the step under way has taken.
#[derive(Debug)]
pub(super) struct Pulse {
    begun: Instant,
    /// Milliseconds from `begun` to the beginning of the step under way, and one; 0 between steps.
    step: AtomicU64,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            step: AtomicU64::new(0),
        }
    }

    /// A step begins.
    pub(super) fn begin(&self) {
        let now_ms = self.begun.elapsed().as_millis() as u64;
        self.step.store(now_ms + 1, Ordering::Relaxed);
    }

    /// It has ended.
    pub(super) fn end(&self) {
        self.step.store(0, Ordering::Relaxed);
    }

    /// How long the step under way has taken so far; `None` between steps.
    pub(super) fn step(&self) -> Option<Duration> {
        let begun_ms = self.step.load(Ordering::Relaxed).checked_sub(1)?;
        Some(
            self.begun
                .elapsed()
                .saturating_sub(Duration::from_millis(begun_ms)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_step_under_way_takes_time() {
        let pulse = Pulse::new();
        assert_eq!(pulse.step(), None);
        pulse.begin();
        std::thread::sleep(Duration::from_millis(20));
        let taken = pulse.step().expect("under way");
        assert!(taken >= Duration::from_millis(15), "{taken:?}");
        pulse.end();
        assert_eq!(pulse.step(), None);
    }
}
