//! Grammars by llguidance: an Earley parser over the bytes that tokens spell.

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

use super::Progress;

/// White space between JSON's words: a space, or a new line with its indentation. Without a bound a
/// model may add spaces until its tokens are spent.
const WHITE_SPACE: &str = r" |\n {0,32}";
/// What is told of a schema's error, in characters.
const FAULT_CHARS_MAX: usize = 300;

/// Makes grammars for one model's vocabulary. What they share is built when the first is asked for.
pub(in crate::engine) struct Grammars {
    vocabulary: Vocabulary,
    /// Tokens that end an answer.
    eos: Vec<u32>,
    /// Logits of a row; at least as many as tokens.
    rows: usize,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grammars({:?})", self.vocabulary)
    }
}

impl Grammars {
    pub(in crate::engine) fn new(vocabulary: Vocabulary, eos: Vec<u32>, rows: usize) -> Self {
        Self {
            vocabulary,
            eos,
            rows,
            factory: OnceLock::new(),
        }
    }

    /// The grammar of an answer's form; `None` where it has none. It may take tens of
    /// milliseconds, the first one longer.
    ///
    /// # Errors
    /// [`EngineError::Unservable`] when the schema cannot be obeyed.
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
        let matcher = made.map_err(|_| refused("the schema cannot be read"))?;
        match matcher.get_error() {
            Some(error) => Err(refused(&error)),
            None => Ok(Some(Grammar(matcher))),
        }
    }

    fn factory(&self) -> Result<ParserFactory, String> {
        let tokens: TokEnv = Arc::new(Tokens::new(&self.vocabulary, &self.eos, self.rows));
        let mut factory = ParserFactory::new_simple(&tokens).map_err(|error| error.to_string())?;
        factory.quiet();
        // Faults must not quote what was generated.
        factory.limits_mut().verbose_errors = false;
        Ok(factory)
    }
}

/// Sets how white space is written, which the schema itself cannot say.
fn with_white_space(mut schema: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        let options = json!({"whitespace_pattern": WHITE_SPACE});
        fields.insert("x-guidance".to_owned(), options);
    }
    schema
}

/// What one answer must look like, from where it stands.
pub(in crate::engine) struct Grammar(Matcher);

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grammar({})", self.0.stop_reason())
    }
}

impl Grammar {
    /// The tokens that may come next, a bit for each; `None` when there is no way on.
    pub(in crate::engine) fn allowed(&mut self) -> Option<Vec<u32>> {
        let mask = self.0.compute_mask().ok()?;
        (!mask.is_zero()).then(|| mask.as_slice().to_vec())
    }

    /// Goes on by the token that was chosen.
    pub(in crate::engine) fn take(&mut self, token: u32) -> Progress {
        if self.0.consume_token(token).is_err() {
            return Progress::Stuck;
        }
        match self.0.is_stopped() {
            false => Progress::Open,
            true if self.0.stop_reason().is_ok() => Progress::Whole,
            true => Progress::Stuck,
        }
    }
}

/// A vocabulary as llguidance sees it.
struct Tokens(TokTrie);

impl Tokens {
    fn new(vocabulary: &Vocabulary, eos: &[u32], rows: usize) -> Self {
        let spell = |token: u32| {
            let bytes = vocabulary.token_bytes(token);
            if !vocabulary.is_special(token) && !eos.contains(&token) {
                return bytes.to_vec();
            }
            // Special tokens stand apart from text that happens to read the same.
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

    /// The model chooses how it spells what the grammar leaves it no choice about.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
