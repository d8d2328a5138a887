//! What commands share with the terminal and with files of prompts.
//!
//! Comes in: common arguments, JSONL input. Goes out: settings, parsed lines, tables and progress.

// Public for `fuzz` and `tests/cli/fuzz_corpus.rs`.
#[doc(hidden)]
pub mod input;
pub mod jsonl;
pub mod marks;
pub mod options;
pub mod output;
pub mod progress;
pub mod prompts;
pub mod table;
