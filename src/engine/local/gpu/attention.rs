//! Writing keys and values to blocks, attention over block tables and SwiGLU, as custom operations
//! of candle that run the CUDA kernels or the reference, depending on the device.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Device, InplaceOp2, Layout, Result,
    Shape, Storage, Tensor, bail,
};

use crate::{batching::BLOCK_TOKENS, engine::local::shape::HeadWidths};

use super::{
    cuda::Kernels,
    reference::{self, HeadRotation},
    step::{DeviceStep, StepOperands},
};

/// Norms of each head's queries and keys (Qwen3), in f32.
#[derive(Debug)]
pub(super) struct HeadNorms {
    pub(super) queries: Tensor,
    pub(super) keys: Tensor,
}

/// What the attention of all layers shares.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) widths: HeadWidths,
    /// `[position * head / 2]`, in f32, as are the sines; on the device of keys and values.
    pub(super) cosines: Tensor,
    pub(super) sines: Tensor,
    pub(super) epsilon: f32,
    /// Compiled on CUDA only.
    pub(super) kernels: Option<Kernels>,
}

/// One layer's attention.
#[derive(Debug)]
pub(super) struct LayerAttention {
    pub(super) norms: Option<HeadNorms>,
    /// Sliding window in tokens, the current one included; 0 is unlimited.
    pub(super) window: usize,
    /// `[block][keys, values][kv_head][position in the block][head]`.
    pub(super) arena: Tensor,
}

impl Attention {
    /// The device of keys and values: on Metal, which has no kernels here, host memory.
    pub(super) fn home(device: &Device) -> Device {
        if device.is_metal() {
            Device::Cpu
        } else {
            device.clone()
        }
    }

    /// An arena of blocks for one layer, filled with zeros.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub(super) fn arena(
        widths: HeadWidths,
        blocks: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let shape = (blocks, 2, widths.kv_heads, BLOCK_TOKENS, widths.head);
        Tensor::zeros(shape, dtype, &Self::home(device))
    }

    /// Writes the keys and values of a step into the arena, all of them before any query attends, then
    /// attends: `[token][heads, then kv_heads of keys, then of values][head]` to
    /// `[token][heads * head]`.
    ///
    /// # Errors
    /// When a tensor has an unexpected type or the device fails.
    pub(super) fn apply(
        &self,
        layer: &LayerAttention,
        qkv: &Tensor,
        indices: &DeviceStep,
    ) -> Result<Tensor> {
        let device = qkv.device();
        let qkv = qkv.to_device(layer.arena.device())?;
        let norms = layer.norms.as_ref();
        let kernels = self.kernels.as_ref();
        let write = WriteKv {
            operands: self.operands(norms.map(|norms| &norms.keys), indices),
            kernels,
        };
        layer.arena.inplace_op2(&qkv, &write)?;
        let attend = Attend {
            operands: self.operands(norms.map(|norms| &norms.queries), indices),
            window: layer.window,
            kernels,
        };
        let output = qkv.apply_op2_no_bwd(&layer.arena, &attend)?;
        output.to_device(device)
    }

    /// SwiGLU: `[row][gates, then ups]` to `[row][width]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn swiglu(&self, gate_up: &Tensor) -> Result<Tensor> {
        if gate_up.device().is_metal() {
            return candle_nn::ops::swiglu(gate_up);
        }
        let width = gate_up.dim(1)? / 2;
        gate_up.apply_op1_no_bwd(&SwiGlu {
            width,
            kernels: self.kernels.as_ref(),
        })
    }

    fn operands<'a>(
        &'a self,
        norm: Option<&'a Tensor>,
        indices: &'a DeviceStep,
    ) -> StepOperands<'a> {
        StepOperands {
            widths: self.widths,
            cosines: &self.cosines,
            sines: &self.sines,
            norm,
            epsilon: self.epsilon,
            indices,
        }
    }
}

/// Runs `work` with the rotation that the reference applies to heads.
fn with_rotation<R>(
    operands: &StepOperands<'_>,
    work: impl FnOnce(HeadRotation<'_>) -> Result<R>,
) -> Result<R> {
    let (cosines, _) = operands.cosines.storage_and_layout();
    let (sines, _) = operands.sines.storage_and_layout();
    let norm = operands.norm.map(|norm| norm.storage_and_layout().0);
    work(HeadRotation {
        cosines: floats(&cosines)?,
        sines: floats(&sines)?,
        norm: norm.as_deref().map(floats).transpose()?,
        epsilon: operands.epsilon,
    })
}

fn floats(storage: &Storage) -> Result<&[f32]> {
    match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(values),
        _ => bail!("expected f32 in host memory"),
    }
}

