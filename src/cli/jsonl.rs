//! Commands that read lines of JSON and write one line for each.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a file of JSON lines (`-` is standard input; blank lines are passed over) and hands each to
/// `take`.
///
/// # Errors
/// When the file cannot be read, or a line is not what `expected` says; the line is named.
pub fn read_lines<T: DeserializeOwned>(
    input: &Path,
    expected: &str,
    mut take: impl FnMut(T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let reader: Box<dyn BufRead> = if input == Path::new("-") {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        let file = File::open(input).with_context(|| format!("cannot open {}", input.display()))?;
        Box::new(BufReader::new(file))
    };
    for (at, line) in reader.lines().enumerate() {
        let line = line.with_context(|| format!("cannot read line {}", at + 1))?;
        if line.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str(&line)
            .with_context(|| format!("line {}: expected {expected}", at + 1))?;
        take(row).with_context(|| format!("line {}", at + 1))?;
    }
    Ok(())
}

/// Reads lines as [`read_lines`] does and prints what `answer` makes of each.
///
/// # Errors
/// As [`read_lines`], or when nothing can be written.
pub fn each_line<T: DeserializeOwned>(
    input: &Path,
    expected: &str,
    mut answer: impl FnMut(T) -> anyhow::Result<Value>,
) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::io::stdout());
    read_lines(input, expected, |row| {
        Ok(writeln!(out, "{}", answer(row)?)?)
    })?;
    out.flush()?;
    Ok(())
}
