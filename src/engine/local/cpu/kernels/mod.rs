//! The arithmetic of a step on the CPU: products of few rows with packed weights, and the
//! functions between them, compiled for several instruction sets and chosen at run time.
//!
//! Everything rests on one operation, [`multiply`]: some rows times a *panel*, the weights of 32
//! outputs whose values for one input lie side by side. A row's result is added up input by input,
//! so it is the same, bit for bit, whatever rows are multiplied beside it.
//!
//! 64-bit Arm has no code of its own here: the plain path is loops that the compiler turns into
//! NEON by itself.

#[macro_use]
mod isa;

mod aligned;
mod columns;
mod elementwise;
mod limits;
mod logits;
mod matrix;
mod pack;
mod rows;
mod team;
mod tile;

pub(in crate::engine) use aligned::Aligned;
pub(in crate::engine) use columns::Columns;
pub(in crate::engine) use elementwise::{Softmax, rms_norm, softmax_block, turn};
pub(in crate::engine) use isa::Isa;
pub use limits::MachineLimits;
pub(in crate::engine) use logits::{highest_two, softmax_sums, softmax_weights};
pub(in crate::engine) use matrix::{Matrix, Precision, gated, is_worth_sharing};
pub(in crate::engine) use rows::Ready;
pub(in crate::engine) use team::{share, share_parts};
pub(in crate::engine) use tile::{PANEL, Panel, Rows, lane, multiply};
