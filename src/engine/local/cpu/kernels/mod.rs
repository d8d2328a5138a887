//! The arithmetic of a step on the CPU: products of few rows with packed weights and the elementwise
//! functions between them, compiled for several instruction sets and selected at run time.
//!
//! Everything builds on one operation, [`multiply`]: some rows times a *panel*, the weights of 32
//! outputs stored side by side for each input. A row's result is summed input by input, so it is
//! bit-identical whatever rows are multiplied with it.
//!
//! 64-bit Arm has no code of its own: the compiler vectorizes the portable loops with NEON.

#[macro_use]
mod isa;

mod aligned;
mod columns;
mod elementwise;
mod limits;
mod logits;
mod matrix;
mod pack;
mod panel;
mod rows;
mod team;
mod tile;

pub(in crate::engine) use aligned::Aligned;
pub(in crate::engine) use columns::SharedColumns;
pub(in crate::engine) use elementwise::{Softmax, rms_norm, rotate, softmax_block};
pub(in crate::engine) use isa::Isa;
pub(crate) use limits::MachineLimits;
pub(in crate::engine) use logits::{highest_two, softmax_sums, softmax_weights};
pub(in crate::engine) use matrix::{Matrix, gated, is_worth_sharing};
pub(in crate::engine) use pack::Precision;
pub(in crate::engine) use panel::{InputRows, PANEL, Panel, lane};
pub(in crate::engine) use rows::PreparedRows;
pub(in crate::engine) use team::{share, share_parts};
pub(in crate::engine) use tile::multiply;
