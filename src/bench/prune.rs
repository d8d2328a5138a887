//! `bench prune`: how much context pruning cuts, and whether the paragraph with the answer stays.
//!
//! Each question is given its own paragraph and the nine others of its data set that share most of its
//! words, which is harder than random ones. Data sets are read in their own formats: SQuAD's JSON
//! (XQuAD, SQuAD) and DPR's lines (Natural Questions).

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::Context;
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use crate::{
    engine::{Embedder, cosine},
    prompt::{
        estimate_tokens,
        prune::{Similarity, gaps, keep, words::words},
    },
};

use super::report::print;

/// Paragraphs given in addition to the one with the answer.
const DISTRACTORS: usize = 9;
/// Share of questions whose paragraph stays, at which the possible cut is reported.
const RETENTION: f64 = 0.99;

/// Arguments of `bench prune`.
#[derive(Debug, Args)]
pub struct PruneBenchArgs {
    /// Questions with paragraphs, as SQuAD's JSON or DPR's JSON lines (repeatable)
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    /// Directory or hub name of a BERT sentence encoder; without one only words are compared
    #[arg(long, value_name = "DIR|NAME")]
    embedder: Option<String>,
    /// Put each paragraph's title, if it has one, on a line before it
    #[arg(long)]
    titles: bool,
    /// Most questions per file
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    questions: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Squad {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    #[serde(default)]
    title: String,
    paragraphs: Vec<SquadParagraph>,
}

#[derive(Deserialize)]
struct SquadParagraph {
    context: String,
    qas: Vec<SquadQuestion>,
}

#[derive(Deserialize)]
struct SquadQuestion {
    question: String,
}

#[derive(Deserialize)]
struct Dpr {
    question: String,
    ctxs: Vec<Passage>,
}

#[derive(Deserialize)]
struct Passage {
    #[serde(default)]
    title: String,
    text: String,
    #[serde(default)]
    isgold: bool,
}

/// Paragraphs, and questions with the index of the paragraph that answers them.
#[derive(Default)]
struct QuestionSet {
    paragraphs: Vec<String>,
    questions: Vec<(String, usize)>,
}

impl QuestionSet {
    fn read(path: &Path, titles: bool) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let whole = |title: &str, text: String| {
            if titles && !title.is_empty() {
                format!("{title}\n{text}")
            } else {
                text
            }
        };
        let mut set = Self::default();
        if let Ok(squad) = serde_json::from_str::<Squad>(&text) {
            for article in squad.data {
                for paragraph in article.paragraphs {
                    let at = set.paragraphs.len();
                    set.paragraphs
                        .push(whole(&article.title, paragraph.context));
                    let questions = paragraph.qas.into_iter().map(|qa| (qa.question, at));
                    set.questions.extend(questions);
                }
            }
            return Ok(set);
        }
        let mut known = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let row: Dpr = serde_json::from_str(line).with_context(|| {
                format!(
                    "{} line {}: expected question and ctxs",
                    path.display(),
                    at + 1
                )
            })?;
            let gold = row.ctxs.into_iter().find(|passage| passage.isgold);
            let gold = gold.with_context(|| format!("line {} has no gold passage", at + 1))?;
            let gold = whole(&gold.title, gold.text);
            let next = set.paragraphs.len();
            let paragraph = *known.entry(gold.clone()).or_insert(next);
            if paragraph == next {
                set.paragraphs.push(gold);
            }
            set.questions.push((row.question, paragraph));
        }
        Ok(set)
    }

    /// The paragraphs given with a question, by index.
    fn candidates(&self, golds: &[usize], question: &str, stems: &[HashSet<String>]) -> Vec<usize> {
        let asked: HashSet<String> = content(question);
        let mut others: Vec<(usize, usize)> = (0..self.paragraphs.len())
            .filter(|at| !golds.contains(at))
            .map(|at| (stems[at].intersection(&asked).count(), at))
            .collect();
        others.sort_unstable_by_key(|(shared, at)| (usize::MAX - shared, *at));
        let wanted = (DISTRACTORS + 1).saturating_sub(golds.len());
        let mut chosen: Vec<usize> = others.iter().take(wanted).map(|(_, at)| *at).collect();
        chosen.extend(golds);
        // The order must not reveal the paragraph with the answer.
        chosen.sort_unstable();
        chosen
    }
}

fn content(text: &str) -> HashSet<String> {
    let words = words(text).into_iter().filter(|word| !word.is_function);
    words.map(|word| word.stem).collect()
}

/// An embedder that computes each text once.
struct CachingEmbedder {
    embedder: Embedder,
    known: RefCell<HashMap<String, Vec<f32>>>,
}

impl CachingEmbedder {
    fn vector(&self, text: &str) -> Option<Vec<f32>> {
        if let Some(vector) = self.known.borrow().get(text) {
            return Some(vector.clone());
        }
        let vector = self.embedder.embed(&[text]).ok()?.pop()?;
        self.known
            .borrow_mut()
            .insert(text.to_owned(), vector.clone());
        Some(vector)
    }
}

impl Similarity for CachingEmbedder {
    fn cosines(&self, questions: &[&str], texts: &[&str]) -> Option<Vec<Vec<f32>>> {
        let texts: Option<Vec<_>> = texts.iter().map(|text| self.vector(text)).collect();
        let texts = texts?;
        questions
            .iter()
            .map(|question| {
                let question = self.vector(question)?;
                Some(texts.iter().map(|text| cosine(&question, text)).collect())
            })
            .collect()
    }
}

