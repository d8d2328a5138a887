//! The built `promptyard` on its embedded default, as people use and misuse it: a file of prompts
//! in, answers out, whatever happens in between.

mod answers;
mod attempts;
mod bad_input;
mod context;
mod crashes;
mod delivery;
mod escalation;
mod faults;
mod generation;
mod http;
mod learning;
mod reuse;
mod roles;
mod semantic;
