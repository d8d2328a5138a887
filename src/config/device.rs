//! Where the in-process engine computes.

use std::{fmt, str::FromStr};

use super::setting::{Given, Setting};

/// Where the in-process engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A GPU when this binary was built for one and it is there, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device; needs the feature `cuda`.
    Cuda,
    /// The Metal device; needs the feature `metal`.
    Metal,
}

impl DeviceKind {
    const NAMES: [(&'static str, Self); 4] = [
        ("auto", Self::Auto),
        ("cpu", Self::Cpu),
        ("cuda", Self::Cuda),
        ("metal", Self::Metal),
    ];
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::NAMES.iter().find(|(_, kind)| kind == self);
        f.write_str(known.expect("NAMES lists every kind").0)
    }
}

impl FromStr for DeviceKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match Self::NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, kind)) => Ok(*kind),
            None => Err(format!(
                "expected \"auto\", \"cpu\", \"cuda\" or \"metal\", found {name:?}"
            )),
        }
    }
}

impl Setting for DeviceKind {
    fn read(given: &Given<'_>) -> Option<Self> {
        String::read(given)?.parse().ok()
    }

    fn show(&self) -> Option<String> {
        Some(format!("\"{self}\""))
    }
}
