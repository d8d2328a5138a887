//! Whether two requests ask the same, so that one's answer may serve the other.
//!
//! Comes in: two texts and the cosine of their embeddings. Goes out: hit or miss, and why
//! ([`compare`]). NearQuestion alone never suffices: [`guards`] look for what embeddings do not see, and any
//! doubt or failure is a miss. [`Index`] finds the near ones of many; [`says_same`] compares two answers.

pub mod antonyms;
mod encoder;
pub mod guards;
pub mod index;
pub mod lexicon;
mod says_same;

pub use encoder::Encoder;
pub use guards::Veto;
pub use index::{Index, Question, Scope};
pub use says_same::says_same;

/// Least cosine of a hit, for all-MiniLM-L6-v2. Found on Quora's questions and on PAWS; see
/// ARCHITECTURE.md.
pub const COSINE_MIN: f32 = 0.92;

/// Two texts, compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The cosine of their embeddings; `None` when there are none.
    pub cosine: Option<f32>,
    /// Why the one's answer must not serve the other; `None` is a hit.
    pub veto: Option<Veto>,
}

impl Comparison {
    /// `hit` or `miss`.
    pub fn outcome(self) -> &'static str {
        match self.veto {
            None => "hit",
            Some(_) => "miss",
        }
    }
}

/// Compares two texts. Equal texts are a hit; without a cosine others never are. Where a guard and the
/// threshold both forbid it, the guard is named.
pub fn compare(a: &str, b: &str, cosine: Option<f32>, cosine_min: f32) -> Comparison {
    let veto = if a == b {
        None
    } else {
        guards::veto(a, b).or(match cosine {
            Some(cosine) if cosine >= cosine_min => None,
            Some(cosine) if cosine.is_finite() => Some(Veto::Cosine),
            _ => Some(Veto::Failure),
        })
    };
    Comparison { cosine, veto }
}

#[cfg(test)]
mod tests;
