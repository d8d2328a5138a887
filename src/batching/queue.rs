//! The waiting queue and its order.

use std::time::Duration;

use super::{
    cost::StepSize,
    sequence::{PriorityClass, ScheduleOrder, ScheduledSequence, SequenceId},
    step_budget::StepBudget,
};
use crate::job::Priority;

/// After waiting this long, a sequence counts as high priority; having arrived earlier, it then runs
/// before the others of that class, so none starves.
const AGEING: Duration = Duration::from_secs(10);
/// A sequence is urgent when less than this multiple of its predicted run time is left.
const URGENT_TIMES: f64 = 2.0;

/// Waiting sequences, unsorted: their order depends on the current time.
#[derive(Debug, Default)]
pub(super) struct WaitingQueue {
    sequences: Vec<ScheduledSequence>,
}

impl WaitingQueue {
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    pub(super) fn push(&mut self, sequence: ScheduledSequence) {
        self.sequences.push(sequence);
    }

    pub(super) fn remove(&mut self, id: SequenceId) -> Option<ScheduledSequence> {
        let at = self.sequences.iter().position(|waiting| waiting.id == id)?;
        Some(self.sequences.swap_remove(at))
    }

    /// The first sequence in order, with its order updated.
    pub(super) fn next(
        &mut self,
        now: Duration,
        step_budget: &StepBudget,
    ) -> Option<&mut ScheduledSequence> {
        for sequence in &mut self.sequences {
            sequence.order = ScheduleOrder {
                class: class(sequence, now, step_budget),
                arrival: sequence.id,
            };
        }
        self.sequences
            .iter_mut()
            .min_by_key(|sequence| sequence.order)
    }
}

fn class(sequence: &ScheduledSequence, now: Duration, step_budget: &StepBudget) -> PriorityClass {
    let is_high = sequence.priority == Priority::High
        || now.saturating_sub(sequence.arrived) >= AGEING
        || is_urgent(sequence, now, step_budget);
    if is_high {
        PriorityClass::High
    } else {
        PriorityClass::Normal
    }
}

/// True when the time left is short for the predicted run time.
fn is_urgent(sequence: &ScheduledSequence, now: Duration, step_budget: &StepBudget) -> bool {
    let Some(due) = sequence.due else {
        return false;
    };
    let prompt = step_budget.seconds(StepSize::of(0, sequence.tokens.len()));
    let step = step_budget.seconds(sequence.decode_size());
    let (Some(prompt), Some(step)) = (prompt, step) else {
        return false;
    };
    let steps = (sequence.tokens_max - sequence.tokens.len()) as f64;
    due.saturating_sub(now).as_secs_f64() < URGENT_TIMES * (prompt + steps * step)
}
