//! Sequences share steps: who joins, who computes how many tokens, in which blocks, who waits.
//!
//! Comes in: sequences' ids, token ids and limits. Goes out: the plan of one ragged step after
//! another ([`Plan`]): every decoding sequence's next token first, then chunks of prompts up to a
//! budget that follows from what steps were seen to cost ([`StepCost`]). Sequences join and leave
//! between any two steps. The KV cache is cut into blocks ([`BlockPool`]); sequences that begin alike
//! share them, and when they run out the sequence whose turn is last is put back and computed again
//! later. It holds ids and counts, never text or tensors, and computes nothing.
//!
//! ```text
//! enqueue ─▶ queue ──admit──▶ running ──leave──▶ gone
//!              ▲                 │
//!              └────preempted────┘   (no block left: those with an earlier turn keep theirs)
//! ```

mod cost;
mod pace;
mod pool;
mod prefix;
mod queue;
mod scheduler;
mod sequence;

pub use cost::{StepCost, StepSize};
pub use pool::{BlockId, BlockPool};
pub use prefix::{BLOCK_TOKENS, PrefixHash};
pub use scheduler::{Limits, Plan, Refusal, Scheduler, Share};
pub use sequence::{Request, SequenceId};
