//! A small ensemble of regression trees, boosted on the squared error.
//!
//! Splits are found on histograms, best leaf first, as LightGBM does (Ke et al., 2017). Each node
//! keeps its own value, so that a prediction splits exactly among the features on its path.

use serde::{Deserialize, Serialize};

use super::random::Random;

/// A tree's node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Index of the feature, or [`LEAF`].
    pub feature: u16,
    /// Index of the left child; the right one follows it. Values up to the threshold go left.
    pub left: u16,
    /// The threshold of the split.
    pub threshold: f32,
    /// The prediction here.
    pub value: f32,
}

/// The feature of a leaf.
pub const LEAF: u16 = u16::MAX;

/// A sum of trees.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forest {
    /// Each tree's nodes, the root first.
    pub trees: Vec<Vec<Node>>,
}

impl Forest {
    /// The sum of all trees.
    pub fn predict(&self, values: &[f32]) -> f64 {
        let leaves = self.trees.iter().map(|tree| {
            let mut node = tree[0];
            while node.feature != LEAF {
                node = tree[child(&node, values)];
            }
            f64::from(node.value)
        });
        leaves.sum()
    }

    /// Adds each feature's contribution to `shares`, and the roots' values to `base`.
    pub fn explain(&self, values: &[f32], scale: f64, shares: &mut [f64], base: &mut f64) {
        for tree in &self.trees {
            let mut node = tree[0];
            *base += scale * f64::from(node.value);
            while node.feature != LEAF {
                let next = tree[child(&node, values)];
                let change = f64::from(next.value) - f64::from(node.value);
                shares[usize::from(node.feature)] += scale * change;
                node = next;
            }
        }
    }
}

fn child(node: &Node, values: &[f32]) -> usize {
    let is_right = values[usize::from(node.feature)] > node.threshold;
    usize::from(node.left) + usize::from(is_right)
}

/// How to grow a forest.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    /// Trees.
    pub trees: usize,
    /// Learning rate: the factor on each tree's prediction.
    pub rate: f64,
    /// Most leaves of a tree.
    pub leaves: usize,
    /// Fewest rows of a leaf.
    pub leaf_rows_min: usize,
    /// Share of features that a tree may use.
    pub feature_share: f64,
    /// Share of rows that a tree sees.
    pub row_share: f64,
    /// Penalty: as many rows with target 0 are added to each leaf.
    pub penalty: f64,
}

/// Most bins of a feature.
const BINS_MAX: usize = 48;

/// The rows' features, binned.
#[derive(Debug)]
pub struct Binned {
    /// Upper edges of a feature's bins, without the last.
    edges: Vec<Vec<f32>>,
    /// Bin of each row, feature by feature.
    bins: Vec<Vec<u8>>,
}

impl Binned {
    /// Bins each feature at quantiles of the rows.
    pub fn of(rows: &[&[f32]]) -> Self {
        let features = rows.first().map_or(0, |row| row.len());
        let (mut edges, mut bins) = (Vec::new(), Vec::new());
        for feature in 0..features {
            let mut sorted: Vec<f32> = rows.iter().map(|row| row[feature]).collect();
            sorted.sort_unstable_by(f32::total_cmp);
            let mut own: Vec<f32> = (1..BINS_MAX)
                .map(|bin| sorted[bin * sorted.len() / BINS_MAX])
                .collect();
            own.dedup();
            let last = sorted[sorted.len() - 1];
            own.retain(|edge| *edge < last);
            let bin_of = |row: &&[f32]| own.partition_point(|edge| *edge < row[feature]) as u8;
            bins.push(rows.iter().map(bin_of).collect());
            edges.push(own);
        }
        Self { edges, bins }
    }
}

/// Grows a forest on rows, their targets and weights.
pub fn grow(
    binned: &Binned,
    targets: &[f64],
    weights: &[f64],
    growth: &Growth,
    random: &mut Random,
) -> Forest {
    let mut residuals = targets.to_vec();
    let features = binned.bins.len();
    let used = ((features as f64 * growth.feature_share) as usize).clamp(1, features);
    let mut forest = Forest::default();
    for _ in 0..growth.trees {
        let mut order: Vec<usize> = (0..features).collect();
        random.shuffle(&mut order);
        order.truncate(used);
        let rows = (0..targets.len() as u32)
            .filter(|_| random.unit() < growth.row_share)
            .collect();
        let grower = TreeGrower {
            binned,
            residuals: &residuals,
            weights,
            growth,
            features: &order,
        };
        let (tree, cuts) = grower.tree(rows);
        for (row, residual) in residuals.iter_mut().enumerate() {
            let mut at = 0;
            while tree[at].feature != LEAF {
                let bin = binned.bins[usize::from(tree[at].feature)][row];
                at = usize::from(tree[at].left) + usize::from(bin > cuts[at]);
            }
            *residual -= f64::from(tree[at].value);
        }
        forest.trees.push(tree);
    }
    forest
}

/// Grows one tree.
struct TreeGrower<'a> {
    binned: &'a Binned,
    residuals: &'a [f64],
    weights: &'a [f64],
    growth: &'a Growth,
    features: &'a [usize],
}

/// The best division of a leaf.
struct Cut {
    node: usize,
    rows: Vec<u32>,
    gain: f64,
    feature: usize,
    bin: u8,
}

