//! One suite against every database: what `src/store/mod.rs` promises, Postgres and SQLite keep alike.

mod admission;
mod analysis;
mod attempts;
mod concurrency;
mod delivery;
mod escalation;
mod learning;
mod postgres;
mod reading;
mod semantic;
mod sharing;
mod upkeep;
