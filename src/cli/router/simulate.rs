//! `router simulate`: what a routing target delivers on a file of prompts.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    config::{Overrides, RouteTarget},
    console::{jsonl::read_lines, options::Common, terminal::print_line},
    router::target::{Calibrations, ScopedObservation, isotonic::Observation},
    scoring::{features::Features, scorer::Scorer},
};

/// Arguments of `router simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// File of JSON lines with prompt and optionally set, weak_score and strong_score; `-` for standard
    /// input. Sets are routed one after the other, like shifts in traffic
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Target to simulate, such as share:30% or quality:99% [default: router.target]
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Seed for shuffling the prompts within each set
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Deserialize)]
struct SimulatedLine {
    prompt: String,
    #[serde(default)]
    set: Option<String>,
    weak_score: Option<f64>,
    strong_score: Option<f64>,
}

/// A prompt's score and labels.
#[derive(Clone, Copy)]
struct SimulatedPrompt {
    score: f64,
    labels: Option<(f64, f64)>,
}

/// The result on one set.
#[derive(Default)]
struct Delivered {
    jobs: u32,
    large: u32,
    /// Sums of quality over labelled prompts: as routed, and by large alone.
    reached: f64,
    by_large: f64,
}

impl Delivered {
    fn add(&mut self, row: SimulatedPrompt, is_large: bool) {
        self.jobs += 1;
        self.large += u32::from(is_large);
        if let Some((small, large)) = row.labels {
            self.reached += if is_large { large } else { small };
            self.by_large += large;
        }
    }

    fn to_json(&self) -> Value {
        let quality = (self.by_large > 0.0).then(|| self.reached / self.by_large);
        json!({
            "jobs": self.jobs,
            "share": f64::from(self.large) / f64::from(self.jobs.max(1)),
            "quality_kept": quality,
        })
    }
}

/// Runs `router simulate`.
pub fn simulate(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    let mut overrides = Overrides::default();
    if let Some(target) = &args.target {
        overrides.set("--target", "router.target", target);
    }
    let config = args.common.load(overrides)?.router;
    let scorer = Scorer::open(config.weights.as_deref().map(Path::new))?;
    let mut sets = read(&args.input, &scorer)?;
    let mut rng = StdRng::seed_from_u64(args.seed);
    for (_, rows) in &mut sets {
        rows.shuffle(&mut rng);
    }
    let mut calibrations = Calibrations::new(&config);
    let scope = calibrations.scope("default", &[]);
    if let RouteTarget::Quality(_) = config.target {
        // Half of the labelled prompts fit the threshold, the other half evaluates it.
        let mut fitted = Vec::new();
        for (_, rows) in &mut sets {
            fitted.extend(rows.split_off(rows.len() / 2));
        }
        fitted.shuffle(&mut rng);
        let mut pairs = Vec::new();
        for row in fitted {
            calibrations.at(scope).remember(row.score);
            pairs.extend(row.labels.map(|(small, large)| ScopedObservation {
                tenant: "default".to_owned(),
                tags: Vec::new(),
                observation: Observation {
                    score: row.score,
                    small,
                    large,
                },
            }));
        }
        calibrations.observe_pairs(&pairs);
    }
    let (mut lines, mut all) = (Vec::new(), Delivered::default());
    for (name, rows) in sets {
        let mut delivered = Delivered::default();
        for row in rows {
            let is_large = row.score >= calibrations.thresholds(scope, 0.0).base;
            calibrations.at(scope).observe(row.score, is_large);
            delivered.add(row, is_large);
            all.add(row, is_large);
        }
        let mut line = delivered.to_json();
        line["set"] = json!(name);
        line["threshold"] = json!(calibrations.thresholds(scope, 0.0).base);
        lines.push(line);
    }
    let target = config.target.to_string();
    print_line(
        &json!({"target": target, "scorer": scorer.version(), "seed": args.seed, "all": all.to_json(), "sets": lines})
            .to_string(),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Reads prompts by set, the sets in order of their first line.
fn read(path: &Path, scorer: &Scorer) -> anyhow::Result<Vec<(String, Vec<SimulatedPrompt>)>> {
    let mut places = BTreeMap::new();
    let mut sets: Vec<(String, Vec<SimulatedPrompt>)> = Vec::new();
    let expected = "an object with a string prompt";
    read_lines(path, expected, |row: SimulatedLine| {
        let set = row.set.unwrap_or_else(|| "all".to_owned());
        let place = *places.entry(set.clone()).or_insert(sets.len());
        if place == sets.len() {
            sets.push((set, Vec::new()));
        }
        sets[place].1.push(SimulatedPrompt {
            score: scorer.score(&Features::of_text(&row.prompt)).gain,
            labels: row.weak_score.zip(row.strong_score),
        });
        Ok(())
    })?;
    anyhow::ensure!(
        !sets.is_empty(),
        "{}: the file has no prompts",
        path.display()
    );
    Ok(sets)
}
