//! Progress of a run: a bar on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::terminal::eprint_line;

/// Least time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows a run's progress on standard error.
#[derive(Debug)]
pub enum RunProgress {
    /// On a terminal.
    Bar(ProgressBar),
    /// Elsewhere.
    Lines {
        /// Total, if known.
        total: Option<u64>,
        /// Finished so far.
        done: u64,
        /// When the last line was written.
        written: Instant,
    },
}

impl RunProgress {
    /// Starts showing progress, towards a total if it is known.
    pub fn new(total: Option<u64>) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines {
                total,
                done: 0,
                written: Instant::now(),
            };
        }
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(
                ProgressStyle::with_template("{wide_bar} {pos}/{len} · {per_sec} · {eta} left")
                    .expect("the template is valid"),
            ),
            None => ProgressBar::new_spinner().with_style(
                ProgressStyle::with_template("{spinner} {pos} · {per_sec}")
                    .expect("the template is valid"),
            ),
        };
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::Bar(bar)
    }

    /// Counts one more as finished.
    pub fn step(&mut self) {
        match self {
            Self::Bar(bar) => bar.inc(1),
            Self::Lines {
                total,
                done,
                written,
            } => {
                *done += 1;
                if written.elapsed() >= LINE_INTERVAL {
                    *written = Instant::now();
                    match total {
                        Some(total) => eprint_line(&format!("{done} of {total} done")),
                        None => eprint_line(&format!("{done} done")),
                    }
                }
            }
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
