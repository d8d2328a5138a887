//! Memory that begins on a cache line.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;

/// Numbers of which the first begins a cache line, so that no vector of them lies across two: such
/// a load takes twice as long.
#[derive(Debug)]
pub(in crate::engine) struct Aligned<T> {
    /// Never grows, since it might move then.
    memory: Vec<T>,
    from: usize,
    count: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// Zeros; memory is taken from the system as it is written first.
    pub(in crate::engine) fn zeros(count: usize) -> Self {
        let spare = LINE / size_of::<T>();
        let memory = vec![T::default(); count + spare];
        // Where the distance cannot be told, a place within the memory does as well.
        let from = memory.as_ptr().align_offset(LINE).min(spare);
        Self {
            memory,
            from,
            count,
        }
    }
}

impl<T: Copy + Default> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        let mut clone = Self::zeros(self.count);
        clone.copy_from_slice(self);
        clone
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.from..][..self.count]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.from..][..self.count]
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::local::cpu::kernels::aligned::*;

    #[test]
    fn begins_on_a_cache_line_and_holds_what_was_asked_for() {
        for count in [0, 1, 63, 4_096] {
            let (bytes, floats) = (Aligned::<u8>::zeros(count), Aligned::<f32>::zeros(count));
            assert_eq!((bytes.len(), floats.len()), (count, count));
            assert_eq!(bytes.as_ptr().addr() % LINE, 0);
            assert_eq!(floats.as_ptr().addr() % LINE, 0);
            assert!(bytes.iter().all(|byte| *byte == 0));
            let mut written = floats.clone();
            written.fill(2.0);
            let clone = written.clone();
            assert_eq!(clone.as_ptr().addr() % LINE, 0);
            assert_eq!(clone[..], written[..]);
        }
    }
}
