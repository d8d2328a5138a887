//! The two models that may both have a word in one job.

use serde::{Deserialize, Serialize};

use super::Tier;

/// A served model, exactly: equal ones give equal greedy answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedModel {
    /// The served model's name.
    pub model: String,
    /// Its revision.
    pub revision: String,
}

/// The models between which a job may be escalated, as the router knew them. The answer that is
/// reused for such a job is the final one, so its cache key covers both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelPair {
    /// The one that answers first.
    pub small: ServedModel,
    /// The one that takes over.
    pub large: ServedModel,
}

impl ModelPair {
    /// The pair with `served` in a tier's place.
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
