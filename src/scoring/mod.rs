//! How much a prompt gains from the large model, and how likely the small model's answer is right.
//!
//! Comes in: a request, or labelled prompts to learn from. Goes out: a score with its explanation, or
//! fitted weights. Pure: nothing here reads a queue, a database or the clock.
//!
//! [`features`] reads a prompt; [`scorer`] applies fitted [`weights`] ([`words`] by hash, [`trees`] on
//! counts, length for the rest) that [`codec`] reads and writes. A [`sample`] is a labelled prompt
//! ([`samples`] reads them); [`train`] fits weights to them ([`ridge`], [`trees`]); [`cross_validation`]
//! scores held-out prompts, [`evaluate`] measures the ranking, and [`record`] stores how weights were
//! trained and evaluated.
//! [`confidence`] calibrates the probability that an answer is right; [`cascade`] computes what
//! escalation thresholds cost and gain.

pub mod cascade;
pub mod codec;
pub mod confidence;
pub mod cross_validation;
pub mod evaluate;
pub mod features;
mod prior;
pub mod random;
pub mod record;
pub mod ridge;
pub mod sample;
pub mod samples;
pub mod scorer;
pub mod train;
pub mod trees;
pub mod weights;
pub mod words;
