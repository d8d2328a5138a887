//! One suite against every ledger: what `src/store/mod.rs` promises, Postgres and SQLite keep alike.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod admission;
mod analysis;
mod attempts;
mod concurrency;
mod delivery;
mod escalation;
mod fixture;
mod learning;
mod postgres;
mod reading;
mod semantic;
mod sharing;
mod upkeep;
