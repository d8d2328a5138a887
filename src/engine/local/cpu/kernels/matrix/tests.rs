//! Tests products against their definition in f64 and for independence of the batch.

use half::bf16;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut dice = StdRng::seed_from_u64(seed);
    (0..count).map(|_| dice.random_range(-1.0..1.0)).collect()
}

fn rounded(values: &[f32]) -> Vec<f32> {
    let short = values.iter().map(|value| bf16::from_f32(*value).to_f32());
    short.collect()
}

fn product(matrix: &Matrix, rows: &[f32]) -> Vec<f32> {
    let mut to = vec![9.0; 3];
    matrix.apply(rows, &mut PreparedRows::default(), &mut to);
    to
}

/// Each output's product in f64, and the sum of its terms' absolute values.
fn exact(weights: &[f32], rows: &[f32], outputs: usize, inputs: usize) -> Vec<(f64, f64)> {
    let pairs = rows
        .chunks(inputs)
        .flat_map(|row| (0..outputs).map(move |output| (row, output)));
    let sums = pairs.map(|(row, output)| {
        let terms = row.iter().zip(&weights[output * inputs..][..inputs]);
        let terms = terms.map(|(value, weight)| f64::from(*value) * f64::from(*weight));
        terms.fold((0.0, 0.0), |(sum, size), term| {
            (sum + term, size + f64::abs(term))
        })
    });
    sums.collect()
}

/// Each storage format on each instruction set of this CPU.
fn kinds() -> impl Iterator<Item = (Isa, Precision, bool)> {
    Isa::available().into_iter().flat_map(|isa| {
        [
            (isa, Precision::F32, false),
            (isa, Precision::F32, true),
            (isa, Precision::Bf16, false),
            (isa, Precision::Q8, false),
        ]
    })
}

const SHAPES: [(usize, usize); 6] = [(1, 1), (5, 7), (32, 64), (33, 31), (100, 96), (64, 130)];

#[test]
fn matches_the_product_in_f64() {
    for ((outputs, inputs), (isa, precision, is_short)) in SHAPES
        .into_iter()
        .flat_map(|shape| kinds().map(move |kind| (shape, kind)))
    {
        let mut weights = random(outputs * inputs, 1);
        if is_short {
            weights = rounded(&weights);
        }
        let rows = random(14 * inputs, 2);
        let matrix = Matrix::pack_for(isa, &weights, outputs, inputs, precision);
        let (seen_weights, seen_rows) = match precision {
            Precision::Bf16 if isa.has_bf16_dot() => (rounded(&weights), rounded(&rows)),
            Precision::Bf16 => (rounded(&weights), rows.clone()),
            Precision::F32 | Precision::Q8 => (weights, rows.clone()),
        };
        // A quantized value is at most half a step off; the largest is 127 steps.
        let (of_size, of_count) = match precision {
            Precision::F32 | Precision::Bf16 => (1e-6, 0.0),
            Precision::Q8 => (1e-6, 1.01 / 127.0),
        };
        let found = product(&matrix, &rows);
        assert_eq!(found.len(), 14 * outputs);
        let exact = exact(&seen_weights, &seen_rows, outputs, inputs);
        for (found, (sum, size)) in found.into_iter().zip(exact) {
            let most = of_size * size + of_count * inputs as f64 + 1e-7;
            assert!(
                (f64::from(found) - sum).abs() <= most,
                "{isa:?} {precision:?} {outputs}x{inputs}: {found} for {sum}"
            );
        }
    }
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "the documentation quotes this rounding error"
)]
fn an_8_bit_product_is_off_by_a_hundredth_and_equal_on_every_instruction_set() {
    let (outputs, inputs) = (100, 576);
    // Sums of several random numbers, since real weights and rows are bell-shaped.
    let bell = |count: usize, seed: u64| -> Vec<f32> {
        let numbers = random(6 * count, seed);
        numbers.chunks(6).map(|some| some.iter().sum()).collect()
    };
    let (weights, rows) = (bell(outputs * inputs, 8), bell(9 * inputs, 9));
    let exact = exact(&weights, &rows, outputs, inputs);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let size = norm(&mut exact.iter().map(|(sum, _)| *sum));
    let mut plain: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        let off = [Precision::Q8, Precision::Bf16].map(|precision| {
            let matrix = Matrix::pack_for(isa, &weights, outputs, inputs, precision);
            let found = product(&matrix, &rows);
            if precision == Precision::Q8 {
                assert!(
                    plain.get_or_insert_with(|| found.clone()) == &found,
                    "{isa:?}"
                );
            }
            let pairs = found.iter().zip(&exact);
            norm(&mut pairs.map(|(found, (sum, _))| f64::from(*found) - sum)) / size
        });
        println!(
            "{isa:?}: q8 {:.5}, bf16 {:.5} of the product's size",
            off[0], off[1]
        );
        assert!((0.003..0.012).contains(&off[0]), "{isa:?}: {}", off[0]);
        assert!(off[1] < 0.004);
    }
}

