//! The two models of a job that may be escalated.

use serde::{Deserialize, Serialize};

use super::state::Tier;

/// A served model; equal names and revisions give equal greedy answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedModel {
    /// The served model's name.
    pub model: String,
    /// Its revision.
    pub revision: String,
}

/// The models between which a job may be escalated, as the router knew them. Its reused answer may
/// come from either, so its cache key covers both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelPair {
    /// The model that answers first.
    pub small: ServedModel,
    /// The model that takes over.
    pub large: ServedModel,
}

impl ModelPair {
    /// The pair with one tier's model replaced.
    #[must_use]
    pub fn with(&self, tier: Tier, served: ServedModel) -> Self {
        let mut pair = self.clone();
        match tier {
            Tier::Small => pair.small = served,
            Tier::Large => pair.large = served,
        }
        pair
    }

    /// Names and revisions, small first, as the cache key takes them.
    pub fn names(&self) -> [(&str, &str); 2] {
        [&self.small, &self.large].map(|one| (one.model.as_str(), one.revision.as_str()))
    }
}
