//! Prefix affinity: jobs that share a prompt prefix go to the same worker.
//!
//! Comes in: a request and the live workers of its tier. Goes out: the affinity queue that suits it
//! best. [`prefix`] describes the start of a request as a chain of block hashes, [`assignment`] says
//! which worker consumes which affinity queues (workers and routers compute it alike), and
//! [`placement`] remembers where prefixes went and keeps the queues balanced.

pub mod assignment;
pub mod placement;
pub mod prefix;

pub use assignment::Assignment;
pub use placement::Placement;
pub use prefix::{PromptPrefix, shared_blocks};
