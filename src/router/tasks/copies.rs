//! Copies of jobs for learning: jobs of their own, made while their tier is idle.
//!
//! A copy has no key, reply queue, batch, deadline or cache entry, so it neither delays nor changes
//! what the producer gets. Few copies run at once, and none is made while a job waits for their tier:
//! the next job finds nearly all of its places free.

use std::time::Duration;

use crate::{
    broker::{Publication, publisher::publish_all},
    job::{Job, JobHead, JobId, JobState, Tier},
    router::{intake, policy::Policy, role::TaskContext, target::load::TierLoad},
    store::{Admission, AdmissionDecision, Admitted, Route, RouteReason, StoreError},
};

/// A copy that no worker has claimed for so long is published again.
pub(in crate::router) const STUCK_AFTER: Duration = Duration::from_secs(120);
/// Places of the tier for each copy that may run.
const PLACES_PER_COPY: u32 = 4;

/// The number of copies that may be made for a tier while `open` have not ended.
pub(in crate::router) fn allowed(load: TierLoad, open: u64) -> usize {
    let copies_max = u64::from((load.places / PLACES_PER_COPY).max(1));
    // Heartbeats are some seconds old; the queue's depth is not.
    let is_idle = load.places > 0 && load.waiting == 0 && load.running <= load.places / 2;
    let allowed = if is_idle {
        copies_max.saturating_sub(open)
    } else {
        0
    };
    usize::try_from(allowed).unwrap_or(usize::MAX)
}

/// Admits and publishes copies; returns the number of new ones.
pub(in crate::router) async fn make(
    TaskContext {
        router, shutdown, ..
    }: &TaskContext,
    copies: Vec<Admission>,
) -> Result<u64, StoreError> {
    if copies.is_empty() {
        return Ok(0);
    }
    let lease = Duration::from_secs(router.cache.lease_s);
    let outcomes = router.store.admit(&copies, lease).await?;
    let mut made = 0;
    let messages: Vec<_> = copies
        .into_iter()
        .zip(outcomes)
        .filter(|(_, outcome)| match outcome {
            Admitted::Routed => {
                made += 1;
                true
            }
            // Made before, by this router or another, and never claimed.
            Admitted::Known(record) => record.state == JobState::Routed,
            _ => false,
        })
        .filter_map(|(copy, _)| intake::routed(copy))
        .map(|routed| Publication::to_tier(&routed))
        .collect();
    publish_all(&router.broker, messages, shutdown).await;
    Ok(made)
}

/// The copy of a job for a tier. Its id derives from the job's and the purpose, so that two routers
/// make the same one.
pub(in crate::router) fn copy_of(
    Job { head, request }: Job,
    tier: Tier,
    purpose: &str,
    policy: &Policy,
) -> Admission {
    let first = head.id;
    let head = JobHead {
        id: copy_id(first, purpose),
        ..JobHead::new(head.tenant)
    };
    let mut decision = policy.score(&head, &request);
    decision.reason = RouteReason::Shadow;
    decision.shadow_of = Some(first);
    let route = Route {
        tier,
        decision,
        // Its answer is for learning: it is neither reused nor taken from the cache.
        cache_key: None,
        pair: None,
        lookup: None,
        deferral: None,
    };
    Admission::new(head, request, AdmissionDecision::Route(route))
}

/// A UUIDv7 with the job's timestamp; its other bits are a hash of the job's id and the purpose.
fn copy_id(first: JobId, purpose: &str) -> JobId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(purpose.as_bytes()).update(first.0.as_bytes());
    let digest = hasher.finalize();
    let mut bytes = *first.0.as_bytes();
    bytes[6..].copy_from_slice(&digest.as_bytes()[..10]);
    bytes[6] = 0x70 | bytes[6] & 0x0f;
    bytes[8] = 0x80 | bytes[8] & 0x3f;
    JobId(uuid::Uuid::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use crate::router::tasks::copies::*;

    #[test]
    fn a_copys_id_is_a_uuid7_that_derives_from_the_jobs_id() {
        let first = JobId::now();
        let copy = copy_id(first, "shadow");
        assert_eq!(copy.0.get_version_num(), 7);
        assert_eq!(copy.created_at(), first.created_at());
        assert_ne!(copy, first);
        assert_eq!(copy, copy_id(first, "shadow"));
        assert_ne!(copy, copy_id(first, "recheck"));
    }
}
