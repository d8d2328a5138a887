//! Rows times one panel.

use super::isa::Isa;

/// Outputs of a panel.
pub(in crate::engine::candle) const PANEL: usize = 32;

/// The weights of [`PANEL`] outputs.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::candle) enum Panel<'a> {
    /// `[input][output]`.
    F32(&'a [f32]),
    /// `[input][output % 16][output / 16]`: the two halves of a 32-bit lane, widened by a shift and a mask.
    Bf16(&'a [u16]),
    /// `[input / 2][output][input % 2]`, for dot products of pairs; an odd last input is padded by 0.
    Bf16Pairs(&'a [u16]),
}

/// What is multiplied with a panel.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::candle) enum Rows<'a> {
    /// `[row][input]`.
    F32(&'a [f32]),
    /// `[row][input]` in bf16, for [`Panel::Bf16Pairs`], with an even number of inputs.
    Bf16(&'a [u16]),
}

/// Adds rows times a panel to `to`, a row for each row.
///
/// # Panics
/// When the lengths do not match `inputs` and `to`, or the kinds do not go together.
pub(in crate::engine::candle) fn multiply(
    isa: Isa,
    panel: Panel<'_>,
    rows: Rows<'_>,
    inputs: usize,
    to: &mut [[f32; PANEL]],
) {
    match (panel, rows) {
        (Panel::F32(panel), Rows::F32(rows)) => {
            assert!(panel.len() == inputs * PANEL && rows.len() == to.len() * inputs);
            match isa {
                Isa::Portable => portable(rows, inputs, to, |input, output| {
                    panel[input * PANEL + output]
                }),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::avx2_f32(panel, rows, inputs, to),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Bf16 => x86::avx512_f32(panel, rows, inputs, to),
            }
        }
        (Panel::Bf16(panel), Rows::F32(rows)) => {
            assert!(panel.len() == inputs * PANEL && rows.len() == to.len() * inputs);
            match isa {
                Isa::Portable => portable(rows, inputs, to, |input, output| {
                    widen(panel[input * PANEL + output % 16 * 2 + output / 16])
                }),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::avx2_bf16(panel, rows, inputs, to),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Bf16 => x86::avx512_bf16(panel, rows, inputs, to),
            }
        }
        (Panel::Bf16Pairs(panel), Rows::Bf16(rows)) => {
            assert!(inputs.is_multiple_of(2) && panel.len() == inputs * PANEL);
            assert!(rows.len() == to.len() * inputs);
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 => x86::avx512_pairs(panel, rows, inputs, to),
                _ => portable_pairs(panel, rows, inputs, to),
            }
        }
        _ => panic!("these rows do not go with this panel"),
    }
}

/// The f32 whose upper half these bits are.
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The plain path, against which the others are tested.
fn portable(
    rows: &[f32],
    inputs: usize,
    to: &mut [[f32; PANEL]],
    weight: impl Fn(usize, usize) -> f32,
) {
    for (row, to) in rows.chunks_exact(inputs).zip(to) {
        for (input, value) in row.iter().enumerate() {
            for (output, to) in to.iter_mut().enumerate() {
                *to += value * weight(input, output);
            }
        }
    }
}

fn portable_pairs(panel: &[u16], rows: &[u16], inputs: usize, to: &mut [[f32; PANEL]]) {
    for (row, to) in rows.chunks_exact(inputs).zip(to) {
        for (pair, values) in row.chunks_exact(2).enumerate() {
            let weights = &panel[pair * 2 * PANEL..][..2 * PANEL];
            for (to, weights) in to.iter_mut().zip(weights.chunks_exact(2)) {
                *to += widen(values[0]) * widen(weights[0]) + widen(values[1]) * widen(weights[1]);
            }
        }
    }
}

/// Cuts rows into groups of up to `$most`, as even as can be, and calls the kernel for their number.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($kernel:ident, $most:literal, [$($m:literal)*], $panel:expr, $rows:expr, $inputs:expr, $to:expr) => {{
        let (mut rows, mut to) = ($rows, $to);
        while !to.is_empty() {
            let groups = to.len().div_ceil($most);
            let count = to.len().div_ceil(groups);
            let (now, later) = rows.split_at(count * $inputs);
            let (here, rest) = to.split_at_mut(count);
            match count {
                $($m => {
                    if let Some(here) = here.as_mut_array::<$m>() {
                        // SAFETY: `Isa::available` saw the instructions that the kernel is compiled
                        // for, and `multiply` has checked the lengths.
                        unsafe { $kernel::<$m>($panel, now, $inputs, here) };
                    }
                })*
                _ => unreachable!("groups are no larger than that"),
            }
            (rows, to) = (later, rest);
        }
    }};
}

#[cfg(target_arch = "x86_64")]
#[expect(
    unsafe_code,
    reason = "vector instructions load by pointer and need a CPU that has them"
)]
mod x86 {
    use std::arch::x86_64::*;

    use super::PANEL;

    /// How far ahead of its use a panel's memory is asked for, in bytes.
    const AHEAD: usize = 1024;

    pub(super) fn avx512_f32(p: &[f32], rows: &[f32], inputs: usize, to: &mut [[f32; PANEL]]) {
        by_rows!(wide_f32, 12, [1 2 3 4 5 6 7 8 9 10 11 12], p, rows, inputs, to);
    }

    pub(super) fn avx512_bf16(p: &[u16], rows: &[f32], inputs: usize, to: &mut [[f32; PANEL]]) {
        by_rows!(wide_bf16, 12, [1 2 3 4 5 6 7 8 9 10 11 12], p, rows, inputs, to);
    }

    pub(super) fn avx512_pairs(p: &[u16], rows: &[u16], inputs: usize, to: &mut [[f32; PANEL]]) {
        by_rows!(wide_pairs, 12, [1 2 3 4 5 6 7 8 9 10 11 12], p, rows, inputs, to);
    }

