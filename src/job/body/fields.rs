//! A JSON object whose fields are taken out one by one, and the errors about them.

use serde_json::{Map, Value};

use crate::job::state::Reason;

/// An object's fields; those left after reading are unknown.
pub(in crate::job) struct Fields {
    pub object: Map<String, Value>,
}

impl Fields {
    /// Takes a field; `null` counts as absent, as with OpenAI.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name).filter(|value| !value.is_null())
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

pub(in crate::job) fn wrong_type(field: &str, expected: &str, found: &Value) -> Reason {
    Reason::new(
        "invalid_type",
        format!("{field}: expected {expected}, found {}", type_name(found)),
    )
}

/// Quotes numbers and booleans; a string may hold prompt text, so only its type is named.
pub(in crate::job) fn wrong_value(field: &str, expected: &str, found: &Value) -> Reason {
    let found = match found {
        Value::Number(number) => number.to_string(),
        Value::Bool(boolean) => boolean.to_string(),
        other => type_name(other).to_owned(),
    };
    Reason::new(
        "invalid_value",
        format!("{field}: expected {expected}, found {found}"),
    )
}

pub(in crate::job) fn unknown_field(field: &str, known: &str) -> Reason {
    // The name is the producer's text: keep it short.
    let shown: String = field.chars().take(64).collect();
    Reason::new(
        "unknown_field",
        format!("unknown field {shown:?}; known are {known}"),
    )
}
