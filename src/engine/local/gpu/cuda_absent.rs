//! In place of the CUDA kernels in a build without them: nothing reaches it, since no CUDA device
//! can be opened.

use candle_core::{CudaStorage, DType, Device, Error, Layout, Result};

use super::{
    Widths,
    attention::{Attend, Place},
};

/// No kernels.
#[derive(Debug)]
pub(super) struct Kernels;

pub(super) fn open() -> Result<Device> {
    Err(Error::NotCompiledWithCudaSupport)
}

impl Kernels {
    pub(super) fn compile(_: &Device, _: Widths, _: DType) -> Result<Option<Self>> {
        Ok(None)
    }

    pub(super) fn place(
        &self,
        _: &Place<'_>,
        _: &mut CudaStorage,
        _: (&CudaStorage, &Layout),
    ) -> Result<()> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(super) fn attend(
        &self,
        _: &Attend<'_>,
        _: (&CudaStorage, &Layout),
        _: &CudaStorage,
    ) -> Result<CudaStorage> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(super) fn gate(&self, _: usize, _: (&CudaStorage, &Layout)) -> Result<CudaStorage> {
        Err(Error::NotCompiledWithCudaSupport)
    }
}
