//! Replaces grammars in a binary without the feature `structured`.

use crate::{engine::EngineError, job::ResponseFormat, prompt::Vocabulary};

use super::state::GrammarState;

/// Cannot be constructed.
#[derive(Debug)]
pub(in crate::engine) enum Grammar {}

impl Grammar {
    /// Unreachable.
    pub(in crate::engine) fn allowed(&mut self) -> Option<Vec<u32>> {
        match *self {}
    }

    /// Unreachable.
    pub(in crate::engine) fn take(&mut self, _: u32) -> GrammarState {
        match *self {}
    }
}

/// Rejects every format but plain text.
#[derive(Debug)]
pub(in crate::engine) struct GrammarCompiler;

impl GrammarCompiler {
    pub(in crate::engine) fn new(_: Vocabulary, _: Vec<u32>, _: usize) -> Self {
        Self
    }

    /// # Errors
    /// [`EngineError::Unservable`] for every format but plain text.
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
