//! Kernels in AVX-512.
#![expect(
    unsafe_code,
    reason = "vector instructions load by pointer and require CPU support"
)]

use std::arch::x86_64::*;

use crate::engine::local::cpu::kernels::panel::{
    ByteRows, GROUP, GROUP_BYTES, PANEL, SliceRows as _,
};

/// How far ahead a panel's memory is prefetched, in bytes. Measured: less than 1 KiB arrives too late,
/// and from 16 KiB on some is evicted before use.
const AHEAD: usize = 4_096;

/// Prefetches the cache line [`AHEAD`] of this one.
#[target_feature(enable = "avx512f")]
fn fetch_ahead<T>(at: *const T) {
    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_byte_add(AHEAD).cast());
}

pub(super) fn f32(p: &[f32], rows: &[f32], inputs: usize, to: &mut [[f32; PANEL]]) {
    by_rows!(tile_f32, 12, [1 2 3 4 5 6 7 8 9 10 11 12], p, rows, inputs, to);
}

pub(super) fn bf16(p: &[u16], rows: &[f32], inputs: usize, to: &mut [[f32; PANEL]]) {
    by_rows!(tile_bf16, 12, [1 2 3 4 5 6 7 8 9 10 11 12], p, rows, inputs, to);
}

pub(super) fn pairs(p: &[u16], rows: &[u16], inputs: usize, to: &mut [[f32; PANEL]]) {
    by_rows!(tile_pairs, 12, [1 2 3 4 5 6 7 8 9 10 11 12], p, rows, inputs, to);
}

pub(super) fn bytes(p: &[u8], rows: ByteRows<'_>, inputs: usize, to: &mut [[f32; PANEL]]) {
    by_rows!(tile_bytes, 6, [1 2 3 4 5 6], p, rows, inputs, to);
}

/// Loads a tile of `M` rows by 32 outputs into 2 M registers.
#[target_feature(enable = "avx512f")]
fn load<const M: usize>(to: &[[f32; PANEL]; M]) -> [[__m512; 2]; M] {
    // SAFETY: a row of `to` is 32 floats, two vectors.
    to.each_ref().map(|row| unsafe {
        [
            _mm512_loadu_ps(row.as_ptr()),
            _mm512_loadu_ps(row.as_ptr().add(16)),
        ]
    })
}

#[target_feature(enable = "avx512f")]
fn store<const M: usize>(sums: [[__m512; 2]; M], to: &mut [[f32; PANEL]; M]) {
    for (row, [low, high]) in to.iter_mut().zip(sums) {
        // SAFETY: as in `load`.
        unsafe {
            _mm512_storeu_ps(row.as_mut_ptr(), low);
            _mm512_storeu_ps(row.as_mut_ptr().add(16), high);
        }
    }
}

/// # Safety
/// `panel` holds `inputs * 32` values and `rows` `M * inputs`.
#[target_feature(enable = "avx512f")]
unsafe fn tile_f32<const M: usize>(
    panel: &[f32],
    rows: &[f32],
    inputs: usize,
    to: &mut [[f32; PANEL]; M],
) {
    let mut sums = load(to);
    for input in 0..inputs {
        // SAFETY: `input < inputs`.
        let (low, high) = unsafe {
            let at = panel.as_ptr().add(input * PANEL);
            fetch_ahead(at);
            fetch_ahead(at.add(16));
            (_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16)))
        };
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `row < M` and `input < inputs`.
            let value = _mm512_set1_ps(unsafe { *rows.get_unchecked(row * inputs + input) });
            sums[0] = _mm512_fmadd_ps(value, low, sums[0]);
            sums[1] = _mm512_fmadd_ps(value, high, sums[1]);
        }
    }
    store(sums, to);
}

/// # Safety
/// As [`tile_f32`].
#[target_feature(enable = "avx512f")]
unsafe fn tile_bf16<const M: usize>(
    panel: &[u16],
    rows: &[f32],
    inputs: usize,
    to: &mut [[f32; PANEL]; M],
) {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let mut sums = load(to);
    for input in 0..inputs {
        // SAFETY: `input < inputs`.
        let both = unsafe {
            let at = panel.as_ptr().add(input * PANEL);
            fetch_ahead(at);
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
    store(sums, to);
}

/// # Safety
/// As [`tile_f32`], and `inputs` is even.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_pairs<const M: usize>(
    panel: &[u16],
    rows: &[u16],
    inputs: usize,
    to: &mut [[f32; PANEL]; M],
) {
    let mut sums = load(to);
    for pair in 0..inputs / 2 {
        // SAFETY: `2 * pair + 1 < inputs`; the types of the vectors differ in name only.
        let (low, high) = unsafe {
            let at = panel.as_ptr().add(pair * 2 * PANEL);
            fetch_ahead(at);
            fetch_ahead(at.add(32));
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
    store(sums, to);
}

/// Uses 2 M registers each for integer sums within a group and float sums over groups.
///
/// # Safety
/// `panel` holds `inputs / 32` groups, `rows` `M` rows of as many.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile_bytes<const M: usize>(
    panel: &[u8],
    rows: ByteRows<'_>,
    inputs: usize,
    to: &mut [[f32; PANEL]; M],
) {
    let groups = inputs / GROUP;
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let mut sums = load(to);
    for group in 0..groups {
        let scales_at = panel.as_ptr().wrapping_add(group * GROUP_BYTES);
        // A loop, since `array::from_fn` may not inline its closure and then keeps `dots` in memory.
        let mut dots = [[_mm512_setzero_si512(); 2]; M];
        for (row, dots) in dots.iter_mut().enumerate() {
            // SAFETY: `row < M` and `group < groups`.
            let offset = unsafe { *rows.offsets.get_unchecked(row * groups + group) };
            *dots = [_mm512_set1_epi32(offset); 2];
        }
        for quad in 0..GROUP / 4 {
            // SAFETY: the group has 64 bytes of scales and 8 times 128 of weights.
            let (low, high) = unsafe {
                let at = scales_at.add(2 * PANEL + quad * 4 * PANEL);
                fetch_ahead(at);
                fetch_ahead(at.add(64));
                (
                    _mm512_loadu_si512(at.cast()),
                    _mm512_loadu_si512(at.add(64).cast()),
                )
            };
            for (row, dots) in dots.iter_mut().enumerate() {
                // SAFETY: `row < M`, and the group has 32 steps.
                let steps = unsafe {
                    let at = rows
                        .steps
                        .as_ptr()
                        .add(row * inputs + group * GROUP + quad * 4);
                    _mm512_set1_epi32(at.cast::<i32>().read_unaligned())
                };
                dots[0] = _mm512_dpbusd_epi32(dots[0], low, steps);
                dots[1] = _mm512_dpbusd_epi32(dots[1], high, steps);
            }
        }
        // SAFETY: the group begins with 64 bytes of scales.
        let both = unsafe { _mm512_loadu_si512(scales_at.cast()) };
        fetch_ahead(scales_at);
        let scales = [
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)),
            _mm512_castsi512_ps(_mm512_and_si512(both, upper)),
        ];
        for (row, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
            // SAFETY: `row < M` and `group < groups`.
            let scale = _mm512_set1_ps(unsafe { *rows.scales.get_unchecked(row * groups + group) });
            for half in 0..2 {
                let of_weights = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[half]), scales[half]);
                sums[half] = _mm512_add_ps(sums[half], _mm512_mul_ps(of_weights, scale));
            }
        }
    }
    store(sums, to);
}
