//! The decoder on the CPU, computed by our own kernels over packed weights.
//!
//! Comes in: one ragged step of a batch. Goes out: logits. [`model`] is the decoder, layer by layer
//! (`layer`, `linear`, `attention`, `rope`); `arena` holds keys and values in blocks; `kernels` are the
//! products and element-wise functions for each instruction set; [`profile`] times the parts of a step.

mod arena;
mod attention;
pub(super) mod kernels;
mod layer;
mod linear;
pub(super) mod model;
pub(super) mod profile;
pub(super) mod rope;

pub use kernels::MachineLimits;
pub use model::{Chunk, CpuModel, Logits, Rows, Workspace};
pub use profile::{Part, Profile};
