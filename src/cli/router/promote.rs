//! `router promote`: weights into the ledger, from which routers take them without a restart.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use chrono::Utc;
use clap::Args;
use serde_json::json;

use crate::{
    console::options::{Common, open_database, say},
    scoring::{
        record::{LENGTH, Record},
        scorer::Scorer,
    },
    store::{Store, StoredWeights},
};

use super::in_use;

/// Put weights in the ledger, from which routers take them without a restart
///
/// The file tells how `router train` judged them: with prompts held out they must have ranked at
/// least as well as the weights that the ledger has in use now, or the bundled ones where it has none.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// File of weights, as `router train` writes it
    #[arg(value_name = "FILE")]
    weights: PathBuf,
    /// Promote them whatever they were compared with and however they did
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs `router promote`. Weights that cannot be used or did not win are refused, and the present ones
/// stay.
pub async fn promote(args: PromoteArgs) -> anyhow::Result<ExitCode> {
    let file = args.weights.display();
    let bytes = std::fs::read(&args.weights).with_context(|| format!("cannot read {file}"))?;
    let scorer = Scorer::from_bytes(&bytes).with_context(|| format!("{file} is refused"))?;
    let (_, store) = open_database(&args.common).await?;
    let kept = keep(&store, &args, scorer, bytes).await;
    store.close().await;
    say(&kept?)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns what to tell.
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
        let present = active.as_ref().map_or_else(Scorer::bundled, in_use);
        if present.version() == version {
            return Ok(format!("{version} is in use already"));
        }
        if let Some(objection) = objection(record, present.version()) {
            anyhow::bail!(
                "{} is not promoted: {objection} (--force promotes it all the same)",
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
        "{version} promoted; routers take it within a minute"
    ))
}

/// Why weights may not take the present ones' place, if so.
fn objection(record: Option<&Record>, present: &str) -> Option<String> {
    let Some(record) = record else {
        return Some("it does not tell how it was judged; train it again".to_owned());
    };
    let against = match record.against.as_str() {
        LENGTH => "length alone",
        version => version,
    };
    if record.sets.is_empty() {
        return Some(format!("it could not be compared with {against}"));
    }
    if record.has_lost() {
        return Some(format!("it did not rank better than {against}"));
    }
    (record.against != present).then(|| {
        format!(
            "it was compared with {against}, and {present} is in use; `router train --against` takes the ledger's URL"
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::cli::router::promote::*;
    use crate::scoring::record::tests::record;

    #[test]
    fn what_lost_or_won_against_others_is_not_promoted() {
        let compared = |against: &str, new, present| {
            let record = Record {
                against: against.to_owned(),
                ..record(&[("a", new, present)])
            };
            objection(Some(&record), "gain-2-present")
        };
        assert_eq!(compared("gain-2-present", 0.6, 0.5), None);
        let says = |objection: Option<String>, what| {
            let objection = objection.expect("an objection");
            assert!(objection.contains(what), "{objection}");
        };
        says(compared("gain-2-present", 0.5, 0.6), "did not rank better");
        says(
            compared("gain-2-former", 0.6, 0.5),
            "gain-2-present is in use",
        );
        says(compared(LENGTH, 0.6, 0.5), "length alone");
        let uncompared = objection(Some(&record(&[])), "gain-2-present");
        says(uncompared, "could not be compared with length alone");
        says(objection(None, "gain-2-present"), "train it again");
    }
}
