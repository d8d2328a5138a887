//! Grammars by llguidance: an Earley parser over the bytes of the tokens.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv},
};
use serde_json::{Value, json};

use crate::{engine::EngineError, job::ResponseFormat, prompt::Vocabulary};

use super::state::GrammarState;

/// White space in JSON: a space, or a new line with indentation. Bounded, since a model might
/// otherwise add spaces until its token limit.
const WHITE_SPACE: &str = r" |\n {0,32}";
/// Most characters quoted of a schema error.
const FAULT_CHARS_MAX: usize = 300;

/// Compiles grammars for one model's vocabulary; their shared tables are built on first use.
pub(in crate::engine) struct GrammarCompiler {
    vocabulary: Vocabulary,
    /// Tokens that end an answer.
    eos: Vec<u32>,
    /// Length of a row of logits; at least the number of tokens.
    rows: usize,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrammarCompiler({:?})", self.vocabulary)
    }
}

impl GrammarCompiler {
    pub(in crate::engine) fn new(vocabulary: Vocabulary, eos: Vec<u32>, rows: usize) -> Self {
        Self {
            vocabulary,
            eos,
            rows,
            factory: OnceLock::new(),
        }
    }

    /// Compiles a response format; `None` for plain text. Takes up to tens of milliseconds, longer on
    /// first use.
    ///
    /// # Errors
    /// [`EngineError::Unservable`] when the schema is not supported.
    pub(in crate::engine) fn compile(
        &self,
        format: &ResponseFormat,
    ) -> Result<Option<Grammar>, EngineError> {
        let schema = match format {
            ResponseFormat::Text => return Ok(None),
            ResponseFormat::JsonObject => json!({"type": "object"}),
            ResponseFormat::JsonSchema { json_schema } => json_schema.schema.clone(),
        };
        let refused = |why: &str| {
            let line = why.lines().next().unwrap_or_default();
            let line: String = line.chars().take(FAULT_CHARS_MAX).collect();
            EngineError::Unservable(format!("response_format: {line}"))
        };
        let factory = self.factory.get_or_init(|| self.factory());
        let factory = factory.as_ref().map_err(|error| refused(error))?;
        let made = catch_unwind(AssertUnwindSafe(|| {
            let grammar = TopLevelGrammar::from_json_schema(with_white_space(schema));
            Matcher::new(factory.create_parser(grammar))
        }));
        let matcher = made.map_err(|_| refused("cannot compile the schema"))?;
        match matcher.get_error() {
            Some(error) => Err(refused(&error)),
            None => Ok(Some(Grammar(matcher))),
        }
    }

    fn factory(&self) -> Result<ParserFactory, String> {
        let tokens: TokEnv = Arc::new(Tokens::new(&self.vocabulary, &self.eos, self.rows));
        let mut factory = ParserFactory::new_simple(&tokens).map_err(|error| error.to_string())?;
        factory.quiet();
        // Errors must not quote generated text.
        factory.limits_mut().verbose_errors = false;
        Ok(factory)
    }
}

/// Sets how white space is generated, which a schema cannot express.
fn with_white_space(mut schema: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        let options = json!({"whitespace_pattern": WHITE_SPACE});
        fields.insert("x-guidance".to_owned(), options);
    }
    schema
}

/// The grammar of one answer, with its current state.
pub(in crate::engine) struct Grammar(Matcher);

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grammar({})", self.0.stop_reason())
    }
}

impl Grammar {
    /// Bit mask of the tokens that may come next; `None` when there are none.
    pub(in crate::engine) fn allowed(&mut self) -> Option<Vec<u32>> {
        let mask = self.0.compute_mask().ok()?;
        (!mask.is_zero()).then(|| mask.as_slice().to_vec())
    }

    /// Advances by the chosen token.
    pub(in crate::engine) fn take(&mut self, token: u32) -> GrammarState {
        if self.0.consume_token(token).is_err() {
            return GrammarState::Stuck;
        }
        match self.0.is_stopped() {
            false => GrammarState::Open,
            true if self.0.stop_reason().is_ok() => GrammarState::Complete,
            true => GrammarState::Stuck,
        }
    }
}

/// A vocabulary in llguidance's form.
struct Tokens(TokTrie);

impl Tokens {
    fn new(vocabulary: &Vocabulary, eos: &[u32], rows: usize) -> Self {
        let spell = |token: u32| {
            let bytes = vocabulary.token_bytes(token);
            if !vocabulary.is_special(token) && !eos.contains(&token) {
                return bytes.to_vec();
            }
            // Marked, so that special tokens never match text that reads the same.
            [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
        };
        let words: Vec<Vec<u8>> = (0..rows as u32).map(spell).collect();
        let first = eos.first().copied().unwrap_or(INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(rows as u32, first), &words);
        Self(if eos.is_empty() {
            trie
        } else {
            trie.with_eos_tokens(eos)
        })
    }
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    /// False: where the grammar forces text, the model still chooses its tokenization.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