    pub(super) fn avx2_f32(p: &[f32], rows: &[f32], inputs: usize, to: &mut [[f32; PANEL]]) {
        by_rows!(narrow_f32, 6, [1 2 3 4 5 6], p, rows, inputs, to);
    }

    pub(super) fn avx2_bf16(p: &[u16], rows: &[f32], inputs: usize, to: &mut [[f32; PANEL]]) {
        by_rows!(narrow_bf16, 6, [1 2 3 4 5 6], p, rows, inputs, to);
    }

    /// A tile of `M` rows by 32 outputs in 2 M registers.
    #[target_feature(enable = "avx512f")]
    fn load_wide<const M: usize>(to: &[[f32; PANEL]; M]) -> [[__m512; 2]; M] {
        // SAFETY: a row of `to` is 32 floats, two vectors.
        to.each_ref().map(|row| unsafe {
            [
                _mm512_loadu_ps(row.as_ptr()),
                _mm512_loadu_ps(row.as_ptr().add(16)),
            ]
        })
    }

    #[target_feature(enable = "avx512f")]
    fn store_wide<const M: usize>(sums: [[__m512; 2]; M], to: &mut [[f32; PANEL]; M]) {
        for (row, [low, high]) in to.iter_mut().zip(sums) {
            // SAFETY: as in `load_wide`.
            unsafe {
                _mm512_storeu_ps(row.as_mut_ptr(), low);
                _mm512_storeu_ps(row.as_mut_ptr().add(16), high);
            }
        }
    }

    /// # Safety
    /// `panel` holds `inputs * 32` values and `rows` `M * inputs`.
    #[target_feature(enable = "avx512f")]
    unsafe fn wide_f32<const M: usize>(
        panel: &[f32],
        rows: &[f32],
        inputs: usize,
        to: &mut [[f32; PANEL]; M],
    ) {
        let mut sums = load_wide(to);
        for input in 0..inputs {
            // SAFETY: `input < inputs`; prefetching may point anywhere.
            let (low, high) = unsafe {
                let at = panel.as_ptr().add(input * PANEL);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(AHEAD + 64).cast());
                (_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16)))
            };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `row < M` and `input < inputs`.
                let value = _mm512_set1_ps(unsafe { *rows.get_unchecked(row * inputs + input) });
                sums[0] = _mm512_fmadd_ps(value, low, sums[0]);
                sums[1] = _mm512_fmadd_ps(value, high, sums[1]);
            }
        }
        store_wide(sums, to);
    }

    /// # Safety
    /// As [`wide_f32`].
    #[target_feature(enable = "avx512f")]
    unsafe fn wide_bf16<const M: usize>(
        panel: &[u16],
        rows: &[f32],
        inputs: usize,
        to: &mut [[f32; PANEL]; M],
    ) {
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let mut sums = load_wide(to);
        for input in 0..inputs {
            // SAFETY: `input < inputs`; prefetching may point anywhere.
            let both = unsafe {
                let at = panel.as_ptr().add(input * PANEL);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(AHEAD).cast());
                _mm512_loadu_si512(at.cast())
            };
            let low = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(both));
            let high = _mm512_castsi512_ps(_mm512_and_si512(both, upper));
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `row < M` and `input < inputs`.
                let value = _mm512_set1_ps(unsafe { *rows.get_unchecked(row * inputs + input) });
                sums[0] = _mm512_fmadd_ps(value, low, sums[0]);
                sums[1] = _mm512_fmadd_ps(value, high, sums[1]);
            }
        }
        store_wide(sums, to);
    }

    /// # Safety
    /// As [`wide_f32`], and `inputs` is even.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn wide_pairs<const M: usize>(
        panel: &[u16],
        rows: &[u16],
        inputs: usize,
        to: &mut [[f32; PANEL]; M],
    ) {
        let mut sums = load_wide(to);
        for pair in 0..inputs / 2 {
            // SAFETY: `2 * pair + 1 < inputs`; the types of the vectors differ in name only.
            let (low, high) = unsafe {
                let at = panel.as_ptr().add(pair * 2 * PANEL);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(AHEAD + 64).cast());
                (
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast())),
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.add(32).cast())),
                )
            };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `row < M` and `2 * pair + 1 < inputs`.
                let value = unsafe {
                    let at = rows.as_ptr().add(row * inputs + 2 * pair).cast::<i32>();
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(at.read_unaligned()))
                };
                sums[0] = _mm512_dpbf16_ps(sums[0], value, low);
                sums[1] = _mm512_dpbf16_ps(sums[1], value, high);
            }
        }
        store_wide(sums, to);
    }

    /// One half of a panel at a time: `M` rows by 16 outputs in 2 M of the 16 registers.
    #[target_feature(enable = "avx2,fma")]
    fn narrow<const M: usize>(
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
                    let value =
                        _mm256_set1_ps(unsafe { *rows.get_unchecked(row * inputs + input) });
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
    /// As [`wide_f32`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn narrow_f32<const M: usize>(
        panel: &[f32],
        rows: &[f32],
        inputs: usize,
        to: &mut [[f32; PANEL]; M],
    ) {
        narrow(rows, inputs, to, |half, input| {
            // SAFETY: `input < inputs`; the half has 16 values.
            unsafe {
                let at = panel.as_ptr().add(input * PANEL + 16 * half);
                (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)))
            }
        });
    }

    /// # Safety
    /// As [`wide_f32`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn narrow_bf16<const M: usize>(
        panel: &[u16],
        rows: &[f32],
        inputs: usize,
        to: &mut [[f32; PANEL]; M],
    ) {
        let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        narrow(rows, inputs, to, |half, input| {
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
}
