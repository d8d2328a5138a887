use std::{cmp::Reverse, collections::BinaryHeap};

use proptest::prelude::*;

use super::*;

/// A server that serves so many requests at once and rejects the rest immediately, with callers that
/// never run out of requests.
struct Simulation {
    limit: ConcurrencyLimit,
    now: Instant,
    capacity: usize,
    /// When each request ends, and its index.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    requests: Vec<Option<(LimitPermit, bool)>>,
    taken: usize,
    answered: usize,
    rejected: usize,
}

const REJECTION_TIME: Duration = Duration::from_millis(5);

impl Simulation {
    fn new(max: usize, capacity: usize) -> Self {
        Self {
            limit: ConcurrencyLimit::new(max),
            now: Instant::now(),
            capacity,
            due: BinaryHeap::new(),
            requests: Vec::new(),
            taken: 0,
            answered: 0,
            rejected: 0,
        }
    }

    /// Runs for some time; `answer_ms` is the duration of the n-th answer.
    fn run(&mut self, span: Duration, answer_ms: impl Fn(usize) -> u64) {
        let end = self.now + span;
        loop {
            while let Some(start) = self.limit.start(self.now) {
                let is_taken = self.taken < self.capacity;
                self.taken += usize::from(is_taken);
                let takes = if is_taken {
                    Duration::from_millis(answer_ms(self.requests.len()))
                } else {
                    REJECTION_TIME
                };
                self.due
                    .push(Reverse((self.now + takes, self.requests.len())));
                self.requests.push(Some((start, is_taken)));
            }
            let next = self.due.peek().map(|Reverse((at, _))| *at);
            let pause_end = self.limit.paused_until(self.now);
            let at = next
                .into_iter()
                .chain(pause_end)
                .min()
                .expect("some event is due");
            if at > end {
                self.now = end;
                return;
            }
            self.now = at;
            while let Some(Reverse((at, which))) = self.due.peek().copied()
                && at <= self.now
            {
                self.due.pop();
                let (start, is_taken) = self.requests[which].take().expect("ends once");
                self.taken -= usize::from(is_taken);
                self.answered += usize::from(is_taken);
                self.rejected += usize::from(!is_taken);
                let end = if is_taken {
                    LoadSignal::Answered
                } else {
                    LoadSignal::Throttled(None)
                };
                self.limit.end(start, end, self.now);
            }
        }
    }

    /// Counts answers and rejections over a further span.
    fn measure(&mut self, span: Duration, answer_ms: impl Fn(usize) -> u64) -> (usize, usize) {
        let before = (self.answered, self.rejected);
        self.run(span, answer_ms);
        (self.answered - before.0, self.rejected - before.1)
    }
}

/// Durations of 700 to 1300 ms, one second on average, in scrambled order.
fn about_a_second(which: usize) -> u64 {
    700 + (which as u64 * 7919) % 601
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In any sequence of events, between one request and the maximum may be in flight, and no more start.
    #[test]
    fn stays_between_one_and_the_maximum(
        max in 1usize..50,
        steps in prop::collection::vec((0u8..6, any::<prop::sample::Index>(), 0u64..2000), 1..300),
    ) {
        let mut limit = ConcurrencyLimit::new(max);
        let mut now = Instant::now();
        let mut running: Vec<LimitPermit> = Vec::new();
        for (kind, which, ms) in steps {
            now += Duration::from_millis(ms);
            if kind < 2 {
                let before = (limit.in_flight(), limit.paused_until(now));
                let start = limit.start(now);
                prop_assert_eq!(start.is_some(), before.0 < limit.allowed() && before.1.is_none());
                running.extend(start);
            } else if !running.is_empty() {
                let start = running.swap_remove(which.index(running.len()));
                let end = match kind {
                    2 => LoadSignal::Answered,
                    3 => LoadSignal::Throttled((ms % 2 == 0).then(|| Duration::from_millis(ms))),
                    4 => LoadSignal::TimedOut,
                    _ => LoadSignal::Unknown,
                };
                limit.end(start, end, now);
            }
            prop_assert!((1..=max).contains(&limit.allowed()));
            prop_assert_eq!(limit.in_flight(), running.len());
        }
    }

    /// Under steady load it finds a server's capacity: most of it is used and few requests are rejected.
    #[test]
    fn finds_the_capacity_of_a_server(max in 1usize..120, capacity in 1usize..100) {
        let mut simulation = Simulation::new(max, capacity);
        simulation.run(Duration::from_secs(100), about_a_second);
        let (answered, rejected) = simulation.measure(Duration::from_secs(200), about_a_second);
        let most = capacity.min(max) * 200;
        prop_assert!(answered * 100 >= most * 80, "{answered} of {most} answers");
        prop_assert!(simulation.limit.allowed() <= capacity + 1);
        if capacity >= max {
            prop_assert_eq!(rejected, 0);
        } else {
            // One rejection per sawtooth, which takes about 0.3 × capacity windows.
            let sawtooth = (capacity * capacity) as f64 * 0.25;
            let expected = answered as f64 / sawtooth.max(1.0);
            prop_assert!(rejected as f64 <= 4.0 * expected + 4.0, "{rejected} rejected of {answered}");
        }
    }

    /// After an outage, most of the former rate is back within ten seconds of the longest pause.
    #[test]
    fn comes_back_after_an_outage(capacity in 1usize..100, outage_s in 1u64..300) {
        let mut simulation = Simulation::new(128, capacity);
        simulation.run(Duration::from_secs(60), about_a_second);
        simulation.capacity = 0;
        simulation.run(Duration::from_secs(outage_s), about_a_second);
        if outage_s >= 120 {
            // By then it pauses for the maximum.
            let (_, received) = simulation.measure(Duration::from_secs(60), about_a_second);
            prop_assert!((1..=8).contains(&received), "a server that is down gets {received} requests per minute");
        }
        simulation.capacity = capacity;
        simulation.run(PAUSE_MAX + Duration::from_secs(10), about_a_second);
        let (answered, _) = simulation.measure(Duration::from_secs(20), about_a_second);
        prop_assert!(answered * 100 >= capacity * 20 * 60, "{answered} of {}", capacity * 20);
    }
}

