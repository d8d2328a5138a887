//! Weights of words and runs of words, looked up by hash.

use serde::{Deserialize, Serialize};

use super::{
    features::{AnswerShape, Features, Gram},
    ridge::{self, HEADS, Heads, SparseMatrix},
};

/// A word has three weights: for all prompts, for prompts with this number of choices, and for those
/// whose choices are also mostly figures.
const VIEWS: usize = 3;

/// The view by which words count as known.
const FAMILIAR_VIEW: usize = 1;

/// Unknown runs added to a prompt's own: one or two known words do not make it familiar.
const UNKNOWN_RUNS: f64 = 3.0;

/// Consecutive cells in which a word may be stored.
const PROBES: usize = 4;

/// A word's weights. An empty cell has the print 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Eight bits of the hash that tell colliding words apart; never 0 for a word.
    pub print: u8,
    /// Quantised weight of each head.
    pub steps: [i8; HEADS],
}

/// Word weights by hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WordTable {
    /// Value of one quantisation step, for each head.
    pub scales: [f32; HEADS],
    /// `2^n` cells.
    pub cells: Vec<Cell>,
}

/// Sums of a prompt's word weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WordScores {
    /// Sum of the words' weights, over the square root of their number.
    pub words: Heads,
    /// Sum of the tags' weights.
    pub tags: Heads,
    /// Share of the words and runs that are known for this answer shape, 0 to 1; lower for short
    /// prompts.
    pub familiarity: f64,
}

impl WordTable {
    /// Looks up a prompt's words and tags.
    pub fn read(&self, features: &Features) -> WordScores {
        let mut scores = WordScores::default();
        let mut known = 0_usize;
        for gram in &features.grams {
            let (weights, is_known) = self.weights(*gram, features.shape);
            add(&mut scores.words, weights);
            known += usize::from(is_known);
        }
        for tag in &features.tags {
            add(&mut scores.tags, self.weights(*tag, features.shape).0);
        }
        let count = features.grams.len().max(1) as f64;
        scores.words = scores.words.map(|sum| sum / count.sqrt());
        scores.familiarity = known as f64 / (count + UNKNOWN_RUNS);
        scores
    }

    /// A gram's weights, summed over all views, and whether it is known for this shape.
    pub fn weights(&self, gram: Gram, shape: AnswerShape) -> (Heads, bool) {
        let (mut sum, mut is_known) = ([0.0; HEADS], false);
        for (view, key) in keys(gram, shape).into_iter().enumerate() {
            if let Some(cell) = self.find(key) {
                add(&mut sum, self.worth(cell));
                is_known |= view == FAMILIAR_VIEW;
            }
        }
        (sum, is_known)
    }

    fn worth(&self, cell: &Cell) -> Heads {
        [0, 1].map(|head| f64::from(cell.steps[head]) * f64::from(self.scales[head]))
    }

    fn find(&self, key: u32) -> Option<&Cell> {
        let (start, print) = place(key, self.cells.len());
        (start..start + PROBES)
            .map(|at| &self.cells[at & (self.cells.len() - 1)])
            .find(|cell| cell.print == print)
    }
}

/// The keys of a gram, one for each view.
fn keys(gram: Gram, shape: AnswerShape) -> [u32; VIEWS] {
    let salts = [
        0,
        1 + u32::from(shape.choices),
        4 + 2 * u32::from(shape.choices) + u32::from(shape.numeric),
    ];
    salts.map(|salt| {
        let mut mixed = gram ^ salt.wrapping_mul(0x9e37_79b9);
        mixed ^= mixed >> 16;
        mixed = mixed.wrapping_mul(0x85eb_ca6b);
        mixed ^ mixed >> 13
    })
}

/// First cell and print of a key.
fn place(key: u32, cells: usize) -> (usize, u8) {
    let print = (key >> 24) as u8;
    // The upper bits are the print; all bits choose the cell.
    let mixed = key.wrapping_mul(0xc2b2_ae35);
    ((mixed ^ mixed >> 15) as usize & (cells - 1), print.max(1))
}

/// Which words occur in which training prompts.
#[derive(Debug)]
pub struct Corpus {
    columns: SparseMatrix,
    /// Key of each column.
    keys: Vec<u32>,
}

