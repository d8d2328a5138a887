//! Which device computes.

use candle_core::{
    Device,
    utils::{cuda_is_available, metal_is_available},
};

use crate::config::DeviceKind;

use super::cuda;

/// Opens the device that the setting names; `None` is the CPU with its own decoder.
///
/// # Errors
/// One line when a named device was not built in or is not there.
pub fn open_device(kind: DeviceKind) -> Result<Option<Device>, String> {
    match kind {
        DeviceKind::Cpu => Ok(None),
        DeviceKind::Cuda if !cuda_is_available() => Err(absent("cuda")),
        DeviceKind::Metal if !metal_is_available() => Err(absent("metal")),
        DeviceKind::Cuda => cuda::open()
            .map(Some)
            .map_err(|error| format!("no CUDA device can be opened: {error}")),
        DeviceKind::Metal => Device::new_metal(0)
            .map(Some)
            .map_err(|error| format!("no Metal device can be opened: {error}")),
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

/// A device that is there, or the reason in the log why the CPU computes instead.
fn found(name: &str, device: candle_core::Result<Device>) -> Option<Device> {
    device
        .inspect_err(|error| {
            tracing::warn!("no {name} device can be opened, the CPU computes: {error}")
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use crate::engine::local::gpu::open::*;

    #[test]
    fn the_cpu_needs_no_device_and_what_was_not_built_in_is_said() {
        assert!(open_device(DeviceKind::Cpu).expect("is there").is_none());
        for (kind, is_built_in) in [
            (DeviceKind::Cuda, cuda_is_available()),
            (DeviceKind::Metal, metal_is_available()),
        ] {
            if !is_built_in {
                let error = open_device(kind).expect_err("is not built in");
                assert!(
                    error.contains(&format!("without the feature `{kind}`")),
                    "{error}"
                );
            }
        }
    }
}
