//! How many jobs may wait in a tier's queue: as few as keep its workers busy from one look to the next,
//! since what waits there is before everybody's next job.

/// Times that the window may grow beyond its smallest size.
const GROWTH_MAX: u64 = 64;

/// A window that learns from what is left in the queue at each look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    min: u64,
    size: u64,
    /// Jobs in the queue after the last look, if its release filled it.
    filled: u64,
}

impl Window {
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

    /// Learns that `ready` jobs are in the queue, and whether the last release filled it: where fewer jobs
    /// may go than there is room for, an empty queue says nothing of the window.
    pub(super) fn observe(&mut self, ready: u64, was_filled: bool) {
        if was_filled && ready < self.size / 4 {
            // Most of it went since the last look: the workers may run dry before the next.
            self.size = (self.size * 2).min(self.min * GROWTH_MAX);
        } else if ready > self.size / 2 || !was_filled {
            // A burst that is over must not leave everybody's next job behind a long queue: down by a
            // quarter a look, but to no less than twice what went.
            let went = if was_filled {
                self.filled.saturating_sub(ready)
            } else {
                0
            };
            let least = self.min.max(2 * went).min(self.size);
            self.size = (self.size - self.size / 4).max(least);
        }
        self.filled = self.size.max(ready);
    }
}

#[cfg(test)]
mod tests {
    use crate::router::scheduling::window::*;

    /// Jobs left in the queue after each look, for workers that take `rate` jobs between looks.
    fn run(rate: u64) -> (Window, u64) {
        let mut window = Window::new(64);
        let (mut ready, mut dry) = (0, 0);
        for look in 0..200 {
            window.observe(ready, true);
            ready = window.size().max(ready);
            // The first looks find the size.
            dry += u64::from(ready < rate && look > 20);
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
    fn a_burst_leaves_no_large_window_behind() {
        let mut window = Window::new(64);
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
        assert_eq!(window.size(), 64, "though 30 go at each look");
    }

    #[test]
    fn it_shrinks_once_it_is_not_what_holds_jobs_back() {
        let mut window = Window::new(10);
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
