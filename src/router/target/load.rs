//! How load moves the threshold: each tier's backlog, and a shift that follows it without oscillating.

use std::time::Duration;

/// Weight of a new reading in the moving average; readings come every second.
const SMOOTHING: f64 = 0.3;
/// Dead band of the hysteresis, as a part of the shift: smaller changes do not move it.
const PLAY: f64 = 0.2;

/// A tier's load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TierLoad {
    /// Messages that wait in its queue.
    pub waiting: u64,
    /// Jobs that its workers ran at their last heartbeats.
    pub running: u32,
    /// Sequences that its live workers run concurrently.
    pub places: u32,
    /// Recent mean seconds that a job occupied a place; `None` until some have run.
    pub service_s: Option<f64>,
}

impl TierLoad {
    /// Seconds until a job queued now starts.
    pub fn wait_s(&self) -> Option<f64> {
        let service_s = self.service_s?;
        (self.places > 0).then(|| self.waiting as f64 * service_s / f64::from(self.places))
    }

    /// Seconds of work beyond one waiting job for each place. A shorter queue only keeps workers busy, and
    /// routing elsewhere would not help.
    pub fn backlog_s(&self) -> Option<f64> {
        let beyond = self.waiting.saturating_sub(u64::from(self.places));
        let (beyond, places) = (beyond as f64, f64::from(self.places));
        (places > 0.0).then_some(beyond * self.service_s? / places)
    }

    /// Seconds until a job queued now is answered.
    pub fn latency_s(&self) -> Option<f64> {
        Some(self.wait_s()? + self.service_s?)
    }
}

/// The share of jobs that load moves towards small (above 0) or large (below 0).
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadShift {
    /// Moving average of the seconds by which large's backlog exceeds small's, clamped.
    lag_s: f64,
    shift: f64,
}

impl LoadShift {
    /// The present shift, a share of the jobs.
    pub fn shift(&self) -> f64 {
        self.shift
    }

    /// Records the present loads. The shift is proportional to the difference of the backlogs, at most
    /// `shift_max` from `wait_full_s` on. A dead band damps the feedback through the queue, where a switch
    /// between two thresholds would oscillate.
    pub fn observe(&mut self, small: TierLoad, large: TierLoad, shift_max: f64, wait_full_s: f64) {
        let lag_s = match (small.backlog_s(), large.backlog_s()) {
            (Some(small_s), Some(large_s)) => large_s - small_s,
            // A tier without workers or without a measured job has no known backlog.
            _ => 0.0,
        };
        // Enough to reach the full shift despite the dead band, but no more: the average would remember a
        // long backlog long after it is gone.
        let most_s = wait_full_s / (1.0 - PLAY);
        self.lag_s += SMOOTHING * (lag_s.clamp(-most_s, most_s) - self.lag_s);
        let pull = self.lag_s / wait_full_s * shift_max;
        let play = PLAY * pull.abs();
        self.shift = self
            .shift
            .clamp(pull - play, pull + play)
            .clamp(-shift_max, shift_max);
    }
}

/// The share of large that keeps its latency within a target: additive increase, multiplicative
/// decrease (Chiu and Jain 1989).
#[derive(Clone, Copy, Debug)]
pub struct LatencyShare {
    share: f64,
}

impl Default for LatencyShare {
    fn default() -> Self {
        Self { share: 0.5 }
    }
}

impl LatencyShare {
    /// Starts at a share, 0 to 1.
    pub fn at(share: f64) -> Self {
        Self { share }
    }

    /// Added at each reading while latency is well within the target.
    const RISE: f64 = 0.02;
    /// Factor at each reading beyond the target.
    const CUT: f64 = 0.8;
    /// Part of the target up to which the share rises.
    const ROOM: f64 = 0.7;

