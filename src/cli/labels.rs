//! `run --labels`: labelled answers of the small model, for `router calibrate`.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::Context;
use serde_json::json;

use crate::{
    console::marks::Expectation,
    job::{JobRecord, Tier},
    store::Store,
};

/// Collects marked jobs, whose attempts are written at the end.
pub struct Labels {
    out: BufWriter<File>,
    ended: Vec<(JobRecord, Expectation)>,
}

impl Labels {
    /// Creates the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            out: BufWriter::new(file),
            ended: Vec::new(),
        })
    }

    /// Adds a marked job that has ended.
    pub fn add(&mut self, record: &JobRecord, expectation: &Expectation) {
        self.ended.push((record.clone(), expectation.clone()));
    }

    /// Writes a line for each answer of the small tier, including escalated ones. Answers without
    /// log-probabilities and reused answers are skipped.
    ///
    /// # Errors
    /// When the job database cannot be read or the file cannot be written.
    pub async fn write(mut self, store: &Store) -> anyhow::Result<()> {
        for (record, expectation) in &self.ended {
            for attempt in store.attempts(record.id).await? {
                let own = record.answer.as_ref().map(|answer| answer.text.as_str());
                let text = match attempt.outcome.as_str() {
                    "succeeded" => own,
                    _ => attempt.answer.as_deref(),
                };
                let (Tier::Small, Some(signals), Some(text)) =
                    (attempt.tier, attempt.signals, text)
                else {
                    continue;
                };
                let row = json!({
                    "id": record.custom_id,
                    "family": expectation.family,
                    "right": expectation.is_met(text),
                    "model": attempt.model,
                    "revision": attempt.revision,
                    "signals": signals,
                });
                writeln!(self.out, "{row}").context("cannot write the labels")?;
            }
        }
        self.out.flush().context("cannot write the labels")
    }
}
