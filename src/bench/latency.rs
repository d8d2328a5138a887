//! `bench latency`: what the engine adds to a lone request, and what a long prompt does to answers
//! that are being generated.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::anyhow;
use clap::Args;
use serde_json::{Value, json};

use crate::{
    batching::Limits,
    config::{ModelConfig, PrefixSharing, WeightKind},
    console::options::say,
    engine::{
        self, Generate,
        local::{Chunk, CpuModel, ModelFiles, Rows},
    },
    job::{Message, Role, Sampling, Tier},
    prompt::{ChatTemplate, Vocabulary},
};

use super::{
    engine::{open_model, positive},
    median,
    steps::{Line, Stepper, likeliest, tables},
};

/// Arguments of `bench latency`.
#[derive(Debug, Args)]
pub struct LatencyBenchArgs {
    /// Hugging Face directory of the model, with its tokenizer
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What products are computed in
    #[arg(long, default_value = "bf16")]
    weights: WeightKind,
    /// Tokens that a lone request generates, at most
    #[arg(long, default_value = "32", value_parser = positive)]
    output_tokens: usize,
    /// Lone requests, for each order of loading; each is generated through the engine and plainly, in turn
    #[arg(long, default_value = "40", value_parser = positive)]
    requests: usize,
    /// Answers that are being generated when the long prompt comes
    #[arg(long, default_value = "8", value_parser = positive)]
    running: usize,
    /// Tokens of the long prompt
    #[arg(long, default_value = "1000", value_parser = positive)]
    long_tokens: usize,
    /// Limit of a step in times of a step without the long prompt
    #[arg(long, default_value = "2.0")]
    step_times: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Steps before the long prompt comes, for the scheduler to learn what steps cost.
const WARM_STEPS: usize = 60;

/// Runs `bench latency`.
pub async fn bench_latency(args: &LatencyBenchArgs) -> anyhow::Result<ExitCode> {
    // Of two copies of the weights one may lie better in memory than the other, up to a tenth; so
    // each side is loaded first once.
    let (mut through_engine, mut plain) = lone(args, First::Engine).await?;
    let others = lone(args, First::Plain).await?;
    let ratio = (median_ratio(&through_engine, &plain) * median_ratio(&others.0, &others.1)).sqrt();
    through_engine.extend(others.0);
    plain.extend(others.1);
    let longest = 64 + WARM_STEPS + 4 * args.long_tokens;
    let model = open_model(&args.model, args.weights, false, longest)?;
    let unlimited = among_decodes(args, &model, None).map_err(|error| anyhow!(error))?;
    let limit = args.step_times * unlimited.usual;
    let limited = among_decodes(args, &model, Some(limit)).map_err(|error| anyhow!(error))?;
    let (engine_ms, plain_ms) = (1e3 * median(through_engine), 1e3 * median(plain));
    let over = limited
        .joined
        .iter()
        .filter(|seconds| **seconds > limit)
        .count();
    say(&if args.json {
        json!({
            "model": args.model.display().to_string(),
            "weights": args.weights.to_string(),
            "lone_engine_ms": engine_ms,
            "lone_plain_ms": plain_ms,
            "lone_engine_over_plain": ratio,
            "decode_step_ms": 1e3 * unlimited.usual,
            "step_limit_ms": 1e3 * limit,
            "with_limit": limited.as_json(),
            "steps_over_limit": over,
            "without_limit": unlimited.as_json(),
        })
        .to_string()
    } else {
        format!(
            "lone request, medians of 2 × {}: {engine_ms:.1} ms through the engine, {plain_ms:.1} ms plainly, ratio {ratio:.3}\n\
             {} answers run; steps without a prompt take {:.1} ms, the longest {:.1} ms\n\
             a prompt of {} tokens joins them, limit {:.1} ms: {}; {over} over the limit\n\
             the same without a limit: {}",
            args.requests,
            args.running,
            1e3 * unlimited.usual,
            1e3 * unlimited.usual_longest,
            args.long_tokens,
            1e3 * limit,
            limited.as_text(),
            unlimited.as_text(),
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Seconds of steps in which answers are generated.
struct Steps {
    /// The median of those without a prompt, and the longest.
    usual: f64,
    usual_longest: f64,
    /// While the long prompt is read, the shortest first.
    joined: Vec<f64>,
}

impl Steps {
    fn joined(&self, share: f64) -> f64 {
        let last = self.joined.len().saturating_sub(1);
        let at = (share * last as f64).round() as usize;
        self.joined.get(at).copied().unwrap_or(f64::NAN)
    }

    fn as_text(&self) -> String {
        format!(
            "{} steps of {:.1} ms, p90 {:.1} ms, longest {:.1} ms",
            self.joined.len(),
            1e3 * self.joined(0.5),
            1e3 * self.joined(0.9),
            1e3 * self.joined(1.0),
        )
    }

    fn as_json(&self) -> Value {
        json!({
            "steps": self.joined.len(),
            "p50_ms": 1e3 * self.joined(0.5),
            "p90_ms": 1e3 * self.joined(0.9),
            "longest_ms": 1e3 * self.joined(1.0),
        })
    }
}

/// Which side is loaded first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Engine,
    Plain,
}

fn median_ratio(ours: &[f64], bare: &[f64]) -> f64 {
    median(
        ours.iter()
            .zip(bare)
            .map(|(ours, bare)| ours / bare)
            .collect(),
    )
}

/// Seconds of each lone request, through the engine and as a plain loop over the same model.
async fn lone(args: &LatencyBenchArgs, first: First) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let config = ModelConfig {
        model: Some(args.model.display().to_string()),
        weights: args.weights,
        prefix_cache: PrefixSharing::Off,
        ..ModelConfig::default()
    };
    let early = (first == First::Plain).then(|| Plain::open(args));
    let engine = engine::open(Tier::Small, &config).await?;
    let plain = early.unwrap_or_else(|| Plain::open(args));
    let plain = plain.map_err(|error| anyhow!(error))?;
    let (mut through_engine, mut plainly) = (Vec::new(), Vec::new());
    for at in 0..args.requests {
        let content = format!("Request {at}: what is the capital of France, and of {at} others?");
        let messages = vec![Message {
            role: Role::User,
            content,
        }];
        let request = Generate {
            messages: messages.clone(),
            sampling: Sampling {
                max_completion_tokens: args.output_tokens as u32,
                ..Sampling::default()
            },
            seed_default: 0,
            terms: Default::default(),
        };
        let plain_once = || {
            let begun = Instant::now();
            let text = plain.generate(&messages, args.output_tokens);
            text.map(|text| (text, begun.elapsed().as_secs_f64()))
                .map_err(|error| anyhow!(error))
        };
        // Either goes first every other time, so that no drift favours one.
        let early = (at % 2 == 1).then(plain_once).transpose()?;
        let begun = Instant::now();
        let answer = engine.generate(request).await?.answer;
        through_engine.push(begun.elapsed().as_secs_f64());
        let (text, seconds) = match early {
            Some(early) => early,
            None => plain_once()?,
        };
        plainly.push(seconds);
        if !text.starts_with(answer.text.trim_end_matches(char::REPLACEMENT_CHARACTER)) {
            return Err(anyhow!(
                "the engine and the plain loop answered differently"
            ));
        }
    }
    Ok((through_engine, plainly))
}

/// What anybody would write first: template, tokens, one forward pass a token, text.
struct Plain {
    model: CpuModel,
    vocabulary: Vocabulary,
    template: ChatTemplate,
}

impl Plain {
    fn open(args: &LatencyBenchArgs) -> Result<Self, String> {
        let files = ModelFiles::ModelRegistry(args.model.clone());
        let template = ChatTemplate::from_files(
            files.read("tokenizer_config.json")?.as_deref(),
            files.read("chat_template.jinja")?.as_deref(),
        );
        let vocabulary = Vocabulary::from_json(&files.require("tokenizer.json")?);
        Ok(Self {
            model: CpuModel::read(&files, 0, args.weights)?,
            vocabulary: vocabulary.map_err(|error| error.to_string())?,
            template: template.map_err(|error| error.to_string())?,
        })
    }

    fn generate(&self, messages: &[Message], tokens: usize) -> Result<String, String> {
        let prompt = self
            .template
            .render(messages)
            .and_then(|text| self.vocabulary.encode(&text, self.template.specials()));
        let mut input = prompt.map_err(|error| error.to_string())?;
        let blocks = tables(1, input.len() + tokens).remove(0);
        let mut workspace = self.model.workspace(blocks.len());
        let (mut from, mut answer) = (0, Vec::new());
        for _ in 0..tokens {
            let chunk = Chunk {
                tokens: &input,
                from,
                blocks: &blocks,
                rows: Rows::Last,
            };
            let logits = self.model.forward(&mut workspace, &[chunk])?;
            from += input.len();
            input = logits.rows().map(likeliest).collect();
            if input
                .iter()
                .any(|token| self.model.shape().eos.contains(token))
            {
                break;
            }
            answer.extend(&input);
        }
        self.vocabulary
            .decode(&answer)
            .map_err(|error| error.to_string())
    }
}

/// Steps before the long prompt comes and until it is read.
fn among_decodes(
    args: &LatencyBenchArgs,
    model: &CpuModel,
    step_seconds_max: Option<f64>,
) -> Result<Steps, String> {
    let vocabulary = model.shape().vocabulary as u32;
    let line = |tokens: usize, output_tokens| Line {
        prompt: (0..tokens as u32)
            .map(|at| at * 7_919 % vocabulary)
            .collect(),
        output_tokens,
    };
    let mut stepper = Stepper::new(
        model,
        Limits {
            batch_max: args.running + 1,
            waiting_max: args.running + 1,
            step_tokens_max: 512,
            kv_blocks: (args.running + 1) * (WARM_STEPS + 4 * args.long_tokens).div_ceil(16),
            step_seconds_max,
        },
    );
    // Prompts of several lengths come one by one, so that steps of several sizes are seen.
    let mut warm = Vec::new();
    for at in 0..WARM_STEPS {
        if at % 4 == 0 && at / 4 < args.running {
            stepper.enqueue(at as u64 / 4, &line(16 + 5 * at, 4 * args.long_tokens))?;
        }
        let (plan, took) = stepper.step()?.ok_or("nothing ran")?;
        if plan.size.tokens == args.running {
            warm.push(took.as_secs_f64());
        }
    }
    let id = args.running as u64;
    stepper.enqueue(id, &line(args.long_tokens, 1))?;
    let mut joined = Vec::new();
    loop {
        let (plan, took) = stepper.step()?.ok_or("nothing ran")?;
        joined.push(took.as_secs_f64());
        if plan
            .shares
            .iter()
            .any(|share| share.id.0 == id && share.yields)
        {
            joined.sort_by(f64::total_cmp);
            return Ok(Steps {
                usual_longest: warm.iter().copied().fold(0.0, f64::max),
                usual: median(warm),
                joined,
            });
        }
    }
}
