//! Keys and values into their blocks, and attention over block tables, as operations of candle's
//! that go to the kernels or to the plain reference, by the device.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Device, InplaceOp2, Layout, Result,
    Shape, Storage, Tensor, bail,
};

use crate::batching::BLOCK_TOKENS;

use super::{
    Widths,
    cuda::Kernels,
    reference::{self, Turn},
    step::Step,
};

/// A step's indices, on both sides.
#[derive(Debug)]
pub(super) struct Uploaded {
    pub(super) step: Step,
    pub(super) on_device: Tensor,
}

/// Norms of each head's queries and keys (Qwen3), in f32.
#[derive(Debug)]
pub(super) struct HeadNorms {
    pub(super) queries: Tensor,
    pub(super) keys: Tensor,
}

/// What all layers' attention shares.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) widths: Widths,
    /// `[position * head / 2]`, in f32 like the sines, where keys and values lie.
    pub(super) cosines: Tensor,
    pub(super) sines: Tensor,
    pub(super) epsilon: f32,
    /// There on CUDA.
    pub(super) kernels: Option<Kernels>,
}

/// One layer's attention.
#[derive(Debug)]
pub(super) struct LayerAttention {
    pub(super) norms: Option<HeadNorms>,
    /// Tokens looked back on, the own one included; 0 is all.
    pub(super) window: usize,
    /// `[block][keys, values][kv_head][position in the block][head]`.
    pub(super) arena: Tensor,
}

impl Attention {
    /// Where keys and values lie: on Metal, which has no kernels here, in the host's memory.
    pub(super) fn home(device: &Device) -> Device {
        if device.is_metal() {
            Device::Cpu
        } else {
            device.clone()
        }
    }

    /// An arena of blocks for one layer, all zeros.
    ///
    /// # Errors
    /// When the device has not as much memory.
    pub(super) fn arena(
        widths: Widths,
        blocks: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let shape = (blocks, 2, widths.kv_heads, BLOCK_TOKENS, widths.head);
        Tensor::zeros(shape, dtype, &Self::home(device))
    }

    /// Writes the keys and values of a step into the arena, all before any query looks, and then
    /// attends: `[token][heads, then kv_heads of keys, then of values][head]` to
    /// `[token][heads * head]`.
    ///
    /// # Errors
    /// When a tensor has another type or the device refuses.
    pub(super) fn apply(
        &self,
        layer: &LayerAttention,
        qkv: &Tensor,
        uploaded: &Uploaded,
    ) -> Result<Tensor> {
        let device = qkv.device();
        let qkv = qkv.to_device(layer.arena.device())?;
        let norms = layer.norms.as_ref();
        let place = Place {
            attention: self,
            norm: norms.map(|norms| &norms.keys),
            uploaded,
        };
        layer.arena.inplace_op2(&qkv, &place)?;
        let attend = Attend {
            attention: self,
            norm: norms.map(|norms| &norms.queries),
            window: layer.window,
            uploaded,
        };
        let output = qkv.apply_op2_no_bwd(&layer.arena, &attend)?;
        output.to_device(device)
    }

    /// SwiGLU: `[row][gates, then ups]` to `[row][width]`.
    ///
    /// # Errors
    /// When the device refuses.
    pub(super) fn gate(&self, gate_up: &Tensor) -> Result<Tensor> {
        if gate_up.device().is_metal() {
            return candle_nn::ops::swiglu(gate_up);
        }
        let width = gate_up.dim(1)? / 2;
        gate_up.apply_op1_no_bwd(&Gate {
            width,
            kernels: self.kernels.as_ref(),
        })
    }

    /// What turns heads, for the reference.
    fn with_turn<R>(
        &self,
        norm: Option<&Tensor>,
        work: impl FnOnce(Turn<'_>) -> Result<R>,
    ) -> Result<R> {
        let (cosines, _) = self.cosines.storage_and_layout();
        let (sines, _) = self.sines.storage_and_layout();
        let norm = norm.map(|norm| norm.storage_and_layout().0);
        work(Turn {
            cosines: floats(&cosines)?,
            sines: floats(&sines)?,
            norm: norm.as_deref().map(floats).transpose()?,
            epsilon: self.epsilon,
        })
    }
}

fn floats(storage: &Storage) -> Result<&[f32]> {
    match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(values),
        _ => bail!("expected f32 in the host's memory"),
    }
}

