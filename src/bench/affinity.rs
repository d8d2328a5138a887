//! `bench prefix --workers`: a trace shared out to several workers, each with a prefix cache of its own,
//! by the router's own placement and by others.

use comfy_table::CellAlignment;
use serde_json::{Value, json};

use crate::{
    affinity::{Assignment, Placement, prefix::BLOCKS_MAX},
    console::table::table,
};

use super::prefix::{Cache, TRACE_BLOCK, Traced};

/// Blocks of a router for one of the trace: some 2,048 bytes of text in 512 tokens.
const PARTS: u64 = 8;

/// What one way of sharing out came to.
pub(super) struct Row {
    way: &'static str,
    /// Blocks of 512 tokens of all caches together; `None` for as many as there are.
    blocks: Option<usize>,
    /// Share of tokens found.
    found: f64,
    /// The same as a share of what one unbounded cache finds.
    of_one: f64,
    /// Tokens computed by the worker that computed most, over the mean.
    imbalance: f64,
    /// The same for requests.
    imbalance_requests: f64,
}

impl Row {
    pub(super) fn to_json(&self) -> Value {
        json!({
            "way": self.way,
            "blocks": self.blocks,
            "found": self.found,
            "of_one_unbounded": self.of_one,
            "imbalance": self.imbalance,
            "imbalance_requests": self.imbalance_requests,
        })
    }
}

/// Chooses a worker for each request in turn.
type Way<'a> = Box<dyn FnMut(&Traced) -> usize + 'a>;

/// Shares a trace out in every way, with unbounded caches and with those of the given sizes.
pub(super) fn share_out(trace: &[Traced], workers: usize, blocks: &[usize]) -> Vec<Row> {
    let all = trace.iter().map(|request| request.hash_ids.len()).sum();
    let asked: usize = trace.iter().map(|request| request.input_length).sum();
    let mut one = Cache::new(all);
    let most: usize = trace.iter().map(|request| one.run(request)).sum();
    let mut rows = vec![Row {
        way: "one cache",
        blocks: None,
        found: most as f64 / asked as f64,
        of_one: 1.0,
        imbalance: 1.0,
        imbalance_requests: 1.0,
    }];
    for capacity in std::iter::once(None).chain(blocks.iter().copied().map(Some)) {
        for (way, mut choose) in ways(workers) {
            let each = capacity.map_or(all, |blocks| blocks / workers);
            let mut caches: Vec<Cache> = (0..workers).map(|_| Cache::new(each)).collect();
            let (mut found, mut computed, mut requests) = (0, vec![0; workers], vec![0; workers]);
            for request in trace {
                let worker = choose(request);
                let hit = caches[worker].run(request);
                found += hit;
                computed[worker] += request.input_length - hit;
                requests[worker] += 1;
            }
            rows.push(Row {
                way,
                blocks: capacity,
                found: found as f64 / asked as f64,
                of_one: found as f64 / most.max(1) as f64,
                imbalance: imbalance(&computed),
                imbalance_requests: imbalance(&requests),
            });
        }
    }
    rows
}

fn ways<'a>(workers: usize) -> Vec<(&'static str, Way<'a>)> {
    let assignment = Assignment::among((0..workers).map(|at| format!("worker-{at}")).collect());
    let mut next = 0;
    let in_turn = move |_: &Traced| {
        next += 1;
        next % workers
    };
    let by_hash = move |request: &Traced| {
        let first = request.hash_ids.first().copied().unwrap_or_default();
        let digest = blake3::hash(&first.to_le_bytes());
        usize::from(digest.as_bytes()[0]) % workers
    };
    let mut placement = Placement::default();
    let placed = move |request: &Traced| {
        let prefix: Vec<u64> = request
            .hash_ids
            .iter()
            .take(request.input_length / TRACE_BLOCK)
            .flat_map(|id| (0..PARTS).map(move |part| id * PARTS + part))
            .take(BLOCKS_MAX)
            .collect();
        let affinity_queue = placement.place(&prefix, &assignment, request.timestamp / 1e3);
        // What shares nothing goes to whoever is free; here one after the other.
        affinity_queue
            .and_then(|affinity_queue| assignment.owner(affinity_queue))
            .unwrap_or(request.input_length % workers)
    };
    vec![
        ("one queue, in turn", Box::new(in_turn) as Way<'a>),
        ("hash of the first block", Box::new(by_hash)),
        ("affinity_queues", Box::new(placed)),
    ]
}

/// The most over the mean.
fn imbalance(counts: &[usize]) -> f64 {
    let most = counts.iter().max().copied().unwrap_or(0) as f64;
    most * counts.len() as f64 / counts.iter().sum::<usize>().max(1) as f64
}

/// The rows for people.
pub(super) fn to_text(rows: &[Row]) -> String {
    let header = [
        "workers' caches",
        "blocks in all",
        "tokens found",
        "of one unbounded",
        "imbalance",
        "of requests",
    ];
    let mut table = table(&header);
    for row in rows {
        table.add_row([
            row.way.to_owned(),
            row.blocks
                .map_or_else(|| "unbounded".to_owned(), |n| n.to_string()),
            format!("{:.1} %", 100.0 * row.found),
            format!("{:.1} %", 100.0 * row.of_one),
            format!("{:.3}", row.imbalance),
            format!("{:.3}", row.imbalance_requests),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
