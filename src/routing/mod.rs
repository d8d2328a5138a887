//! Jobs get a tier.
//!
//! Comes in: bodies from `jobs.in`, in micro-batches. Goes out: admitted jobs on their tier's
//! queue, and replies for those that need no model (cached, rejected, expired). [`features`] and
//! [`scorer`] are pure, and so are [`quantile`], [`isotonic`] and [`load`], from which [`target`] makes
//! thresholds; [`policy`] turns a score into a tier; [`intake`] reads messages; [`router`]
//! runs the loop; [`undertaker`] closes what the broker gave up; [`promoter`] revives jobs whose
//! leader was lost; [`observer`] tells the policy of load and outcomes; [`shadow`] makes copies for
//! learning and [`learning`] rows of them. It never runs a model and never looks into an answer.

pub mod directory;
pub mod features;
pub mod intake;
pub mod isotonic;
pub mod learning;
pub mod load;
pub mod observer;
pub mod policy;
pub mod promoter;
pub mod quantile;
pub mod router;
pub mod scorer;
pub mod shadow;
pub mod target;
pub mod undertaker;

pub use router::{Router, RouterFault};
