//! `bench cascade`: quality against cost of routing and escalation, on prompts with known answers.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, anyhow};
use clap::Args;
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use crate::{
    config::{Config, Overrides},
    console::{
        input,
        marks::Expectation,
        options::{Common, ModelArgs, UsageError, init_logs},
        terminal::eprint_line,
    },
    engine::{self, EngineInfo, Generate, Generation},
    fleet,
    job::{ChatRequest, Submission, Tier},
    scoring::{
        cascade::{self, Bound, LabelledJob, NEVER, Point, Shot},
        confidence::fit::{auc, calibration_error},
        features::Features,
        scorer::Scorer,
    },
};

use super::report::print;

/// Measure quality against cost of routing before generation, escalation after it, and both
///
/// Both models answer every line of a marked file ("expect", "family"). Every pair of thresholds is
/// then evaluated on these answers and compared with an oracle that knows them in advance. A job costs,
/// for each model that runs it, the tokens read and written times the model's parameters.
#[derive(Debug, Args)]
pub struct CascadeArgs {
    /// File of marked prompts, one per line
    file: PathBuf,
    /// Weight families by these shares, such as faq=40,total=10 [default: as in the file]
    #[arg(long, value_name = "FAMILY=SHARE,…")]
    mix: Option<String>,
    /// Most points of accuracy to lose against the large model alone
    #[arg(long, default_value_t = 1.0)]
    within: f64,
    /// Cost of a large model's token in tokens of the small one; required when a model is served
    /// elsewhere [default: the ratio of their parameters]
    #[arg(long, value_name = "RATIO")]
    cost_ratio: Option<f64>,
    /// Print JSON, including the curves
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    models: ModelArgs,
    #[command(flatten)]
    common: Common,
}

struct MarkedPrompt {
    request: ChatRequest,
    expectation: Expectation,
}

/// Runs `bench cascade`.
pub(super) async fn bench_cascade(args: CascadeArgs) -> anyhow::Result<ExitCode> {
    let mut overrides = Overrides::default();
    args.models.apply(&mut overrides);
    let config = args.common.load(overrides)?;
    init_logs(&config)?;
    let marked = read(&args, &config)?;
    let mix = args.mix.as_deref().map(read_mix).transpose()?;
    let weights = weigh(&marked, mix.as_ref())?;
    let (small_info, small) = answer(Tier::Small, &config, &marked).await?;
    let (large_info, large) = answer(Tier::Large, &config, &marked).await?;
    let confidence = fleet::confidence(&config, &small_info)?;
    let scorer = Scorer::open(config.router.weights.as_deref().map(Path::new))?;
    let ratio = match (
        args.cost_ratio,
        small_info.parameters,
        large_info.parameters,
    ) {
        (Some(ratio), ..) if ratio > 0.0 => ratio,
        (None, Some(small), Some(large)) => large as f64 / small as f64,
        _ => return Err(UsageError("--cost-ratio: expected a number above 0".to_owned()).into()),
    };
    let cases: Vec<LabelledJob> = marked
        .iter()
        .zip(&weights)
        .zip(small.iter().zip(&large))
        .map(|((line, weight), (small, large))| LabelledJob {
            weight: *weight,
            score: scorer.score(&Features::of(&line.request)).gain,
            confidence: match small {
                Some(generation) => generation.signals.map(|signals| confidence.of(&signals)),
                None => Some(-1.0),
            },
            small: shot(line, small.as_ref(), 1.0),
            large: shot(line, large.as_ref(), ratio),
        })
        .collect();
    let escalate_below = config.worker.escalate_below;
    let escalate_below = escalate_below.unwrap_or(confidence.escalate_below());
    let report = CascadeReport::of(
        &cases,
        args.within,
        (config.router.threshold, escalate_below),
        ratio,
    );
    print(
        args.json,
        || report.to_json(mix.as_ref()),
        || report.to_text(args.within),
    )
}

