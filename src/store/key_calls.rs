//! The seam's calls for keys of the HTTP interface; [`super::Store`] holds the others.

use uuid::Uuid;

use super::{ApiKey, KeyDigest, Store, StoreError, measure};

impl Store {
    /// Keeps a key under the digest of its secret.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn add_key(&self, key: &ApiKey, digest: KeyDigest) -> Result<(), StoreError> {
        measured!(self, "add_key", store => store.add_key(key, digest))
    }

    /// Every key, the oldest first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        measured!(self, "keys", store => store.keys())
    }

    /// The key of this digest, if it is good now.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn find_key(&self, digest: KeyDigest) -> Result<Option<ApiKey>, StoreError> {
        measured!(self, "find_key", store => store.find_key(digest))
    }

    /// Revokes a key; false when there is none or it was revoked before.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn revoke_key(&self, id: Uuid) -> Result<bool, StoreError> {
        measured!(self, "revoke_key", store => store.revoke_key(id))
    }
}
