//! Jobs get a tier.
//!
//! Comes in: bodies from `jobs.in`, in micro-batches. Goes out: admitted jobs on their tier's
//! queue, and replies for those that need no model (cached, rejected, expired). [`policy`] turns a
//! score into a tier; [`target`] keeps a [`calibration`] for each scope, which makes thresholds by the
//! pure [`quantile`], [`isotonic`] and [`load`]; [`intake`] reads messages; [`router`] runs the loop; [`undertaker`] closes what the
//! broker gave up; [`promoter`] revives jobs whose leader was lost; [`observer`] tells the policy of
//! load, targets and outcomes; [`shadow`] makes copies for learning and [`learning`] rows of them; `reuse` finds
//! questions that ask the same, and `recheck` runs such hits again; `copies` makes both kinds of copies; [`lanes`] sends jobs to
//! the worker that holds their beginning; `turns` holds jobs until it is their tenant's turn, or their
//! time, and sweeps up after faults.
//! [`confidence`] tells workers how sure the small model's answer is, [`cascade`] what thresholds
//! cost and gain. It never runs a model and never looks into an answer's text.
//!
//! The score is pure. [`features`] reads a prompt; [`scorer`] applies fitted [`weights`] ([`words`]
//! by hash, [`trees`] on counts, length for the rest) that [`codec`] reads and writes. [`samples`]
//! are labelled prompts; [`train`] fits weights to them ([`ridge`], [`trees`]); [`judge`] holds
//! prompts out, [`evaluate`] says how good the ranking is, and [`record`] keeps how weights were made and judged.

pub mod calibration;
pub mod cascade;
pub mod codec;
pub mod confidence;
mod copies;
pub mod directory;
pub mod evaluate;
pub mod features;
pub mod intake;
pub mod isotonic;
pub mod judge;
pub mod lanes;
pub mod learning;
pub mod load;
pub mod observer;
pub mod policy;
mod prior;
pub mod promoter;
pub mod quantile;
pub mod random;
mod recheck;
pub mod record;
mod reuse;
pub mod ridge;
pub mod router;
pub mod samples;
pub mod scorer;
pub mod shadow;
pub mod target;
pub mod train;
pub mod trees;
mod turns;
pub mod undertaker;
pub mod weights;
pub mod words;

pub use router::{Router, RouterFault};
