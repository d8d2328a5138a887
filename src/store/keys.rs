//! API keys. The secret itself is shown once, on creation.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use rand::Rng as _;
use uuid::Uuid;

use crate::{
    config::Secret,
    job::{Tenant, unknown_name},
};

/// Prefix by which people and secret scanners recognise a key.
const PREFIX: &str = "pyk_";
/// Random bytes of a key.
const KEY_BYTES: usize = 32;

/// What a key allows.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantNames,
)]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_name::<Scope>)]
pub enum Scope {
    /// Submitting and cancelling jobs.
    Submit,
    /// Reading jobs, answers and attempts.
    Read,
    /// Dead letters and tenants.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Submit, Self::Read, Self::Admin];

    /// The name used in SQL, JSON and flags.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A set of scopes, written `submit,read`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// All of them.
    pub fn all() -> Self {
        Self(Scope::ALL.to_vec())
    }

    /// True when a scope is among them.
    pub fn contain(&self, scope: Scope) -> bool {
        self.0.contains(&scope)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|scope| scope.as_str()).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Scopes {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let names = list.split(',').map(str::trim);
        let mut scopes = names.map(str::parse).collect::<Result<Vec<Scope>, _>>()?;
        scopes.sort();
        scopes.dedup();
        Ok(Self(scopes))
    }
}

/// An API key in the database.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ApiKey {
    /// Its public identity.
    pub id: Uuid,
    /// A description of its use.
    pub name: String,
    /// The tenant it is restricted to; `None` allows all.
    pub tenant: Option<Tenant>,
    /// What it allows.
    pub scopes: Scopes,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// BLAKE3 of a key. A key has 256 random bits, so nothing slower is needed to keep it from being guessed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// The digest of a key as it was presented.
    pub fn of(key: &str) -> Self {
        Self(*blake3::hash(key.as_bytes()).as_bytes())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(…)")
    }
}

/// Makes a new key from the operating system's randomness.
pub fn new_key() -> Secret {
    let mut bytes = [0_u8; KEY_BYTES];
    rand::rng().fill_bytes(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Secret::new(format!("{PREFIX}{hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_and_differ() {
        let (one, other) = (new_key(), new_key());
        assert!(one.expose().starts_with("pyk_") && one.expose().len() == 68);
        assert_ne!(one.expose(), other.expose());
        assert_ne!(KeyDigest::of(one.expose()), KeyDigest::of(other.expose()));
        assert!(!format!("{one:?}").contains(one.expose()));
    }

    #[test]
    fn scopes_are_read_as_they_are_written() {
        let scopes: Scopes = "read, submit,read".parse().expect("scopes");
        assert_eq!(scopes.to_string(), "submit,read");
        assert!(scopes.contain(Scope::Read) && !scopes.contain(Scope::Admin));
        assert!("write".parse::<Scopes>().is_err() && "".parse::<Scopes>().is_err());
    }
}