/// Reads marked requests; a line without "expect" is an error.
fn read(args: &CascadeArgs, config: &Config) -> anyhow::Result<Vec<MarkedPrompt>> {
    let limits = config.request_limits();
    let lines = input::open(&args.file, limits.clone())
        .with_context(|| format!("cannot open {}", args.file.display()))?;
    let mut marked = Vec::new();
    for line in lines {
        let line = line.with_context(|| format!("cannot read {}", args.file.display()))?;
        let number = line.number;
        let body = line
            .body
            .map_err(|reason| anyhow!("line {number}: {reason}"))?;
        let submission = Submission::parse(&body, &limits)
            .map_err(|rejection| anyhow!("line {number}: {}", rejection.reason))?;
        marked.push(MarkedPrompt {
            request: submission.request,
            expectation: line
                .expectation
                .ok_or_else(|| anyhow!("line {number}: \"expect\" is missing"))?,
        });
    }
    anyhow::ensure!(!marked.is_empty(), "the file has no lines");
    Ok(marked)
}

/// Answers every request on one tier's engine, in its largest batches.
async fn answer(
    tier: Tier,
    config: &Config,
    marked: &[MarkedPrompt],
) -> anyhow::Result<(EngineInfo, Vec<Option<Generation>>)> {
    let model = match tier {
        Tier::Small => &config.small,
        Tier::Large => &config.large,
    };
    let engine = engine::open(tier, model).await?;
    let begun = Instant::now();
    let generations: Vec<Option<Generation>> = stream::iter(marked)
        .map(|line| {
            let generation = engine.generate(Generate {
                messages: line.request.messages.clone(),
                sampling: line.request.sampling.clone(),
                seed_default: 0,
                context: Default::default(),
            });
            async move { generation.await.ok() }
        })
        .buffered(engine.info().batch_max)
        .collect()
        .await;
    let failed = generations.iter().filter(|answer| answer.is_none()).count();
    eprint_line(&format!(
        "{tier}: {} requests in {:.1} s, {failed} failed",
        generations.len(),
        begun.elapsed().as_secs_f64()
    ));
    Ok((engine.info().clone(), generations))
}

fn shot(line: &MarkedPrompt, generation: Option<&Generation>, token_cost: f64) -> Shot {
    let usage = generation.map(|generation| generation.answer.usage);
    let usage = usage.unwrap_or_default();
    let tokens = usage.prompt_tokens_computed + usage.completion_tokens;
    Shot {
        right: generation.is_some_and(|found| line.expectation.is_met(&found.answer.text)),
        cost: f64::from(tokens) * token_cost,
    }
}

/// Reads `faq=40,total=10`.
fn read_mix(text: &str) -> Result<BTreeMap<String, f64>, UsageError> {
    let wrong = || {
        UsageError(format!(
            "--mix {text}: expected FAMILY=SHARE,… with shares above 0"
        ))
    };
    text.split(',')
        .map(|part| {
            let (family, share) = part.split_once('=').ok_or_else(wrong)?;
            let share: f64 = share.trim().parse().map_err(|_| wrong())?;
            let is_share = share.is_finite() && share > 0.0;
            is_share
                .then(|| (family.trim().to_owned(), share))
                .ok_or_else(wrong)
        })
        .collect()
}

/// The weight of each line: one, or its part of its family's share.
fn weigh(
    marked: &[MarkedPrompt],
    mix: Option<&BTreeMap<String, f64>>,
) -> Result<Vec<f64>, UsageError> {
    let Some(mix) = mix else {
        return Ok(vec![1.0; marked.len()]);
    };
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    for line in marked {
        *counts.entry(&line.expectation.family).or_default() += 1.0;
    }
    if let Some(unknown) = mix
        .keys()
        .find(|family| !counts.contains_key(family.as_str()))
    {
        return Err(UsageError(format!(
            "--mix: the file has no line of family {unknown:?}"
        )));
    }
    let weight = |line: &MarkedPrompt| {
        let family = line.expectation.family.as_str();
        mix.get(family).map_or(0.0, |share| share / counts[family])
    };
    Ok(marked.iter().map(weight).collect())
}

