//! Kernels in AVX2.
#![expect(
    unsafe_code,
    reason = "vector instructions load by pointer and require CPU support"
)]

use std::arch::x86_64::*;

use crate::engine::local::cpu::kernels::panel::{
    ByteRows, GROUP, GROUP_BYTES, PANEL, SliceRows as _,
};

pub(super) fn f32(p: &[f32], rows: &[f32], inputs: usize, to: &mut [[f32; PANEL]]) {
    by_rows!(tile_f32, 6, [1 2 3 4 5 6], p, rows, inputs, to);
}

pub(super) fn bf16(p: &[u16], rows: &[f32], inputs: usize, to: &mut [[f32; PANEL]]) {
    by_rows!(tile_bf16, 6, [1 2 3 4 5 6], p, rows, inputs, to);
}

pub(super) fn bytes(p: &[u8], rows: ByteRows<'_>, inputs: usize, to: &mut [[f32; PANEL]]) {
    by_rows!(tile_bytes, 3, [1 2 3], p, rows, inputs, to);
}

/// Computes half a panel at a time: `M` rows by 16 outputs in 2 M of the 16 registers.
#[target_feature(enable = "avx2,fma")]
fn tile<const M: usize>(
    rows: &[f32],
    inputs: usize,
    to: &mut [[f32; PANEL]; M],
    load: impl Fn(usize, usize) -> (__m256, __m256),
) {
    for half in 0..2 {
        // SAFETY: a half of a row of `to` is 16 floats, two vectors.
        let mut sums = to.each_ref().map(|row| unsafe {
            let at = row.as_ptr().add(16 * half);
            [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))]
        });
        for input in 0..inputs {
            let (low, high) = load(half, input);
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `row < M` and `input < inputs`; the caller has checked the length.
                let value = _mm256_set1_ps(unsafe { *rows.get_unchecked(row * inputs + input) });
                sums[0] = _mm256_fmadd_ps(value, low, sums[0]);
                sums[1] = _mm256_fmadd_ps(value, high, sums[1]);
            }
        }
        for (row, [low, high]) in to.iter_mut().zip(sums) {
            // SAFETY: as above.
            unsafe {
                let at = row.as_mut_ptr().add(16 * half);
                _mm256_storeu_ps(at, low);
                _mm256_storeu_ps(at.add(8), high);
            }
        }
    }
}

/// # Safety
/// `panel` holds `inputs * 32` values and `rows` `M * inputs`.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_f32<const M: usize>(
    panel: &[f32],
    rows: &[f32],
    inputs: usize,
    to: &mut [[f32; PANEL]; M],
) {
    tile(rows, inputs, to, |half, input| {
        // SAFETY: `input < inputs`; the half has 16 values.
        unsafe {
            let at = panel.as_ptr().add(input * PANEL + 16 * half);
            (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)))
        }
    });
}

/// # Safety
/// As [`tile_f32`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_bf16<const M: usize>(
    panel: &[u16],
    rows: &[f32],
    inputs: usize,
    to: &mut [[f32; PANEL]; M],
) {
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    tile(rows, inputs, to, |half, input| {
        // SAFETY: `input < inputs`; 32 values are two vectors.
        let [first, second] = unsafe {
            let at = panel.as_ptr().add(input * PANEL);
            [
                _mm256_loadu_si256(at.cast()),
                _mm256_loadu_si256(at.add(16).cast()),
            ]
        };
        let side = |both| {
            _mm256_castsi256_ps(if half == 0 {
                _mm256_slli_epi32::<16>(both)
            } else {
                _mm256_and_si256(both, upper)
            })
        };
        (side(first), side(second))
    });
}

/// Computes half a panel at a time, with integer sums in 2 M registers.
///
/// `maddubs` adds two products in 16 bits and would saturate at twice 255 * 127. Hence the weights are
/// made signed again and get the steps' signs: twice 127 * 127 fits, and the sum equals that of
/// unsigned weights plus the rows' offsets.
///
/// # Safety
/// `panel` holds `inputs / 32` groups, `rows` `M` rows of as many.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_bytes<const M: usize>(
    panel: &[u8],
    rows: ByteRows<'_>,
    inputs: usize,
    to: &mut [[f32; PANEL]; M],
) {
    let groups = inputs / GROUP;
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let middle = _mm256_set1_epi8(-128);
    let ones = _mm256_set1_epi16(1);
    for at in 0..2 * groups {
        let (group, half) = (at / 2, at % 2);
        let panel = panel.as_ptr().wrapping_add(group * GROUP_BYTES);
        let mut dots = [[_mm256_setzero_si256(); 2]; M];
        for quad in 0..GROUP / 4 {
            // SAFETY: the group has 64 bytes of scales and 8 times 128 of weights.
            let weights = unsafe {
                let at = panel.add(2 * PANEL + quad * 4 * PANEL + half * 2 * PANEL);
                [
                    _mm256_xor_si256(_mm256_loadu_si256(at.cast()), middle),
                    _mm256_xor_si256(_mm256_loadu_si256(at.add(32).cast()), middle),
                ]
            };
            for (row, dots) in dots.iter_mut().enumerate() {
                // SAFETY: `row < M`, and the group has 32 steps.
                let steps = unsafe {
                    let at = rows
                        .steps
                        .as_ptr()
                        .add(row * inputs + group * GROUP + quad * 4);
                    _mm256_set1_epi32(at.cast::<i32>().read_unaligned())
                };
                let sizes = _mm256_abs_epi8(steps);
                for (dots, weights) in dots.iter_mut().zip(weights) {
                    let pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(weights, steps));
                    *dots = _mm256_add_epi32(*dots, _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        for (row, (to, dots)) in to.iter_mut().zip(dots).enumerate() {
            // SAFETY: `row < M` and `group < groups`.
            let scale = _mm256_set1_ps(unsafe { *rows.scales.get_unchecked(row * groups + group) });
            for (part, dots) in dots.into_iter().enumerate() {
                // SAFETY: the group begins with 64 bytes of scales, and a row of `to` is 32 floats.
                unsafe {
                    let both = _mm256_loadu_si256(panel.add(part * 32).cast());
                    let scales = _mm256_castsi256_ps(if half == 0 {
                        _mm256_slli_epi32::<16>(both)
                    } else {
                        _mm256_and_si256(both, upper)
                    });
                    let at = to.as_mut_ptr().add(half * 16 + part * 8);
                    let of_weights = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), scales);
                    let sum = _mm256_mul_ps(of_weights, scale);
                    _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(at), sum));
                }
            }
        }
    }
}
