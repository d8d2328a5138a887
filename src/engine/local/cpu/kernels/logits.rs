//! What a row of logits tells: its highest values and the sums of its softmax.

use super::{
    elementwise::{LANES, exp},
    isa::Isa,
};

/// Values whose weights are summed in f32 before f64 takes over: few enough that the sum of positive
/// numbers is within a few units in the last place, many enough that f64 costs nothing.
const BLOCK: usize = 256;

/// The two highest values of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::engine) struct Highest {
    /// The highest; minus infinity of an empty row.
    pub(in crate::engine) first: f32,
    /// The highest of the others, which may be as high; minus infinity where there is none.
    pub(in crate::engine) second: f32,
    /// True when every value is a finite number.
    pub(in crate::engine) all_finite: bool,
}

/// Sums over a row's softmax, its highest value shifted to 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::engine) struct SoftmaxSums {
    /// Of e^z.
    pub(in crate::engine) weights: f64,
    /// Of z e^z.
    pub(in crate::engine) weighted: f64,
}

/// Rows as lanes see them: whole vectors of values, then the rest.
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
    /// The two highest values, and whether all are finite.
    fn highest_two(values: &[f32]) -> Highest {
        let mut first = [f32::NEG_INFINITY; LANES];
        let mut second = [f32::NEG_INFINITY; LANES];
        // 0 as long as every value is finite; no number afterwards.
        let mut odd = [0.0_f32; LANES];
        for_each_lane(values, |lane, value| {
            let best = first[lane];
            let lower = if value > best { best } else { value };
            first[lane] = if value > best { value } else { best };
            second[lane] = if lower > second[lane] { lower } else { second[lane] };
            odd[lane] += value * 0.0;
        });
        let mut highest = Highest {
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
    /// The sums of the softmax of values that are multiplied by `scale` once `highest` is taken
    /// from them. Partial sums stand in f32, whole ones in f64: relative to f64 throughout, they
    /// are within 1e-6.
    fn softmax_sums(values: &[f32], highest: f32, scale: f32) -> SoftmaxSums {
        let mut sums = SoftmaxSums { weights: 0.0, weighted: 0.0 };
        for block in values.chunks(BLOCK) {
            let (mut weights, mut weighted) = ([0.0_f32; LANES], [0.0_f32; LANES]);
            for_each_lane(block, |lane, value| {
                // Below, the weight is 0, and infinity times 0 would be no number.
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
    /// The softmax's weights themselves, relative to that of `highest`.
    fn softmax_weights(values: &[f32], highest: f32, scale: f32, weights: &mut [f32]) {
        for (weight, value) in weights.iter_mut().zip(values) {
            *weight = exp((value - highest) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::local::cpu::kernels::logits::*;

    /// Rows of several lengths and spreads, tails of blocks and lanes included.
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
    fn the_two_highest_are_those_of_the_sorted_row() {
        for isa in Isa::available() {
            for row in rows() {
                let mut sorted = row.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let second = sorted.get(1).copied().unwrap_or(f32::NEG_INFINITY);
                let highest = Highest {
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
    fn sums_are_those_of_f64_and_the_same_on_each_instruction_set() {
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
    fn what_is_forbidden_or_far_apart_has_no_weight() {
        for isa in Isa::available() {
            let sums = softmax_sums(isa, &[0.0, f32::NEG_INFINITY, f32::MIN], 0.0, f32::MAX);
            assert_eq!((sums.weights, sums.weighted), (1.0, 0.0));
            let mut weights = [1.0; 2];
            softmax_weights(isa, &[f32::NEG_INFINITY, 2.0], 2.0, f32::MAX, &mut weights);
            assert_eq!(weights, [0.0, 1.0]);
        }
    }
}
