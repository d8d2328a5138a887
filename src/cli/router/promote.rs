//! `router promote`: stores weights in the job database, from which routers load them.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use chrono::Utc;
use clap::Args;
use serde_json::json;

use crate::{
    console::{
        options::{Common, open_database},
        terminal::print_line,
    },
    scoring::{
        record::{LENGTH, TrainingRecord},
        scorer::Scorer,
    },
    store::{Store, StoredWeights},
};

use super::weights::scorer_of;

/// Store weights in the job database, from which routers load them without a restart
///
/// The file records how `router train` evaluated them: on held-out prompts they must have ranked at
/// least as well as the active weights, or the bundled ones if none are active.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// File of weights written by `router train`
    #[arg(value_name = "FILE")]
    weights: PathBuf,
    /// Promote the weights regardless of their evaluation
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs `router promote`. Weights that are unusable or did not win are refused.
pub async fn promote(args: PromoteArgs) -> anyhow::Result<ExitCode> {
    let file = args.weights.display();
    let bytes = std::fs::read(&args.weights).with_context(|| format!("cannot read {file}"))?;
    let scorer = Scorer::from_bytes(&bytes).with_context(|| format!("{file} is refused"))?;
    let (_, store) = open_database(&args.common).await?;
    let kept = keep(&store, &args, scorer, bytes).await;
    store.close().await;
    print_line(&kept?)?;
    Ok(ExitCode::SUCCESS)
}

/// Stores the weights; returns the message to print.
async fn keep(
    store: &Store,
    args: &PromoteArgs,
    scorer: Scorer,
    bytes: Vec<u8>,
) -> anyhow::Result<String> {
    let version = scorer.version();
    let record = scorer.weights().record.as_ref();
    if !args.force {
        let active = store.active_weights().await?;
        let present = active.as_ref().map_or_else(Scorer::bundled, scorer_of);
        if present.version() == version {
            return Ok(format!("{version} is already in use"));
        }
        if let Some(objection) = objection(record, present.version()) {
            anyhow::bail!(
                "{} is not promoted: {objection} (use --force to promote it anyway)",
                args.weights.display()
            );
        }
    }
    let stored = StoredWeights {
        version: version.to_owned(),
        created_at: Utc::now(),
        metrics: record.map_or_else(|| json!({}), |record| json!(record)),
        weights: bytes,
    };
    store.put_weights(&stored, true).await?;
    Ok(format!(
        "{version} promoted; routers load it within a minute"
    ))
}

/// Why weights may not replace the active ones, if so.
fn objection(record: Option<&TrainingRecord>, present: &str) -> Option<String> {
    let Some(record) = record else {
        return Some("it has no record of an evaluation; train it again".to_owned());
    };
    let against = match record.against.as_str() {
        LENGTH => "length alone",
        version => version,
    };
    if record.sets.is_empty() {
        return Some(format!("it could not be compared with {against}"));
    }
    if record.is_worse() {
        return Some(format!("it did not rank better than {against}"));
    }
    (record.against != present).then(|| {
        format!(
            "it was compared with {against}, but {present} is in use; compare with it by `router train --against DATABASE_URL`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::record::tests::record;

    #[test]
    fn only_weights_that_beat_the_active_ones_are_promoted() {
        let compared = |against: &str, new, present| {
            let record = TrainingRecord {
                against: against.to_owned(),
                ..record(&[("a", new, present)])
            };
            objection(Some(&record), "gain-2-present")
        };
        assert_eq!(compared("gain-2-present", 0.6, 0.5), None);
        let contains = |objection: Option<String>, what| {
            let objection = objection.expect("an objection");
            assert!(objection.contains(what), "{objection}");
        };
        contains(compared("gain-2-present", 0.5, 0.6), "did not rank better");
        contains(
            compared("gain-2-former", 0.6, 0.5),
            "gain-2-present is in use",
        );
        contains(compared(LENGTH, 0.6, 0.5), "length alone");
        let uncompared = objection(Some(&record(&[])), "gain-2-present");
        contains(uncompared, "could not be compared with length alone");
        contains(objection(None, "gain-2-present"), "train it again");
    }
}