/// The results of pruning over many questions.
#[derive(Default)]
struct PruneResults {
    questions: usize,
    tokens: usize,
    kept_tokens: usize,
    /// Questions whose paragraphs all stayed.
    retained: usize,
    /// Per question: the gap of its paragraph, and all gaps with their paragraphs' tokens.
    gaps: Vec<(f64, Vec<(f64, usize)>)>,
    seconds: f64,
}

impl PruneResults {
    fn add(
        &mut self,
        question: &str,
        texts: &[&str],
        golds: &[usize],
        similarity: Option<&dyn Similarity>,
    ) {
        let sizes: Vec<usize> = texts.iter().map(|text| estimate_tokens(text)).collect();
        let begun = Instant::now();
        let kept = keep(question, texts, similarity);
        self.seconds += begun.elapsed().as_secs_f64();
        self.questions += 1;
        self.tokens += sizes.iter().sum::<usize>();
        self.kept_tokens += kept.iter().map(|at| sizes[*at]).sum::<usize>();
        self.retained += usize::from(golds.iter().all(|gold| kept.contains(gold)));
        let parts = gaps(question, texts, similarity);
        let gap = |at: usize| parts.iter().map(|part| part[at]).fold(f64::MAX, f64::min);
        let worst = golds.iter().map(|gold| gap(*gold)).fold(0.0, f64::max);
        let all = sizes.iter().enumerate().map(|(at, size)| (gap(at), *size));
        self.gaps.push((worst, all.collect()));
    }

    fn share_cut(&self) -> f64 {
        1.0 - self.kept_tokens as f64 / self.tokens.max(1) as f64
    }

    fn retention(&self) -> f64 {
        self.retained as f64 / self.questions.max(1) as f64
    }

    /// The gap at which just [`RETENTION`] stays, in units of the frozen threshold, and its cut.
    fn own_threshold(&self) -> (f64, f64) {
        let mut worst: Vec<f64> = self.gaps.iter().map(|(gap, _)| *gap).collect();
        worst.sort_unstable_by(f64::total_cmp);
        let at = (worst.len() as f64 * RETENTION).ceil() as usize;
        let threshold = worst.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN);
        let all = self.gaps.iter().flat_map(|(_, all)| all);
        let kept: usize = all
            .filter(|(gap, _)| *gap <= threshold)
            .map(|(_, size)| size)
            .sum();
        (threshold, 1.0 - kept as f64 / self.tokens.max(1) as f64)
    }
}

/// Runs `bench prune`.
///
/// # Errors
/// When a file cannot be read or the embedder cannot be opened.
pub(super) fn bench_prune(args: &PruneBenchArgs) -> anyhow::Result<ExitCode> {
    let embedder = args.embedder.as_deref().map(Embedder::open).transpose()?;
    let embedder = embedder.map(|embedder| CachingEmbedder {
        embedder,
        known: RefCell::default(),
    });
    let similarity = embedder
        .as_ref()
        .map(|embedder| embedder as &dyn Similarity);
    for path in &args.data {
        let set = QuestionSet::read(path, args.titles)?;
        let stems: Vec<_> = set.paragraphs.iter().map(|text| content(text)).collect();
        let (mut single, mut double) = (PruneResults::default(), PruneResults::default());
        let questions = &set.questions[..set.questions.len().min(args.questions)];
        for (nth, (question, gold)) in questions.iter().enumerate() {
            run(&set, &stems, (question, &[*gold]), similarity, &mut single);
            // Two questions at once: this one and one from elsewhere in the set.
            let (other, second) = &questions[(nth + questions.len() / 2) % questions.len()];
            if second != gold {
                let both = format!("{} and {other}", question.trim_end_matches('?'));
                run(
                    &set,
                    &stems,
                    (&both, &[*gold, *second]),
                    similarity,
                    &mut double,
                );
            }
        }
        report(args, path, &single, &double)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run(
    set: &QuestionSet,
    stems: &[HashSet<String>],
    (question, golds): (&str, &[usize]),
    similarity: Option<&dyn Similarity>,
    results: &mut PruneResults,
) {
    let chosen = set.candidates(golds, question, stems);
    let texts: Vec<&str> = chosen
        .iter()
        .map(|at| set.paragraphs[*at].as_str())
        .collect();
    let places: Vec<usize> = (0..chosen.len())
        .filter(|at| golds.contains(&chosen[*at]))
        .collect();
    results.add(question, &texts, &places, similarity);
}

fn report(
    args: &PruneBenchArgs,
    path: &Path,
    single: &PruneResults,
    double: &PruneResults,
) -> anyhow::Result<()> {
    let name = path
        .file_stem()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let (threshold, cut) = single.own_threshold();
    // With an embedder the time depends on how many texts are cached, so it is not reported.
    let ms = args
        .embedder
        .is_none()
        .then(|| 1e6 * single.seconds / single.tokens.max(1) as f64);
    let json = || {
        json!({
            "data": name,
            "questions": single.questions,
            "tokens_cut": single.share_cut(),
            "gold_retention": single.retention(),
            "two_gold_retention": double.retention(),
            "two_gold_tokens_cut": double.share_cut(),
            "threshold_for_99_percent": threshold,
            "tokens_cut_at_99_percent": cut,
            "ms_per_1000_tokens": ms,
        })
    };
    let text = || {
        format!(
            "{name}: {} questions, {:.1} % of tokens cut, {:.2} % of golds kept; two golds: both kept {:.1} %, {:.1} % cut; at 99 % retention {:.1} % cut (gap {threshold:.2}){}",
            single.questions,
            100.0 * single.share_cut(),
            100.0 * single.retention(),
            100.0 * double.retention(),
            100.0 * double.share_cut(),
            100.0 * cut,
            ms.map_or_else(String::new, |ms| format!("; {ms:.2} ms per 1,000 tokens")),
        )
    };
    print(args.json, json, text)?;
    Ok(())
}
