//! The decoder on a candle device: CUDA, Metal, or the CPU for tests.
//!
//! Takes the same steps as [`CpuModel`](crate::engine::local::CpuModel) and returns logits. candle
//! computes the dense layers; keys, values and attention use our own kernels over the scheduler's
//! block tables (`paged.cu`, compiled when a model is opened). Their plain Rust form (`reference`)
//! runs on the CPU and is what the kernels are tested against. It also runs on Metal, after copying
//! the projected queries, keys and values to the host, so attention on Metal is correct but not fast.
//!
//! On a GPU, the vendor's matrix library selects a kernel by the number of rows, so sums may differ
//! in the last bit with the batch. Attention does not depend on the batch.

mod attention;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "cuda_absent.rs"]
mod cuda;
mod dense;
mod device;
#[cfg(test)]
mod kernel_tests;
mod layer;
mod model;
mod reference;
mod step;

pub use device::open_device;
pub use model::GpuModel;
