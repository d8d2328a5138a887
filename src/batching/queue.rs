//! Who waits, and whose turn is next.

use std::time::Duration;

use super::{
    cost::StepSize,
    pace::Pace,
    sequence::{Class, Sequence, SequenceId, Turn},
};
use crate::job::Priority;

/// A sequence that has waited for so long is served like one of high priority; those came later, so
/// it goes before them, and nobody starves.
const AGEING: Duration = Duration::from_secs(10);
/// A sequence is urgent when less than this many times the time it needs is left.
const URGENT_TIMES: f64 = 2.0;

/// Waiting sequences, in no order: their turn depends on the time.
#[derive(Debug, Default)]
pub(super) struct Queue {
    sequences: Vec<Sequence>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    pub(super) fn push(&mut self, sequence: Sequence) {
        self.sequences.push(sequence);
    }

    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let at = self.sequences.iter().position(|waiting| waiting.id == id)?;
        Some(self.sequences.swap_remove(at))
    }

    /// The sequence whose turn is next, with its turn set.
    pub(super) fn next(&mut self, now: Duration, pace: &Pace) -> Option<&mut Sequence> {
        for sequence in &mut self.sequences {
            sequence.turn = Turn {
                class: class(sequence, now, pace),
                arrival: sequence.id,
            };
        }
        self.sequences
            .iter_mut()
            .min_by_key(|sequence| sequence.turn)
    }
}

fn class(sequence: &Sequence, now: Duration, pace: &Pace) -> Class {
    let is_high = sequence.priority == Priority::High
        || now.saturating_sub(sequence.arrived) >= AGEING
        || is_urgent(sequence, now, pace);
    if is_high { Class::High } else { Class::Normal }
}

/// True when the time left is short for what it may have to compute.
fn is_urgent(sequence: &Sequence, now: Duration, pace: &Pace) -> bool {
    let Some(due) = sequence.due else {
        return false;
    };
    let prompt = pace.seconds(StepSize::of(0, sequence.tokens.len()));
    let step = pace.seconds(sequence.decode_size());
    let (Some(prompt), Some(step)) = (prompt, step) else {
        return false;
    };
    let steps = (sequence.tokens_max - sequence.tokens.len()) as f64;
    due.saturating_sub(now).as_secs_f64() < URGENT_TIMES * (prompt + steps * step)
}