    /// The present share, 0 to 1.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// Records the present load of large.
    pub fn observe(&mut self, large: TierLoad, target: Duration) {
        let Some(latency_s) = large.latency_s() else {
            return;
        };
        let target_s = target.as_secs_f64();
        if latency_s > target_s {
            self.share *= Self::CUT;
        } else if latency_s < Self::ROOM * target_s {
            self.share = (self.share + Self::RISE).min(1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use crate::router::target::load::*;

    /// A fleet under constant load, second by second: of `arrivals` jobs those above the shifted threshold
    /// go to large, and each tier serves as many as its places can.
    struct SimulatedFleet {
        small: TierLoad,
        large: TierLoad,
        queues: [f64; 2],
    }

    impl SimulatedFleet {
        fn new(small_service_s: f64, large_service_s: f64) -> Self {
            let tier = |service_s| TierLoad {
                places: 8,
                service_s: Some(service_s),
                ..TierLoad::default()
            };
            Self {
                small: tier(small_service_s),
                large: tier(large_service_s),
                queues: [0.0; 2],
            }
        }

        fn second(&mut self, arrivals: f64, large_share: f64) {
            let shares = [1.0 - large_share, large_share];
            for (at, tier) in [&mut self.small, &mut self.large].into_iter().enumerate() {
                let served = f64::from(tier.places) / tier.service_s.expect("given");
                self.queues[at] = (self.queues[at] + arrivals * shares[at] - served).max(0.0);
                tier.waiting = self.queues[at].round() as u64;
            }
        }
    }

    /// Seconds simulated; the first half settles.
    const SECONDS: usize = 1200;

    /// The shifts of the second half under `arrivals` a second, random or constant.
    fn run(fleet: &mut SimulatedFleet, mean_arrivals: f64, seed: Option<u64>) -> Vec<f64> {
        let mut rng = seed.map(StdRng::seed_from_u64);
        let mut load = LoadShift::default();
        let mut shifts = Vec::new();
        for _ in 0..SECONDS {
            let arrivals = match &mut rng {
                None => mean_arrivals,
                // About Poisson: the sum of many rare arrivals.
                Some(rng) => (0..1000)
                    .filter(|_| rng.random_bool(mean_arrivals / 1000.0))
                    .count() as f64,
            };
            fleet.second(arrivals, (0.4 - load.shift()).clamp(0.0, 1.0));
            load.observe(fleet.small, fleet.large, 0.2, 10.0);
            shifts.push(load.shift());
        }
        shifts.split_off(SECONDS / 2)
    }

    fn swing(shifts: &[f64]) -> f64 {
        let most = shifts.iter().copied().fold(f64::MIN, f64::max);
        most - shifts.iter().copied().fold(f64::MAX, f64::min)
    }

    /// Scores send large 24 jobs a second, of which it can serve 20: the shift settles where the queue stops
    /// growing.
    #[test]
    fn constant_load_settles_without_oscillation() {
        let mut fleet = SimulatedFleet::new(0.1, 0.4);
        let shifts = run(&mut fleet, 60.0, None);
        let last = shifts[shifts.len() - 1];
        assert!(swing(&shifts) < 0.002, "swings by {}", swing(&shifts));
        let expected = 0.4 - 20.0 / 60.0;
        assert!(
            (last - expected).abs() < 0.01,
            "{last}, the balance is at {expected}"
        );
    }

    /// With random arrivals the shift stays near its balance and rarely reverses.
    #[test]
    fn random_arrivals_move_the_shift_little() {
        for seed in 0..5 {
            let mut fleet = SimulatedFleet::new(0.1, 0.4);
            let shifts = run(&mut fleet, 60.0, Some(seed));
            let mean = shifts.iter().sum::<f64>() / shifts.len() as f64;
            assert!((mean - 0.0667).abs() < 0.02, "seed {seed}: mean {mean}");
            assert!(
                swing(&shifts) < 0.06,
                "seed {seed}: swings by {}",
                swing(&shifts)
            );
            let moves: Vec<f64> = shifts
                .windows(2)
                .map(|w| w[1] - w[0])
                .filter(|m| *m != 0.0)
                .collect();
            let turns = moves.windows(2).filter(|w| w[0] * w[1] < 0.0).count();
            assert!(
                turns < shifts.len() / 20,
                "seed {seed}: {turns} turns in {} s",
                shifts.len()
            );
        }
    }

    /// An overload of both tiers gives the full shift, and no more.
    #[test]
    fn the_shift_is_bounded() {
        let mut fleet = SimulatedFleet::new(0.1, 0.4);
        let shifts = run(&mut fleet, 120.0, None);
        assert!(shifts.iter().all(|shift| (shift - 0.2).abs() < 1e-9));
        // Hours of back-log that are gone at last move nothing half a minute later.
        let mut load = LoadShift::default();
        (fleet.small.waiting, fleet.large.waiting) = (0, 1_000_000);
        (0..60).for_each(|_| load.observe(fleet.small, fleet.large, 0.2, 10.0));
        assert!((load.shift() - 0.2).abs() < 1e-6, "{}", load.shift());
        fleet.large.waiting = 0;
        (0..30).for_each(|_| load.observe(fleet.small, fleet.large, 0.2, 10.0));
        assert!(load.shift().abs() < 1e-3, "{}", load.shift());
        // Small is the slow one: large takes over as far as it may.
        let mut fleet = SimulatedFleet::new(0.4, 0.1);
        let shifts = run(&mut fleet, 60.0, None);
        assert!(
            shifts.iter().all(|shift| (-0.2..0.0).contains(shift)),
            "{:?}",
            &shifts[..3]
        );
    }

    #[test]
    fn one_waiting_job_for_each_place_is_no_backlog() {
        let tier = |waiting| TierLoad {
            waiting,
            running: 8,
            places: 8,
            service_s: Some(30.0),
        };
        let mut load = LoadShift::default();
        (0..60).for_each(|_| load.observe(tier(0), tier(8), 0.1, 10.0));
        assert_eq!(load.shift(), 0.0);
        (0..60).for_each(|_| load.observe(tier(0), tier(16), 0.1, 10.0));
        assert!((load.shift() - 0.1).abs() < 1e-6, "{}", load.shift());
    }

    #[test]
    fn without_load_workers_or_measurements_there_is_no_shift() {
        let tier = TierLoad {
            waiting: 0,
            places: 8,
            service_s: Some(1.0),
            running: 0,
        };
        let mut load = LoadShift {
            lag_s: 10.0,
            shift: 0.2,
        };
        (0..60).for_each(|_| load.observe(tier, tier, 0.2, 10.0));
        assert!(load.shift().abs() < 1e-6, "{}", load.shift());
        let blind = TierLoad {
            waiting: 1000,
            places: 0,
            ..tier
        };
        load.observe(tier, blind, 0.2, 10.0);
        assert!(load.shift().abs() < 1e-6);
    }

    #[test]
    fn a_latency_target_is_kept() {
        let mut fleet = SimulatedFleet::new(0.01, 0.5);
        let (mut share, mut within) = (LatencyShare::default(), 0);
        for second in 0..600 {
            fleet.second(60.0, share.share());
            share.observe(fleet.large, Duration::from_secs(4));
            if second >= 300 {
                within += u32::from(fleet.large.latency_s().expect("measured") <= 5.0);
            }
        }
        assert!(within > 270, "within 5 s in {within} of 300 s");
        let taken = 16.0 / 60.0;
        assert!(
            (share.share() - taken).abs() < 0.12,
            "{} where {taken} can be taken",
            share.share()
        );
    }
}
