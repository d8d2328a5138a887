//! Features of a prompt, computed without a tokenizer in microseconds.
//!
//! Comes in: a request, or a text. Goes out: some ninety counts ([`Counts`]), the hashes of the
//! words and of the runs of two and three words, and the shape of the requested answer
//! ([`AnswerShape`]). Pure, and bounded: only the head and the tail of a long text are read.

mod counting;
mod counts;
mod grams;
mod lexicon;
mod text;

use serde_json::{Map, Value};

use crate::job::{ChatRequest, Role};

pub use counts::Counts;
pub use grams::{AnswerShape, Gram};

/// Changes whenever the same text would give other features; weights record the version they were
/// fitted to.
pub const FEATURES_VERSION: u32 = 2;

/// A prompt as the scorer sees it. It holds hashes of words, no text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    /// The counts.
    pub counts: Counts,
    /// Distinct hashes of one, two and three words in a row, ascending.
    pub grams: Vec<Gram>,
    /// Hashes of the caller's tags.
    pub tags: Vec<Gram>,
    /// The shape of the requested answer.
    pub shape: AnswerShape,
}

impl Features {
    /// The features of a request: its last user turn, the length of its other turns, and the caller's
    /// tags.
    pub fn of(request: &ChatRequest) -> Self {
        let last_user = request
            .messages
            .iter()
            .rposition(|message| message.role == Role::User)
            .unwrap_or(request.messages.len().saturating_sub(1));
        let mut context_bytes = 0;
        let mut features = Self::default();
        for (at, message) in request.messages.iter().enumerate() {
            if at == last_user {
                features = Self::of_text(&message.content);
            } else {
                context_bytes += message.content.len();
            }
        }
        features.counts.context = (context_bytes as f32).ln_1p();
        features.counts.turns = (request.messages.len() as f32).ln();
        features.with_tags(request.options.tags.iter().map(String::as_str))
    }

    /// The features of a single text.
    pub fn of_text(text: &str) -> Self {
        let parsed = text::ParsedPrompt::of(text);
        let counts = Counts::of(&parsed);
        let shape = AnswerShape::of(&counts);
        Self {
            grams: grams::of(&parsed),
            counts,
            tags: Vec::new(),
            shape,
        }
    }

    /// Adds the caller's tags; each weighs as much as all words together.
    #[must_use]
    pub fn with_tags<'a>(mut self, tags: impl IntoIterator<Item = &'a str>) -> Self {
        self.tags.extend(tags.into_iter().map(grams::of_tag));
        self.tags.sort_unstable();
        self.tags.dedup();
        self
    }

    /// The nonzero counts by name, as stored with the job.
    pub fn to_json(&self) -> Value {
        let pairs = Counts::NAMES.iter().zip(self.counts.values());
        Value::Object(
            pairs
                .filter(|(_, value)| *value != 0.0)
                .map(|(name, value)| {
                    let rounded = (f64::from(value) * 1e4).round() / 1e4;
                    ((*name).to_owned(), Value::from(rounded))
                })
                .collect::<Map<_, _>>(),
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::scoring::features::*;

    #[test]
    fn separates_the_last_turn_from_its_context() {
        let body = br#"{"messages":[{"role":"system","content":"1234"},{"role":"user","content":"ab"},{"role":"assistant","content":"x"}]}"#;
        let request = crate::job::Submission::parse(body, &crate::job::RequestLimits::default())
            .expect("valid")
            .request;
        let features = Features::of(&request);
        assert_eq!(features.counts.length, 2.0_f32.ln_1p());
        assert_eq!(features.counts.context, 5.0_f32.ln_1p());
        assert_eq!(features.counts.turns, 3.0_f32.ln());
    }

    #[test]
    fn tags_are_a_set() {
        let tags = |names: &[&str]| Features::of_text("x").with_tags(names.iter().copied()).tags;
        assert_eq!(tags(&["b", "a", "b"]), tags(&["a", "b"]));
        assert_ne!(tags(&["a"]), tags(&["b"]));
    }
}
