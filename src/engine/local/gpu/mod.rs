//! The decoder on a device of candle's: CUDA, Metal, or the CPU to prove the other two.
//!
//! Comes in: the same steps as for [`CpuModel`](crate::engine::local::CpuModel). Goes out: logits. The dense
//! work is candle's; keys, values and attention are kernels of our own over the scheduler's block
//! tables (`paged.cu`, compiled when a model is opened). Their plain form (`reference`) runs on the
//! CPU and is what the kernels are tested against; on Metal it is what runs, behind a copy of the
//! projected queries, keys and values, so attention on Metal is right but not fast.
//!
//! On a GPU the products are the vendor's library's, which picks another kernel for another number
//! of rows: sums may differ in the last bit with the company in a step. Attention does not.

mod attention;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "cuda_absent.rs"]
mod cuda;
mod dense;
#[cfg(test)]
mod kernel_tests;
mod layer;
mod model;
mod open;
mod reference;
mod step;

pub use model::GpuModel;
pub use open::open_device;

/// Widths of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Widths {
    heads: usize,
    kv_heads: usize,
    head: usize,
}

impl Widths {
    /// Widest head that the kernels have memory for.
    const HEAD_MAX: usize = 256;

    /// Query heads that share a KV head.
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Values of a token's queries, keys and values.
    fn row(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head
    }

    /// Query rows that a block of the attention kernel takes on: as many as its memory holds.
    fn tile_rows(self) -> usize {
        1024 / self.head.clamp(64, Self::HEAD_MAX)
    }
}