impl TreeGrower<'_> {
    /// Grows a tree; returns its nodes and the bin at which each divides.
    fn tree(&self, rows: Vec<u32>) -> (Vec<Node>, Vec<u8>) {
        let mut nodes = vec![self.leaf(&rows)];
        let mut cuts = vec![0];
        let mut open: Vec<Cut> = self.cut(0, rows).into_iter().collect();
        while nodes.len() + 1 < 2 * self.growth.leaves {
            // The first of equals, so that the same rows always grow the same tree.
            let best = (0..open.len()).reduce(|best, at| {
                if open[at].gain > open[best].gain {
                    at
                } else {
                    best
                }
            });
            let Some(best) = best else { break };
            let cut = open.remove(best);
            let bins = &self.binned.bins[cut.feature];
            let (left, right): (Vec<u32>, Vec<u32>) = cut
                .rows
                .into_iter()
                .partition(|row| bins[*row as usize] <= cut.bin);
            let at = nodes.len();
            nodes[cut.node].feature = cut.feature as u16;
            nodes[cut.node].left = at as u16;
            nodes[cut.node].threshold = self.binned.edges[cut.feature][usize::from(cut.bin)];
            cuts[cut.node] = cut.bin;
            for (node, rows) in [(at, left), (at + 1, right)] {
                nodes.push(self.leaf(&rows));
                cuts.push(0);
                open.extend(self.cut(node, rows));
            }
        }
        (nodes, cuts)
    }

    fn leaf(&self, rows: &[u32]) -> Node {
        let (mut sum, mut weight) = (0.0, self.growth.penalty);
        for row in rows {
            sum += self.residuals[*row as usize] * self.weights[*row as usize];
            weight += self.weights[*row as usize];
        }
        Node {
            feature: LEAF,
            left: 0,
            threshold: 0.0,
            value: (self.growth.rate * sum / weight) as f32,
        }
    }

    fn cut(&self, node: usize, rows: Vec<u32>) -> Option<Cut> {
        let least = self.growth.leaf_rows_min;
        if rows.len() < 2 * least {
            return None;
        }
        let gain = |sum: f64, weight: f64| sum * sum / (weight + self.growth.penalty);
        let mut best: Option<(f64, usize, u8)> = None;
        for &feature in self.features {
            let edges = self.binned.edges[feature].len();
            if edges == 0 {
                continue;
            }
            let mut sums = [(0.0_f64, 0.0_f64, 0_usize); BINS_MAX];
            let bins = &self.binned.bins[feature];
            for row in &rows {
                let row = *row as usize;
                let (sum, weight, count) = &mut sums[usize::from(bins[row])];
                *sum += self.residuals[row] * self.weights[row];
                *weight += self.weights[row];
                *count += 1;
            }
            let (all, weight) = sums
                .iter()
                .fold((0.0, 0.0), |all, bin| (all.0 + bin.0, all.1 + bin.1));
            let (mut left, mut left_weight, mut left_count) = (0.0, 0.0, 0);
            for (bin, (sum, own, count)) in sums.iter().take(edges).enumerate() {
                left += sum;
                left_weight += own;
                left_count += count;
                if left_count < least || rows.len() - left_count < least {
                    continue;
                }
                let better = gain(left, left_weight) + gain(all - left, weight - left_weight)
                    - gain(all, weight);
                if better > best.map_or(1e-12, |best| best.0) {
                    best = Some((better, feature, bin as u8));
                }
            }
        }
        best.map(|(gain, feature, bin)| Cut {
            node,
            rows,
            gain,
            feature,
            bin,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::scoring::trees::*;

    const GROWTH: Growth = Growth {
        trees: 60,
        rate: 0.2,
        leaves: 4,
        leaf_rows_min: 5,
        feature_share: 1.0,
        row_share: 0.8,
        penalty: 1.0,
    };

    fn rows() -> (Vec<[f32; 3]>, Vec<f64>) {
        let mut random = Random::new(3);
        let rows: Vec<[f32; 3]> = (0..400)
            .map(|_| [0; 3].map(|_| random.unit() as f32))
            .collect();
        // An interaction, which no sum of single features can tell; the third is noise.
        let targets = rows
            .iter()
            .map(|row| f64::from(u8::from((row[0] > 0.5) != (row[1] > 0.3))))
            .collect();
        (rows, targets)
    }

    fn forest(seed: u64) -> Forest {
        let (rows, targets) = rows();
        let slices: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
        let weights = vec![1.0; targets.len()];
        let mut random = Random::new(seed);
        grow(
            &Binned::of(&slices),
            &targets,
            &weights,
            &GROWTH,
            &mut random,
        )
    }

    #[test]
    fn learns_an_interaction() {
        let forest = forest(1);
        for (row, target) in [
            ([0.9, 0.9, 0.1], 0.0),
            ([0.9, 0.1, 0.9], 1.0),
            ([0.1, 0.8, 0.5], 1.0),
        ] {
            assert!((forest.predict(&row) - target).abs() < 0.25, "{row:?}");
        }
    }

    #[test]
    fn shares_add_up_to_the_prediction() {
        let (forest, (rows, _)) = (forest(1), rows());
        for row in &rows[..50] {
            let (mut shares, mut base) = ([0.0; 3], 0.0);
            forest.explain(row, 1.0, &mut shares, &mut base);
            let sum: f64 = base + shares.iter().sum::<f64>();
            assert!((sum - forest.predict(row)).abs() < 1e-6);
        }
    }

    #[test]
    fn the_same_seed_grows_the_same_forest() {
        assert_eq!(forest(7), forest(7));
        assert_ne!(forest(7), forest(8));
    }
}
