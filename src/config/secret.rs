//! Settings that hold secrets.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

use super::setting::{RawValue, Setting};

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
    fn read(raw: &RawValue<'_>) -> Option<Self> {
        String::read(raw).map(Self::new)
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
                    // A URL with a host accepts a password.
                    let _ = url.set_password(Some("***"));
                }
                if url.query().is_some() {
                    url.set_query(Some("***"));
                }
                url.to_string()
            }
            _ if text.contains('@') => match text.split_once(':') {
                // The scheme stays, so that the shown configuration can be loaded.
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
    fn read(raw: &RawValue<'_>) -> Option<Self> {
        String::read(raw).map(Self::new)
    }

    fn show(&self) -> Option<String> {
        self.masked().show()
    }
}
