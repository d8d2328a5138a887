//! The job life cycle against a reference model: any sequence of store calls has the outcome that the
//! documentation of `store` and [`promptyard::job::JobState`] gives.
//!
//! [`model`], [`outcomes`], [`deferrals`] and [`entries`] are the model; [`operations`] and [`naming`] draw
//! the calls; [`driver`], [`settling`] and [`delivering`] make them; [`checks`] compares. [`history`] runs
//! the [`actors`] and [`maintenance`] concurrently, and [`history_checks`] checks the result.
//! `PROPTEST_CASES` sets the number of sequences.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod actors;
mod checks;
mod deferrals;
mod delivering;
mod driver;
mod entries;
mod history;
mod history_checks;
mod maintenance;
mod model;
mod naming;
mod operations;
mod outcomes;
mod settling;
#[expect(dead_code, reason = "other test binaries use the rest")]
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use promptyard::store::Store;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::runtime::Handle;

use crate::driver::{Case, clear};

/// Outcomes that a run must see; without them the operations do not reach the code under test.
const SEEN: &[&str] = &[
    "admit: queued",
    "admit: routed",
    "admit: moved",
    "admit: deferred",
    "admit: still deferred",
    "admit: moved and deferred",
    "admit: waiting",
    "admit: hit",
    "admit: ended",
    "admit: known",
    "admit: key reused",
    "claim: run",
    "claim: poison candidate",
    "claim: last",
    "claim: busy",
    "claim: elsewhere",
    "claim: ended before",
    "claim: expired",
    "claim: attempts exhausted",
    "claim: unknown",
    "settle: fenced",
    "settle: closed",
    "settle: retry isolated",
    "settle: written in part",
    "settle: shared",
    "check: fell back",
    "end: ended",
    "end: unchanged",
    "end: unknown",
    "cancel: running",
    "cancel: lost",
    "cancel: deferred",
    "cancel: never run",
    "cancel: between attempts",
    "cancel: none",
    "release: to the router",
    "release: to a tier",
    "release: again",
    "release: ended or running",
    "rescue: expired",
    "rescue: stuck",
    "rescue: stuck before the router",
    "rescue: stuck in a dead worker",
    "leadership: taken",
    "leadership: refused",
    "scan: loads",
    "scan: unpublished",
    "scan: superseded",
    "takeover: one",
];

/// The number of sequences that `PROPTEST_CASES` asks for.
fn asked_cases() -> Option<u32> {
    std::env::var("PROPTEST_CASES").ok()?.parse().ok()
}

/// The number of sequences: that of the environment, or `usual`.
fn cases(usual: u32) -> u32 {
    asked_cases().unwrap_or(usual)
}

/// Draws sequences: always the same ones unless a number is asked for, so that usual runs are
/// deterministic.
fn runner(config: Config) -> TestRunner {
    match asked_cases() {
        Some(_) => TestRunner::new(config),
        None => {
            let seed = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
            TestRunner::new_with_rng(config, seed)
        }
    }
}

/// Runs sequences of operations, each with tenants of its own, and shrinks one that fails.
fn run_sequences(store: &Store, database: &Handle, cases: u32) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let seen = std::cell::RefCell::new(BTreeMap::new());
    let outcome = runner(config).run(&operations::sequence(), |sequence| {
        database.block_on(async {
            clear(store).await;
            let mut case = Case::new(store.clone()).await;
            for operation in &sequence {
                case.apply(operation).await?;
            }
            case.drain().await?;
            for (what, count) in case.seen {
                *seen.borrow_mut().entry(what).or_insert(0_u64) += count;
            }
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    // Random sequences see all outcomes only where there are many.
    if cases >= asked_cases().map_or(100, |_| 500) {
        let missing: Vec<_> = SEEN
            .iter()
            .filter(|what| !seen.contains_key(*what))
            .collect();
        assert!(
            missing.is_empty(),
            "never came to {missing:?} but to {seen:?}"
        );
    }
}

contract! {
    /// Any sequence of operations on a few jobs matches the model, step by step, and leaves jobs that
    /// can all be ended.
    async fn sequences_follow_the_model(store: Store) {
        // Calls take longer on Postgres.
        let cases = cases(if store.is_embedded() { 100 } else { 24 });
        let database = Handle::current();
        let run = tokio::task::spawn_blocking(move || run_sequences(&store, &database, cases));
        if let Err(error) = run.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }

    /// Workers, routers, a dead-letter consumer, a canceller, releasers and a rescuer that act on the same
    /// jobs concurrently leave a history in which every job ended once and every attempt has an outcome.
    async fn histories_are_consistent(store: Store) {
        for round in 0..u64::from(cases(64).div_ceil(16)) {
            history::play(&store, round).await;
        }
    }
}
