//! Jobs get a tier.
//!
//! Comes in: bodies from `jobs.in`, in micro-batches. Goes out: admitted jobs on their tier's
//! queue, and replies for those that need no model (cached, rejected, expired). [`features`] and
//! [`scorer`] are pure; [`policy`] turns a score into a tier; [`intake`] reads messages; [`router`]
//! runs the loop; [`undertaker`] closes what the broker gave up; [`promoter`] revives jobs whose
//! leader was lost. [`confidence`] tells workers how sure the small model's answer is, [`cascade`] what
//! thresholds cost and gain. It never runs a model and never looks into an answer's text.

pub mod cascade;
pub mod confidence;
pub mod directory;
pub mod features;
pub mod intake;
pub mod policy;
pub mod promoter;
pub mod router;
pub mod scorer;
pub mod undertaker;

pub use router::{Router, RouterFault};
