//! The types that every stage shares: a job, its states, its answer.
//!
//! Comes in: request bodies as producers write them ([`submission`]).
//! Goes out: [`Job`] and [`RoutedJob`] on the queues ([`envelope`]), [`JobRecord`] from the database
//! and to the producer ([`record`]). It never does I/O.

mod body;
pub mod envelope;
mod identity;
pub mod logprobs;
mod names;
mod pair;
pub mod record;
pub mod request;
pub mod sampling;
mod schedule;
pub mod signals;
mod state;
pub mod submission;

pub use envelope::{CacheKey, Candidate, Job, JobHead, Priority, ReplyTo, RoutedJob};
pub use identity::{JobId, Tenant};
pub use logprobs::{Likelihood, TokenLogprob};
pub(crate) use names::unknown_name;
pub use pair::{ModelPair, ServedModel};
pub use record::{Answer, AnswerSource, ContextSavings, FinishReason, JobRecord, Usage};
pub use request::{
    CacheMode, ChatRequest, ContextMode, Message, ModelChoice, Options, RequestLimits, Role,
};
pub use sampling::{NamedSchema, ResponseFormat, Sampling};
pub use schedule::Schedule;
pub use signals::{DistributionSignals, Signals};
pub use state::{JobState, Reason, Tier};
pub use submission::{Rejection, Submission};