/// The kernels of a CUDA device.
fn of(kernels: Option<&Kernels>) -> Result<&Kernels> {
    match kernels {
        Some(kernels) => Ok(kernels),
        None => bail!("the kernels were not compiled for this device"),
    }
}

/// The elements of a tensor that lie in order.
fn contiguous<'a, E>(values: &'a [E], layout: &Layout) -> Result<&'a [E]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&values[from..to]),
        None => bail!("expected values in order, got the layout {layout:?}"),
    }
}

/// Writes keys and values into an arena.
pub(super) struct Place<'a> {
    pub(super) attention: &'a Attention,
    pub(super) norm: Option<&'a Tensor>,
    pub(super) uploaded: &'a Uploaded,
}

impl InplaceOp2 for Place<'_> {
    fn name(&self) -> &'static str {
        "place"
    }

    fn cpu_fwd(
        &self,
        arena: &mut CpuStorage,
        _: &Layout,
        qkv: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let widths = self.attention.widths;
        let step = &self.uploaded.step;
        let at = (
            step.words(&step.sections.slots),
            step.words(&step.sections.positions),
        );
        self.attention.with_turn(self.norm, |turn| {
            match (arena, qkv) {
                (CpuStorage::F32(arena), CpuStorage::F32(qkv)) => {
                    reference::place(widths, turn, at, contiguous(qkv, layout)?, arena);
                }
                (CpuStorage::BF16(arena), CpuStorage::BF16(qkv)) => {
                    reference::place(widths, turn, at, contiguous(qkv, layout)?, arena);
                }
                _ => bail!("place: expected f32 or bf16, the same in both"),
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
        of(self.attention.kernels.as_ref())?.place(self, arena, (qkv, layout))
    }
}

/// Attends over an arena.
pub(super) struct Attend<'a> {
    pub(super) attention: &'a Attention,
    pub(super) norm: Option<&'a Tensor>,
    pub(super) window: usize,
    pub(super) uploaded: &'a Uploaded,
}

impl Attend<'_> {
    fn shape(&self) -> Shape {
        let widths = self.attention.widths;
        let tokens = self.uploaded.step.sections.tokens.len();
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
        let (widths, window) = (self.attention.widths, self.window);
        let step = &self.uploaded.step;
        let chunks = (step.spans.as_slice(), step.words(&step.sections.tables));
        let output = self.attention.with_turn(self.norm, |turn| {
            Ok(match (qkv, arena) {
                (CpuStorage::F32(qkv), CpuStorage::F32(arena)) => {
                    let qkv = contiguous(qkv, layout)?;
                    CpuStorage::F32(reference::attend(widths, turn, window, chunks, qkv, arena))
                }
                (CpuStorage::BF16(qkv), CpuStorage::BF16(arena)) => {
                    let qkv = contiguous(qkv, layout)?;
                    CpuStorage::BF16(reference::attend(widths, turn, window, chunks, qkv, arena))
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
        let kernels = of(self.attention.kernels.as_ref())?;
        Ok((kernels.attend(self, (qkv, layout), arena)?, self.shape()))
    }
}

struct Gate<'a> {
    width: usize,
    kernels: Option<&'a Kernels>,
}

impl Gate<'_> {
    fn shape(&self, layout: &Layout) -> Shape {
        (layout.shape().elem_count() / (2 * self.width), self.width).into()
    }
}

impl CustomOp1 for Gate<'_> {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, gate_up: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let output = match gate_up {
            CpuStorage::F32(values) => {
                CpuStorage::F32(reference::gate(self.width, contiguous(values, layout)?))
            }
            CpuStorage::BF16(values) => {
                CpuStorage::BF16(reference::gate(self.width, contiguous(values, layout)?))
            }
            _ => bail!("gate: expected f32 or bf16"),
        };
        Ok((output, self.shape(layout)))
    }

    fn cuda_fwd(&self, gate_up: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let output = of(self.kernels)?.gate(self.width, (gate_up, layout))?;
        Ok((output, self.shape(layout)))
    }
}
