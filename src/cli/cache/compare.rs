//! `cache compare`: tests whether one prompt's answer would be reused for another.

use std::{
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cache::semantic::{COSINE_MIN, compare},
    console::{jsonl::read_lines, terminal::eprint_line},
    engine::{Embedder, cosine},
};

/// Pairs embedded together.
const PAIRS_TOGETHER: usize = 128;

pub(super) const ABOUT: &str = "\
Test whether the answer to one text would be reused for the other

Reads lines {\"id\", \"a\", \"b\"} and prints {\"id\", \"cosine\", \"verdict\", \"veto\"}: verdict is hit or miss;
veto is null for a hit, else the reason for the miss: number, unit, date, negation, antonym, entity,
question_word, deictic, word_order, words (a word replaced or added), cosine (below the
threshold, if nothing else forbids reuse) or failure (no embedding). Equal texts are a hit.";

/// Arguments of `cache compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// File of JSON lines with id, a and b; `-` for standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Directory or hub name of a BERT sentence encoder
    #[arg(
        long,
        value_name = "DIR|NAME",
        default_value = "sentence-transformers/all-MiniLM-L6-v2"
    )]
    embedder: String,
    /// Least cosine similarity of a hit
    #[arg(long, value_name = "COSINE", default_value_t = COSINE_MIN)]
    threshold: f32,
}

#[derive(Deserialize)]
struct TextPair {
    id: Value,
    a: String,
    b: String,
}

/// Runs `cache compare`.
///
/// # Errors
/// When the file cannot be read, a line is malformed or the embedder cannot be opened.
pub(super) fn compare_file(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let embedder = Embedder::open(&args.embedder)?;
    let mut out = BufWriter::new(std::io::stdout());
    let mut pairs = Vec::new();
    let expected = "an object with id and strings a and b";
    read_lines(&args.input, expected, |pair: TextPair| {
        pairs.push(pair);
        if pairs.len() == PAIRS_TOGETHER {
            compare_pairs(&embedder, args, &pairs, &mut out)?;
            pairs.clear();
        }
        Ok(())
    })?;
    compare_pairs(&embedder, args, &pairs, &mut out)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn compare_pairs(
    embedder: &Embedder,
    args: &CompareArgs,
    pairs: &[TextPair],
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let texts: Vec<&str> = pairs.iter().flat_map(|pair| [&*pair.a, &*pair.b]).collect();
    // If one text cannot be embedded, the whole chunk gets the veto `failure`, never a wrong hit.
    let vectors = embedder
        .embed(&texts)
        .inspect_err(|error| eprint_line(&format!("warning: {error}")))
        .ok();
    for (at, pair) in pairs.iter().enumerate() {
        let found = vectors
            .as_ref()
            .map(|vectors| cosine(&vectors[2 * at], &vectors[2 * at + 1]));
        let comparison = compare(&pair.a, &pair.b, found, args.threshold);
        let line = json!({
            "id": pair.id,
            "cosine": comparison.cosine,
            "verdict": comparison.outcome(),
            "veto": comparison.veto.map(|veto| veto.as_str()),
        });
        writeln!(out, "{line}")?;
    }
    Ok(())
}
