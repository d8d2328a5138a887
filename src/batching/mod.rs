//! Continuous batching: which sequences run, how many tokens each computes per step, in which KV
//! blocks, and which wait.
//!
//! Sequence ids, token ids and limits in; the plan of one ragged step after another out (`Plan`).
//! A step holds the next token of every decoding sequence, then chunks of prompts up to a budget
//! derived from the observed cost of steps (`cost`). Sequences join and leave between any two
//! steps. The KV cache is divided into blocks (`BlockPool`); sequences with a common prefix share
//! them. When blocks run out, the sequence that is last in order is preempted and recomputed later.
//! This module holds ids and counts, never text or tensors, and computes nothing.
//!
//! ```text
//! enqueue ─▶ queue ──admit──▶ running ──leave──▶ gone
//!              ▲                 │
//!              └────preempted────┘   (no free block; sequences earlier in order keep theirs)
//! ```

mod cost;
mod pool;
mod prefix;
mod queue;
mod scheduler;
mod sequence;
mod step_budget;

pub use pool::BlockId;
pub use prefix::BLOCK_TOKENS;

pub(crate) use pool::BlockPool;
pub(crate) use prefix::PrefixHash;
pub(crate) use scheduler::{EnqueueError, Limits, Plan, Scheduler};
pub(crate) use sequence::{Request, SequenceId};
