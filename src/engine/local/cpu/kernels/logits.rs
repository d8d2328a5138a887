//! Statistics of a row of logits: its two highest values and the sums of its softmax.

use super::{
    elementwise::{LANES, exp},
    isa::Isa,
};

/// Values summed in f32 before the sum is added in f64: few enough for an error of a few units in the
/// last place, many enough to make the cost of f64 negligible.
const BLOCK: usize = 256;

/// The two highest values of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::engine) struct TopTwo {
    /// The highest; minus infinity for an empty row.
    pub(in crate::engine) first: f32,
    /// The second highest, possibly equal to the first; minus infinity if there is none.
    pub(in crate::engine) second: f32,
    /// True when every value is finite.
    pub(in crate::engine) all_finite: bool,
}

/// Sums over a row's softmax, with the highest value shifted to 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::engine) struct SoftmaxSums {
    /// Sum of e^z.
    pub(in crate::engine) weights: f64,
    /// Sum of z e^z.
    pub(in crate::engine) weighted: f64,
}

/// Visits a row by lanes: whole vectors of values, then the rest.
#[inline(always)]
fn for_each_lane(values: &[f32], mut see: impl FnMut(usize, f32)) {
    let (parts, rest) = values.as_chunks::<LANES>();
    for part in parts {
        for (lane, value) in part.iter().enumerate() {
            see(lane, *value);
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        see(lane, *value);
    }
}

compiled! {
    /// Finds the two highest values and whether all are finite.
    fn highest_two(values: &[f32]) -> TopTwo {
        let mut first = [f32::NEG_INFINITY; LANES];
        let mut second = [f32::NEG_INFINITY; LANES];
        // 0 as long as every value is finite, NaN afterwards.
        let mut odd = [0.0_f32; LANES];
        for_each_lane(values, |lane, value| {
            let best = first[lane];
            let lower = if value > best { best } else { value };
            first[lane] = if value > best { value } else { best };
            second[lane] = if lower > second[lane] { lower } else { second[lane] };
            odd[lane] += value * 0.0;
        });
        let mut highest = TopTwo {
            first: f32::NEG_INFINITY,
            second: f32::NEG_INFINITY,
            all_finite: odd.iter().all(|odd| *odd == 0.0),
        };
        for value in first.into_iter().chain(second) {
            if value > highest.first {
                (highest.first, highest.second) = (value, highest.first);
            } else if value > highest.second {
                highest.second = value;
            }
        }
        highest
    }
}

compiled! {
    /// Sums the softmax of `(value - highest) * scale`. Partial sums are in f32, totals in f64: within
    /// 1e-6 of f64 throughout.
    fn softmax_sums(values: &[f32], highest: f32, scale: f32) -> SoftmaxSums {
        let mut sums = SoftmaxSums { weights: 0.0, weighted: 0.0 };
        for block in values.chunks(BLOCK) {
            let (mut weights, mut weighted) = ([0.0_f32; LANES], [0.0_f32; LANES]);
            for_each_lane(block, |lane, value| {
                // Below this bound the weight is 0, and infinity times 0 would be NaN.
                let z = ((value - highest) * scale).max(-88.0);
                let weight = exp(z);
                weights[lane] += weight;
                weighted[lane] += z * weight;
            });
            sums.weights += f64::from(weights.iter().sum::<f32>());
            sums.weighted += f64::from(weighted.iter().sum::<f32>());
        }
        sums
    }
}

compiled! {
    /// The softmax's weights, relative to that of `highest`.
    fn softmax_weights(values: &[f32], highest: f32, scale: f32, weights: &mut [f32]) {
        for (weight, value) in weights.iter_mut().zip(values) {
            *weight = exp((value - highest) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::local::cpu::kernels::logits::*;

    /// Rows of various lengths and spreads, including partial blocks and vectors.
    fn rows() -> Vec<Vec<f32>> {
        let mut rows = vec![vec![7.5], vec![1.0, 1.0]];
        for length in [3, 16, 17, 255, 256, 1000, 49_152] {
            for spread in [0.01_f32, 4.0, 60.0] {
                let value = |at: usize| ((at * 7919 % 10_007) as f32 * 0.618).sin() * spread;
                rows.push((0..length).map(value).collect());
            }
        }
        rows
    }

    #[test]
    fn the_two_highest_match_the_sorted_row() {
        for isa in Isa::available() {
            for row in rows() {
                let mut sorted = row.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let second = sorted.get(1).copied().unwrap_or(f32::NEG_INFINITY);
                let highest = TopTwo {
                    first: sorted[0],
                    second,
                    all_finite: true,
                };
                assert_eq!(highest_two(isa, &row), highest);
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut row = row.clone();
                    let at = row.len() / 2;
                    row[at] = bad;
                    assert!(!highest_two(isa, &row).all_finite, "{bad} at {at}");
                }
            }
            assert!(highest_two(isa, &[f32::MAX, f32::MIN]).all_finite);
        }
    }

    #[test]
    fn sums_match_f64_and_each_other_on_all_instruction_sets() {
        for row in rows() {
            for scale in [1.0_f32, 0.5, 3.0] {
                let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let z = |value: &f32| f64::from((value - highest) * scale);
                let weights: f64 = row.iter().map(|value| z(value).exp()).sum();
                let weighted: f64 = row.iter().map(|value| z(value) * z(value).exp()).sum();
                let first = softmax_sums(Isa::Portable, &row, highest, scale);
                let size = row.len() as f64;
                assert!((first.weights - weights).abs() <= 1e-6 * weights, "{size}");
                assert!(
                    (first.weighted - weighted).abs() <= 1e-6 * weights.max(-weighted),
                    "{size}: {} for {weighted}",
                    first.weighted
                );
                let mut each = vec![0.0; row.len()];
                for isa in Isa::available() {
                    assert_eq!(softmax_sums(isa, &row, highest, scale), first);
                    softmax_weights(isa, &row, highest, scale, &mut each);
                    for (weight, value) in each.iter().zip(&row) {
                        let exact = z(value).exp();
                        assert!((f64::from(*weight) - exact).abs() <= 3e-7 * exact + 1e-37);
                    }
                }
            }
        }
    }

    #[test]
    fn minus_infinity_has_no_weight() {
        for isa in Isa::available() {
            let sums = softmax_sums(isa, &[0.0, f32::NEG_INFINITY, f32::MIN], 0.0, f32::MAX);
            assert_eq!((sums.weights, sums.weighted), (1.0, 0.0));
            let mut weights = [1.0; 2];
            softmax_weights(isa, &[f32::NEG_INFINITY, 2.0], 2.0, f32::MAX, &mut weights);
            assert_eq!(weights, [0.0, 1.0]);
        }
    }
}
