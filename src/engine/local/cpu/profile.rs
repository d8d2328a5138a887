//! Where a step's time goes.

use std::time::{Duration, Instant};

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Rows of the embedding.
    Embedding,
    /// Norms.
    Norm,
    /// Queries, keys and values.
    Qkv,
    /// Rotary positions, the cache, and attention itself.
    Attention,
    /// The attention's output.
    Output,
    /// The feed-forward layer's first products and its activation.
    GateUp,
    /// Its second product.
    Down,
    /// The LM head.
    Head,
}

impl Part {
    /// All of them, in the order of a step, with their names.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Embedding, "embedding"),
        (Self::Norm, "norm"),
        (Self::Qkv, "qkv"),
        (Self::Attention, "attention"),
        (Self::Output, "output"),
        (Self::GateUp, "gate_up"),
        (Self::Down, "down"),
        (Self::Head, "head"),
    ];
}

/// Time spent in each part, over as many steps as it was lent to.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    spent: [Duration; Part::ALL.len()],
}

impl Profile {
    /// Time spent in a part.
    pub fn spent(&self, part: Part) -> Duration {
        self.spent[part as usize]
    }
}

/// Gives the time since the last look to one part after the other, if anybody asked.
pub(super) struct Clock<'a> {
    profile: Option<&'a mut Profile>,
    last: Instant,
}

impl<'a> Clock<'a> {
    pub(super) fn new(profile: Option<&'a mut Profile>) -> Self {
        Self {
            profile,
            last: Instant::now(),
        }
    }

    pub(super) fn lap(&mut self, part: Part) {
        if let Some(profile) = &mut self.profile {
            let now = Instant::now();
            profile.spent[part as usize] += now - self.last;
            self.last = now;
        }
    }
}
