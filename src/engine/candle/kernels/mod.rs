//! The arithmetic of a step on the CPU: products of few rows with packed weights, and the
//! functions between them, compiled for several instruction sets and chosen at run time.
//!
//! Everything rests on one operation, [`multiply`]: some rows times a *panel*, the weights of 32
//! outputs whose values for one input lie side by side. A row's result is added up input by input,
//! so it is the same, bit for bit, whatever rows are multiplied beside it.

mod elementwise;
mod isa;
mod limits;
mod logits;
mod matrix;
mod tile;

pub(in crate::engine::candle) use elementwise::{Softmax, rms_norm, softmax_block, swiglu};
pub(in crate::engine::candle) use isa::Isa;
pub use limits::MachineLimits;
pub(in crate::engine::candle) use logits::{highest_two, softmax_sums, softmax_weights};
pub(in crate::engine::candle) use matrix::{Columns, Matrix, Precision, is_worth_sharing};
pub(in crate::engine::candle) use tile::{PANEL, Panel, Rows, multiply};
