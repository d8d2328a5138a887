//! Copies for learning: jobs that small has answered, run on large as well while it is idle.
//!
//! A job is drawn with its decision, and nothing more happens until it has its answer. Its copy is
//! a job of its own, without key, reply, batch or deadline, so nothing about it can delay or change
//! what the producer gets. Few are under way at once, and none is made while anything waits for
//! large: the first job that comes finds nearly all of its places free.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use metrics::counter;

use crate::{
    broker::{Publication, outbox::publish_all},
    job::{Job, JobHead, JobId, JobState, Priority, Tier},
    metrics::SHADOWS,
    shutdown::Shutdown,
    store::{Admission, Admitted, Course, Route, RouteReason, StoreFault},
};

use super::{Router, directory::Directory, intake, observer, policy::Policy};

/// How often drawn jobs are looked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// A copy that no worker has taken for so long is published again.
const LOST_AFTER: Duration = Duration::from_secs(120);
/// Places of large for one copy that may be under way.
const PLACES_PER_COPY: u32 = 4;

/// Makes copies until asked to stop.
pub(super) async fn run(
    router: Router,
    (policy, directory): (Arc<Policy>, Directory),
    shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if let Err(fault) = look(&router, &policy, &directory, &shutdown).await {
            tracing::warn!(%fault, "cannot look for jobs to copy");
        }
    }
}

async fn look(
    router: &Router,
    policy: &Policy,
    directory: &Directory,
    shutdown: &Shutdown,
) -> Result<(), StoreFault> {
    let open = router.store.close_shadows().await?;
    let large = match observer::tier_loads(&router.broker, directory, &[]).await {
        Ok([_, large]) => large,
        // Whoever uses the broker in earnest tells what is wrong with it.
        Err(_) => return Ok(()),
    };
    let copies_max = u64::from((large.places / PLACES_PER_COPY).max(1));
    // Signs of life are some seconds old; the queue's depth is not.
    let is_idle = large.places > 0 && large.waiting == 0 && large.running <= large.places / 2;
    let room = copies_max.saturating_sub(open);
    if !is_idle || room == 0 {
        return Ok(());
    }
    let due = router
        .store
        .due_shadows(usize::try_from(room).unwrap_or(usize::MAX), LOST_AFTER)
        .await?;
    if due.is_empty() {
        return Ok(());
    }
    let copies: Vec<Admission> = due.into_iter().map(|job| copy_of(job, policy)).collect();
    let lease = Duration::from_secs(router.cache.lease_s);
    let outcomes = router.store.admit(&copies, lease).await?;
    let messages: Vec<_> = copies
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| match outcome {
            Admitted::Routed => {
                counter!(SHADOWS).increment(1);
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
    Ok(())
}

/// The copy of a job. Its id follows from the job's, so that two routers make the same one.
fn copy_of(job: Job, policy: &Policy) -> Admission {
    let first = job.head.id;
    let head = JobHead {
        id: copy_id(first),
        tenant: job.head.tenant,
        key: None,
        custom_id: None,
        batch: None,
        deadline: None,
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
        course: Course::Route(Route {
            tier: Tier::Large,
            decision,
            // Its answer is for learning: it is not given to anybody, and none is taken for it.
            cache_key: None,
            pair: None,
        }),
    }
}

/// A UUIDv7 of the same instant as the job's, the rest drawn from it.
fn copy_id(first: JobId) -> JobId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"shadow").update(first.0.as_bytes());
    let digest = hasher.finalize();
    let mut bytes = *first.0.as_bytes();
    bytes[6..].copy_from_slice(&digest.as_bytes()[..10]);
    bytes[6] = 0x70 | bytes[6] & 0x0f;
    bytes[8] = 0x80 | bytes[8] & 0x3f;
    JobId(uuid::Uuid::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copys_id_is_a_uuid7_of_the_jobs_instant_and_always_the_same() {
        let first = JobId::now();
        let copy = copy_id(first);
        assert_eq!(copy.0.get_version_num(), 7);
        assert_eq!(copy.created_at(), first.created_at());
        assert_ne!(copy, first);
        assert_eq!(copy, copy_id(first));
    }
}
