//! `bench tokens`: what each saving takes off a file's tokens, and what it does to the answers.
//!
//! The file is run once for each saving by itself, once without any and once with all, each time by
//! `promptyard run` on a ledger of its own, in two waves: what the second half repeats has an answer by
//! then.

use std::{
    ffi::OsString,
    fs,
    io::BufRead as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, bail};
use clap::Args;
use comfy_table::CellAlignment;
use serde_json::{Value, json};

use crate::{
    console::options::{ModelArgs, complain, say},
    console::table::table,
};

/// Arguments of `bench tokens`.
#[derive(Debug, Args)]
pub struct TokensBenchArgs {
    /// Prompts as for `run`; lines that say what is right in "expect" tell the accuracy
    file: PathBuf,
    /// ModelRegistry or hub name of a BERT sentence encoder: adds semantic reuse, and pruning asks it as well
    #[arg(long, value_name = "DIR|NAME")]
    embedder: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    models: ModelArgs,
    /// Set any setting: section.field=value
    #[arg(long = "set", value_name = "SECTION.FIELD=VALUE")]
    set: Vec<String>,
}

/// A saving, or several: what requests ask for and workers do.
#[derive(Clone, Copy, Debug)]
struct Mode {
    name: &'static str,
    cache: &'static str,
    context: &'static str,
    prefix: &'static str,
    needs_embedder: bool,
}

const fn mode(
    name: &'static str,
    cache: &'static str,
    context: &'static str,
    prefix: &'static str,
) -> Mode {
    Mode {
        name,
        cache,
        context,
        prefix,
        needs_embedder: false,
    }
}

const MODES: [Mode; 8] = [
    mode("off", "off", "keep", "off"),
    mode("exact reuse", "exact", "keep", "off"),
    Mode {
        needs_embedder: true,
        ..mode("semantic reuse, exact in it", "semantic", "keep", "off")
    },
    mode("clean-up", "off", "lossless", "off"),
    mode("pruning, clean-up in it", "off", "prune", "off"),
    mode("prefix cache", "off", "keep", "tenant"),
    mode("all but semantic", "exact", "prune", "tenant"),
    Mode {
        needs_embedder: true,
        ..mode("all", "semantic", "prune", "tenant")
    },
];

/// What a mode came to.
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
        (self.marked > 0).then(|| 100.0 * self.right as f64 / self.marked as f64)
    }
}

/// Runs `bench tokens`.
///
/// # Errors
/// When the file cannot be read or a run fails.
pub fn bench_tokens(args: &TokensBenchArgs) -> anyhow::Result<ExitCode> {
    let lines = read(&args.file)?;
    let folder = Folder::make()?;
    let mut rows: Vec<(Mode, Figures)> = Vec::new();
    for mode in MODES {
        if mode.needs_embedder && args.embedder.is_none() {
            continue;
        }
        complain(&format!("running {} prompts: {}", lines.len(), mode.name));
        let mut figures = Figures::default();
        let half = lines.len().div_ceil(2);
        for (wave, some) in lines.chunks(half.max(1)).enumerate() {
            figures.add(&run(args, mode, some, &folder.0, wave)?);
        }
        fs::remove_dir_all(&folder.0).and_then(|()| fs::create_dir(&folder.0))?;
        rows.push((mode, figures));
    }
    report(args, &rows)?;
    Ok(ExitCode::SUCCESS)
}

/// A temporary folder that goes with its owner.
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
        // A folder that stays costs some space and no more.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The lines of a file as objects whose bodies can be asked otherwise.
fn read(path: &Path) -> anyhow::Result<Vec<Value>> {
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = Vec::new();
    for (at, line) in std::io::BufReader::new(file).lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let whole = || format!("{}, line {}", path.display(), at + 1);
        let value: Value = serde_json::from_str(&line).with_context(whole)?;
        if !value.is_object() {
            bail!("{}: expected an object", whole());
        }
        lines.push(value);
    }
    anyhow::ensure!(!lines.is_empty(), "{} is empty", path.display());
    Ok(lines)
}

/// A line whose request asks for a mode's savings.
fn asking(line: &Value, mode: Mode) -> Value {
    let mut line = line.clone();
    let body = match line.get("body") {
        Some(_) => &mut line["body"],
        None => &mut line,
    };
    body["promptyard"]["cache"] = mode.cache.into();
    body["promptyard"]["context"] = mode.context.into();
    line
}

/// Runs lines in a process of their own; returns the summary.
fn run(
    args: &TokensBenchArgs,
    mode: Mode,
    lines: &[Value],
    folder: &Path,
    wave: usize,
) -> anyhow::Result<Value> {
    let prompts = folder.join(format!("{wave}.jsonl"));
    let text: Vec<String> = lines
        .iter()
        .map(|line| asking(line, mode).to_string())
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
    // 1 says that some prompts were not answered: the figures tell.
    if !matches!(done.status.code(), Some(0 | 1)) {
        bail!(
            "{}: {}",
            mode.name,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    let summary = String::from_utf8_lossy(&done.stdout);
    serde_json::from_str(summary.trim()).with_context(|| {
        let words = String::from_utf8_lossy(&done.stderr);
        format!("{}: no summary came; {}", mode.name, words.trim())
    })
}

fn report(args: &TokensBenchArgs, rows: &[(Mode, Figures)]) -> anyhow::Result<()> {
    let off = &rows[0].1;
    let less = |now: u64, before: u64| 100.0 * (1.0 - now as f64 / before.max(1) as f64);
    if args.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(mode, figures)| {
                json!({
                    "saving": mode.name,
                    "answered": figures.answered,
                    "failed": figures.failed,
                    "prompt_sent": figures.sent,
                    "prompt_computed": figures.computed,
                    "sent_less_percent": less(figures.sent, off.sent),
                    "computed_less_percent": less(figures.computed, off.computed),
                    "accuracy_percent": figures.accuracy(),
                    "wall_seconds": figures.seconds,
                })
            })
            .collect();
        say(&Value::from(rows).to_string())?;
        return Ok(());
    }
    let header = [
        "SAVING", "SENT", "LESS", "COMPUTED", "LESS", "RIGHT", "FAILED", "SECONDS",
    ];
    let mut rows_shown = table(&header);
    for (mode, figures) in rows {
        let accuracy = figures.accuracy();
        rows_shown.add_row([
            mode.name.to_owned(),
            figures.sent.to_string(),
            format!("{:.1} %", less(figures.sent, off.sent)),
            figures.computed.to_string(),
            format!("{:.1} %", less(figures.computed, off.computed)),
            accuracy.map_or_else(String::new, |percent| format!("{percent:.1} %")),
            figures.failed.to_string(),
            format!("{:.1}", figures.seconds),
        ]);
    }
    for column in rows_shown.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    say(&rows_shown.to_string())?;
    Ok(())
}
