//! What stands in for grammars in a binary without the feature `structured`.

use super::Progress;
use crate::{engine::EngineFault, job::ResponseFormat, prompt::Vocabulary};

/// There are none.
#[derive(Debug)]
pub(in crate::engine::candle) enum Grammar {}

impl Grammar {
    /// Never called.
    pub(in crate::engine::candle) fn allowed(&mut self) -> Option<Vec<u32>> {
        match *self {}
    }

    /// Never called.
    pub(in crate::engine::candle) fn take(&mut self, _: u32) -> Progress {
        match *self {}
    }
}

/// Refuses every form but plain text.
#[derive(Debug)]
pub(in crate::engine::candle) struct Grammars;

impl Grammars {
    pub(in crate::engine::candle) fn new(_: Vocabulary, _: Vec<u32>, _: usize) -> Self {
        Self
    }

    /// # Errors
    /// [`EngineFault::Unservable`] for any form but plain text.
    pub(in crate::engine::candle) fn compile(
        &self,
        format: &ResponseFormat,
    ) -> Result<Option<Grammar>, EngineFault> {
        if format.is_text() {
            return Ok(None);
        }
        Err(EngineFault::Unservable(
            "response_format: this binary was built without the feature `structured`".to_owned(),
        ))
    }
}
