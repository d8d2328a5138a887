//! The kernels of `paged.cu` on a CUDA device: compiled by NVRTC when a model is opened, launched on
//! candle's stream.
#![expect(unsafe_code, reason = "the compiler cannot check a kernel launch")]

use std::sync::Arc;

use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Layout, Result, Storage, bail,
    cuda_backend::{
        CudaDType, WrapErr as _,
        cudarc::{
            driver::{
                CudaFunction, CudaSlice, CudaStream, CudaView, DeviceRepr, LaunchArgs,
                LaunchConfig, PushKernelArg as _,
            },
            nvrtc::{CompileOptions, compile_ptx_with_opts},
        },
    },
};
use half::bf16;

use crate::engine::local::shape::HeadWidths;

use super::step::StepOperands;

const SOURCE: &str = include_str!("paged.cu");
/// Threads of a warp, and of a block of `attend` and `swiglu`, as in the source.
const WARP: u32 = 32;
const BLOCK: u32 = 8 * WARP;

/// The kernels compiled for one model's shape.
#[derive(Debug)]
pub(super) struct Kernels {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    dtype: DType,
    write_kv: CudaFunction,
    attend: CudaFunction,
    swiglu: CudaFunction,
}

/// Opens the first CUDA device with a stream of its own.
///
/// # Errors
/// When it cannot be opened.
pub(super) fn open() -> Result<Device> {
    let device = Device::new_cuda_with_stream(0)?;
    // SAFETY: without events, cudarc does not order the work of several streams. All work on this
    // device is submitted to the stream just created, which keeps its order.
    unsafe { device.as_cuda_device()?.disable_event_tracking() };
    Ok(device)
}

/// Macros for compiling the source; `scripts/cuda-kernel-check` uses the same on the CPU.
fn options(widths: HeadWidths, dtype: DType) -> Vec<String> {
    let macros = [
        ("HEAD", widths.head),
        ("GROUP", widths.group()),
        ("ROWS", widths.tile_rows()),
        ("BF16", usize::from(dtype == DType::BF16)),
    ];
    macros
        .iter()
        .map(|(name, value)| format!("-D{name}={value}"))
        .collect()
}

/// The elements of a contiguous tensor on the device.
fn view<'a, E: CudaDType>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, E>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(storage.as_cuda_slice::<E>()?.slice(from..to)),
        None => bail!("expected a contiguous tensor, got the layout {layout:?}"),
    }
}

fn on_cuda<E: CudaDType>(storage: &Storage) -> Result<&CudaSlice<E>> {
    match storage {
        Storage::Cuda(storage) => storage.as_cuda_slice::<E>(),
        _ => bail!("expected a tensor on the CUDA device"),
    }
}

fn grid(x: usize, y: usize, threads: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (x as u32, y as u32, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: 0,
    }
}

