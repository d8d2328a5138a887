//! Files of prompts: lines `{"id", "prompt", "tags"}`.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::jsonl::{Ids, each_text};

/// A line of the input.
#[derive(Debug)]
pub struct Row {
    /// Its id.
    pub id: Value,
    /// The prompt.
    pub prompt: String,
    /// Its tags.
    pub tags: Vec<String>,
}

/// Does something with every line of a file; a file without lines is a error.
pub fn for_each(path: &Path, mut act: impl FnMut(Row) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut ids = Ids::default();
    let mut is_empty = true;
    each_text(path, |number, line| {
        let row = read(line).with_context(|| format!("line {number}"))?;
        ids.add(number, &row.id)?;
        is_empty = false;
        act(row)
    })?;
    ensure!(!is_empty, "{}: there are no prompts in it", path.display());
    Ok(())
}

/// Reads a line. What is wrong is told by field and kind: a value may be a prompt.
fn read(line: &str) -> anyhow::Result<Row> {
    const EXPECTED: &str = "expected an object with id and a string prompt";
    let row: Value = serde_json::from_str(line)
        .ok()
        .with_context(|| format!("{EXPECTED}: it is not valid JSON"))?;
    let id = row
        .get("id")
        .with_context(|| format!("{EXPECTED}: there is no id"))?;
    let prompt = row.get("prompt").and_then(Value::as_str);
    let tags = row.get("tags").map_or(Some(Vec::new()), |tags| {
        let tags = tags.as_array()?.iter();
        tags.map(|tag| tag.as_str().map(str::to_owned)).collect()
    });
    Ok(Row {
        id: id.clone(),
        prompt: prompt
            .with_context(|| format!("{EXPECTED}: there is no such prompt"))?
            .to_owned(),
        tags: tags.context("expected tags to be a list of strings")?,
    })
}

/// Reads the prompts of a file of lines {"id", "prompt"}.
pub fn read_prompts(path: &Path) -> anyhow::Result<Vec<String>> {
    let mut prompts = Vec::new();
    for_each(path, |row| {
        prompts.push(row.prompt);
        Ok(())
    })?;
    Ok(prompts)
}
