//! Whether two questions are paraphrases, so that one's answer may serve the other.
//!
//! Comes in: two texts and the cosine of their embeddings. Goes out: hit or miss, and why
//! ([`compare()`]). Similarity alone never suffices: [`guards`] look for differences that embeddings
//! miss, and uncertainty or failure is a miss. [`QuestionIndex`] finds the nearest of many questions;
//! [`are_equivalent`] compares two answers.

pub mod antonyms;
mod compare;
mod encoder;
mod equivalence;
pub mod guards;
pub mod index;
pub mod lexicon;

pub use compare::{COSINE_MIN, compare};
pub use encoder::Encoder;
pub use equivalence::are_equivalent;
pub use index::{IndexedQuestion, QuestionIndex};

#[cfg(test)]
mod tests;
