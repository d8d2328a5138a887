//! What commands share: options, files of prompts, and output.
//!
//! Comes in: common arguments, JSONL input. Goes out: settings, parsed lines, tables and progress.

// Public for `fuzz` and `tests/cli/fuzz_corpus.rs`.
#[doc(hidden)]
pub mod input;
pub(crate) mod jsonl;
#[doc(hidden)]
pub mod marks;
pub(crate) mod options;
pub(crate) mod output;
pub(crate) mod progress;
pub(crate) mod prompts;
pub(crate) mod table;
pub(crate) mod terminal;
