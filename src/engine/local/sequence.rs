//! One request on its way through the engine: its tokens, its text so far, and when it ends.

use chrono::{DateTime, Utc};
use tokio::sync::oneshot;

use crate::{
    engine::{EngineError, EngineInfo, Generate, Generation, Stop, signals::SignalCollector},
    job::{Answer, FinishReason, Likelihood, TokenLogprob, Usage},
    prompt::{Detokenizer, PromptError, Vocabulary},
};

use super::{
    sampler::{Choice, NoChoice, Sampler},
    structured::{Grammar, Progress},
};

/// Where an answer goes.
pub(super) type Reply = oneshot::Sender<Result<Generation, EngineError>>;

/// An answer as it grows.
#[derive(Debug)]
pub(super) struct Writer {
    detokenizer: Detokenizer,
    text: String,
    stop: Vec<String>,
    eos: Vec<u32>,
    completion_tokens: usize,
    completion_tokens_max: usize,
    signals: SignalCollector,
    /// Kept only where they were asked for.
    logprobs: Option<Vec<TokenLogprob>>,
}

impl Writer {
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

    /// Keeps the log-probabilities of the tokens to come.
    fn keep_logprobs(&mut self) {
        self.logprobs = Some(Vec::new());
    }

    /// Takes the next token, after which its format stands at `progress`, and tells whether it was
    /// the last.
    fn push(
        &mut self,
        vocabulary: &Vocabulary,
        choice: &Choice,
        progress: Progress,
    ) -> Result<Option<FinishReason>, PromptError> {
        let token = choice.token;
        self.completion_tokens += 1;
        self.signals.push(choice.logprob, Some(choice.spread));
        let is_eos = self.eos.contains(&token);
        let is_whole = is_eos || progress == Progress::Whole;
        let is_last = is_whole
            || progress == Progress::Stuck
            || self.completion_tokens >= self.completion_tokens_max;
        let mut piece = String::new();
        if !is_eos {
            piece = self.detokenizer.push(vocabulary, token)?;
            if let Some(logprobs) = &mut self.logprobs {
                logprobs.push(told(vocabulary, choice));
            }
        }
        if is_last {
            piece += &self.detokenizer.finish(vocabulary)?;
        }
        if self.add(&piece) || is_whole {
            return Ok(Some(FinishReason::Stop));
        }
        Ok(is_last.then_some(FinishReason::Length))
    }

    /// Ends an answer that cannot go on.
    fn cut_short(&mut self, vocabulary: &Vocabulary) -> Result<FinishReason, PromptError> {
        let piece = self.detokenizer.finish(vocabulary)?;
        Ok(if self.add(&piece) {
            FinishReason::Stop
        } else {
            FinishReason::Length
        })
    }

    /// Adds text and cuts it before the first stop string, which may have begun in earlier pieces.
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

/// A token's log-probability, and those of its alternatives, in words.
fn told(vocabulary: &Vocabulary, choice: &Choice) -> TokenLogprob {
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

/// What came of a row of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// A token after which more come.
    Token(u32),
    /// The answer is over.
    End(FinishReason),
}

/// A request that waits or runs; its tokens and blocks are with the scheduler.
#[derive(Debug)]
pub(super) struct Sequence {
    prompt_tokens: usize,
    writer: Writer,
    sampler: Sampler,
    /// Tells what may come next, where the answer must have a form.
    grammar: Option<Grammar>,
    reply: Reply,
    stop: Stop,
    started_at: Option<DateTime<Utc>>,
    first_token_at: Option<DateTime<Utc>>,
}

impl Sequence {
    pub(super) fn new(
        request: &Generate,
        prompt: &[u32],
        mut writer: Writer,
        reply: Reply,
    ) -> Self {
        if request.sampling.logprobs.is_some() {
            writer.keep_logprobs();
        }
        Self {
            prompt_tokens: prompt.len(),
            writer,
            sampler: Sampler::new(&request.sampling, request.seed_default, prompt),
            grammar: None,
            reply,
            stop: request.terms.stop.clone(),
            started_at: None,
            first_token_at: None,
        }
    }

    /// Gives the answer a form that it must have.
    pub(super) fn constrain(&mut self, grammar: Option<Grammar>) {
        self.grammar = grammar;
    }

    /// False when nobody waits for the answer any more.
    pub(super) fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    /// True when it is to end with what there is.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_requested()
    }

