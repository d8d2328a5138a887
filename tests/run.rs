//! The built `promptyard` on its embedded default, as people use and misuse it: a file of prompts
//! in, answers out, whatever happens in between.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot start its processes has failed"
)]

#[path = "run/answers.rs"]
mod answers;
#[path = "run/attempts.rs"]
mod attempts;
#[path = "run/bad_input.rs"]
mod bad_input;
#[path = "run/context.rs"]
mod context;
#[path = "run/crashes.rs"]
mod crashes;
#[path = "run/delivery.rs"]
mod delivery;
#[path = "run/escalation.rs"]
mod escalation;
#[path = "run/faults.rs"]
mod faults;
#[path = "run/generation.rs"]
mod generation;
#[path = "run/http.rs"]
mod http;
#[path = "run/learning.rs"]
mod learning;
#[path = "run/reuse.rs"]
mod reuse;
#[path = "run/roles.rs"]
mod roles;
#[path = "run/semantic.rs"]
mod semantic;
#[path = "run/yard.rs"]
mod yard;
