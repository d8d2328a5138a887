//! Reading files of JSON lines, and writing a line for each.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use anyhow::{Context, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Calls `take` with the number and text of each line that is not blank; `-` is standard input.
///
/// # Errors
/// When the file cannot be read or is not UTF-8, or `take` fails; the message names file and line.
pub fn each_text(
    input: &Path,
    mut take: impl FnMut(usize, &str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let is_standard = input == Path::new("-");
    let name = if is_standard {
        "standard input".to_owned()
    } else {
        input.display().to_string()
    };
    let mut reader: Box<dyn BufRead> = if is_standard {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        ensure!(!input.is_dir(), "cannot open {name}: it is a directory");
        let file = File::open(input).with_context(|| format!("cannot open {name}"))?;
        Box::new(BufReader::new(file))
    };
    let (mut bytes, mut number) = (Vec::new(), 0);
    loop {
        bytes.clear();
        number += 1;
        let read = reader.read_until(b'\n', &mut bytes);
        if read.with_context(|| format!("{name}: cannot read line {number}"))? == 0 {
            return Ok(());
        }
        let text = std::str::from_utf8(&bytes)
            .ok()
            .with_context(|| format!("{name}: line {number}: it is not valid UTF-8"))?;
        // Some editors write a byte order mark at the start of a file.
        let text = text.trim_start_matches('\u{feff}').trim();
        if !text.is_empty() {
            take(number, text).with_context(|| name.clone())?;
        }
    }
}

/// Parses each line of a file as JSON and calls `take` with it, as [`each_text`] does.
///
/// # Errors
/// When the file cannot be read, or a line is not what `expected` describes.
pub fn read_lines<T: DeserializeOwned>(
    input: &Path,
    expected: &str,
    mut take: impl FnMut(T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    each_text(input, |number, text| {
        let row = serde_json::from_str(text).map_err(|error| {
            anyhow!(
                "line {number}: expected {expected}: {}",
                parse_error(&error)
            )
        })?;
        take(row).with_context(|| format!("line {number}"))
    })
}

/// A parser's message without its line number, which is always 1.
pub fn parse_error(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column", " at column")
}

/// Prints the result of `answer` for each line, as [`read_lines`] reads it.
///
/// # Errors
/// As [`read_lines`], or when standard output cannot be written.
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

/// The ids of a file's lines, which must be unique.
#[derive(Debug, Default)]
pub struct Ids {
    /// Line numbers by hash of the id.
    seen: HashMap<[u8; 32], usize>,
}

impl Ids {
    /// Adds a line's id.
    ///
    /// # Errors
    /// When an earlier line has it.
    pub fn add(&mut self, number: usize, id: &Value) -> anyhow::Result<()> {
        let hash = *blake3::hash(id.to_string().as_bytes()).as_bytes();
        if let Some(earlier) = self.seen.insert(hash, number) {
            anyhow::bail!("line {number}: its id is already used on line {earlier}");
        }
        Ok(())
    }
}
