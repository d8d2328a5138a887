//! `bench tokens`: how many prompt tokens each saving avoids on a file, and its effect on accuracy.
//!
//! The file is run once per saving, once without any and once with all, each time by `promptyard run`
//! on a new database and in two halves, so that prompts repeated in the second half can be reused.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::console::{jsonl::read_lines, options::ModelArgs, terminal::eprint_line};

use super::report::{percent, print, table};

/// Arguments of `bench tokens`.
#[derive(Debug, Args)]
pub struct TokensBenchArgs {
    /// Prompts as for `run`; lines with "expect" measure the accuracy
    file: PathBuf,
    /// Directory or hub name of a BERT sentence encoder; adds semantic reuse and improves pruning
    #[arg(long, value_name = "DIR|NAME")]
    embedder: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    models: ModelArgs,
    /// Set any setting (repeatable)
    #[arg(long = "set", value_name = "SECTION.FIELD=VALUE")]
    set: Vec<String>,
}

/// A combination of savings.
#[derive(Clone, Copy, Debug)]
struct Savings {
    name: &'static str,
    cache: &'static str,
    context: &'static str,
    prefix: &'static str,
    needs_embedder: bool,
}

const fn savings(
    name: &'static str,
    cache: &'static str,
    context: &'static str,
    prefix: &'static str,
) -> Savings {
    Savings {
        name,
        cache,
        context,
        prefix,
        needs_embedder: false,
    }
}

const MODES: [Savings; 8] = [
    savings("off", "off", "keep", "off"),
    savings("exact reuse", "exact", "keep", "off"),
    Savings {
        needs_embedder: true,
        ..savings("semantic and exact reuse", "semantic", "keep", "off")
    },
    savings("clean-up", "off", "lossless", "off"),
    savings("pruning and clean-up", "off", "prune", "off"),
    savings("prefix cache", "off", "keep", "tenant"),
    savings("all but semantic", "exact", "prune", "tenant"),
    Savings {
        needs_embedder: true,
        ..savings("all", "semantic", "prune", "tenant")
    },
];

/// The results of one combination.
#[derive(Clone, Debug, Default)]
struct Figures {
    answered: u64,
    failed: u64,
    sent: u64,
    computed: u64,
    right: u64,
    marked: u64,
    seconds: f64,
}

impl Figures {
    fn add(&mut self, summary: &Value) {
        let number = |path: &str| summary.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        self.answered += number("/answered");
        self.failed += number("/failed");
        self.sent += number("/tokens/prompt_sent");
        self.computed += number("/tokens/prompt_computed");
        self.right += number("/marks/all/right");
        self.marked += number("/marks/all/marked");
        self.seconds += summary["wall_seconds"].as_f64().unwrap_or(0.0);
    }

    fn accuracy(&self) -> Option<f64> {
        (self.marked > 0).then(|| self.right as f64 / self.marked as f64)
    }
}

/// Runs `bench tokens`.
///
/// # Errors
/// When the file cannot be read or a run fails.
pub(super) fn bench_tokens(args: &TokensBenchArgs) -> anyhow::Result<ExitCode> {
    let lines = read(&args.file)?;
    let folder = Folder::make()?;
    let mut rows: Vec<(Savings, Figures)> = Vec::new();
    for mode in MODES {
        if mode.needs_embedder && args.embedder.is_none() {
            continue;
        }
        eprint_line(&format!("running {} prompts: {}", lines.len(), mode.name));
        let mut figures = Figures::default();
        let half = lines.len().div_ceil(2);
        for (wave, some) in lines.chunks(half.max(1)).enumerate() {
            figures.add(&run(args, mode, some, &folder.0, wave)?);
        }
        fs::remove_dir_all(&folder.0).and_then(|()| fs::create_dir(&folder.0))?;
        rows.push((mode, figures));
    }
    report(args, &rows)
}

