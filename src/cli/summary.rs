//! The summary of a run, as text or JSON.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    console::marks::Marks,
    job::{AnswerSource, JobRecord, JobState, Tier, Usage},
};

/// Prompt tokens avoided, by kind of saving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SavedTokens {
    /// Not sent: an identical prompt's answer was reused.
    reused: u64,
    /// Not sent: a paraphrase's answer was reused.
    semantic: u64,
    /// Not sent, by clean-up (estimated).
    cleaned: u64,
    /// Not sent, by pruning (estimated).
    pruned: u64,
    /// Sent but not computed: found in a prefix cache.
    prefix: u64,
}

impl SavedTokens {
    fn add(&mut self, record: &JobRecord) {
        let usage = record.answer.as_ref().map(|answer| answer.usage);
        let prompt = usage.map_or(0, |usage| u64::from(usage.prompt_tokens));
        match record.source {
            Some(AnswerSource::Cache | AnswerSource::Shared) => self.reused += prompt,
            Some(AnswerSource::Semantic) => self.semantic += prompt,
            Some(AnswerSource::Computed) => {
                self.cleaned += u64::from(record.saved.cleaned_tokens);
                self.pruned += u64::from(record.saved.pruned_tokens);
                self.prefix += usage.map_or(0, Usage::prompt_tokens_found);
            }
            None => {}
        }
        self.prefix += record.escalated.map_or(0, Usage::prompt_tokens_found);
    }

    fn to_json(self) -> Value {
        json!({
            "reused": self.reused,
            "semantic": self.semantic,
            "cleaned": self.cleaned,
            "pruned": self.pruned,
            "prefix": self.prefix,
        })
    }

    fn to_text(self) -> String {
        format!(
            "prompt tokens not sent: {} reused, {} semantic, {} by clean-up, {} by pruning (both estimated); {} sent, found in the prefix cache",
            self.reused, self.semantic, self.cleaned, self.pruned, self.prefix
        )
    }
}

/// Counts jobs as they end.
#[derive(Debug)]
pub struct Summary {
    begun: Instant,
    /// Jobs answered by an earlier run.
    already: u64,
    /// Jobs with an answer.
    pub answered: u64,
    failures: BTreeMap<String, u64>,
    tiers: [u64; 2],
    escalated: u64,
    from_cache: u64,
    shared: u64,
    semantic: u64,
    tokens_sent: u64,
    tokens_computed: u64,
    tokens_generated: u64,
    saved: SavedTokens,
    latencies_ms: Vec<u64>,
    /// Accuracy on marked lines.
    pub marks: Marks,
}

