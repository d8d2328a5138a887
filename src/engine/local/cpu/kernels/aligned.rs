//! Memory aligned to cache lines.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line and of the widest vector.
const LINE: usize = 64;

/// Numbers aligned to a cache line, so that no vector crosses two: such a load takes twice as long.
#[derive(Debug)]
pub(in crate::engine) struct Aligned<T> {
    /// Must not grow, since that might move it.
    memory: Vec<T>,
    from: usize,
    count: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// Zeros; the system allocates memory when it is first written.
    pub(in crate::engine) fn zeros(count: usize) -> Self {
        let spare = LINE / size_of::<T>();
        let memory = vec![T::default(); count + spare];
        // If the offset cannot be computed, any position within the memory is correct.
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
    fn is_aligned_and_zeroed() {
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