/// A temporary folder, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("promptyard-tokens-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A leftover folder only costs space.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Reads the lines of a file as objects.
fn read(path: &Path) -> anyhow::Result<Vec<Value>> {
    let mut lines = Vec::new();
    read_lines(path, "an object", |line: Map<String, Value>| {
        lines.push(Value::Object(line));
        Ok(())
    })?;
    anyhow::ensure!(!lines.is_empty(), "{} is empty", path.display());
    Ok(lines)
}

/// A copy of a line whose request allows the given savings.
fn with_savings(line: &Value, mode: Savings) -> Value {
    let mut line = line.clone();
    let body = match line.get("body") {
        Some(_) => &mut line["body"],
        None => &mut line,
    };
    body["promptyard"]["cache"] = mode.cache.into();
    body["promptyard"]["context"] = mode.context.into();
    line
}

/// Runs lines in a new process; returns its summary.
fn run(
    args: &TokensBenchArgs,
    mode: Savings,
    lines: &[Value],
    folder: &Path,
    wave: usize,
) -> anyhow::Result<Value> {
    let prompts = folder.join(format!("{wave}.jsonl"));
    let text: Vec<String> = lines
        .iter()
        .map(|line| with_savings(line, mode).to_string())
        .collect();
    fs::write(&prompts, text.join("\n"))?;
    let mut arguments: Vec<OsString> = vec!["run".into(), prompts.into(), "--json".into()];
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    option("--out", folder.join("answers.jsonl").into());
    option("--ledger", folder.join("ledger.db").into());
    for (name, model) in [
        ("--small", &args.models.small),
        ("--large", &args.models.large),
    ] {
        if let Some(model) = model {
            option(name, model.into());
        }
    }
    for tier in ["small", "large"] {
        option(
            "--set",
            format!("{tier}.prefix_cache={}", mode.prefix).into(),
        );
    }
    if let Some(embedder) = &args.embedder {
        if mode.needs_embedder {
            option("--set", format!("cache.embedder={embedder}").into());
        }
        if mode.context == "prune" {
            option("--set", format!("worker.embedder={embedder}").into());
        }
    }
    for set in &args.set {
        option("--set", set.into());
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let done = Command::new(program).args(arguments).output()?;
    // Exit code 1 means that some prompts failed; the summary counts them.
    if !matches!(done.status.code(), Some(0 | 1)) {
        bail!(
            "{}: {}",
            mode.name,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    let summary = String::from_utf8_lossy(&done.stdout);
    serde_json::from_str(summary.trim()).with_context(|| {
        let errors = String::from_utf8_lossy(&done.stderr);
        format!("{}: no summary was printed; {}", mode.name, errors.trim())
    })
}

fn report(args: &TokensBenchArgs, rows: &[(Savings, Figures)]) -> anyhow::Result<ExitCode> {
    let off = &rows[0].1;
    let less = |now: u64, before: u64| 1.0 - now as f64 / before.max(1) as f64;
    let json = || {
        rows.iter()
            .map(|(mode, figures)| {
                json!({
                    "saving": mode.name,
                    "answered": figures.answered,
                    "failed": figures.failed,
                    "prompt_sent": figures.sent,
                    "prompt_computed": figures.computed,
                    "sent_less_percent": 100.0 * less(figures.sent, off.sent),
                    "computed_less_percent": 100.0 * less(figures.computed, off.computed),
                    "accuracy_percent": figures.accuracy().map(|share| 100.0 * share),
                    "wall_seconds": figures.seconds,
                })
            })
            .collect()
    };
    let text = || {
        let rows = rows.iter().map(|(mode, figures)| {
            [
                mode.name.to_owned(),
                figures.sent.to_string(),
                percent(less(figures.sent, off.sent)),
                figures.computed.to_string(),
                percent(less(figures.computed, off.computed)),
                figures.accuracy().map_or_else(String::new, percent),
                figures.failed.to_string(),
                format!("{:.1}", figures.seconds),
            ]
        });
        let header = [
            "SAVING", "SENT", "LESS", "COMPUTED", "LESS", "RIGHT", "FAILED", "SECONDS",
        ];
        table(header, rows)
    };
    print(args.json, json, text)
}