#[test]
fn a_row_does_not_depend_on_the_number_of_others() {
    for ((outputs, inputs), (isa, precision, _)) in SHAPES
        .into_iter()
        .chain([(96, 416)])
        .flat_map(|shape| kinds().map(move |kind| (shape, kind)))
    {
        let weights = random(outputs * inputs, 3);
        let matrix = Matrix::pack_for(isa, &weights, outputs, inputs, precision);
        // More than a tile.
        let many = TILE + 5;
        let rows = random(many * inputs, 4);
        let whole = product(&matrix, &rows);
        for count in (1..14).chain([24, 25, TILE, TILE + 1]) {
            let first = product(&matrix, &rows[..count * inputs]);
            assert!(first == whole[..count * outputs], "{isa:?} first {count}");
            let last = product(&matrix, &rows[(many - count) * inputs..]);
            assert!(
                last == whole[(many - count) * outputs..],
                "{isa:?} last {count}"
            );
        }
    }
}

#[test]
fn bf16_weights_give_the_bits_of_f32_in_half_the_memory() {
    for isa in Isa::available() {
        let mut weights = rounded(&random(96 * 50, 5));
        let rows = random(5 * 50, 7);
        let short = Matrix::pack_for(isa, &weights, 96, 50, Precision::F32);
        // One more output, which is not exact in bf16, makes all be stored as f32.
        weights.extend(random(50, 6));
        let long = Matrix::pack_for(isa, &weights, 97, 50, Precision::F32);
        let (found, expected) = (product(&short, &rows), product(&long, &rows));
        for (found, expected) in found.chunks(96).zip(expected.chunks(97)) {
            assert_eq!(found, &expected[..96]);
        }
        assert!(matches!(short.packed, Packed::Bf16(_)));
        assert!(matches!(long.packed, Packed::F32(_)));
        assert_eq!(short.bytes() * 2, long.bytes() / 4 * 3);
    }
}

#[test]
fn a_bias_is_added_and_products_accumulate() {
    for (isa, precision, _) in kinds() {
        let (weights, rows) = (random(70 * 40, 1), random(50 * 40, 2));
        let bias = random(70, 3);
        let matrix = Matrix::pack_for(isa, &weights, 70, 40, precision);
        let plain = product(&matrix, &rows);
        let matrix = matrix.with_bias(&bias);
        let biased = product(&matrix, &rows);
        let mut there = random(50 * 70, 4);
        let before = there.clone();
        matrix.add(&rows, &mut PreparedRows::default(), &mut there);
        for at in 0..there.len() {
            assert!((biased[at] - plain[at] - bias[at % 70]).abs() < 1e-5);
            assert_eq!(there[at], before[at] + biased[at]);
        }
    }
}

#[test]
fn gated_matches_the_activation_of_two_products() {
    for (isa, precision, _) in kinds() {
        let pack = |seed| {
            let weights = random(70 * 40, seed);
            let matrix = Matrix::pack_for(isa, &weights, 70, 40, precision);
            matrix.with_bias(&random(70, seed + 1))
        };
        let (gate, up) = (pack(1), pack(5));
        let rows = random(53 * 40, 9);
        let mut found = vec![1.0];
        gated(&gate, &up, &rows, &mut PreparedRows::default(), &mut found);
        let mut expected = product(&gate, &rows);
        swiglu(isa, &mut expected, &product(&up, &rows));
        assert!(found == expected, "{isa:?} {precision:?}");
    }
}
