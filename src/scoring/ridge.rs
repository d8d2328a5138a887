//! Ridge regression on sparse binary columns, by conjugate gradients.

/// Targets that are fitted together: gain and difficulty.
pub const HEADS: usize = 2;

/// A number for each target.
pub type Heads = [f64; HEADS];

/// A sparse matrix in column order. An entry's value is its row's scale, or 1 in a plain column.
#[derive(Clone, Debug)]
pub struct SparseMatrix {
    /// Scale of each row.
    pub scales: Vec<f64>,
    /// End of each column's entries in `rows`.
    pub ends: Vec<usize>,
    /// Rows of all entries, column by column.
    pub rows: Vec<u32>,
    /// Whether a column is plain.
    pub plain: Vec<bool>,
}

impl SparseMatrix {
    fn column(&self, at: usize) -> &[u32] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.rows[start..self.ends[at]]
    }

    /// The product with a vector of one entry for each column.
    pub fn times(&self, vector: &[Heads]) -> Vec<Heads> {
        let mut product = vec![[0.0; HEADS]; self.scales.len()];
        let mut plain = vec![[0.0; HEADS]; self.scales.len()];
        for (at, value) in vector.iter().enumerate() {
            let sums = if self.plain[at] {
                &mut plain
            } else {
                &mut product
            };
            for row in self.column(at) {
                add(&mut sums[*row as usize], value);
            }
        }
        for ((sum, plain), scale) in product.iter_mut().zip(&plain).zip(&self.scales) {
            *sum = [0, 1].map(|head| sum[head] * scale + plain[head]);
        }
        product
    }

    /// The transposed product with a vector of one entry for each row, column by column.
    fn transposed_times(&self, vector: &[Heads], mut add_to: impl FnMut(usize, Heads)) {
        let scaled: Vec<Heads> = vector
            .iter()
            .zip(&self.scales)
            .map(|(value, scale)| value.map(|value| value * scale))
            .collect();
        for at in 0..self.ends.len() {
            let from = if self.plain[at] { vector } else { &scaled };
            let mut sum = [0.0; HEADS];
            for row in self.column(at) {
                add(&mut sum, &from[*row as usize]);
            }
            add_to(at, sum);
        }
    }
}

fn add(to: &mut Heads, value: &Heads) {
    for (to, value) in to.iter_mut().zip(value) {
        *to += value;
    }
}

/// Most steps; more do not change the ranking.
const STEPS_MAX: usize = 30;
/// Relative squared residual at which the iteration stops.
const TOLERANCE: f64 = 1e-6;

/// Minimises `Σ weight (row · w − target)² + penalty |w|²` for each head; returns `w`.
pub fn fit(columns: &SparseMatrix, targets: &[Heads], weights: &[f64], penalty: f64) -> Vec<Heads> {
    let count = columns.ends.len();
    let weighted = |vector: &[Heads]| -> Vec<Heads> {
        let pairs = vector.iter().zip(weights);
        pairs.map(|(v, weight)| v.map(|v| v * weight)).collect()
    };
    let mut residual = vec![[0.0; HEADS]; count];
    columns.transposed_times(&weighted(targets), |at, sum| residual[at] = sum);
    let mut solution = vec![[0.0; HEADS]; count];
    let mut direction = residual.clone();
    let mut energy = dot(&residual, &residual);
    let enough = energy.map(|energy| energy * TOLERANCE);
    let mut image = vec![[0.0; HEADS]; count];
    for _ in 0..STEPS_MAX {
        if (0..HEADS).all(|head| energy[head] <= enough[head]) {
            break;
        }
        let product = weighted(&columns.times(&direction));
        columns.transposed_times(&product, |at, sum| {
            image[at] = [0, 1].map(|head| sum[head] + penalty * direction[at][head]);
        });
        let along = dot(&direction, &image);
        let step = [0, 1].map(|head| ratio(energy[head], along[head]));
        for at in 0..count {
            for head in 0..HEADS {
                solution[at][head] += step[head] * direction[at][head];
                residual[at][head] -= step[head] * image[at][head];
            }
        }
        let next = dot(&residual, &residual);
        let turn = [0, 1].map(|head| ratio(next[head], energy[head]));
        for (direction, residual) in direction.iter_mut().zip(&residual) {
            *direction = [0, 1].map(|head| residual[head] + turn[head] * direction[head]);
        }
        energy = next;
    }
    solution
}

/// 0 for a target that is solved exactly.
fn ratio(above: f64, below: f64) -> f64 {
    if below > 0.0 { above / below } else { 0.0 }
}

fn dot(a: &[Heads], b: &[Heads]) -> Heads {
    let mut sum = [0.0; HEADS];
    for (a, b) in a.iter().zip(b) {
        add(&mut sum, &[0, 1].map(|head| a[head] * b[head]));
    }
    sum
}

#[cfg(test)]
mod tests {
    use crate::scoring::ridge::*;

    /// The normal equations, solved by elimination, are the reference.
    #[test]
    fn agrees_with_the_normal_equations() {
        let columns = SparseMatrix {
            scales: vec![0.5, 1.0, 0.7, 2.0],
            ends: vec![2, 5, 7],
            rows: vec![0, 2, 1, 2, 3, 0, 3],
            plain: vec![false, false, true],
        };
        let dense = [
            [0.5, 0.0, 1.0],
            [0.0, 1.0, 0.0],
            [0.7, 0.7, 0.0],
            [0.0, 2.0, 1.0],
        ];
        let targets = [[1.0, 0.1], [-2.0, 0.2], [0.5, -0.3], [3.0, 0.0]];
        let (weights, penalty) = ([1.0, 2.0, 0.5, 1.0], 0.7);
        let found = fit(&columns, &targets, &weights, penalty);
        for head in 0..HEADS {
            let mut system = [[0.0; 4]; 3];
            for i in 0..3 {
                for j in 0..3 {
                    system[i][j] = (0..4).map(|r| weights[r] * dense[r][i] * dense[r][j]).sum();
                }
                system[i][i] += penalty;
                system[i][3] = (0..4)
                    .map(|r| weights[r] * dense[r][i] * targets[r][head])
                    .sum();
            }
            for pivot in 0..3 {
                for row in 0..3 {
                    if row != pivot {
                        let factor = system[row][pivot] / system[pivot][pivot];
                        let pivots = system[pivot];
                        for (value, above) in system[row].iter_mut().zip(pivots) {
                            *value -= factor * above;
                        }
                    }
                }
            }
            for at in 0..3 {
                let expected = system[at][3] / system[at][at];
                assert!((found[at][head] - expected).abs() < 1e-3);
            }
        }
    }
}
