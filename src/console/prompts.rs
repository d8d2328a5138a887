//! Prompts to score: JSON lines with `id`, `prompt` and optionally `tags`.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::jsonl::{Ids, each_text};

/// A line of the input.
#[derive(Debug)]
pub struct PromptRow {
    /// Its id.
    pub id: Value,
    /// The prompt.
    pub prompt: String,
    /// Its tags.
    pub tags: Vec<String>,
}

/// Calls `act` with every line of a file; a file without lines is an error.
pub fn for_each(
    path: &Path,
    mut act: impl FnMut(PromptRow) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut ids = Ids::default();
    let mut is_empty = true;
    each_text(path, |number, line| {
        let row = read(line).with_context(|| format!("line {number}"))?;
        ids.add(number, &row.id)?;
        is_empty = false;
        act(row)
    })?;
    ensure!(!is_empty, "{}: the file has no prompts", path.display());
    Ok(())
}

/// Parses a line. Errors name fields, never values, since a value may be a prompt.
fn read(line: &str) -> anyhow::Result<PromptRow> {
    const EXPECTED: &str = "expected an object with id and a string prompt";
    let row: Value = serde_json::from_str(line)
        .ok()
        .with_context(|| format!("{EXPECTED}: not valid JSON"))?;
    let id = row
        .get("id")
        .with_context(|| format!("{EXPECTED}: id is missing"))?;
    let prompt = row.get("prompt").and_then(Value::as_str);
    let tags = row.get("tags").map_or(Some(Vec::new()), |tags| {
        let tags = tags.as_array()?.iter();
        tags.map(|tag| tag.as_str().map(str::to_owned)).collect()
    });
    Ok(PromptRow {
        id: id.clone(),
        prompt: prompt
            .with_context(|| format!("{EXPECTED}: prompt is missing or not a string"))?
            .to_owned(),
        tags: tags.context("expected tags to be a list of strings")?,
    })
}

/// Reads only the prompts of a file.
pub fn read_prompts(path: &Path) -> anyhow::Result<Vec<String>> {
    let mut prompts = Vec::new();
    for_each(path, |row| {
        prompts.push(row.prompt);
        Ok(())
    })?;
    Ok(prompts)
}
