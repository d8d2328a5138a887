//! The end of an attempt: from what was generated to its settlement and disposition.

use chrono::{DateTime, Utc};

use crate::{
    broker::Acker,
    cache::cache_key,
    engine::{EngineError, Generation, Stop},
    job::{CacheKey, Reason, RoutedJob},
    store::{AttemptOutcome, Settlement},
};

use super::{
    cancellation::Stopped,
    disposition::{AttemptContext, Disposition, decide},
    generate::Generated,
    role::Worker,
};

/// An attempt that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) attempt: u32,
    /// No attempt is left after it.
    pub(super) is_last: bool,
    pub(super) claimed_at: DateTime<Utc>,
    pub(super) routed: RoutedJob,
    pub(super) acker: Acker,
    /// Ends it early.
    pub(super) stop: Stop,
    /// Why it was stopped early, if it was.
    pub(super) stopped: Option<Stopped>,
    /// True once another attempt ran at the same time, which may be the cause of a crash.
    pub(super) had_company: bool,
}

impl Running {
    /// Stops the attempt if its job's deadline has passed.
    pub(super) fn stop_if_late(&mut self, now: DateTime<Utc>) {
        let deadline = self.routed.job.head.deadline;
        if let Some(deadline) = deadline.filter(|deadline| *deadline <= now)
            && self.stopped.is_none()
        {
            self.stopped = Some(Stopped::Late(deadline));
            self.stop.request();
        }
    }

    /// Stops the attempt because its job was cancelled or another attempt has it.
    pub(super) fn supersede(&mut self) {
        self.stopped = Some(Stopped::Superseded);
        self.stop.request();
    }
}

/// An attempt that ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) settlement: Settlement,
    pub(super) follow_up: FollowUp,
}

/// What follows the commit of an attempt.
#[derive(Debug)]
pub(super) struct FollowUp {
    pub(super) disposition: Disposition,
    /// The job as it is published, if it is.
    pub(super) routed: RoutedJob,
    pub(super) acker: Acker,
}

impl Worker {
    /// Decides what an attempt came to and what follows.
    pub(super) fn finish(&self, mut running: Running, generated: Generated) -> Finished {
        let Generated {
            result,
            saved,
            reused,
        } = generated;
        let (started_at, first_token_at, finished_at) = match &result {
            Ok(generation) => (
                generation.started_at,
                generation.first_token_at,
                generation.finished_at,
            ),
            Err(_) => (running.claimed_at, None, Utc::now()),
        };
        // A crash ends every attempt of its step; run alone, the job shows whether it is the cause.
        running.routed.poison_candidate = matches!(result, Err(EngineError::Crashed(_)));
        // The yes to a near question is no answer whose confidence counts.
        let own = result.as_ref().ok().filter(|_| reused.is_none());
        let signals = own.and_then(|generation| generation.signals);
        let (confidence, low_confidence) = self.check(&running.routed, own, finished_at);
        let is_reused = reused.is_some();
        let (outcome, disposition) = match reused {
            Some(reused) => (AttemptOutcome::Reused(reused), Disposition::Done),
            None => outcome_of(&running, result, low_confidence),
        };
        let has_own_key = running.routed.cache_key == self.own_key(&running.routed);
        let escalates_to = match outcome {
            AttemptOutcome::Escalate { to, .. } => Some(to),
            _ => None,
        };
        // An escalated job whose key covers both models still leads its cache entry.
        let keeps_lead = escalates_to.is_some() && has_own_key && running.routed.pair.is_some();
        let settlement = Settlement {
            job: running.routed.job.head.id,
            attempt: running.attempt,
            outcome,
            started_at,
            first_token_at,
            finished_at,
            cache_key: running.routed.cache_key.filter(|_| !keeps_lead),
            saved,
            // The entry is for the job's own answer.
            reusable: has_own_key && !is_reused,
            confidence,
            signals,
        };
        if let Some(tier) = escalates_to {
            running.routed = running.routed.moved(tier, keeps_lead);
        }
        Finished {
            settlement,
            follow_up: FollowUp {
                disposition,
                routed: running.routed,
                acker: running.acker,
            },
        }
    }

    /// The confidence of an answer, and the reason to escalate it if that is too low.
    fn check(
        &self,
        routed: &RoutedJob,
        generation: Option<&Generation>,
        now: DateTime<Utc>,
    ) -> (Option<f32>, Option<Reason>) {
        let Some((check, generation)) = self.confidence_check.as_ref().zip(generation) else {
            return (None, None);
        };
        let confidence = check.confidence(generation, &routed.job.request);
        (confidence, check.low_confidence(confidence, routed, now))
    }

    /// The cache key that this worker's answer to a job has.
    pub(super) fn own_key(&self, routed: &RoutedJob) -> Option<CacheKey> {
        let served = self.served();
        let (tenant, request) = (&routed.job.head.tenant, &routed.job.request);
        match &routed.pair {
            Some(pair) => {
                let pair = pair.with(self.claimant.tier, served);
                cache_key(tenant, &pair.names(), request)
            }
            None => cache_key(tenant, &[(&served.model, &served.revision)], request),
        }
    }
}

fn outcome_of(
    running: &Running,
    result: Result<Generation, EngineError>,
    low_confidence: Option<Reason>,
) -> (AttemptOutcome, Disposition) {
    let result = match (running.stopped, result) {
        (Some(stopped), result) if !matches!(result, Err(EngineError::Closed)) => {
            match stopped.outcome(result.ok()) {
                Ok(outcome) => return (outcome, Disposition::Done),
                Err(in_time) => Ok(*in_time),
            }
        }
        (_, result) => result,
    };
    let context = AttemptContext {
        attempt: running.attempt,
        is_last: running.is_last,
        had_company: running.had_company,
    };
    decide(&running.routed, context, result, low_confidence)
}
