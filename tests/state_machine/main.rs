//! A job's life against a reference model: whatever is done to a ledger, in whatever order, comes to
//! what the documents of `store` and [`promptyard::job::JobState`] say.
//!
//! [`model`], [`verdicts`], [`holds`] and [`entries`] say what must come, [`operations`] and [`naming`]
//! what is done, [`driver`], [`settling`] and [`delivering`] do it, [`checks`] compares; [`history`] has
//! the [`actors`] and [`tenders`] do it at once, [`judgement`] says what then holds. `PROPTEST_CASES` sets the
//! number of sequences.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod actors;
mod checks;
mod delivering;
mod driver;
mod entries;
mod history;
mod holds;
mod judgement;
mod model;
mod naming;
mod operations;
mod settling;
#[expect(dead_code, reason = "other test binaries use the rest")]
#[path = "../support/mod.rs"]
mod support;
mod tenders;
mod verdicts;

use std::collections::BTreeMap;

use promptyard::store::Store;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::runtime::Handle;

use crate::driver::{Case, clear};

/// What a run must have come upon; else the operations do not reach what is to be tested.
const SEEN: &[&str] = &[
    "admit: queued",
    "admit: routed",
    "admit: moved",
    "admit: held",
    "admit: held still",
    "admit: moved and held",
    "admit: waiting",
    "admit: hit",
    "admit: ended",
    "admit: known",
    "admit: key reused",
    "claim: run",
    "claim: poison_candidate",
    "claim: last",
    "claim: busy",
    "claim: elsewhere",
    "claim: ended before",
    "claim: expired",
    "claim: spent",
    "claim: unknown",
    "settle: fenced",
    "settle: closed",
    "settle: apart",
    "settle: written in part",
    "settle: shared",
    "check: fell back",
    "end: ended",
    "end: let be",
    "end: unknown",
    "cancel: running",
    "cancel: lost",
    "cancel: held",
    "cancel: never run",
    "cancel: between attempts",
    "cancel: none",
    "release: to the router",
    "release: to a tier",
    "release: again",
    "release: ended or running",
    "sweep: expired",
    "sweep: lost",
    "sweep: lost before the router",
    "sweep: lost by its worker",
    "lead: taken",
    "lead: refused",
    "look: loads",
    "look: unpublished",
    "look: superseded",
    "promote: one",
];

/// The number of sequences that `PROPTEST_CASES` asks for.
fn asked_cases() -> Option<u32> {
    std::env::var("PROPTEST_CASES").ok()?.parse().ok()
}

/// The number of sequences: what is asked for, or `usual`.
fn cases(usual: u32) -> u32 {
    asked_cases().unwrap_or(usual)
}

/// Draws sequences: always the same ones unless a number is asked for, so that what a usual run comes upon
/// is no matter of chance.
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
fn run_sequences(store: &Store, ledger: &Handle, cases: u32) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let seen = std::cell::RefCell::new(BTreeMap::new());
    let outcome = runner(config).run(&operations::sequence(), |sequence| {
        ledger.block_on(async {
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
    if let Err(fault) = outcome {
        panic!("{fault}");
    }
    let seen = seen.into_inner();
    // Sequences drawn anew come upon all of it only where there are many.
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
    /// Any sequence of operations on a few jobs comes to what the model says, step by step, and leaves
    /// jobs that can all be brought to their end.
    async fn sequences_follow_the_model(store: Store) {
        // Each call is dearer on Postgres.
        let cases = cases(if store.is_embedded() { 100 } else { 24 });
        let ledger = Handle::current();
        let run = tokio::task::spawn_blocking(move || run_sequences(&store, &ledger, cases));
        if let Err(fault) = run.await {
            std::panic::resume_unwind(fault.into_panic());
        }
    }

    /// Workers, routers, an undertaker, a canceller, releasers and a sweeper that act on the same jobs at
    /// once leave a history in which every job ended once and every attempt is accounted for.
    async fn histories_are_consistent(store: Store) {
        for round in 0..u64::from(cases(64).div_ceil(16)) {
            history::play(&store, round).await;
        }
    }
}
