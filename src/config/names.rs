//! Settings whose values are names.

use crate::job::{Tier, unknown_name};

use super::setting::{RawValue, Setting};

macro_rules! named_setting {
    ($($type:ty),+) => {$(
        impl Setting for $type {
            fn read(raw: &RawValue<'_>) -> Option<Self> {
                String::read(raw)?.parse().ok()
            }

            fn show(&self) -> Option<String> {
                Some(format!("\"{self}\""))
            }
        }
    )+};
}

named_setting!(
    DeviceKind,
    LogFormat,
    PrefixSharing,
    PrivateAddresses,
    WeightKind
);

/// Which non-public addresses a model server may have.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_name::<PrivateAddresses>)]
pub enum PrivateAddresses {
    /// None.
    None,
    /// Private and loopback ones, not link-local ones, where clouds serve their metadata.
    Local,
    /// All.
    All,
}

/// The device of the in-process engine.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_name::<DeviceKind>)]
pub enum DeviceKind {
    /// A GPU if this binary supports one and it is present, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device; needs the feature `cuda`.
    Cuda,
    /// The Metal device; needs the feature `metal`.
    Metal,
}

/// Number format of the in-process engine's matrix products.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_name::<WeightKind>)]
pub enum WeightKind {
    /// f32; weights that are bf16 in the checkpoint stay bf16 in memory, without loss.
    F32,
    /// Weights, keys, values and the inputs of products rounded to bf16, sums in f32: faster on CPUs
    /// that multiply pairs of bf16. Elsewhere only weights, keys and values are rounded. The error of
    /// a product of random numbers is 0.2 %.
    Bf16,
    /// Weights and the inputs of products rounded to 8 bits with a scale for each 32 of them, keys
    /// and values to bf16: about half the memory of bf16, and faster again. The error of a product of
    /// random numbers is 0.7 %.
    Q8,
}

/// Which requests may share the keys and values of a prompt prefix.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_name::<PrefixSharing>)]
pub enum PrefixSharing {
    /// None: every prompt is computed from its first token.
    Off,
    /// Requests of the same tenant, so that no tenant can infer another's prompts from the time to
    /// the first token.
    Tenant,
    /// All requests.
    All,
}

/// The format of log lines.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_name::<LogFormat>)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// A set of tiers, written `small,large`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiers(Vec<Tier>);

impl Tiers {
    /// The tiers, small first.
    pub fn as_slice(&self) -> &[Tier] {
        &self.0
    }
}

impl Default for Tiers {
    fn default() -> Self {
        Self(Tier::ALL.to_vec())
    }
}

impl std::str::FromStr for Tiers {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let mut tiers = list
            .split(',')
            .map(|name| name.trim().parse())
            .collect::<Result<Vec<Tier>, _>>()?;
        tiers.sort();
        tiers.dedup();
        Ok(Self(tiers))
    }
}

impl Setting for Tiers {
    fn read(raw: &RawValue<'_>) -> Option<Self> {
        String::read(raw)?.parse().ok()
    }

    fn show(&self) -> Option<String> {
        let names: Vec<_> = self.0.iter().map(|tier| tier.as_str()).collect();
        names.join(",").show()
    }
}