impl Summary {
    /// Starts a summary.
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            already: 0,
            answered: 0,
            failures: BTreeMap::new(),
            tiers: [0; 2],
            escalated: 0,
            from_cache: 0,
            shared: 0,
            semantic: 0,
            tokens_sent: 0,
            tokens_computed: 0,
            tokens_generated: 0,
            saved: SavedTokens::default(),
            latencies_ms: Vec::new(),
            marks: Marks::default(),
        }
    }

    /// Counts a terminal record; `is_new` is true if it ended in this run.
    pub fn add(&mut self, record: &JobRecord, is_new: bool) {
        if let Some(tier) = record.tier {
            self.tiers[usize::from(tier == Tier::Large)] += 1;
        }
        self.escalated += u64::from(record.escalated.is_some());
        match (&record.reason, record.state) {
            (_, JobState::Succeeded) => self.answered += 1,
            (Some(reason), _) => *self.failures.entry(reason.code.clone()).or_default() += 1,
            (None, state) => *self.failures.entry(state.to_string()).or_default() += 1,
        }
        if !is_new {
            self.already += u64::from(record.state == JobState::Succeeded);
            return;
        }
        match record.source {
            Some(AnswerSource::Cache) => self.from_cache += 1,
            Some(AnswerSource::Shared) => self.shared += 1,
            Some(AnswerSource::Semantic) => self.semantic += 1,
            Some(AnswerSource::Computed) | None => {}
        }
        if let (Some(answer), Some(AnswerSource::Computed)) = (&record.answer, record.source) {
            self.tokens_sent += u64::from(answer.usage.prompt_tokens);
            self.tokens_computed += u64::from(answer.usage.prompt_tokens_computed);
            self.tokens_generated += u64::from(answer.usage.completion_tokens);
        }
        self.saved.add(record);
        if let Some(escalated) = record.escalated {
            self.tokens_sent += u64::from(escalated.prompt_tokens);
            self.tokens_computed += u64::from(escalated.prompt_tokens_computed);
            self.tokens_generated += u64::from(escalated.completion_tokens);
        }
        if let (Some(finished_at), JobState::Succeeded) = (record.finished_at, record.state) {
            let latency = (finished_at - record.submitted_at).num_milliseconds();
            self.latencies_ms.push(u64::try_from(latency).unwrap_or(0));
        }
    }

    /// Jobs that ended without an answer.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The summary as JSON; times are milliseconds from submission to the terminal row.
    pub fn to_json(&self, database: &str) -> Value {
        let seconds = self.begun.elapsed().as_secs_f64();
        let (p50, p95) = self.percentiles();
        let mut summary = json!({
            "answered": self.answered,
            "failed": self.failed(),
            "failures": self.failures,
            "already_answered": self.already,
            "route": {"small": self.tiers[0], "large": self.tiers[1], "escalated": self.escalated},
            "cache_hits": {
                "earlier_answers": self.from_cache,
                "shared_in_flight": self.shared,
                "paraphrases": self.semantic,
            },
            "tokens": {
                "prompt_sent": self.tokens_sent,
                "prompt_computed": self.tokens_computed,
                "generated": self.tokens_generated,
            },
            "tokens_saved": self.saved.to_json(),
            "latency_ms": {"mean": self.mean(), "p50": p50, "p95": p95},
            "generated_tokens_per_second": round(self.tokens_generated as f64 / seconds),
            "wall_seconds": round(seconds),
            "database": database,
        });
        if !self.marks.is_empty() {
            summary["marks"] = self.marks.to_json();
        }
        summary
    }

    /// The summary as text.
    pub fn to_text(&self, database: &str) -> String {
        let mut failed = self.failed().to_string();
        if !self.failures.is_empty() {
            let parts: Vec<_> = self
                .failures
                .iter()
                .map(|(code, count)| format!("{count} {code}"))
                .collect();
            failed.push_str(&format!(" ({})", parts.join(", ")));
        }
        let (p50, p95) = self.percentiles();
        let latency = match (p50, p95) {
            (Some(p50), Some(p95)) => {
                format!(
                    "mean {} ms, p50 {p50} ms, p95 {p95} ms",
                    self.mean().unwrap_or(p50)
                )
            }
            _ => "none: nothing was answered in this run".to_owned(),
        };
        let wall = self.begun.elapsed();
        let mut lines = vec![
            (
                "answered",
                format!(
                    "{} ({} of them by an earlier run)",
                    self.answered, self.already
                ),
            ),
            ("failed", failed),
            (
                "route",
                match self.escalated {
                    0 => format!("{} small, {} large", self.tiers[0], self.tiers[1]),
                    escalated => format!(
                        "{} small, {} large ({escalated} escalated)",
                        self.tiers[0], self.tiers[1]
                    ),
                },
            ),
            (
                "cache hits",
                format!(
                    "{} earlier answers, {} shared with an identical prompt in flight, {} to a paraphrase",
                    self.from_cache, self.shared, self.semantic
                ),
            ),
            (
                "tokens",
                format!(
                    "{} prompt sent, {} computed, {} generated",
                    self.tokens_sent, self.tokens_computed, self.tokens_generated
                ),
            ),
            ("latency", latency),
            (
                "speed",
                format!(
                    "{:.0} generated tokens/s over {}",
                    self.tokens_generated as f64 / wall.as_secs_f64(),
                    show_duration(wall)
                ),
            ),
        ];
        if self.saved != SavedTokens::default() {
            lines.push(("saved", self.saved.to_text()));
        }
        if !self.marks.is_empty() {
            lines.extend(self.marks.to_lines());
        }
        lines.push(("database", database.to_owned()));
        lines
            .iter()
            .map(|(name, text)| format!("{name:>10}  {text}\n"))
            .collect()
    }

    fn mean(&self) -> Option<u64> {
        let count = u64::try_from(self.latencies_ms.len()).ok()?;
        self.latencies_ms.iter().sum::<u64>().checked_div(count)
    }

    fn percentiles(&self) -> (Option<u64>, Option<u64>) {
        let mut sorted = self.latencies_ms.clone();
        sorted.sort_unstable();
        (percentile(&sorted, 50), percentile(&sorted, 95))
    }
}

/// The nearest-rank percentile of sorted values.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.1} min", seconds / 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let values: Vec<u64> = (1..=20).collect();
        assert_eq!(percentile(&values, 50), Some(10));
        assert_eq!(percentile(&values, 95), Some(19));
        assert_eq!(percentile(&[7], 95), Some(7));
        assert_eq!(percentile(&[], 50), None);
    }
}
