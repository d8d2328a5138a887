//! The built `promptyard` on its embedded default, as people use and misuse it: a file of prompts
//! in, answers out.

mod answers;
mod attempts;
mod bad_input;
mod context;
mod crashes;
mod delivery;
mod errors;
mod escalation;
mod generation;
mod http;
mod learning;
mod reuse;
mod roles;
mod semantic;