/// The results.
struct CascadeReport {
    cases: usize,
    ratio: f64,
    auc: f64,
    ece: f64,
    small: Point,
    large: Point,
    configured: Point,
    oracle: Option<Bound>,
    curves: [(&'static str, Vec<Point>, Option<Point>); 3],
}

impl CascadeReport {
    fn of(
        cases: &[LabelledJob],
        within: f64,
        (threshold, escalate_below): (f64, f64),
        ratio: f64,
    ) -> Self {
        let large = cascade::at(cases, 0.0, 0.0);
        let accuracy_min = large.accuracy - within / 100.0;
        let curves = [
            ("before", cascade::before_generation(cases)),
            ("after", cascade::after_generation(cases)),
            ("both", cascade::both(cases)),
        ];
        let known = cases
            .iter()
            .filter_map(|case| Some((case.confidence?, case.small.right)));
        let (sure, right): (Vec<f64>, Vec<bool>) = known.filter(|(sure, _)| *sure >= 0.0).unzip();
        let unsure: Vec<f64> = sure.iter().map(|sure| -sure).collect();
        let wrong: Vec<bool> = right.iter().map(|right| !right).collect();
        Self {
            cases: cases.len(),
            ratio,
            auc: auc(&unsure, &wrong),
            ece: calibration_error(&sure, &right),
            small: cascade::at(cases, NEVER, 0.0),
            large,
            configured: cascade::at(cases, threshold, escalate_below),
            oracle: cascade::oracle(cases, accuracy_min),
            curves: curves.map(|(name, points)| {
                let best = cascade::cheapest(&points, accuracy_min);
                (name, points, best)
            }),
        }
    }

    fn to_json(&self, mix: Option<&BTreeMap<String, f64>>) -> Value {
        let curves = self.curves.iter();
        let curves = curves.map(|(name, points, best)| {
            (
                (*name).to_owned(),
                json!({"cheapest": best, "points": points}),
            )
        });
        json!({
            "prompts": self.cases,
            "mix": mix,
            "cost": "parameters x tokens, as a share of always large",
            "parameter_ratio": self.ratio,
            "auc": self.auc,
            "ece": self.ece,
            "always_small": self.small,
            "always_large": self.large,
            "configured": self.configured,
            "oracle": self.oracle,
            "curves": curves.collect::<serde_json::Map<_, _>>(),
        })
    }

    fn to_text(&self, within: f64) -> String {
        let show = |point: &Point| {
            format!(
                "{:.1} % right at {:.0} % of the cost ({:.0} % straight to large, {:.0} % escalated; router.threshold={:.3} worker.escalate_below={:.3})",
                100.0 * point.accuracy,
                100.0 * point.cost,
                100.0 * point.direct,
                100.0 * point.escalated,
                point.threshold.min(1.0),
                point.escalate_below.min(1.0),
            )
        };
        let mut lines = vec![
            format!("always small  {}", show(&self.small)),
            format!("always large  {}", show(&self.large)),
            format!("configured    {}", show(&self.configured)),
        ];
        for (name, _, best) in &self.curves {
            let best = best.as_ref().map_or("never".to_owned(), show);
            lines.push(format!("{name:<13} {best}"));
        }
        let bound = self.oracle.map_or("never".to_owned(), |bound| {
            format!(
                "{:.1} % right at {:.0} % of the cost ({:.0} % to large)",
                100.0 * bound.accuracy,
                100.0 * bound.cost,
                100.0 * bound.direct,
            )
        });
        lines.push(format!("oracle        {bound}"));
        lines.push(format!(
            "confidence    AUC {:.3} for \"small is wrong\", ECE {:.3}",
            self.auc, self.ece
        ));
        lines.push(format!(
            "before, after, both: the cheapest thresholds within {within} points of always large; oracle: the cheapest policy that knows both answers"
        ));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use crate::bench::cascade::*;

    #[test]
    fn mixes_are_shares_of_families() {
        let mix = read_mix("faq=40, total=10").expect("a mix");
        assert_eq!(mix["total"], 10.0);
        for wrong in ["faq", "faq=", "faq=-1", "faq=0", "=,", "faq=nan"] {
            assert!(read_mix(wrong).is_err(), "{wrong}");
        }
        let line = |family: &str| MarkedPrompt {
            request: Submission::parse(br#"{"prompt":"a"}"#, &Default::default())
                .expect("valid")
                .request,
            expectation: Expectation {
                answer: "a".into(),
                family: family.into(),
            },
        };
        let marked = [line("faq"), line("faq"), line("total"), line("sort")];
        assert_eq!(weigh(&marked, None).expect("any"), [1.0; 4]);
        assert_eq!(
            weigh(&marked, Some(&mix)).expect("known"),
            [20.0, 20.0, 10.0, 0.0]
        );
        let unknown = read_mix("hops=1").expect("a mix");
        assert!(weigh(&marked, Some(&unknown)).is_err());
    }
}