impl Corpus {
    /// Reads training prompts; words that occur in fewer than `prompts_min` are dropped.
    pub fn of<'a>(prompts: impl Iterator<Item = &'a Features> + Clone, prompts_min: usize) -> Self {
        let scales = prompts
            .clone()
            .map(|features| 1.0 / (features.grams.len().max(1) as f64).sqrt())
            .collect();
        // A pair is a key and a row; the row's top bit marks a tag.
        let mut pairs = Vec::new();
        for (row, features) in prompts.enumerate() {
            let row = row as u64;
            for (grams, mark) in [(&features.grams, 0), (&features.tags, TAG)] {
                for gram in grams {
                    let keys = keys(*gram, features.shape);
                    pairs.extend(keys.map(|key| u64::from(key) << 32 | mark | row));
                }
            }
        }
        pairs.sort_unstable();
        let mut columns = SparseMatrix {
            scales,
            ends: Vec::new(),
            rows: Vec::new(),
            plain: Vec::new(),
        };
        let mut keys = Vec::new();
        for same in pairs.chunk_by(|a, b| a >> 32 == b >> 32) {
            if same.len() >= prompts_min {
                keys.push((same[0] >> 32) as u32);
                columns.plain.push(same[0] & TAG != 0);
                let rows = same.iter().map(|pair| (pair & !TAG) as u32);
                columns.rows.extend(rows);
                columns.ends.push(columns.rows.len());
            }
        }
        Self { columns, keys }
    }

    /// Fits weights to targets; returns them and their prediction for each prompt, tags included.
    pub fn fit(
        &self,
        targets: &[Heads],
        weights: &[f64],
        penalty: f64,
    ) -> (Vec<Heads>, Vec<Heads>) {
        let solution = ridge::fit(&self.columns, targets, weights, penalty);
        let predictions = self.columns.times(&solution);
        (solution, predictions)
    }

    /// Writes fitted weights into a table of `cells` (a power of two), frequent words first.
    pub fn table(&self, solution: &[Heads], cells: usize) -> WordTable {
        let scales = [0, 1].map(|head| {
            let largest = solution
                .iter()
                .fold(0.0_f64, |max, w| max.max(w[head].abs()));
            (largest / 127.0).max(f64::from(f32::MIN_POSITIVE)) as f32
        });
        let mut table = WordTable {
            scales,
            cells: vec![Cell::default(); cells],
        };
        let count = |at: usize| {
            let start = if at == 0 {
                0
            } else {
                self.columns.ends[at - 1]
            };
            self.columns.ends[at] - start
        };
        let mut order: Vec<usize> = (0..self.keys.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(count(*at)));
        for at in order {
            let (start, print) = place(self.keys[at], cells);
            let free = (start..start + PROBES)
                .map(|cell| cell & (cells - 1))
                .find(|cell| table.cells[*cell].print == 0 || table.cells[*cell].print == print);
            if let Some(free) = free
                && table.cells[free].print == 0
            {
                let step = |head: usize| (solution[at][head] / f64::from(scales[head])).round();
                table.cells[free] = Cell {
                    print,
                    steps: [step(0) as i8, step(1) as i8],
                };
            }
        }
        table
    }
}

/// Marks the row of a tag.
const TAG: u64 = 1 << 31;

fn add(to: &mut Heads, value: Heads) {
    for (to, value) in to.iter_mut().zip(value) {
        *to += value;
    }
}

#[cfg(test)]
mod tests {
    use crate::scoring::words::*;

    #[test]
    fn the_table_holds_the_fitted_weights_up_to_rounding() {
        let prompts: Vec<Features> = (0..60)
            .map(|at| {
                let tag = ["a", "b"][at % 2];
                Features::of_text(&format!(
                    "question of {} kind",
                    ["one", "two", "odd"][at % 3]
                ))
                .with_tags([tag])
            })
            .collect();
        let corpus = Corpus::of(prompts.iter(), 2);
        let targets: Vec<Heads> = (0..60)
            .map(|at| [(at % 3) as f64, (at % 2) as f64])
            .collect();
        let (solution, said) = corpus.fit(&targets, &[1.0; 60], 0.1);
        let table = corpus.table(&solution, 1 << 12);
        for (features, said) in prompts.iter().zip(&said) {
            let read = table.read(features);
            let runs = features.grams.len() as f64;
            assert_eq!(read.familiarity, runs / (runs + UNKNOWN_RUNS));
            let sums = read.words.iter().zip(read.tags).map(|(a, b)| a + b);
            for (sum, said) in sums.zip(said) {
                assert!((sum - said).abs() < 0.05, "{sum} {said}");
            }
        }
        assert!((said[0][0] - 0.0).abs() < 0.2 && (said[2][0] - 2.0).abs() < 0.2);
        assert!(table.read(&Features::of_text("entirely new")).familiarity < 0.5);
    }
}
