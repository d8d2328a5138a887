//! One request in the engine: its sampler, its text so far, and when it ends.

use chrono::{DateTime, Utc};
use tokio::sync::oneshot;

use crate::{
    engine::{EngineError, EngineInfo, Generate, Generation, Stop, signals::SignalCollector},
    job::{Answer, FinishReason, Likelihood, TokenLogprob, Usage},
    prompt::{Detokenizer, PromptError, Vocabulary},
};

use super::{
    sampler::{SampledToken, Sampler, SamplingError},
    structured::{Grammar, GrammarState},
};

/// Channel for the answer.
pub(super) type ReplySender = oneshot::Sender<Result<Generation, EngineError>>;

/// Builds an answer token by token.
#[derive(Debug)]
pub(super) struct AnswerWriter {
    detokenizer: Detokenizer,
    text: String,
    stop: Vec<String>,
    eos: Vec<u32>,
    completion_tokens: usize,
    completion_tokens_max: usize,
    signals: SignalCollector,
    /// Kept only if requested.
    logprobs: Option<Vec<TokenLogprob>>,
}

impl AnswerWriter {
    pub(super) fn new(stop: Vec<String>, eos: Vec<u32>, completion_tokens_max: usize) -> Self {
        Self {
            detokenizer: Detokenizer::default(),
            text: String::new(),
            stop,
            eos,
            completion_tokens: 0,
            completion_tokens_max,
            signals: SignalCollector::default(),
            logprobs: None,
        }
    }

    /// Adds the next token, which leaves the grammar in state `progress`; returns the finish reason if
    /// it was the last.
    fn push(
        &mut self,
        vocabulary: &Vocabulary,
        choice: &SampledToken,
        progress: GrammarState,
    ) -> Result<Option<FinishReason>, PromptError> {
        let token = choice.token;
        self.completion_tokens += 1;
        self.signals.push(choice.logprob, Some(choice.stats));
        let is_eos = self.eos.contains(&token);
        let is_complete = is_eos || progress == GrammarState::Complete;
        let is_last = is_complete
            || progress == GrammarState::Stuck
            || self.completion_tokens >= self.completion_tokens_max;
        let mut piece = String::new();
        if !is_eos {
            piece = self.detokenizer.push(vocabulary, token)?;
            if let Some(logprobs) = &mut self.logprobs {
                logprobs.push(token_logprob(vocabulary, choice));
            }
        }
        if is_last {
            piece += &self.detokenizer.finish(vocabulary)?;
        }
        if self.add(&piece) || is_complete {
            return Ok(Some(FinishReason::Stop));
        }
        Ok(is_last.then_some(FinishReason::Length))
    }

    /// Ends an answer early.
    fn cut_short(&mut self, vocabulary: &Vocabulary) -> Result<FinishReason, PromptError> {
        let piece = self.detokenizer.finish(vocabulary)?;
        Ok(if self.add(&piece) {
            FinishReason::Stop
        } else {
            FinishReason::Length
        })
    }

    /// Adds text; cuts it before the first stop string, which may have begun in earlier text.
    fn add(&mut self, piece: &str) -> bool {
        let before = self.text.len();
        self.text.push_str(piece);
        let found = self.stop.iter().filter_map(|stop| {
            let mut from = (before + 1).saturating_sub(stop.len());
            while !self.text.is_char_boundary(from) {
                from -= 1;
            }
            self.text[from..].find(stop.as_str()).map(|at| from + at)
        });
        let Some(end) = found.min() else {
            return false;
        };
        self.text.truncate(end);
        true
    }
}

/// A token's log-probability and its alternatives', with their text.
fn token_logprob(vocabulary: &Vocabulary, choice: &SampledToken) -> TokenLogprob {
    let likelihood = |token: u32, logprob: f32| {
        let bytes = vocabulary.token_bytes(token);
        Likelihood {
            token: String::from_utf8_lossy(bytes).into_owned(),
            logprob,
            bytes: Some(bytes.to_vec()),
        }
    };
    let alternatives = choice.alternatives.iter();
    TokenLogprob {
        chosen: likelihood(choice.token, choice.logprob),
        top_logprobs: alternatives
            .map(|(token, logprob)| likelihood(*token, *logprob))
            .collect(),
    }
}

/// Result of sampling from a row of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextToken {
    /// A token; more follow.
    Token(u32),
    /// The answer is finished.
    End(FinishReason),
}

/// A waiting or running request; the scheduler holds its tokens and blocks.
#[derive(Debug)]
pub(super) struct ActiveRequest {
    prompt_tokens: usize,
    writer: AnswerWriter,
    sampler: Sampler,
    /// Constrains the answer, if a format was requested.
    grammar: Option<Grammar>,
    reply: ReplySender,
    stop: Stop,
    started_at: Option<DateTime<Utc>>,
    first_token_at: Option<DateTime<Utc>>,
}

impl ActiveRequest {
    pub(super) fn new(
        request: &Generate,
        prompt: &[u32],
        mut writer: AnswerWriter,
        grammar: Option<Grammar>,
        reply: ReplySender,
    ) -> Self {
        writer.logprobs = request.sampling.logprobs.map(|_| Vec::new());
        Self {
            prompt_tokens: prompt.len(),
            writer,
            sampler: Sampler::new(&request.sampling, request.seed_default, prompt),
            grammar,
            reply,
            stop: request.context.stop.clone(),
            started_at: None,
            first_token_at: None,
        }
    }