    /// Begins to run; one that was put back began when it ran first.
    pub(super) fn start(&mut self) {
        self.started_at.get_or_insert_with(Utc::now);
    }

    /// Chooses the next token from a step's logits and tells whether it was the last.
    ///
    /// # Errors
    /// [`EngineError::Crashed`] when the logits are not finite or cannot become text.
    pub(super) fn take(
        &mut self,
        vocabulary: &Vocabulary,
        logits: &[f32],
    ) -> Result<Taken, EngineError> {
        let crashed = |error: PromptError| EngineError::Crashed(error.to_string());
        // Nothing allowed at all is a mask without a bit.
        let grammar = self.grammar.as_mut();
        let allowed = grammar.map(|grammar| grammar.allowed().unwrap_or_default());
        let choice = match self.sampler.choose(logits, allowed.as_deref()) {
            Ok(choice) => choice,
            Err(NoChoice::NothingAllowed) => {
                let end = self.writer.cut_short(vocabulary);
                return end.map(Taken::End).map_err(crashed);
            }
            Err(NoChoice::NotFinite) => {
                return Err(EngineError::Crashed(
                    "the model gave logits that are not finite".to_owned(),
                ));
            }
        };
        self.first_token_at.get_or_insert_with(Utc::now);
        let progress = match &mut self.grammar {
            None => Progress::Open,
            Some(grammar) => grammar.take(choice.token),
        };
        let end = self.writer.push(vocabulary, &choice, progress);
        Ok(match end.map_err(crashed)? {
            None => Taken::Token(choice.token),
            Some(reason) => Taken::End(reason),
        })
    }

    /// Hands the answer over; nobody may be there to take it. `prompt_tokens_computed` are those
    /// that no other sequence had computed before.
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

    /// Says that there will be no answer.
    pub(super) fn fail(self, error: EngineError) {
        let _ = self.reply.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::local::sequence::*;
    use crate::{engine::signals::Spread, prompt::Specials};

    fn vocabulary() -> Vocabulary {
        let json = include_bytes!("../../../tests/fixtures/models/tiny-llama/tokenizer.json");
        Vocabulary::from_json(json).expect("the fixture is a tokenizer")
    }

    /// Writes a text token by token and tells what came of it and after how many tokens.
    fn write(
        text: &str,
        stop: &[&str],
        eos: &[u32],
        most: usize,
    ) -> (String, Option<FinishReason>, usize) {
        let vocabulary = vocabulary();
        let stop = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let mut writer = Writer::new(stop, eos.to_vec(), most);
        let mut end = None;
        for token in vocabulary.encode(text, Specials::Written).expect("encodes") {
            let choice = Choice {
                token,
                logprob: -0.5,
                spread: Spread {
                    entropy: 1.0,
                    margin: 0.1,
                },
                alternatives: Vec::new(),
            };
            let pushed = writer.push(&vocabulary, &choice, Progress::Open);
            end = pushed.expect("decodes");
            if end.is_some() {
                break;
            }
        }
        (writer.text, end, writer.completion_tokens)
    }

    #[test]
    fn ends_before_a_stop_string_that_crosses_tokens() {
        let (text, end, tokens) = write("one two xyzzy three", &["wo x", "yzzy"], &[], 100);
        assert_eq!((text.as_str(), end), ("one t", Some(FinishReason::Stop)));
        assert!(tokens < 15, "it stops at once, not at the end: {tokens}");
        let (text, end, _) = write("日本語🙂です", &["🙂"], &[], 100);
        assert_eq!((text.as_str(), end), ("日本語", Some(FinishReason::Stop)));
    }

    #[test]
    fn ends_at_an_end_token_and_at_the_limit() {
        let (text, end, _) = write("hi<|eot_id|>there", &[], &[2], 100);
        assert_eq!((text.as_str(), end), ("hi", Some(FinishReason::Stop)));
        let (text, end, tokens) = write("qqqqqq", &["never"], &[], 3);
        assert_eq!(
            (text.as_str(), end, tokens),
            ("qqq", Some(FinishReason::Length), 3)
        );
    }

    #[test]
    fn half_a_character_at_the_limit_is_replaced() {
        let (text, end, _) = write("ॐॐॐ", &[], &[], 4);
        assert_eq!(end, Some(FinishReason::Length));
        assert!(
            text.starts_with('ॐ') && text.ends_with(char::REPLACEMENT_CHARACTER),
            "{text:?}"
        );
    }
}
