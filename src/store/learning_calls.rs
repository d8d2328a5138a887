//! The seam's calls for learning; [`super::Store`] holds the others.

use std::time::Duration;

use super::{
    DecisionRecord, Feedback, PairRow, PastDecision, ScopedTarget, Store, StoreError,
    StoredWeights, TierCost, measure,
};
use crate::{
    config::{RouteTarget, TargetScope},
    job::{Job, JobId, Tenant},
};

impl Store {
    /// Keeps words about answers; one flag for each, in order: false when `tenant` has no such job.
    /// A source's later word about a job takes the place of its earlier one.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn record_feedback(
        &self,
        tenant: &Tenant,
        words: &[Feedback],
    ) -> Result<Vec<bool>, StoreError> {
        measured!(self, "record_feedback", store => store.record_feedback(tenant, words))
    }

    /// Sees which copies for learning have ended and which of the drawn jobs need none, and returns how
    /// many copies are still under way.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn close_shadows(&self) -> Result<u64, StoreError> {
        measured!(self, "close_shadows", store => store.close_shadows())
    }

    /// Drawn jobs that small has answered and that have no copy yet, and those whose copy was made
    /// longer than `stuck_after` ago but that no worker has taken: its message may be lost.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn due_shadows(
        &self,
        limit: usize,
        stuck_after: Duration,
    ) -> Result<Vec<Job>, StoreError> {
        measured!(self, "due_shadows", store => store.due_shadows(limit, stuck_after))
    }

    /// Scores of the last `limit` jobs whose tier was the router's choice, scored by `scorer`, the
    /// oldest first; none older than a week.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn past_decisions(
        &self,
        scorer: &str,
        limit: usize,
    ) -> Result<Vec<PastDecision>, StoreError> {
        measured!(self, "past_decisions", store => store.past_decisions(scorer, limit))
    }

    /// What the last `limit` computed jobs of the last hour cost, by tier.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn tier_costs(&self, limit: usize) -> Result<Vec<TierCost>, StoreError> {
        measured!(self, "tier_costs", store => store.tier_costs(limit))
    }

    /// Jobs that both tiers answered, the latest first.
    ///
    /// `for_training` adds what was asked, and the jobs that were escalated with an answer of small's.
    /// These are no sample of the traffic, since small was unsure of them: no quality is told by them.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn pairs(
        &self,
        limit: usize,
        for_training: bool,
    ) -> Result<Vec<PairRow>, StoreError> {
        measured!(self, "pairs", store => store.pairs(limit, for_training))
    }

    /// The decision about a job; `None` when there is no such job.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn decision(&self, id: JobId) -> Result<Option<DecisionRecord>, StoreError> {
        measured!(self, "decision", store => store.decision(id))
    }

    /// Keeps learned weights, in place of others of the same version; with `promote` they become
    /// those that routers use.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn put_weights(
        &self,
        weights: &StoredWeights,
        promote: bool,
    ) -> Result<(), StoreError> {
        measured!(self, "put_weights", store => store.put_weights(weights, promote))
    }

    /// The weights that routers are to use, if any are.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn active_weights(&self) -> Result<Option<StoredWeights>, StoreError> {
        measured!(self, "active_weights", store => store.active_weights())
    }

    /// The targets that were set while routers run, by scope; they go before the configuration's.
    ///
    /// # Errors
    /// When the database cannot be reached, or a row that somebody wrote holds no target.
    pub async fn route_targets(&self) -> Result<Vec<ScopedTarget>, StoreError> {
        measured!(self, "route_targets", store => store.route_targets())
    }

    /// Sets a scope's target, in place of an earlier one.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn set_route_target(
        &self,
        scope: &TargetScope,
        target: RouteTarget,
    ) -> Result<(), StoreError> {
        measured!(self, "set_route_target", store => store.set_route_target(scope, target))
    }

    /// Removes a scope's target, so that it follows the configuration; false when it had none.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn unset_route_target(&self, scope: &TargetScope) -> Result<bool, StoreError> {
        measured!(self, "unset_route_target", store => store.unset_route_target(scope))
    }
}