    /// False when nobody waits for the answer any more.
    pub(super) fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    /// True when it should end with the tokens so far.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_requested()
    }

    /// Records the start; a preempted request keeps its first one.
    pub(super) fn start(&mut self) {
        self.started_at.get_or_insert_with(Utc::now);
    }

    /// Samples the next token from a step's logits.
    ///
    /// # Errors
    /// [`EngineError::Crashed`] when the logits are not finite or cannot be decoded.
    pub(super) fn take(
        &mut self,
        vocabulary: &Vocabulary,
        logits: &[f32],
    ) -> Result<NextToken, EngineError> {
        let crashed = |error: PromptError| EngineError::Crashed(error.to_string());
        // An empty mask allows nothing.
        let grammar = self.grammar.as_mut();
        let allowed = grammar.map(|grammar| grammar.allowed().unwrap_or_default());
        let choice = match self.sampler.choose(logits, allowed.as_deref()) {
            Ok(choice) => choice,
            Err(SamplingError::NothingAllowed) => {
                let end = self.writer.cut_short(vocabulary);
                return end.map(NextToken::End).map_err(crashed);
            }
            Err(SamplingError::NotFinite) => {
                return Err(EngineError::Crashed(
                    "the model computed logits that are not finite".to_owned(),
                ));
            }
        };
        self.first_token_at.get_or_insert_with(Utc::now);
        let progress = match &mut self.grammar {
            None => GrammarState::Open,
            Some(grammar) => grammar.take(choice.token),
        };
        let end = self.writer.push(vocabulary, &choice, progress);
        Ok(match end.map_err(crashed)? {
            None => NextToken::Token(choice.token),
            Some(reason) => NextToken::End(reason),
        })
    }

    /// Sends the answer, if the receiver still exists. `prompt_tokens_computed` excludes tokens found
    /// in the cache.
    pub(super) fn finish(
        self,
        finish_reason: FinishReason,
        prompt_tokens_computed: usize,
        info: &EngineInfo,
    ) {
        let finished_at = Utc::now();
        let completion_tokens = self.writer.completion_tokens;
        let signals = self
            .writer
            .signals
            .finish(finish_reason == FinishReason::Length);
        let answer = Answer {
            text: self.writer.text,
            finish_reason,
            usage: Usage {
                prompt_tokens: self.prompt_tokens as u32,
                prompt_tokens_computed: prompt_tokens_computed as u32,
                completion_tokens: completion_tokens as u32,
            },
            model: info.model.clone(),
            revision: info.revision.clone(),
            mean_logprob: signals.map(|signals| signals.mean_logprob),
            logprobs: self.writer.logprobs,
        };
        let _ = self.reply.send(Ok(Generation {
            answer,
            signals,
            started_at: self.started_at.unwrap_or(finished_at),
            first_token_at: self.first_token_at,
            finished_at,
        }));
    }

    /// Replies with an error.
    pub(super) fn fail(self, error: EngineError) {
        let _ = self.reply.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::local::active_request::*;
    use crate::{engine::signals::DistributionStats, prompt::Specials};

    fn vocabulary() -> Vocabulary {
        let json = include_bytes!("../../../tests/fixtures/models/tiny-llama/tokenizer.json");
        Vocabulary::from_json(json).expect("the fixture is a tokenizer")
    }

    /// Writes a text token by token; returns the answer, its finish reason and its number of tokens.
    fn write(
        text: &str,
        stop: &[&str],
        eos: &[u32],
        most: usize,
    ) -> (String, Option<FinishReason>, usize) {
        let vocabulary = vocabulary();
        let stop = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let mut writer = AnswerWriter::new(stop, eos.to_vec(), most);
        let mut end = None;
        for token in vocabulary.encode(text, Specials::Written).expect("encodes") {
            let choice = SampledToken {
                token,
                logprob: -0.5,
                stats: DistributionStats {
                    entropy: 1.0,
                    margin: 0.1,
                },
                alternatives: Vec::new(),
            };
            let pushed = writer.push(&vocabulary, &choice, GrammarState::Open);
            end = pushed.expect("decodes");
            if end.is_some() {
                break;
            }
        }
        (writer.text, end, writer.completion_tokens)
    }

    #[test]
    fn stop_strings_across_tokens_end_the_answer() {
        let (text, end, tokens) = write("one two xyzzy three", &["wo x", "yzzy"], &[], 100);
        assert_eq!((text.as_str(), end), ("one t", Some(FinishReason::Stop)));
        assert!(tokens < 15, "it stops at once, not at the end: {tokens}");
        let (text, end, _) = write("日本語🙂です", &["🙂"], &[], 100);
        assert_eq!((text.as_str(), end), ("日本語", Some(FinishReason::Stop)));
    }

    #[test]
    fn end_tokens_and_the_limit_end_the_answer() {
        let (text, end, _) = write("hi<|eot_id|>there", &[], &[2], 100);
        assert_eq!((text.as_str(), end), ("hi", Some(FinishReason::Stop)));
        let (text, end, tokens) = write("qqqqqq", &["never"], &[], 3);
        assert_eq!(
            (text.as_str(), end, tokens),
            ("qqq", Some(FinishReason::Length), 3)
        );
    }

    #[test]
    fn a_partial_character_at_the_limit_is_replaced() {
        let (text, end, _) = write("ॐॐॐ", &[], &[], 4);
        assert_eq!(end, Some(FinishReason::Length));
        assert!(
            text.starts_with('ॐ') && text.ends_with(char::REPLACEMENT_CHARACTER),
            "{text:?}"
        );
    }
}
