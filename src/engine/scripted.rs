//! An engine that answers by rule, to test everything around it and to generate load.
//!
//! `scripted:` is followed by comma-separated settings:
//!
//! | setting | effect | default |
//! |---|---|---|
//! | `model=NAME` | served name | `scripted` |
//! | `latency_ms=N` | duration of each answer | 0 |
//! | `jitter_ms=N` | up to N ms more, derived from the prompt | 0 |
//! | `fail_percent=N` | percentage of prompts that fail, always the same ones | 0 |
//! | `poison=TEXT` | a prompt with this text crashes all running requests | none |
//! | `hang=TEXT` | a prompt with this text hangs the engine: it and all later requests get no answer | none |
//! | `context=N` | context length, where a word is a token | none |
//! | `unsure=TEXT` | answers get log-probabilities: low where the prompt has this text, high elsewhere | no log-probabilities |
//! | `echo` | the answer repeats the last message | off: words derived from the prompt |
//! | `says=TEXT` | the answer is always this text | off |
//!
//! Every worker gives the same answer to the same conversation.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use futures::future::BoxFuture;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Engine, EngineError, EngineInfo, Generate, Generation, signals::SignalCollector,
    slots::RequestSlots, step_timer::StepTimer,
};
use crate::{
    config::ModelConfig,
    job::{Answer, FinishReason, Message, Signals, Usage},
};

/// Vocabulary of generated answers.
const WORDS: [&str; 16] = [
    "wagon", "signal", "track", "yard", "switch", "engine", "freight", "platform", "coupling",
    "siding", "gauge", "brake", "cargo", "points", "hump", "train",
];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Script {
    model: Option<String>,
    latency_ms: u64,
    jitter_ms: u64,
    fail_percent: u64,
    poison: Option<String>,
    hang: Option<String>,
    context_tokens: Option<usize>,
    unsure: Option<String>,
    echo: bool,
    says: Option<String>,
}

impl Script {
    fn parse(text: &str) -> Result<Self, String> {
        let mut script = Self::default();
        let settings = text.strip_prefix("scripted:").unwrap_or(text);
        for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| format!("{key}: expected a whole number, found {value:?}"))
            };
            let text = || match value {
                "" => Err(format!("{key}: expected {key}=TEXT")),
                text => Ok(Some(text.to_owned())),
            };
            match key {
                "model" => script.model = text()?,
                "latency_ms" => script.latency_ms = number()?,
                "jitter_ms" => script.jitter_ms = number()?,
                "fail_percent" => script.fail_percent = number()?,
                "poison" => script.poison = text()?,
                "hang" => script.hang = text()?,
                "unsure" => script.unsure = text()?,
                "says" => script.says = text()?,
                "context" => script.context_tokens = Some(number()? as usize),
                "echo" if value.is_empty() => script.echo = true,
                "echo" => return Err("echo takes no value".to_owned()),
                _ => {
                    return Err(format!(
                        "unknown setting {key:?}; known are model, latency_ms, jitter_ms, fail_percent, poison, hang, context, unsure, echo, says"
                    ));
                }
            }
        }
        if script.fail_percent > 100 {
            return Err(format!(
                "fail_percent: expected 0 to 100, found {}",
                script.fail_percent
            ));
        }
        Ok(script)
    }
}

/// Answers by rule.
#[derive(Debug)]
pub struct ScriptedEngine {
    info: EngineInfo,
    script: Arc<Script>,
    slots: RequestSlots,
    /// Counts crashes; requests that run when it changes fail.
    crashes: watch::Sender<u64>,
    /// Never stops once the engine hangs.
    step_timer: Arc<StepTimer>,
}

