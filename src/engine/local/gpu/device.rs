//! Selects the device that computes.

use candle_core::{
    Device,
    utils::{cuda_is_available, metal_is_available},
};

use crate::config::DeviceKind;

use super::cuda;

/// Opens the configured device; `None` selects the CPU decoder.
///
/// # Errors
/// One line when a named device is not supported by this build or not available.
pub fn open_device(kind: DeviceKind) -> Result<Option<Device>, String> {
    match kind {
        DeviceKind::Cpu => Ok(None),
        DeviceKind::Cuda if !cuda_is_available() => Err(absent("cuda")),
        DeviceKind::Metal if !metal_is_available() => Err(absent("metal")),
        DeviceKind::Cuda => cuda::open()
            .map(Some)
            .map_err(|error| format!("cannot open a CUDA device: {error}")),
        DeviceKind::Metal => Device::new_metal(0)
            .map(Some)
            .map_err(|error| format!("cannot open a Metal device: {error}")),
        DeviceKind::Auto if cuda_is_available() => Ok(found("CUDA", cuda::open())),
        DeviceKind::Auto if metal_is_available() => Ok(found("Metal", Device::new_metal(0))),
        DeviceKind::Auto => Ok(None),
    }
}

fn absent(feature: &str) -> String {
    format!(
        "device = {feature:?}, but this binary was built without the feature `{feature}`; use \"cpu\" or \"auto\""
    )
}

/// The device, or `None` after logging why the CPU is used instead.
fn found(name: &str, device: candle_core::Result<Device>) -> Option<Device> {
    device
        .inspect_err(|error| tracing::warn!(%error, "cannot open a {name} device; using the CPU"))
        .ok()
}

#[cfg(test)]
mod tests {
    use crate::engine::local::gpu::device::*;

    #[test]
    fn the_cpu_needs_no_device_and_missing_features_are_reported() {
        assert!(open_device(DeviceKind::Cpu).expect("available").is_none());
        for (kind, is_built_in) in [
            (DeviceKind::Cuda, cuda_is_available()),
            (DeviceKind::Metal, metal_is_available()),
        ] {
            if !is_built_in {
                let error = open_device(kind).expect_err("not built in");
                assert!(
                    error.contains(&format!("without the feature `{kind}`")),
                    "{error}"
                );
            }
        }
    }
}
