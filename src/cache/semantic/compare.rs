//! Compares two questions.

use super::guards::{Veto, veto};

/// Least cosine of a hit, for all-MiniLM-L6-v2. Chosen on Quora's questions and on PAWS; see
/// ARCHITECTURE.md.
pub const COSINE_MIN: f32 = 0.92;

/// The comparison of two texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The cosine of their embeddings; `None` when there are none.
    pub cosine: Option<f32>,
    /// Why one's answer must not serve the other; `None` is a hit.
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

/// Compares two texts. Equal texts are a hit; other texts need a cosine. Where a guard and the
/// threshold both forbid reuse, the guard is named.
pub fn compare(a: &str, b: &str, cosine: Option<f32>, cosine_min: f32) -> Comparison {
    let veto = if a == b {
        None
    } else {
        veto(a, b).or(match cosine {
            Some(cosine) if cosine >= cosine_min => None,
            Some(cosine) if cosine.is_finite() => Some(Veto::Cosine),
            _ => Some(Veto::Failure),
        })
    };
    Comparison { cosine, veto }
}