impl ScriptedEngine {
    /// Parses a script.
    ///
    /// # Errors
    /// When a setting is unknown or its value is invalid.
    pub fn from_script(script: &str, config: &ModelConfig) -> Result<Self, String> {
        let script = Script::parse(script)?;
        let name = config.name.clone().or_else(|| script.model.clone());
        let limit = (config.context_tokens_max > 0).then_some(config.context_tokens_max);
        let context_tokens = script
            .context_tokens
            .map(|tokens| limit.map_or(tokens, |limit| limit.min(tokens)));
        // Only what changes an answer: workers of different speed must have the same revision.
        let mut rule = format!("echo={} context={context_tokens:?}", script.echo);
        if let Some(says) = &script.says {
            rule.push_str(&format!(" says={says:?}"));
        }
        Ok(Self {
            info: EngineInfo {
                model: name.unwrap_or_else(|| "scripted".to_owned()),
                revision: blake3::hash(rule.as_bytes()).to_hex()[..32].to_owned(),
                context_tokens,
                batch_max: config.batch_max,
                parameters: None,
            },
            script: Arc::new(script),
            slots: RequestSlots::new(config.batch_max),
            crashes: watch::Sender::new(0),
            step_timer: Arc::new(StepTimer::new()),
        })
    }

    fn prompt_tokens(&self, request: &Generate) -> Result<usize, EngineError> {
        if !request.sampling.response_format.is_text() {
            return Err(EngineError::Unservable(
                "response_format: a scripted engine supports only text".to_owned(),
            ));
        }
        let words = |message: &Message| message.content.split_whitespace().count();
        let prompt_tokens = request.messages.iter().map(words).sum::<usize>().max(1);
        match self.info.context_tokens {
            Some(context_tokens) if prompt_tokens >= context_tokens => {
                Err(EngineError::ContextTooLong {
                    model: self.info.model.clone(),
                    prompt_tokens,
                    context_tokens,
                })
            }
            _ => Ok(prompt_tokens),
        }
    }

    fn answer(&self, request: &Generate, prompt_tokens: usize, digest: &[u8; 32]) -> Answer {
        let last = request.messages.last();
        let echo = last.filter(|_| self.script.echo);
        let given = self.script.says.as_deref();
        let given = given.or_else(|| echo.map(|message| message.content.as_str()));
        let words: Vec<&str> = match given {
            Some(text) => text.split_whitespace().collect(),
            None => {
                let count = 4 + usize::from(digest[0] % 12);
                let at = |byte: &u8| WORDS[usize::from(byte % 16)];
                digest[1..=count].iter().map(at).collect()
            }
        };
        let left = self
            .info
            .context_tokens
            .map_or(usize::MAX, |context| context - prompt_tokens);
        let most = left.min(request.sampling.max_completion_tokens as usize);
        let whole = given.map_or_else(|| words.join(" "), str::to_owned);
        let mut finish_reason = FinishReason::Stop;
        let mut text = whole;
        if words.len() > most {
            finish_reason = FinishReason::Length;
            text = words[..most].join(" ");
        }
        let stops = request.sampling.stop.iter().filter(|stop| !stop.is_empty());
        if let Some(end) = stops.filter_map(|stop| text.find(stop.as_str())).min() {
            finish_reason = FinishReason::Stop;
            text.truncate(end);
        }
        let completion_tokens = text.split_whitespace().count() as u32;
        Answer {
            finish_reason,
            usage: Usage {
                prompt_tokens: prompt_tokens as u32,
                prompt_tokens_computed: prompt_tokens as u32,
                completion_tokens,
            },
            text,
            model: self.info.model.clone(),
            revision: self.info.revision.clone(),
            mean_logprob: Some(-f32::from(digest[31]) / 256.0),
            logprobs: None,
        }
    }
}