fn answer(limit: &mut ConcurrencyLimit, starts: Vec<LimitPermit>, now: Instant) {
    for start in starts {
        limit.end(start, LoadSignal::Answered, now);
    }
}

fn fill(limit: &mut ConcurrencyLimit, now: Instant) -> Vec<LimitPermit> {
    std::iter::from_fn(|| limit.start(now)).collect()
}

#[test]
fn rejections_of_one_window_decrease_once() {
    let (mut limit, now) = (ConcurrencyLimit::new(100), Instant::now());
    for start in fill(&mut limit, now) {
        limit.end(start, LoadSignal::Throttled(None), now);
    }
    assert_eq!(limit.allowed(), 70);
    assert_eq!(
        limit.paused_until(now),
        None,
        "no pause after the first rejection"
    );
    for start in fill(&mut limit, now) {
        limit.end(start, LoadSignal::TimedOut, now);
    }
    assert_eq!(limit.allowed(), 49);
    assert_eq!(limit.paused_until(now), Some(now + PAUSE_MIN));
}

#[test]
fn grows_by_one_per_window_and_only_while_in_use() {
    let (mut limit, now) = (ConcurrencyLimit::new(100), Instant::now());
    let mut starts = fill(&mut limit, now);
    limit.end(starts.remove(0), LoadSignal::Throttled(None), now);
    answer(&mut limit, starts, now);
    assert_eq!(
        limit.allowed(),
        70,
        "feedback from before the decrease is ignored"
    );
    let starts = fill(&mut limit, now);
    answer(&mut limit, starts, now);
    assert_eq!(limit.allowed(), 70, "just short of one window");
    let starts = fill(&mut limit, now);
    answer(&mut limit, starts, now);
    assert_eq!(limit.allowed(), 71);
    for _ in 0..1000 {
        let starts = (0..20).filter_map(|_| limit.start(now)).collect();
        answer(&mut limit, starts, now);
    }
    assert_eq!(limit.allowed(), 71, "a third of it in use");
}

#[test]
fn unused_capacity_does_not_count_as_rejected() {
    let (mut limit, now) = (ConcurrencyLimit::new(1000), Instant::now());
    let mut starts: Vec<_> = (0..10).filter_map(|_| limit.start(now)).collect();
    limit.end(starts.remove(0), LoadSignal::Throttled(None), now);
    assert_eq!(limit.allowed(), 7);
    answer(&mut limit, starts, now);
}

#[test]
fn pauses_as_long_as_the_server_asks_up_to_the_maximum() {
    let (mut limit, now) = (ConcurrencyLimit::new(2), Instant::now());
    let [first, second] = fill(&mut limit, now).try_into().expect("two");
    let after = Duration::from_secs(3);
    limit.end(first, LoadSignal::Throttled(Some(after)), now);
    limit.end(second, LoadSignal::Throttled(Some(Duration::ZERO)), now);
    assert_eq!(
        limit.paused_until(now),
        Some(now + after),
        "the longest counts"
    );
    assert!(
        limit
            .start(now + after - Duration::from_millis(1))
            .is_none()
    );
    let start = limit.start(now + after).expect("the pause is over");
    limit.end(
        start,
        LoadSignal::Throttled(Some(Duration::from_secs(u64::MAX))),
        now + after,
    );
    assert_eq!(
        limit.paused_until(now + after),
        Some(now + after + RETRY_AFTER_MAX)
    );
}
