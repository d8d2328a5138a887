//! The types a setting may have, and the macro that declares a section of them.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use toml::de::DeValue;

use crate::job::Tier;

/// A value on its way into a setting.
pub enum Given<'a> {
    /// From the file.
    Toml(&'a DeValue<'a>),
    /// From a variable or a flag.
    Text(&'a str),
}

impl Given<'_> {
    /// What came, for error messages; strings are not quoted since they may hold a secret.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Toml(DeValue::Integer(n)) => n.to_string(),
            Self::Toml(DeValue::Float(n)) => n.as_str().to_owned(),
            Self::Toml(DeValue::Boolean(b)) => b.to_string(),
            Self::Toml(DeValue::String(_)) => "another string".to_owned(),
            Self::Toml(value) => format!("a value of type {}", value.type_str()),
            Self::Text(_) => "another text".to_owned(),
        }
    }
}

/// A type that a setting can have.
pub trait Setting: Sized {
    /// Reads a value; `None` when it does not fit.
    fn read(given: &Given<'_>) -> Option<Self>;
    /// The value as a TOML literal, masked where secret; `None` when unset.
    fn show(&self) -> Option<String>;
}

macro_rules! integer_setting {
    ($($type:ty),+) => {$(
        impl Setting for $type {
            fn read(given: &Given<'_>) -> Option<Self> {
                match given {
                    Given::Toml(DeValue::Integer(n)) => {
                        Self::from_str_radix(n.as_str(), n.radix()).ok()
                    }
                    Given::Toml(_) => None,
                    Given::Text(text) => text.trim().parse().ok(),
                }
            }

            fn show(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    )+};
}

integer_setting!(u16, u32, u64, usize);

impl Setting for f64 {
    fn read(given: &Given<'_>) -> Option<Self> {
        match given {
            Given::Toml(DeValue::Float(n)) => n.as_str().parse().ok(),
            Given::Toml(DeValue::Integer(n)) => i64::from_str_radix(n.as_str(), n.radix())
                .ok()
                .map(|n| n as Self),
            Given::Toml(_) => None,
            Given::Text(text) => text.trim().parse().ok(),
        }
    }

    fn show(&self) -> Option<String> {
        Some(format!("{self:?}"))
    }
}

impl Setting for bool {
    fn read(given: &Given<'_>) -> Option<Self> {
        match given {
            Given::Toml(DeValue::Boolean(is)) => Some(*is),
            Given::Toml(_) => None,
            Given::Text(text) => text.trim().parse().ok(),
        }
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Setting for String {
    fn read(given: &Given<'_>) -> Option<Self> {
        match given {
            Given::Toml(DeValue::String(text)) => Some(text.to_string()),
            Given::Toml(_) => None,
            Given::Text(text) => Some((*text).to_owned()),
        }
    }

    fn show(&self) -> Option<String> {
        Some(toml::Value::String(self.clone()).to_string())
    }
}

impl<T: Setting> Setting for Option<T> {
    fn read(given: &Given<'_>) -> Option<Self> {
        T::read(given).map(Some)
    }

    fn show(&self) -> Option<String> {
        self.as_ref().and_then(T::show)
    }
}

/// A secret: never shown, never in `Debug`.
#[derive(Clone, Debug)]
pub struct Secret(SecretString);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(SecretString::from(secret.into()))
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl Setting for Secret {
    fn read(given: &Given<'_>) -> Option<Self> {
        String::read(given).map(Self::new)
    }

    fn show(&self) -> Option<String> {
        Some("\"***\"".to_owned())
    }
}

/// A URL whose password, if any, is never shown.
#[derive(Clone)]
pub struct SecretUrl(SecretString);

impl SecretUrl {
    /// Wraps a URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(SecretString::from(url.into()))
    }

    /// The URL with its password.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The URL with its password and query masked.
    pub fn masked(&self) -> String {
        let text = self.expose();
        match url::Url::parse(text) {
            Ok(mut url) if url.has_host() => {
                if url.password().is_some() {
                    // A URL that has a host takes a password.
                    let _ = url.set_password(Some("***"));
                }
                if url.query().is_some() {
                    url.set_query(Some("***"));
                }
                url.to_string()
            }
            _ if text.contains('@') => match text.split_once(':') {
                // What is shown keeps the scheme, so that it can be loaded.
                Some((scheme, _)) if !scheme.contains('@') => format!("{scheme}:***"),
                _ => "***".to_owned(),
            },
            _ => text.to_owned(),
        }
    }

    /// True when the URL has one of these schemes.
    pub fn has_scheme(&self, schemes: &[&str]) -> bool {
        self.expose()
            .split_once(':')
            .is_some_and(|(scheme, rest)| schemes.contains(&scheme) && !rest.is_empty())
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl Setting for SecretUrl {
    fn read(given: &Given<'_>) -> Option<Self> {
        String::read(given).map(Self::new)
    }

    fn show(&self) -> Option<String> {
        self.masked().show()
    }
}

/// What the in-process engine computes products in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// f32; weights that are bf16 in the checkpoint stay so in memory and lose nothing.
    F32,
    /// Weights, keys, values and the inputs of products rounded to bf16, sums in f32: faster where
    /// the CPU multiplies pairs of bf16. Elsewhere weights, keys and values are rounded. A product
    /// of random numbers is 0.2 % off.
    Bf16,
    /// Weights and the inputs of products rounded to 8 bits with a scale for each 32 of them, keys
    /// and values to bf16: about half the memory of bf16, and faster again. A product of random
    /// numbers is 0.7 % off.
    Q8,
}

impl fmt::Display for WeightKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        })
    }
}

impl std::str::FromStr for WeightKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "q8" => Ok(Self::Q8),
            _ => Err(format!(
                "expected \"f32\", \"bf16\" or \"q8\", found {name:?}"
            )),
        }
    }
}

