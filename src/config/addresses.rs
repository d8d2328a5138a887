//! Which addresses a model server may have.

use super::setting::{Given, Setting};

/// Which addresses a model server may have, besides public ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateAddresses {
    /// None.
    None,
    /// Private and loopback ones, not link-local ones, where clouds keep their metadata.
    Local,
    /// All.
    All,
}

impl Setting for PrivateAddresses {
    fn read(given: &Given<'_>) -> Option<Self> {
        match String::read(given)?.as_str() {
            "none" => Some(Self::None),
            "local" => Some(Self::Local),
            "all" => Some(Self::All),
            _ => None,
        }
    }

    fn show(&self) -> Option<String> {
        let name = match self {
            Self::None => "none",
            Self::Local => "local",
            Self::All => "all",
        };
        Some(format!("\"{name}\""))
    }
}
