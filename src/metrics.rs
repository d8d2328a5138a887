//! Every metric, declared once: the doc comment is its help text.
//!
//! Labels are few and of low cardinality; ids and prompt text never become labels.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, histogram};

use crate::job::{AnswerSource, JobRecord};

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A declared metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name on the wire.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// Help text.
    pub help: &'static str,
    /// Upper bounds of a histogram's buckets.
    pub buckets: &'static [f64],
}

/// Latencies of jobs: from a cached answer (milliseconds) to a long queue (an hour).
pub const LATENCY_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];
/// Calls to broker and database: a fast batch takes a millisecond, a time-out half a minute.
pub const CALL_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];
/// Sizes of batches: powers of two up to the largest that can be configured.
pub const BATCH_SIZES: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// Tokens of a step: a few decodes up to a large budget of prompt tokens.
pub const STEP_SIZES: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0,
];

macro_rules! declare {
    ($($(#[doc = $help:literal])+ $kind:ident $constant:ident = $name:literal [$($label:literal),*] $(in $buckets:ident)?;)+) => {
        $($(#[doc = $help])+ pub const $constant: &str = $name;)+

        /// Every metric, in the order of a job's path.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $name,
            kind: MetricKind::$kind,
            labels: &[$($label),*],
            help: concat!($($help),+),
            buckets: declare!(@buckets $($buckets)?),
        }),+];
    };
    (@buckets) => { &[] };
    (@buckets $buckets:ident) => { $buckets };
}

declare! {
    /// HTTP requests by route and status.
    Counter HTTP_REQUESTS = "promptyard_http_requests_total" ["route", "status"];
    /// Seconds from an HTTP request to its response.
    Histogram HTTP_SECONDS = "promptyard_http_request_seconds" ["route"] in LATENCY_SECONDS;
    /// HTTP requests waiting for an answer.
    Gauge HTTP_WAITING = "promptyard_http_waiting_requests" [];

    /// Messages published, by queue and outcome (confirmed, refused, unroutable, timed_out, unreachable).
    Counter PUBLISHED = "promptyard_broker_published_total" ["queue", "outcome"];
    /// Messages taken from a queue, by whether they had been delivered before.
    Counter DELIVERED = "promptyard_broker_delivered_total" ["queue", "redelivered"];
    /// Reconnections to the broker.
    Counter RECONNECTED = "promptyard_broker_reconnects_total" [];
    /// Seconds until the broker confirmed a batch of messages.
    Histogram PUBLISH_SECONDS = "promptyard_broker_publish_seconds" [] in CALL_SECONDS;
    /// Messages ready in a queue.
    Gauge QUEUE_READY = "promptyard_queue_ready_messages" ["queue"];

    /// Deferred jobs by the queue they are released to: small and large by fair scheduling, in at their start time. Counted up to 1000.
    Gauge DEFERRED_JOBS = "promptyard_deferred_jobs" ["queue"];
    /// Deferred jobs released to their queue.
    Counter RELEASED = "promptyard_deferred_released_total" [];
    /// What the rescuer repaired: messages of stuck jobs sent again (stuck), jobs ended after their deadline (expired), attempts of dead workers closed (attempt).
    Counter RESCUED = "promptyard_rescued_total" ["what"];
    /// Jobs the router has seen, by outcome (routed, deferred, waiting, cache, semantic, rejected, expired, cancelled, known).
    Counter ADMITTED = "promptyard_router_jobs_total" ["outcome"];
    /// Jobs routed to each tier.
    Counter ROUTED = "promptyard_router_tier_total" ["tier"];
    /// Jobs published to a tier, by place (affinity: the queue of the worker with the prompt prefix in its cache; shared: any worker).
    Counter PLACED = "promptyard_router_placed_total" ["tier", "place"];
    /// The router's scores.
    Histogram SCORE = "promptyard_router_score_ratio" [] in SCORES;
    /// Share of the jobs that load moves to small (positive) or large (negative).
    Gauge ROUTER_SHIFT = "promptyard_router_load_shift_ratio" [];
    /// Answers kept for reuse.
    Gauge CACHE_ENTRIES = "promptyard_cache_kept_entries" [];
    /// Bytes of the kept answers.
    Gauge CACHE_BYTES = "promptyard_cache_kept_bytes" [];
    /// Answers removed from the cache, by cause (expired, stale, evicted, abandoned).
    Counter CACHE_REMOVED = "promptyard_cache_removed_total" ["cause"];
    /// Semantic lookups, by outcome (near: a reusable answer; none; failure; else the guard that rejected the nearest question).
    Counter SEMANTIC_LOOKUPS = "promptyard_semantic_lookups_total" ["outcome"];
    /// Seconds to embed and look up the questions of one batch.
    Histogram SEMANTIC_SECONDS = "promptyard_semantic_lookup_seconds" [] in CALL_SECONDS;
    /// Answered questions in a router's index for semantic reuse.
    Gauge SEMANTIC_QUESTIONS = "promptyard_semantic_known_questions" [];
    /// Checks by a model whether a similar question's answer fits, by outcome (yes, no).
    Counter SEMANTIC_CHECKS = "promptyard_semantic_checks_total" ["outcome"];
    /// Semantic hits that were computed again, by comparison of the answers (agrees, differs, unanswered).
    Counter SEMANTIC_RECHECKS = "promptyard_semantic_rechecks_total" ["outcome"];
    /// Copies of small's jobs sent to large as training data.
    Counter SHADOWS = "promptyard_router_shadows_total" [];
    /// Jobs in one routing batch.
    Histogram ROUTER_BATCH = "promptyard_router_batch_jobs" [] in BATCH_SIZES;
    /// Seconds from taking a batch to acknowledging it.
    Histogram ROUTER_SECONDS = "promptyard_router_batch_seconds" [] in CALL_SECONDS;

    /// Seconds of a database call, by method.
    Histogram STORE_SECONDS = "promptyard_store_call_seconds" ["call"] in CALL_SECONDS;
    /// Failed database calls, by method.
    Counter STORE_ERRORS = "promptyard_store_faults_total" ["call"];

    /// Attempts that ended, by tier and outcome (succeeded, reused, failed, expired, retried, escalated, returned, cancelled, fenced).
    Counter ATTEMPTS = "promptyard_worker_attempts_total" ["tier", "outcome"];
    /// Jobs escalated from the small to the large model, by reason (low_confidence, context_length_exceeded).
    Counter ESCALATIONS = "promptyard_worker_escalations_total" ["reason"];
    /// Calibrated probability that the small model's answer is right.
    Histogram CONFIDENCE = "promptyard_worker_confidence_ratio" [] in SCORES;
    /// Jobs that became terminal, by state and source of the answer (computed, cache, shared, semantic, none).
    Counter FINISHED = "promptyard_jobs_finished_total" ["state", "source"];
    /// Seconds from submission to the terminal row, by source of the answer.
    Histogram JOB_SECONDS = "promptyard_job_latency_seconds" ["source"] in LATENCY_SECONDS;
    /// Running jobs of a worker.
    Gauge RUNNING = "promptyard_worker_running_jobs" ["tier"];
    /// Jobs stolen from affinity queues of other workers that were busier or dead.
    Counter STOLEN = "promptyard_worker_stolen_total" ["tier"];
    /// Replies that could not be delivered because the reply queue is gone.
    Counter REPLIES_LOST = "promptyard_replies_undeliverable_total" [];

    /// Prompt tokens sent to a model.
    Counter PROMPT_TOKENS = "promptyard_prompt_tokens_total" ["tier"];
    /// Prompt tokens that a model computed; the rest came from a prefix cache.
    Counter PROMPT_TOKENS_COMPUTED = "promptyard_prompt_computed_tokens_total" ["tier"];
    /// Prompt tokens saved, by component: not sent (reused, semantic; cleaned and pruned are estimates), or sent but not computed (prefix).
    Counter TOKENS_SAVED = "promptyard_prompt_saved_tokens_total" ["component"];
    /// Tokens generated.
    Counter COMPLETION_TOKENS = "promptyard_completion_tokens_total" ["tier"];
    /// Steps of the in-process engine.
    Counter ENGINE_STEPS = "promptyard_engine_steps_total" ["tier"];
    /// Restarts of an engine because a step hung or its thread died.
    Counter ENGINE_RESTARTS = "promptyard_engine_restarts_total" ["tier"];
    /// Seconds of an engine step.
    Histogram STEP_SECONDS = "promptyard_engine_step_seconds" ["tier"] in CALL_SECONDS;
    /// Sequences in one engine step.
    Histogram STEP_SEQUENCES = "promptyard_engine_step_sequences" ["tier"] in BATCH_SIZES;
    /// Tokens computed in one engine step.
    Histogram STEP_TOKENS = "promptyard_engine_step_tokens" ["tier"] in STEP_SIZES;
    /// Blocks of the KV cache that running sequences use.
    Gauge KV_BLOCKS_USED = "promptyard_engine_kv_used_blocks" ["tier"];
    /// Sequences preempted because others needed their blocks of the KV cache.
    Counter PREEMPTED = "promptyard_engine_preempted_total" ["tier"];
    /// Requests waiting inside the engine.
    Gauge ENGINE_WAITING = "promptyard_engine_waiting_requests" ["tier"];

    /// Concurrency limit of a model server, adapted to its responses.
    Gauge UPSTREAM_LIMIT = "promptyard_upstream_limit_requests" ["tier"];
    /// Requests in flight to a model server.
    Gauge UPSTREAM_RUNNING = "promptyard_upstream_running_requests" ["tier"];
    /// Requests that an overloaded model server did not answer, by reason (refused, timed_out).
    Counter UPSTREAM_THROTTLED = "promptyard_upstream_throttled_total" ["tier", "reason"];
}

/// Scores lie between 0 and 1.
const SCORES: &[f64] = &[0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0];

/// Gives the installed recorder every metric's help text.
pub fn describe() {
    for metric in ALL {
        match metric.kind {
            MetricKind::Counter => describe_counter!(metric.name, Unit::Count, metric.help),
            MetricKind::Gauge => describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram => describe_histogram!(metric.name, metric.help),
        }
    }
}

/// Counts a finished job by state and source, and records its latency.
pub fn observe_end(record: &JobRecord) {
    let source = record.source.map_or("none", |source| source.as_str());
    let component = match record.source {
        Some(AnswerSource::Cache | AnswerSource::Shared) => Some("reused"),
        Some(AnswerSource::Semantic) => Some("semantic"),
        Some(AnswerSource::Computed) | None => None,
    };
    if let (Some(component), Some(answer)) = (component, &record.answer) {
        let tokens = answer.usage.prompt_tokens.into();
        counter!(TOKENS_SAVED, "component" => component).increment(tokens);
    }
    counter!(FINISHED, "state" => record.state.as_str(), "source" => source).increment(1);
    if let Some(finished_at) = record.finished_at {
        let seconds = (finished_at - record.submitted_at)
            .as_seconds_f64()
            .max(0.0);
        histogram!(JOB_SECONDS, "source" => source).record(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_prefix_and_unit() {
        let units = [
            "_total",
            "_seconds",
            "_tokens",
            "_ratio",
            "_jobs",
            "_messages",
            "_requests",
            "_questions",
            "_entries",
            "_bytes",
            "_sequences",
            "_blocks",
        ];
        for metric in ALL {
            assert!(metric.name.starts_with("promptyard_"), "{}", metric.name);
            assert!(
                units.iter().any(|u| metric.name.ends_with(u)),
                "{} has no unit",
                metric.name
            );
            assert_eq!(
                metric.kind == MetricKind::Counter,
                metric.name.ends_with("_total"),
                "{}",
                metric.name
            );
            assert_eq!(
                metric.kind == MetricKind::Histogram,
                !metric.buckets.is_empty(),
                "{}",
                metric.name
            );
        }
    }
}
