//! What a setting and a section are, and the macro that declares a section.

use toml::de::DeValue;

/// Describes one setting to people: `config show`, the documentation and the compose-file test.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The field's name within its section.
    pub name: &'static str,
    /// What it does, with unit.
    pub doc: &'static str,
    /// What values are accepted.
    pub expected: &'static str,
}

/// A section of the configuration, addressed by field names.
pub trait Section {
    /// What it configures.
    fn doc(&self) -> &'static str;
    /// Its fields, in order.
    fn fields(&self) -> &'static [Field];
    /// Sets one field. The error says what was expected and what was found.
    ///
    /// # Errors
    /// When the field is unknown, or the value has the wrong type or is out of range.
    fn set(&mut self, field: &str, raw: &RawValue<'_>) -> Result<(), String>;
    /// The present value as a TOML literal with secrets masked; `None` when unset.
    fn show(&self, field: &str) -> Option<String>;
}

/// A value before it is read as a setting.
pub enum RawValue<'a> {
    /// From the file.
    Toml(&'a DeValue<'a>),
    /// From a variable or a flag.
    Text(&'a str),
}

impl RawValue<'_> {
    /// The value for error messages; strings are not quoted since they may hold a secret.
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
    fn read(raw: &RawValue<'_>) -> Option<Self>;
    /// The value as a TOML literal, masked where secret; `None` when unset.
    fn show(&self) -> Option<String>;
}

macro_rules! integer_setting {
    ($($type:ty),+) => {$(
        impl Setting for $type {
            fn read(raw: &RawValue<'_>) -> Option<Self> {
                match raw {
                    RawValue::Toml(DeValue::Integer(n)) => {
                        Self::from_str_radix(n.as_str(), n.radix()).ok()
                    }
                    RawValue::Toml(_) => None,
                    RawValue::Text(text) => text.trim().parse().ok(),
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
    fn read(raw: &RawValue<'_>) -> Option<Self> {
        match raw {
            RawValue::Toml(DeValue::Float(n)) => n.as_str().parse().ok(),
            RawValue::Toml(DeValue::Integer(n)) => i64::from_str_radix(n.as_str(), n.radix())
                .ok()
                .map(|n| n as Self),
            RawValue::Toml(_) => None,
            RawValue::Text(text) => text.trim().parse().ok(),
        }
    }

    fn show(&self) -> Option<String> {
        Some(format!("{self:?}"))
    }
}

impl Setting for bool {
    fn read(raw: &RawValue<'_>) -> Option<Self> {
        match raw {
            RawValue::Toml(DeValue::Boolean(is)) => Some(*is),
            RawValue::Toml(_) => None,
            RawValue::Text(text) => text.trim().parse().ok(),
        }
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Setting for String {
    fn read(raw: &RawValue<'_>) -> Option<Self> {
        match raw {
            RawValue::Toml(DeValue::String(text)) => Some(text.to_string()),
            RawValue::Toml(_) => None,
            RawValue::Text(text) => Some((*text).to_owned()),
        }
    }

    fn show(&self) -> Option<String> {
        Some(toml::Value::String(self.clone()).to_string())
    }
}

impl<T: Setting> Setting for Option<T> {
    fn read(raw: &RawValue<'_>) -> Option<Self> {
        T::read(raw).map(Some)
    }

    fn show(&self) -> Option<String> {
        self.as_ref().and_then(T::show)
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
            fn doc(&self) -> &'static str {
                concat!($($section_doc),+)
            }

            fn fields(&self) -> &'static [Field] {
                &[$(Field {
                    name: stringify!($field),
                    doc: concat!($($doc),+),
                    expected: $expected,
                }),+]
            }

            fn set(&mut self, field: &str, raw: &RawValue<'_>) -> Result<(), String> {
                match field {
                    $(stringify!($field) => {
                        let value = <$type as Setting>::read(raw)
                            $(.filter(|$value: &$type| $check))?
                            .ok_or_else(|| format!("expected {}, found {}", $expected, raw.describe()))?;
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
