//! Labelled prompts of files and job databases.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    console::jsonl::{Ids, each_text},
    scoring::{sample::Sample, samples},
    store::StoredWeights,
};

use super::{
    pairs::read_pairs,
    weights::{is_database, options_of},
};

/// Labelled prompts of one or more sources.
#[derive(Default)]
pub(super) struct Labelled {
    pub(super) samples: Vec<Sample>,
    /// The active weights of the last job database among the sources that has any.
    pub(super) active: Option<StoredWeights>,
}

/// Reads labelled prompts; each source weighs as much as it has prompts.
pub(super) async fn read_labelled(sources: &[String]) -> anyhow::Result<Labelled> {
    let mut labelled = Labelled::default();
    for source in sources {
        let mut samples = if is_database(source) {
            let (samples, active) = read_database(source).await?;
            labelled.active = active.or(labelled.active);
            samples
        } else {
            read_file(Path::new(source))?
        };
        samples::level(&mut samples);
        labelled.samples.append(&mut samples);
    }
    Ok(labelled)
}

/// Reads the jobs of a database that both tiers answered, and its active weights.
async fn read_database(url: &str) -> anyhow::Result<(Vec<Sample>, Option<StoredWeights>)> {
    let (rows, active) = read_pairs(&options_of(url)).await?;
    let lines = rows.iter().map(|row| row.to_line().to_string());
    let samples = lines
        .enumerate()
        .map(|(at, line)| samples::read(at + 1, &line));
    Ok((samples.collect::<Result<_, _>>()?, active))
}

/// Reads the labelled prompts of a file, whose ids must be unique.
fn read_file(path: &Path) -> anyhow::Result<Vec<Sample>> {
    #[derive(Deserialize)]
    struct Name {
        id: Option<Value>,
    }
    let (mut found, mut ids) = (Vec::new(), Ids::default());
    each_text(path, |number, line| {
        found.push(samples::read(number, line)?);
        if let Ok(Name { id: Some(id) }) = serde_json::from_str(line) {
            ids.add(number, &id)?;
        }
        Ok(())
    })?;
    Ok(found)
}
