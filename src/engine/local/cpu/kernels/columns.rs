//! A matrix that several threads write by columns.

use std::marker::PhantomData;

/// A matrix whose columns are written by several threads, each its own.
pub(in crate::engine) struct SharedColumns<'a> {
    to: *mut f32,
    rows: usize,
    width: usize,
    _lent: PhantomData<&'a mut [f32]>,
}

#[expect(
    unsafe_code,
    reason = "safe Rust splits a matrix by rows, not by columns"
)]
// SAFETY: `write` and `add` are the only accesses; their callers use disjoint columns.
unsafe impl Sync for SharedColumns<'_> {}

impl<'a> SharedColumns<'a> {
    /// Borrows `to`, `[row][width]`.
    pub(in crate::engine) fn new(to: &'a mut [f32], width: usize) -> Self {
        Self {
            to: to.as_mut_ptr(),
            rows: to.len() / width,
            width,
            _lent: PhantomData,
        }
    }

    /// Writes part of a row. Threads must not write the same columns concurrently; callers assign each
    /// thread its own.
    ///
    /// # Panics
    /// When the values exceed the row.
    #[expect(unsafe_code, reason = "see `SharedColumns`")]
    pub(in crate::engine) fn write(&self, row: usize, from: usize, values: &[f32]) {
        assert!(row < self.rows && from + values.len() <= self.width);
        // SAFETY: within the borrowed slice, as just checked; no other thread uses these columns.
        unsafe {
            let at = self.to.add(row * self.width + from);
            std::ptr::copy_nonoverlapping(values.as_ptr(), at, values.len());
        }
    }

    /// Adds to part of a row, with the rules of [`Self::write`].
    ///
    /// # Panics
    /// As [`Self::write`].
    #[expect(unsafe_code, reason = "see `SharedColumns`")]
    pub(super) fn add(&self, row: usize, from: usize, values: &[f32]) {
        assert!(row < self.rows && from + values.len() <= self.width);
        // SAFETY: as in `write`.
        let to = unsafe {
            let at = self.to.add(row * self.width + from);
            std::slice::from_raw_parts_mut(at, values.len())
        };
        for (to, value) in to.iter_mut().zip(values) {
            *to += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::local::cpu::kernels::columns::*;

    #[test]
    fn parts_of_rows_are_written_and_added_to() {
        let mut matrix = vec![1.0; 3 * 5];
        let columns = SharedColumns::new(&mut matrix, 5);
        columns.write(1, 3, &[7.0, 8.0]);
        columns.add(1, 2, &[0.5, 0.5]);
        columns.add(2, 0, &[2.0]);
        assert_eq!(
            matrix[5..],
            [1.0, 1.0, 1.5, 7.5, 8.0, 3.0, 1.0, 1.0, 1.0, 1.0]
        );
        assert_eq!(matrix[..5], [1.0; 5]);
    }

    #[test]
    #[should_panic(expected = "from + values.len() <= self.width")]
    fn a_part_beyond_its_row_panics() {
        SharedColumns::new(&mut [0.0; 6], 3).write(0, 2, &[1.0, 2.0]);
    }
}
