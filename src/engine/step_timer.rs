//! Measures the step that a computing thread is in, so that a watchdog can see it hang.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Reports how long the current step has been running.
#[derive(Debug)]
pub(super) struct StepTimer {
    begun: Instant,
    /// Milliseconds from `begun` to the start of the current step, plus one; 0 between steps.
    step: AtomicU64,
}

impl StepTimer {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            step: AtomicU64::new(0),
        }
    }

    /// Marks the start of a step.
    pub(super) fn begin(&self) {
        let now_ms = self.begun.elapsed().as_millis() as u64;
        self.step.store(now_ms + 1, Ordering::Relaxed);
    }

    /// Marks its end.
    pub(super) fn end(&self) {
        self.step.store(0, Ordering::Relaxed);
    }

    /// How long the current step has been running; `None` between steps.
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
    fn time_is_measured_only_within_a_step() {
        let timer = StepTimer::new();
        assert_eq!(timer.step(), None);
        timer.begin();
        std::thread::sleep(Duration::from_millis(20));
        let taken = timer.step().expect("a step is running");
        assert!(taken >= Duration::from_millis(15), "{taken:?}");
        timer.end();
        assert_eq!(timer.step(), None);
    }
}