fn compiled(kernels: Option<&Kernels>) -> Result<&Kernels> {
    match kernels {
        Some(kernels) => Ok(kernels),
        None => bail!("the kernels were not compiled for this device"),
    }
}

/// The elements of a contiguous tensor.
fn contiguous<'a, E>(values: &'a [E], layout: &Layout) -> Result<&'a [E]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&values[from..to]),
        None => bail!("expected a contiguous tensor, got the layout {layout:?}"),
    }
}

/// Writes keys and values into an arena.
struct WriteKv<'a> {
    operands: StepOperands<'a>,
    kernels: Option<&'a Kernels>,
}

impl InplaceOp2 for WriteKv<'_> {
    fn name(&self) -> &'static str {
        "write_kv"
    }

    fn cpu_fwd(
        &self,
        arena: &mut CpuStorage,
        _: &Layout,
        qkv: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let widths = self.operands.widths;
        let step = &self.operands.indices.step;
        let at = (
            step.words(&step.sections.slots),
            step.words(&step.sections.positions),
        );
        with_rotation(&self.operands, |rotation| {
            match (arena, qkv) {
                (CpuStorage::F32(arena), CpuStorage::F32(qkv)) => {
                    reference::write_kv(widths, rotation, at, contiguous(qkv, layout)?, arena);
                }
                (CpuStorage::BF16(arena), CpuStorage::BF16(qkv)) => {
                    reference::write_kv(widths, rotation, at, contiguous(qkv, layout)?, arena);
                }
                _ => bail!("write_kv: expected f32 or bf16, the same in both"),
            }
            Ok(())
        })
    }

    fn cuda_fwd(
        &self,
        arena: &mut CudaStorage,
        _: &Layout,
        qkv: &CudaStorage,
        layout: &Layout,
    ) -> Result<()> {
        compiled(self.kernels)?.write_kv(&self.operands, arena, (qkv, layout))
    }
}

/// Attends over an arena.
struct Attend<'a> {
    operands: StepOperands<'a>,
    window: usize,
    kernels: Option<&'a Kernels>,
}

impl Attend<'_> {
    fn shape(&self) -> Shape {
        let widths = self.operands.widths;
        let tokens = self.operands.indices.step.sections.tokens.len();
        (tokens, widths.heads * widths.head).into()
    }
}

impl CustomOp2 for Attend<'_> {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        arena: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (widths, window) = (self.operands.widths, self.window);
        let step = &self.operands.indices.step;
        let chunks = (step.spans.as_slice(), step.words(&step.sections.tables));
        let output = with_rotation(&self.operands, |rotation| {
            Ok(match (qkv, arena) {
                (CpuStorage::F32(qkv), CpuStorage::F32(arena)) => {
                    let qkv = contiguous(qkv, layout)?;
                    CpuStorage::F32(reference::attend(
                        widths, rotation, window, chunks, qkv, arena,
                    ))
                }
                (CpuStorage::BF16(qkv), CpuStorage::BF16(arena)) => {
                    let qkv = contiguous(qkv, layout)?;
                    CpuStorage::BF16(reference::attend(
                        widths, rotation, window, chunks, qkv, arena,
                    ))
                }
                _ => bail!("attend: expected f32 or bf16, the same in both"),
            })
        })?;
        Ok((output, self.shape()))
    }

    fn cuda_fwd(
        &self,
        qkv: &CudaStorage,
        layout: &Layout,
        arena: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let kernels = compiled(self.kernels)?;
        let output = kernels.attend(&self.operands, self.window, (qkv, layout), arena)?;
        Ok((output, self.shape()))
    }
}

struct SwiGlu<'a> {
    width: usize,
    kernels: Option<&'a Kernels>,
}

impl SwiGlu<'_> {
    fn shape(&self, layout: &Layout) -> Shape {
        (layout.shape().elem_count() / (2 * self.width), self.width).into()
    }
}

impl CustomOp1 for SwiGlu<'_> {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, gate_up: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let output = match gate_up {
            CpuStorage::F32(values) => {
                CpuStorage::F32(reference::swiglu(self.width, contiguous(values, layout)?))
            }
            CpuStorage::BF16(values) => {
                CpuStorage::BF16(reference::swiglu(self.width, contiguous(values, layout)?))
            }
            _ => bail!("swiglu: expected f32 or bf16"),
        };
        Ok((output, self.shape(layout)))
    }

    fn cuda_fwd(&self, gate_up: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let output = compiled(self.kernels)?.swiglu(self.width, (gate_up, layout))?;
        Ok((output, self.shape(layout)))
    }
}