impl Kernels {
    /// Compiles the kernels; `None` unless the device is a CUDA device.
    ///
    /// # Errors
    /// When NVRTC or the driver rejects the source; drivers reject the output of a newer NVRTC.
    pub(super) fn compile(
        device: &Device,
        widths: HeadWidths,
        dtype: DType,
    ) -> Result<Option<Self>> {
        let Device::Cuda(device) = device else {
            return Ok(None);
        };
        let options = CompileOptions {
            options: options(widths, dtype),
            name: Some("paged.cu".to_owned()),
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(SOURCE, options).map_err(candle_core::Error::wrap)?;
        let stream = device.cuda_stream();
        let module = stream.context().load_module(ptx).w()?;
        Ok(Some(Self {
            write_kv: module.load_function("write_kv").w()?,
            attend: module.load_function("attend").w()?,
            swiglu: module.load_function("swiglu").w()?,
            device: device.clone(),
            stream,
            dtype,
        }))
    }

    /// Writes the keys and values of a step into an arena.
    ///
    /// # Errors
    /// When the launch fails.
    pub(super) fn write_kv(
        &self,
        operands: &StepOperands<'_>,
        arena: &mut CudaStorage,
        qkv: (&CudaStorage, &Layout),
    ) -> Result<()> {
        match self.dtype {
            DType::BF16 => self.write_kv_as::<bf16>(operands, arena.as_cuda_slice_mut()?, qkv),
            _ => self.write_kv_as::<f32>(operands, arena.as_cuda_slice_mut()?, qkv),
        }
    }

    fn write_kv_as<E: CudaDType + DeviceRepr>(
        &self,
        operands: &StepOperands<'_>,
        arena: &mut CudaSlice<E>,
        (qkv, layout): (&CudaStorage, &Layout),
    ) -> Result<()> {
        let sections = &operands.indices.step.sections;
        let kv_heads = operands.widths.kv_heads;
        let qkv = view::<E>(qkv, layout)?;
        let (step, _) = operands.indices.on_device.storage_and_layout();
        let step = on_cuda::<u32>(&step)?;
        let (slots, positions) = (
            step.slice(sections.slots.clone()),
            step.slice(sections.positions.clone()),
        );
        let (cosines, _) = operands.cosines.storage_and_layout();
        let (sines, _) = operands.sines.storage_and_layout();
        let norm = operands.norm.map(|norm| norm.storage_and_layout().0);
        let norm = norm.as_deref().map(on_cuda::<f32>).transpose()?;
        let kv_heads_word = kv_heads as u32;
        let mut launch = self.stream.launch_builder(&self.write_kv);
        launch.arg(arena).arg(&qkv).arg(&slots).arg(&positions);
        launch
            .arg(on_cuda::<f32>(&cosines)?)
            .arg(on_cuda::<f32>(&sines)?);
        push_or_null(&mut launch, norm);
        launch.arg(&operands.epsilon).arg(&kv_heads_word);
        // SAFETY: the arguments match those of `write_kv` in order and type. The checks of chunks keep
        // every slot within the arena and every position within the table of angles.
        unsafe { launch.launch(grid(sections.tokens.len(), 2 * kv_heads, WARP)) }.w()?;
        Ok(())
    }

    /// Attends over an arena; returns `[token][heads * head]`.
    ///
    /// # Errors
    /// When the launch fails.
    pub(super) fn attend(
        &self,
        operands: &StepOperands<'_>,
        window: usize,
        qkv: (&CudaStorage, &Layout),
        arena: &CudaStorage,
    ) -> Result<CudaStorage> {
        match self.dtype {
            DType::BF16 => self.attend_as::<bf16>(operands, window, qkv, arena.as_cuda_slice()?),
            _ => self.attend_as::<f32>(operands, window, qkv, arena.as_cuda_slice()?),
        }
    }

    fn attend_as<E: CudaDType + DeviceRepr>(
        &self,
        operands: &StepOperands<'_>,
        window: usize,
        (qkv, layout): (&CudaStorage, &Layout),
        arena: &CudaSlice<E>,
    ) -> Result<CudaStorage> {
        let sections = &operands.indices.step.sections;
        let widths = operands.widths;
        let qkv = view::<E>(qkv, layout)?;
        let (step, _) = operands.indices.on_device.storage_and_layout();
        let step = on_cuda::<u32>(&step)?;
        let (tasks, spans, tables) = (
            step.slice(sections.tasks.clone()),
            step.slice(sections.spans.clone()),
            step.slice(sections.tables.clone()),
        );
        let (cosines, _) = operands.cosines.storage_and_layout();
        let (sines, _) = operands.sines.storage_and_layout();
        let norm = operands.norm.map(|norm| norm.storage_and_layout().0);
        let norm = norm.as_deref().map(on_cuda::<f32>).transpose()?;
        let scale = 1.0 / (widths.head as f32).sqrt();
        let (window, kv_heads) = (window as u32, widths.kv_heads as u32);
        let values = sections.tokens.len() * widths.heads * widths.head;
        // SAFETY: `attend` writes all values of all query heads of all tokens.
        let mut output = unsafe { self.device.alloc::<E>(values) }?;
        let mut launch = self.stream.launch_builder(&self.attend);
        launch.arg(&mut output).arg(&qkv).arg(arena);
        launch.arg(&tasks).arg(&spans).arg(&tables);
        launch
            .arg(on_cuda::<f32>(&cosines)?)
            .arg(on_cuda::<f32>(&sines)?);
        push_or_null(&mut launch, norm);
        launch.arg(&operands.epsilon).arg(&scale);
        launch.arg(&window).arg(&kv_heads);
        // SAFETY: the arguments match those of `attend` in order and type. The checks of chunks keep
        // every block of a table within the arena, and a table covers its chunk's positions.
        unsafe { launch.launch(grid(sections.tasks.len() / 2, widths.kv_heads, BLOCK)) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(output, self.device.clone()))
    }

    /// SwiGLU: `[row][gates, then ups]` to `[row][width]`.
    ///
    /// # Errors
    /// When the launch fails.
    pub(super) fn swiglu(
        &self,
        width: usize,
        gate_up: (&CudaStorage, &Layout),
    ) -> Result<CudaStorage> {
        match self.dtype {
            DType::BF16 => self.swiglu_as::<bf16>(width, gate_up),
            _ => self.swiglu_as::<f32>(width, gate_up),
        }
    }

    fn swiglu_as<E: CudaDType + DeviceRepr>(
        &self,
        width: usize,
        (gate_up, layout): (&CudaStorage, &Layout),
    ) -> Result<CudaStorage> {
        let gate_up = view::<E>(gate_up, layout)?;
        let count = layout.shape().elem_count() / 2;
        // SAFETY: `swiglu` writes `count` values.
        let mut output = unsafe { self.device.alloc::<E>(count) }?;
        let (width, count_word) = (width as u32, count as u32);
        let mut launch = self.stream.launch_builder(&self.swiglu);
        launch.arg(&mut output).arg(&gate_up);
        launch.arg(&width).arg(&count_word);
        // SAFETY: the arguments match those of `swiglu` in order and type; threads beyond `count`
        // return at once.
        unsafe { launch.launch(grid(count.div_ceil(BLOCK as usize), 1, BLOCK)) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(output, self.device.clone()))
    }
}

/// Null pointer for a table that the model does not have.
const NULL: u64 = 0;

fn push_or_null<'a>(launch: &mut LaunchArgs<'a>, table: Option<&'a CudaSlice<f32>>) {
    match table {
        Some(table) => launch.arg(table),
        None => launch.arg(&NULL),
    };
}