impl Setting for WeightKind {
    fn read(given: &Given<'_>) -> Option<Self> {
        String::read(given)?.parse().ok()
    }

    fn show(&self) -> Option<String> {
        Some(format!("\"{self}\""))
    }
}

/// Who may use the keys and values that a prompt's beginning was computed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixSharing {
    /// Nobody: every prompt is computed from its first token.
    Off,
    /// Requests of the same tenant, so that no tenant learns from the time to the first token what
    /// another one asked.
    Tenant,
    /// All requests.
    All,
}

impl Setting for PrefixSharing {
    fn read(given: &Given<'_>) -> Option<Self> {
        match String::read(given)?.as_str() {
            "off" => Some(Self::Off),
            "tenant" => Some(Self::Tenant),
            "all" => Some(Self::All),
            _ => None,
        }
    }

    fn show(&self) -> Option<String> {
        let name = match self {
            Self::Off => "off",
            Self::Tenant => "tenant",
            Self::All => "all",
        };
        Some(format!("\"{name}\""))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("expected \"text\" or \"json\", found {name:?}")),
        }
    }
}

impl Setting for LogFormat {
    fn read(given: &Given<'_>) -> Option<Self> {
        String::read(given)?.parse().ok()
    }

    fn show(&self) -> Option<String> {
        Some(match self {
            Self::Text => "\"text\"".to_owned(),
            Self::Json => "\"json\"".to_owned(),
        })
    }
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
    fn read(given: &Given<'_>) -> Option<Self> {
        String::read(given)?.parse().ok()
    }

    fn show(&self) -> Option<String> {
        let names: Vec<_> = self.0.iter().map(|tier| tier.as_str()).collect();
        names.join(",").show()
    }
}

/// Declares a section: `name: Type = default, "what is expected", |value| check;`.
macro_rules! settings {
    (
        $(#[doc = $section_doc:literal])+
        pub struct $section:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $default:expr, $expected:literal $(, |$value:ident| $check:expr)?;
            )+
        }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Clone, Debug)]
        pub struct $section {
            $(
                $(#[doc = $doc])+
                pub $field: $type,
            )+
        }

        impl Default for $section {
            fn default() -> Self {
                Self { $($field: $default),+ }
            }
        }

        impl Section for $section {
            fn fields(&self) -> &'static [Field] {
                &[$(Field {
                    name: stringify!($field),
                    doc: concat!($($doc),+),
                    expected: $expected,
                }),+]
            }

            fn set(&mut self, field: &str, given: &Given<'_>) -> Result<(), String> {
                match field {
                    $(stringify!($field) => {
                        let value = <$type as Setting>::read(given)
                            $(.filter(|$value: &$type| $check))?
                            .ok_or_else(|| format!("expected {}, found {}", $expected, given.describe()))?;
                        self.$field = value;
                        Ok(())
                    })+
                    _ => {
                        let known = [$(stringify!($field)),+].join(", ");
                        Err(format!("unknown field; known are {known}"))
                    }
                }
            }

            fn show(&self, field: &str) -> Option<String> {
                match field {
                    $(stringify!($field) => Setting::show(&self.$field),)+
                    _ => None,
                }
            }
        }
    };
}
pub(super) use settings;
