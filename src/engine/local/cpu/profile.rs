//! Measures the phases of a step.

use std::time::{Duration, Instant};

/// A phase of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepPhase {
    /// Looking up the embedding.
    Embedding,
    /// RMS norms.
    Norm,
    /// Projections to queries, keys and values.
    Qkv,
    /// Rotary positions, writing to the cache, and attention itself.
    Attention,
    /// The attention's output projection.
    Output,
    /// The feed-forward layer's gate and up projections and its activation.
    GateUp,
    /// Its down projection.
    Down,
    /// The LM head.
    Head,
}

impl StepPhase {
    /// All phases in order, with their names.
    pub(crate) const ALL: [(Self, &'static str); 8] = [
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

/// Time spent per phase, over all profiled steps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profile {
    spent: [Duration; StepPhase::ALL.len()],
}

impl Profile {
    /// Time spent in a phase.
    pub(crate) fn spent(&self, phase: StepPhase) -> Duration {
        self.spent[phase as usize]
    }
}

/// Attributes the time since the previous lap to a phase, if a profile was requested.
pub(super) struct PhaseClock<'a> {
    profile: Option<&'a mut Profile>,
    last: Instant,
}

impl<'a> PhaseClock<'a> {
    pub(super) fn new(profile: Option<&'a mut Profile>) -> Self {
        Self {
            profile,
            last: Instant::now(),
        }
    }

    pub(super) fn lap(&mut self, phase: StepPhase) {
        if let Some(profile) = &mut self.profile {
            let now = Instant::now();
            profile.spent[phase as usize] += now - self.last;
            self.last = now;
        }
    }
}
