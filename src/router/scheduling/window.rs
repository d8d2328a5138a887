//! How many jobs may wait in a tier's queue: as few as keep its workers busy between two polls, since
//! they all go before the next job that arrives.

/// Times that the window may grow beyond its smallest size.
const GROWTH_MAX: u64 = 64;

/// The size of a tier's queue, adapted at each poll to what is left in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueWindow {
    min: u64,
    size: u64,
    /// Jobs in the queue after the last poll, if its release filled it.
    filled: u64,
}

impl QueueWindow {
    /// A window of at least `min` jobs.
    pub(super) fn new(min: u64) -> Self {
        Self {
            min,
            size: min,
            filled: 0,
        }
    }

    /// Jobs that may be in the queue.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Adapts to `ready` jobs in the queue. If the last release did not fill it, because fewer jobs were
    /// ready to go, an empty queue says nothing about the window.
    pub(super) fn observe(&mut self, ready: u64, was_filled: bool) {
        if was_filled && ready < self.size / 4 {
            // Most of it was taken since the last poll: the workers may run dry before the next.
            self.size = (self.size * 2).min(self.min * GROWTH_MAX);
        } else if ready > self.size / 2 || !was_filled {
            // After a burst the next jobs must not wait behind a long queue: shrink by a quarter a poll,
            // but to no less than twice what was taken.
            let taken = if was_filled {
                self.filled.saturating_sub(ready)
            } else {
                0
            };
            let least = self.min.max(2 * taken).min(self.size);
            self.size = (self.size - self.size / 4).max(least);
        }
        self.filled = self.size.max(ready);
    }
}

#[cfg(test)]
mod tests {
    use crate::router::scheduling::window::*;

    /// The window after 200 polls, and the polls at which workers ran dry, if they take `rate` jobs between polls.
    fn run(rate: u64) -> (QueueWindow, u64) {
        let mut window = QueueWindow::new(64);
        let (mut ready, mut dry) = (0, 0);
        for poll in 0..200 {
            window.observe(ready, true);
            ready = window.size().max(ready);
            // The first polls find the size.
            dry += u64::from(ready < rate && poll > 20);
            ready = ready.saturating_sub(rate);
        }
        (window, dry)
    }

    #[test]
    fn fast_workers_get_a_large_window_and_slow_ones_a_small_one() {
        let (slow, dry) = run(5);
        assert_eq!((slow.size(), dry), (64, 0));
        let (fast, dry) = run(800);
        assert!((800..=3300).contains(&fast.size()), "{fast:?}");
        assert_eq!(dry, 0, "workers never run dry");
    }

    #[test]
    fn the_window_shrinks_after_a_burst() {
        let mut window = QueueWindow::new(64);
        for _ in 0..10 {
            window.observe(0, true);
        }
        assert_eq!(window.size(), 4096);
        let mut ready = 4096;
        for _ in 0..20 {
            ready -= 30;
            window.observe(ready, true);
            ready = window.size().max(ready);
        }
        assert_eq!(window.size(), 64, "though 30 are taken between polls");
    }

    #[test]
    fn the_window_shrinks_while_it_is_not_filled() {
        let mut window = QueueWindow::new(10);
        for _ in 0..10 {
            window.observe(0, true);
        }
        assert_eq!(window.size(), 640);
        for _ in 0..200 {
            window.observe(0, false);
        }
        assert!(window.size() < 30, "{window:?}");
    }
}
