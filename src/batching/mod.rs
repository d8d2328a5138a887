//! Sequences share steps: who joins, who computes how many tokens, who waits.
//!
//! Comes in: sequences' ids and lengths. Goes out: the plan of one ragged step after another
//! ([`Plan`]): every decoding sequence's next token first, then chunks of prompts up to a budget.
//! Sequences join and leave between any two steps. It holds ids and counts, never text or tensors,
//! and computes nothing.

mod scheduler;

pub use scheduler::{Limits, Plan, Refusal, Request, Scheduler, SequenceId, Share};
