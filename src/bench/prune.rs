//! `bench prune`: how much context pruning cuts, and whether what is needed stays.
//!
//! Each question gets its own paragraph and the nine others of its set that share most of its words,
//! which is harder than chance. Public sets in their own formats: SQuAD's JSON (XQuAD, SQuAD) and
//! DPR's lines (Natural Questions).

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
    console::options::say,
    engine::{Embedder, cosine},
    prompt::{
        estimate_tokens,
        prune::{Similarity, gaps, keep, words::words},
    },
};

/// Paragraphs beside the one that holds the answer.
const DISTRACTORS: usize = 9;
/// Share of questions whose paragraph must stay, for which the cut is reported.
const RETENTION: f64 = 0.99;

/// Arguments of `bench prune`.
#[derive(Debug, Args)]
pub struct PruneBenchArgs {
    /// Questions with paragraphs: SQuAD's JSON, or DPR's JSON lines; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    /// ModelRegistry or hub name of a BERT sentence encoder; without one words alone decide
    #[arg(long, value_name = "DIR|NAME")]
    embedder: Option<String>,
    /// Put each paragraph's title, where the data has one, before it on a line of its own
    #[arg(long)]
    titles: bool,
    /// Most questions of each file
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
struct Family {
    paragraphs: Vec<String>,
    questions: Vec<(String, usize)>,
}

impl Family {
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
        let mut family = Self::default();
        if let Ok(squad) = serde_json::from_str::<Squad>(&text) {
            for article in squad.data {
                for paragraph in article.paragraphs {
                    let at = family.paragraphs.len();
                    family
                        .paragraphs
                        .push(whole(&article.title, paragraph.context));
                    let questions = paragraph.qas.into_iter().map(|qa| (qa.question, at));
                    family.questions.extend(questions);
                }
            }
            return Ok(family);
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
            let next = family.paragraphs.len();
            let paragraph = *known.entry(gold.clone()).or_insert(next);
            if paragraph == next {
                family.paragraphs.push(gold);
            }
            family.questions.push((row.question, paragraph));
        }
        Ok(family)
    }

    /// For each question the paragraphs to choose among (by index) and where its own is.
    fn cases(&self, golds: &[usize], question: &str, stems: &[HashSet<String>]) -> Vec<usize> {
        let asked: HashSet<String> = content(question);
        let mut others: Vec<(usize, usize)> = (0..self.paragraphs.len())
            .filter(|at| !golds.contains(at))
            .map(|at| (stems[at].intersection(&asked).count(), at))
            .collect();
        others.sort_unstable_by_key(|(shared, at)| (usize::MAX - shared, *at));
        let wanted = (DISTRACTORS + 1).saturating_sub(golds.len());
        let mut chosen: Vec<usize> = others.iter().take(wanted).map(|(_, at)| *at).collect();
        chosen.extend(golds);
        // An order that says nothing about which is which.
        chosen.sort_unstable();
        chosen
    }
}

fn content(text: &str) -> HashSet<String> {
    let words = words(text).into_iter().filter(|word| !word.is_function);
    words.map(|word| word.stem).collect()
}

/// An embedder that computes each text once.
struct Remembering {
    embedder: Embedder,
    known: RefCell<HashMap<String, Vec<f32>>>,
}

impl Remembering {
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

impl Similarity for Remembering {
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

/// What pruning came to over many questions.
#[derive(Default)]
struct Tally {
    questions: usize,
    tokens: usize,
    kept_tokens: usize,
    /// Questions all of whose paragraphs stayed.
    retained: usize,
    /// For each question: the gap of its paragraph, and all gaps with their paragraphs' tokens.
    gaps: Vec<(f64, Vec<(f64, usize)>)>,
    seconds: f64,
}

impl Tally {
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

    /// The gap at which just [`RETENTION`] stays, in units of the frozen threshold, and what it would cut.
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
pub fn bench_prune(args: &PruneBenchArgs) -> anyhow::Result<ExitCode> {
    let embedder = args.embedder.as_deref().map(Embedder::open).transpose()?;
    let remembering = embedder.map(|embedder| Remembering {
        embedder,
        known: RefCell::default(),
    });
    let similarity = remembering.as_ref().map(|one| one as &dyn Similarity);
    for path in &args.data {
        let family = Family::read(path, args.titles)?;
        let stems: Vec<_> = family.paragraphs.iter().map(|text| content(text)).collect();
        let (mut single, mut double) = (Tally::default(), Tally::default());
        let questions = &family.questions[..family.questions.len().min(args.questions)];
        for (nth, (question, gold)) in questions.iter().enumerate() {
            run(
                &family,
                &stems,
                (question, &[*gold]),
                similarity,
                &mut single,
            );
            // Two things asked at once: this question and one some way off.
            let (other, second) = &questions[(nth + questions.len() / 2) % questions.len()];
            if second != gold {
                let both = format!("{} and {other}", question.trim_end_matches('?'));
                run(
                    &family,
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
    family: &Family,
    stems: &[HashSet<String>],
    (question, golds): (&str, &[usize]),
    similarity: Option<&dyn Similarity>,
    tally: &mut Tally,
) {
    let chosen = family.cases(golds, question, stems);
    let texts: Vec<&str> = chosen
        .iter()
        .map(|at| family.paragraphs[*at].as_str())
        .collect();
    let places: Vec<usize> = (0..chosen.len())
        .filter(|at| golds.contains(&chosen[*at]))
        .collect();
    tally.add(question, &texts, &places, similarity);
}

fn report(
    args: &PruneBenchArgs,
    path: &Path,
    single: &Tally,
    double: &Tally,
) -> anyhow::Result<()> {
    let name = path
        .file_stem()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let (threshold, cut) = single.own_threshold();
    // With an embedder the time depends on how many texts were met before; words alone are timed.
    let ms = args
        .embedder
        .is_none()
        .then(|| 1e6 * single.seconds / single.tokens.max(1) as f64);
    if args.json {
        say(&json!({
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
        .to_string())?;
        return Ok(());
    }
    say(&format!(
        "{name}: {} questions, {:.1} % of tokens cut, {:.2} % of golds kept; two golds: both kept {:.1} %, {:.1} % cut; at 99 % by itself {:.1} % cut (gap {threshold:.2}){}",
        single.questions,
        100.0 * single.share_cut(),
        100.0 * single.retention(),
        100.0 * double.retention(),
        100.0 * double.share_cut(),
        100.0 * cut,
        ms.map_or_else(String::new, |ms| format!("; {ms:.2} ms per 1,000 tokens")),
    ))?;
    Ok(())
}
