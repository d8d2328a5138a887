//! Replaces the CUDA kernels in builds without them; unreachable, since no CUDA device can be
//! opened.

use candle_core::{CudaStorage, DType, Device, Error, Layout, Result};

use crate::engine::local::shape::HeadWidths;

use super::step::StepOperands;

/// No kernels.
#[derive(Debug)]
pub(super) struct Kernels;

pub(super) fn open() -> Result<Device> {
    Err(Error::NotCompiledWithCudaSupport)
}

impl Kernels {
    pub(super) fn compile(_: &Device, _: HeadWidths, _: DType) -> Result<Option<Self>> {
        Ok(None)
    }

    pub(super) fn write_kv(
        &self,
        _: &StepOperands<'_>,
        _: &mut CudaStorage,
        _: (&CudaStorage, &Layout),
    ) -> Result<()> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(super) fn attend(
        &self,
        _: &StepOperands<'_>,
        _: usize,
        _: (&CudaStorage, &Layout),
        _: &CudaStorage,
    ) -> Result<CudaStorage> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(super) fn swiglu(&self, _: usize, _: (&CudaStorage, &Layout)) -> Result<CudaStorage> {
        Err(Error::NotCompiledWithCudaSupport)
    }
}