/// Derives everything about the answer from the conversation, and from the seed unless it is greedy.
fn digest(request: &Generate) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for message in &request.messages {
        hasher.update(message.role.as_str().as_bytes()).update(&[0]);
        hasher.update(message.content.as_bytes()).update(&[0]);
    }
    if request.sampling.temperature > 0.0 {
        let seed = request.sampling.seed.unwrap_or(request.seed_default);
        hasher.update(&seed.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Signals as if every token had the same probability.
fn signals(answer: &Answer, unsure: bool) -> Option<Signals> {
    let logprob = if unsure { -3.0 } else { -0.001 };
    let mut signals = SignalCollector::default();
    for _ in 0..answer.usage.completion_tokens {
        signals.push(logprob, None);
    }
    signals.finish(answer.finish_reason == FinishReason::Length)
}

impl Engine for ScriptedEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn generate(&self, request: Generate) -> BoxFuture<'static, Result<Generation, EngineError>> {
        let digest = digest(&request);
        let answer = self
            .prompt_tokens(&request)
            .map(|prompt_tokens| self.answer(&request, prompt_tokens, &digest));
        let fails =
            u64::from(u16::from_le_bytes([digest[2], digest[3]])) % 100 < self.script.fail_percent;
        let mentions = |text: &String| {
            let mut messages = request.messages.iter();
            messages.any(|message| message.content.contains(text))
        };
        let is_poison = self.script.poison.as_ref().is_some_and(mentions);
        let unsure = self.script.unsure.as_ref().map(mentions);
        let jitter = u64::from(u32::from_le_bytes([
            digest[4], digest[5], digest[6], digest[7],
        ]));
        let latency_ms = self.script.latency_ms + jitter % (self.script.jitter_ms + 1);
        let crashes = self.crashes.clone();
        let stop = request.context.stop.clone();
        let hangs = self.script.hang.as_ref().is_some_and(mentions);
        if hangs && self.step_timer.step().is_none() {
            self.step_timer.begin();
        }
        if self.step_timer.step().is_some() {
            return Box::pin(std::future::pending());
        }
        self.slots.begin(async move {
            let mut answer = answer?;
            let signals = unsure.and_then(|unsure| signals(&answer, unsure));
            if let Some(signals) = &signals {
                answer.mean_logprob = Some(signals.mean_logprob);
            }
            let mut crashed = crashes.subscribe();
            if is_poison {
                crashes.send_modify(|count| *count += 1);
                return Err(EngineError::Crashed("scripted crash".to_owned()));
            }
            let (started_at, began) = (Utc::now(), Instant::now());
            tokio::select! {
                () = sleep_until(began + Duration::from_millis(latency_ms)) => {}
                () = stop.requested() => {
                    let part = began.elapsed().as_secs_f64() * 1e3 / latency_ms.max(1) as f64;
                    cut_short(&mut answer, part.min(1.0));
                }
                Ok(()) = crashed.changed() => {
                    return Err(EngineError::Crashed("another request's scripted crash".to_owned()));
                }
            }
            if fails {
                return Err(EngineError::Crashed("scripted failure".to_owned()));
            }
            let finished_at = Utc::now();
            Ok(Generation {
                answer,
                signals,
                started_at,
                first_token_at: Some(finished_at),
                finished_at,
            })
        })
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn stalled(&self) -> Option<Duration> {
        self.step_timer.step()
    }
}

/// Keeps the given fraction, 0 to 1, of an answer's words.
fn cut_short(answer: &mut Answer, part: f64) {
    let words: Vec<&str> = answer.text.split_whitespace().collect();
    let kept = (words.len() as f64 * part) as usize;
    answer.usage.completion_tokens = kept as u32;
    answer.finish_reason = FinishReason::Length;
    answer.text = words[..kept].join(" ");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(script: &str) -> ScriptedEngine {
        let config = ModelConfig {
            batch_max: 2,
            ..ModelConfig::default()
        };
        ScriptedEngine::from_script(script, &config).expect("a script")
    }

    fn request(content: &str) -> Generate {
        Generate::from_prompt(content, 100)
    }

    #[test]
    fn unknown_settings_and_invalid_values_are_errors() {
        for (script, expected) in [
            ("scripted:latency=5", "unknown setting \"latency\""),
            ("scripted:latency_ms=fast", "expected a whole number"),
            ("scripted:fail_percent=101", "0 to 100"),
            ("scripted:echo=yes", "echo takes no value"),
            ("scripted:poison", "poison=TEXT"),
        ] {
            let error =
                ScriptedEngine::from_script(script, &ModelConfig::default()).expect_err(script);
            assert!(error.contains(expected), "{script}: {error}");
        }
        assert_eq!(engine("scripted:").info().model, "scripted");
        assert_eq!(engine("scripted:model=a,latency_ms=5").info().model, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_the_same_everywhere_and_obey_the_limits() {
        let first = engine("scripted:")
            .generate(request("a b c"))
            .await
            .expect("answer");
        let second = engine("scripted:latency_ms=9,jitter_ms=9")
            .generate(request("a b c"))
            .await;
        assert_eq!(first.answer, second.expect("answer").answer);
        assert_eq!(first.answer.usage.prompt_tokens, 3);
        let echo = engine("scripted:echo");
        let whole = echo
            .generate(request("one  two three"))
            .await
            .expect("answer")
            .answer;
        assert_eq!(
            (whole.text.as_str(), whole.finish_reason),
            ("one  two three", FinishReason::Stop)
        );
        let mut short = request("one two three");
        short.sampling.max_completion_tokens = 2;
        let cut = echo.generate(short.clone()).await.expect("answer").answer;
        assert_eq!(
            (cut.text.as_str(), cut.finish_reason),
            ("one two", FinishReason::Length)
        );
        short.sampling.stop = vec![" tw".to_owned()];
        let stopped = echo.generate(short).await.expect("answer").answer;
        assert_eq!(
            (stopped.text.as_str(), stopped.finish_reason),
            ("one", FinishReason::Stop)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_prompts_fail_each_time() {
        let engine = engine("scripted:fail_percent=30");
        let mut failed = Vec::new();
        for _ in 0..2 {
            let mut now = Vec::new();
            for at in 0..200 {
                let outcome = engine.generate(request(&format!("prompt {at}"))).await;
                if matches!(outcome, Err(EngineError::Crashed(_))) {
                    now.push(at);
                }
            }
            failed.push(now);
        }
        assert_eq!(failed[0], failed[1]);
        assert!((40..80).contains(&failed[0].len()), "{}", failed[0].len());
    }

    #[tokio::test(start_paused = true)]
    async fn poison_fails_running_requests_but_not_later_ones() {
        let engine = engine("scripted:latency_ms=10,poison=BOOM");
        let other = tokio::spawn(engine.generate(request("fine")));
        tokio::task::yield_now().await;
        let poison = engine.generate(request("a BOOM b")).await;
        assert!(matches!(poison, Err(EngineError::Crashed(_))));
        let other = other.await.expect("no panic");
        assert!(matches!(other, Err(EngineError::Crashed(_))), "{other:?}");
        let slow = tokio::spawn(engine.generate(request("later")));
        assert!(slow.await.expect("no panic").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_beyond_queue_or_context_are_rejected() {
        let engine = engine("scripted:latency_ms=10,context=4");
        let accepted: Vec<_> = (0..10).map(|_| engine.generate(request("a"))).collect();
        let refused = engine.generate(request("a")).await;
        assert!(
            matches!(refused, Err(EngineError::Unavailable { .. })),
            "{refused:?}"
        );
        let began = Instant::now();
        for answer in futures::future::join_all(accepted).await {
            answer.expect("accepted requests are answered");
        }
        assert_eq!(began.elapsed().as_millis(), 50, "two at a time");
        let long = engine.generate(request("a b c d")).await;
        let expected = EngineError::ContextTooLong {
            model: "scripted".to_owned(),
            prompt_tokens: 4,
            context_tokens: 4,
        };
        assert_eq!(long, Err(expected));
    }
}
