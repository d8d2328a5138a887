//! What stands in for grammars in a binary without the feature `structured`.

use crate::{engine::EngineError, job::ResponseFormat, prompt::Vocabulary};

use super::Progress;

/// There are none.
#[derive(Debug)]
pub(in crate::engine) enum Grammar {}

impl Grammar {
    /// Never called.
    pub(in crate::engine) fn allowed(&mut self) -> Option<Vec<u32>> {
        match *self {}
    }

    /// Never called.
    pub(in crate::engine) fn take(&mut self, _: u32) -> Progress {
        match *self {}
    }
}

/// Refuses every form but plain text.
#[derive(Debug)]
pub(in crate::engine) struct Grammars;

impl Grammars {
    pub(in crate::engine) fn new(_: Vocabulary, _: Vec<u32>, _: usize) -> Self {
        Self
    }

    /// # Errors
    /// [`EngineError::Unservable`] for any form but plain text.
    pub(in crate::engine) fn compile(
        &self,
        format: &ResponseFormat,
    ) -> Result<Option<Grammar>, EngineError> {
        if format.is_text() {
            return Ok(None);
        }
        Err(EngineError::Unservable(
            "response_format: this binary was built without the feature `structured`".to_owned(),
        ))
    }
}
