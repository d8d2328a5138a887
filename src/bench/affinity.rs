//! `bench prefix --workers`: a trace replayed on several workers, each with its own prefix cache, under
//! the router's placement and under simpler ones.

use serde_json::{Value, json};

use crate::affinity::{Assignment, Placement, prefix::BLOCKS_MAX};

use super::{
    report::{percent, table},
    trace::{ReplayCache, TRACE_BLOCK, TraceRequest},
};

/// Router blocks per trace block: 512 tokens are some 2,048 bytes of text.
const ROUTER_BLOCKS: u64 = 8;

/// The result of one placement.
pub(super) struct Sharing {
    placement: &'static str,
    /// Blocks of 512 tokens in all caches together; `None` for unbounded caches.
    blocks: Option<usize>,
    /// Share of tokens found in a cache.
    found: f64,
    /// Tokens found, as a share of what one unbounded cache finds.
    of_one: f64,
    /// Tokens computed by the busiest worker, over the mean.
    imbalance: f64,
    /// Requests of the busiest worker, over the mean.
    imbalance_requests: f64,
}

impl Sharing {
    pub(super) fn to_json(&self) -> Value {
        json!({
            "way": self.placement,
            "blocks": self.blocks,
            "found": self.found,
            "of_one_unbounded": self.of_one,
            "imbalance": self.imbalance,
            "imbalance_requests": self.imbalance_requests,
        })
    }
}

/// Chooses a worker for each request, in the trace's order.
type Choose<'a> = Box<dyn FnMut(&TraceRequest) -> usize + 'a>;

/// Replays a trace under every placement, with unbounded caches and with the given sizes.
pub(super) fn replay(trace: &[TraceRequest], workers: usize, blocks: &[usize]) -> Vec<Sharing> {
    let all = trace.iter().map(|request| request.hash_ids.len()).sum();
    let total: usize = trace.iter().map(|request| request.input_length).sum();
    let mut one = ReplayCache::new(all);
    let most: usize = trace.iter().map(|request| one.run(request)).sum();
    let mut rows = vec![Sharing {
        placement: "one cache",
        blocks: None,
        found: most as f64 / total as f64,
        of_one: 1.0,
        imbalance: 1.0,
        imbalance_requests: 1.0,
    }];
    for capacity in std::iter::once(None).chain(blocks.iter().copied().map(Some)) {
        for (placement, mut choose) in placements(workers) {
            let each = capacity.map_or(all, |blocks| blocks / workers);
            let mut caches: Vec<ReplayCache> =
                (0..workers).map(|_| ReplayCache::new(each)).collect();
            let (mut found, mut computed, mut requests) = (0, vec![0; workers], vec![0; workers]);
            for request in trace {
                let worker = choose(request);
                let hit = caches[worker].run(request);
                found += hit;
                computed[worker] += request.input_length - hit;
                requests[worker] += 1;
            }
            rows.push(Sharing {
                placement,
                blocks: capacity,
                found: found as f64 / total as f64,
                of_one: found as f64 / most.max(1) as f64,
                imbalance: imbalance(&computed),
                imbalance_requests: imbalance(&requests),
            });
        }
    }
    rows
}

fn placements<'a>(workers: usize) -> Vec<(&'static str, Choose<'a>)> {
    let assignment = Assignment::among((0..workers).map(|at| format!("worker-{at}")).collect());
    let mut next = 0;
    let in_turn = move |_: &TraceRequest| {
        next += 1;
        next % workers
    };
    let by_hash = move |request: &TraceRequest| {
        let first = request.hash_ids.first().copied().unwrap_or_default();
        let digest = blake3::hash(&first.to_le_bytes());
        usize::from(digest.as_bytes()[0]) % workers
    };
    let mut placement = Placement::default();
    let placed = move |request: &TraceRequest| {
        let prefix: Vec<u64> = request
            .hash_ids
            .iter()
            .take(request.input_length / TRACE_BLOCK)
            .flat_map(|id| (0..ROUTER_BLOCKS).map(move |part| id * ROUTER_BLOCKS + part))
            .take(BLOCKS_MAX)
            .collect();
        let queue = placement.place(&prefix, &assignment, request.timestamp / 1e3);
        // A request without a known prefix goes to any free worker; here by its length.
        queue
            .and_then(|queue| assignment.owner(queue))
            .unwrap_or(request.input_length % workers)
    };
    vec![
        ("one queue, in turn", Box::new(in_turn) as Choose<'a>),
        ("hash of the first block", Box::new(by_hash)),
        ("affinity queues", Box::new(placed)),
    ]
}

/// The largest count over the mean.
fn imbalance(counts: &[usize]) -> f64 {
    let most = counts.iter().max().copied().unwrap_or(0) as f64;
    most * counts.len() as f64 / counts.iter().sum::<usize>().max(1) as f64
}

/// The results as a table.
pub(super) fn to_text(rows: &[Sharing]) -> String {
    let header = [
        "workers' caches",
        "blocks in all",
        "tokens found",
        "of one unbounded",
        "imbalance",
        "of requests",
    ];
    let rows = rows.iter().map(|row| {
        [
            row.placement.to_owned(),
            row.blocks
                .map_or_else(|| "unbounded".to_owned(), |n| n.to_string()),
            percent(row.found),
            percent(row.of_one),
            format!("{:.3}", row.imbalance),
            format!("{:.3}", row.imbalance_requests),
        ]
    });
    table(header, rows)
}
