//! A bar on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::options::complain;

/// Plain lines come no closer together than this.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows how far a run is, on standard error.
#[derive(Debug)]
pub enum Progress {
    /// On a terminal.
    Bar(ProgressBar),
    /// Elsewhere.
    Lines {
        /// Expected in all, if known.
        total: Option<u64>,
        /// Ended so far.
        done: u64,
        /// When the last line was written.
        told: Instant,
    },
}

impl Progress {
    /// Progress towards a total, if that is known.
    pub fn new(total: Option<u64>) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines {
                total,
                done: 0,
                told: Instant::now(),
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

    /// One more has ended.
    pub fn step(&mut self) {
        match self {
            Self::Bar(bar) => bar.inc(1),
            Self::Lines { total, done, told } => {
                *done += 1;
                if told.elapsed() >= LINE_INTERVAL {
                    *told = Instant::now();
                    match total {
                        Some(total) => complain(&format!("{done} of {total} done")),
                        None => complain(&format!("{done} done")),
                    }
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
