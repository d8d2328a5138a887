//! The decoder on the CPU, computed by our own kernels over packed weights.
//!
//! [`model`] is the decoder, layer by layer (`layer`, `linear`, `attention`, `rope`); `arena` holds
//! keys and values in blocks; `kernels` contains the matrix products and elementwise functions for
//! each instruction set; [`profile`] times the phases of a step.

mod arena;
mod attention;
pub(super) mod kernels;
mod layer;
mod linear;
pub(super) mod model;
pub(super) mod profile;
pub(super) mod rope;

pub use model::{CpuModel, Workspace};

pub(crate) use kernels::MachineLimits;
pub(crate) use profile::{Profile, StepPhase};
