//! Copies of jobs for learning: ordinary jobs of their own, made while their tier is idle.
//!
//! A copy has no key, reply, batch, deadline or cache entry, so nothing about it can delay or change
//! what the producer gets. Few are under way at once, and none is made while anything waits for
//! their tier: the first job that comes finds nearly all of its places free.

use std::time::Duration;

use chrono::Utc;

use crate::{
    broker::{Publication, publisher::publish_all},
    job::{Job, JobHead, JobId, JobState, Priority, Tier},
    router::{Router, intake, policy::Policy, target::load::TierLoad},
    shutdown::Shutdown,
    store::{Admission, AdmissionDecision, Admitted, Route, RouteReason, StoreError},
};

/// A copy that no worker has taken for so long is published again.
pub(in crate::router) const LOST_AFTER: Duration = Duration::from_secs(120);
/// Places of the tier for one copy that may be under way.
const PLACES_PER_COPY: u32 = 4;

/// How many more copies may be made for a tier while `open` are under way.
pub(in crate::router) fn room(load: TierLoad, open: u64) -> usize {
    let copies_max = u64::from((load.places / PLACES_PER_COPY).max(1));
    // Signs of life are some seconds old; the queue's depth is not.
    let is_idle = load.places > 0 && load.waiting == 0 && load.running <= load.places / 2;
    let room = if is_idle {
        copies_max.saturating_sub(open)
    } else {
        0
    };
    usize::try_from(room).unwrap_or(usize::MAX)
}

/// Admits and publishes copies; returns how many of them are new.
pub(in crate::router) async fn make(
    router: &Router,
    copies: Vec<Admission>,
    shutdown: &Shutdown,
) -> Result<u64, StoreError> {
    if copies.is_empty() {
        return Ok(0);
    }
    let lease = Duration::from_secs(router.cache.lease_s);
    let outcomes = router.store.admit(&copies, lease).await?;
    let mut made = 0;
    let messages: Vec<_> = copies
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| match outcome {
            Admitted::Routed => {
                made += 1;
                true
            }
            // Made before, by this router or another, and never taken.
            Admitted::Known(record) => record.state == JobState::Routed,
            _ => false,
        })
        .filter_map(|(copy, _)| intake::routed(copy))
        .map(|routed| Publication::to_tier(&routed))
        .collect();
    publish_all(&router.broker, messages, shutdown).await;
    Ok(made)
}

/// The copy of a job for a tier. Its id follows from the job's and what it is for, so that two routers
/// make the same one.
pub(in crate::router) fn copy_of(
    job: Job,
    tier: Tier,
    purpose: &str,
    policy: &Policy,
) -> Admission {
    let first = job.head.id;
    let head = JobHead {
        id: copy_id(first, purpose),
        tenant: job.head.tenant,
        key: None,
        custom_id: None,
        batch: None,
        deadline: None,
        not_before: None,
        attempts_max: None,
        reply_to: None,
        priority: Priority::Normal,
        redrive_of: None,
        submitted_at: Utc::now(),
    };
    let mut decision = policy.judge(&head, &job.request);
    decision.reason = RouteReason::Shadow;
    decision.shadow_of = Some(first);
    let canonical = serde_json::to_vec(&job.request).expect("a request has only text keys");
    Admission {
        digest: *blake3::hash(&canonical).as_bytes(),
        head,
        request: Some(job.request),
        decision: AdmissionDecision::Route(Route {
            tier,
            decision,
            // Its answer is for learning: it is not given to anybody, and none is taken for it.
            cache_key: None,
            pair: None,
            lookup: None,
            deferral: None,
        }),
    }
}

/// A UUIDv7 of the same instant as the job's, the rest drawn from it.
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
    fn a_copys_id_is_a_uuid7_of_the_jobs_instant_and_always_the_same() {
        let first = JobId::now();
        let copy = copy_id(first, "shadow");
        assert_eq!(copy.0.get_version_num(), 7);
        assert_eq!(copy.created_at(), first.created_at());
        assert_ne!(copy, first);
        assert_eq!(copy, copy_id(first, "shadow"));
        assert_ne!(copy, copy_id(first, "recheck"));
    }
}
