//! Rows to write and the statements that write them, declared once for both databases.
//!
//! A statement reads its rows as `n`, with the columns of the [`Record`] beside it. Postgres takes a
//! batch as one array for each column; SQLite takes one row at a time.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Claimant, DeadLetter, DeferredQueue, Settlement,
    effect::{Effect, Given},
    row::logprobs_json,
    rules::{NewJob, after},
};
use crate::job::{
    Answer, AnswerSource, CacheKey, FinishReason, JobId, JobState, Reason, Signals, Tier,
};

/// A value of a type that both databases have.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Uuid(Option<Uuid>),
    Text(Option<Cow<'a, str>>),
    /// JSON without prompt text: `jsonb` in Postgres, text in SQLite.
    Json(Option<String>),
    /// JSON kept as text: it escapes U+0000 itself.
    JsonText(Option<String>),
    Bytes(Option<&'a [u8]>),
    Int(Option<i32>),
    Real(Option<f32>),
    Double(Option<f64>),
    Time(Option<DateTime<Utc>>),
}

/// The columns of one row to write, by name.
pub(super) type Record<'a> = Vec<(&'static str, Value<'a>)>;

macro_rules! values {
    ($($variant:ident($from:ty) = $value:ident => $into:expr;)*) => {$(
        impl<'a> From<$from> for Value<'a> {
            fn from($value: $from) -> Self {
                Self::$variant(Some($into))
            }
        }

        impl<'a> From<Option<$from>> for Value<'a> {
            fn from(value: Option<$from>) -> Self {
                Self::$variant(value.map(|$value| $into))
            }
        }
    )*};
}

values! {
    Uuid(Uuid) = id => id;
    Uuid(JobId) = id => id.0;
    Text(&'a str) = text => Cow::Borrowed(text);
    Text(JobState) = state => Cow::Borrowed(state.as_str());
    Text(Tier) = tier => Cow::Borrowed(tier.as_str());
    Text(AnswerSource) = source => Cow::Borrowed(source.as_str());
    Text(FinishReason) = reason => Cow::Borrowed(reason.as_str());
    Text(DeferredQueue) = queue => Cow::Borrowed(queue.as_str());
    Bytes(&'a [u8]) = bytes => bytes;
    Bytes(&'a CacheKey) = key => key.0.as_slice();
    Int(i32) = number => number;
    Int(u32) = number => i32::try_from(number).unwrap_or(i32::MAX);
    Real(f32) = number => number;
    Double(f64) = number => number;
    Time(DateTime<Utc>) = at => at;
}

/// A row of named values.
macro_rules! record {
    ($($column:ident: $value:expr),* $(,)?) => {
        vec![$((stringify!($column), Value::from($value))),*]
    };
}

/// `insert into TABLE (…) select … from n`, followed by `rest`.
pub(super) fn insert_into(table: &str, record: &Record<'_>, rest: &str) -> String {
    let names: Vec<&str> = record.iter().map(|(name, _)| *name).collect();
    let names = names.join(", ");
    // SQLite needs a condition to tell `on conflict` from a join's `on`.
    format!("insert into {table} ({names}) select {names} from n where true {rest}")
}

/// What jobs and attempts keep of an answer besides its text.
macro_rules! answer_is_set {
    () => {
        "prompt_tokens = n.prompt_tokens, prompt_tokens_computed = n.prompt_tokens_computed, \
         completion_tokens = n.completion_tokens, finish_reason = n.finish_reason, \
         mean_logprob = n.mean_logprob"
    };
}

fn answer_record(answer: Option<&Answer>) -> Record<'_> {
    let usage = answer.map(|answer| answer.usage);
    record! {
        prompt_tokens: usage.map(|usage| usage.prompt_tokens),
        prompt_tokens_computed: usage.map(|usage| usage.prompt_tokens_computed),
        completion_tokens: usage.map(|usage| usage.completion_tokens),
        finish_reason: answer.map(|answer| answer.finish_reason),
        mean_logprob: answer.and_then(|answer| answer.mean_logprob),
        model: answer.map(|answer| answer.model.as_str()),
        revision: answer.map(|answer| answer.revision.as_str()),
    }
}

/// The row of a new job in `jobs`.
pub(super) fn new_job<'r>(job: &'r NewJob<'_>, now: DateTime<Utc>) -> Record<'r> {
    let head = job.head;
    let route = job.route();
    let decision = route.map(|route| &route.decision);
    let reason = job.reason();
    let reply = head.reply_to.as_ref();
    let mut row = record! {
        id: head.id,
        tenant: head.tenant.as_str(),
        key: head.key.as_deref(),
        custom_id: head.custom_id.as_deref(),
        batch: head.batch.as_deref(),
        state: job.state(),
        model_asked: job.request.map(|request| request.model.as_str()),
        tier: route.map(|route| route.tier),
        score: decision.map(|decision| decision.score),
        threshold: decision.map(|decision| decision.threshold),
        scorer: decision.map(|decision| decision.scorer.as_str()),
        features: Value::Json(decision.map(|decision| decision.features.to_string())),
        cache_key: route.and_then(|route| route.cache_key.as_ref()),
        waits_for: job.waits_for(),
        source: job.source(),
        answered_by: job.hit().map(|hit| hit.leader),
        cosine: job.hit().and_then(|hit| hit.cosine),
        reason_code: reason.map(|reason| reason.code.as_str()),
        reason_message: reason.map(|reason| reason.message.as_str()),
        digest: job.digest.map(|digest| digest.as_slice()),
        redrive_of: head.redrive_of,
        reply_to: reply.map(|reply| reply.queue.as_str()),
        correlation_id: reply.and_then(|reply| reply.correlation_id.as_deref()),
        priority: i32::from(head.priority.to_amqp()),
        deadline: head.deadline,
        not_before: head.not_before,
        attempts_max: head.attempts_max,
        submitted_at: head.submitted_at,
        routed_at: route.map(|_| now),
        finished_at: job.finished_at(now),
        tags: Value::Json(job.tags().map(|tags| tags.to_string())),
        features_version: decision.map(|decision| decision.features_version),
        threshold_base: decision.map(|decision| decision.threshold_base),
        target: decision.map(|decision| decision.target.as_str()),
        target_scope: decision.map(|decision| decision.target_scope.as_str()),
        route_reason: decision.map(|decision| decision.reason.as_str()),
        propensity: decision.map(|decision| decision.propensity),
        shadow_of: job.shadow_of(),
    };
    row.extend(answer_record(job.hit().map(|hit| &hit.answer)));
    row
}

/// Moves a queued job on, with the columns of [`new_job`].
pub(super) const MOVE_JOB: &str = concat!(
    "update jobs as j
        set state = n.state, tier = n.tier, score = n.score, threshold = n.threshold,
            scorer = n.scorer, features = n.features, cache_key = n.cache_key,
            waits_for = n.waits_for, source = n.source, answered_by = n.answered_by,
            cosine = n.cosine, reason_code = n.reason_code, reason_message = n.reason_message,
            routed_at = n.routed_at, finished_at = n.finished_at,
            features_version = n.features_version, threshold_base = n.threshold_base,
            target = n.target, target_scope = n.target_scope, route_reason = n.route_reason,
            propensity = n.propensity, model = n.model, revision = n.revision, ",
    answer_is_set!(),
    " from n where j.id = n.id and j.state = 'queued'"
);

/// The row of a deferred job that has just been written, if it is deferred.
pub(super) fn deferred<'r>(job: &'r NewJob<'_>, now: DateTime<Utc>) -> Option<Record<'r>> {
    let (queue, deferral) = job.hold()?;
    Some(record! {
        job_id: job.head.id,
        tenant: job.head.tenant.as_str(),
        queue: queue,
        rank: deferral.rank,
        tokens: deferral.tokens,
        extras: Value::JsonText(job.extras()),
        deferred_at: now,
    })
}

/// Ends [`insert_into`] for [`deferred`].
pub(super) const DEFER_AGAIN: &str = "on conflict (job_id) do update
    set queue = excluded.queue, rank = excluded.rank, tokens = excluded.tokens,
        extras = excluded.extras, deferred_at = excluded.deferred_at, released_at = null,
        published_at = null";

/// The draw of a new job for a shadow copy, if it was drawn.
pub(super) fn shadow(job: &NewJob<'_>, now: DateTime<Utc>) -> Option<Record<'static>> {
    let propensity = job.shadow()?;
    Some(record! { job_id: job.head.id, propensity: propensity, drawn_at: now })
}

/// A new job that copies another one, if it does.
pub(super) fn copy(job: &NewJob<'_>, now: DateTime<Utc>) -> Option<Record<'static>> {
    let of = job.shadow_of()?;
    Some(record! { job_id: of, copy_id: job.head.id, made_at: now })
}

/// Notes a [`copy`] as a shadow copy, where one was drawn.
pub(super) const NOTE_SHADOW: &str =
    "update shadows as s set shadow_id = n.copy_id, made_at = n.made_at
   from n where s.job_id = n.job_id";

/// Notes a [`copy`] as a recheck, where one was drawn.
pub(super) const NOTE_RECHECK: &str =
    "update semantic_lookups as l set recheck_id = n.copy_id, made_at = n.made_at
       from n where l.job_id = n.job_id and l.recheck_propensity is not null";

/// The row of a new job's semantic lookup, if it had a near question.
pub(super) fn lookup<'r>(job: &NewJob<'r>, now: DateTime<Utc>) -> Option<Record<'r>> {
    let lookup = job.looked_up()?;
    Some(record! {
        job_id: job.head.id,
        tenant: job.head.tenant.as_str(),
        entry: &lookup.nearest.entry,
        outcome: lookup.outcome,
        veto: lookup.veto,
        cosine: lookup.nearest.cosine,
        cosine_min: lookup.nearest.cosine_min,
        looked_at: now,
        recheck_propensity: lookup.recheck,
    })
}

/// The text of an answer, and its log-probabilities if requested.
pub(super) fn answer_text(id: Uuid, answer: &Answer) -> Record<'_> {
    record! { job_id: id, text: answer.text.as_str(), logprobs: Value::JsonText(logprobs_json(answer)) }
}

/// A new attempt.
pub(super) fn attempt<'r>(
    claimant: &'r Claimant,
    id: Uuid,
    attempt: i32,
    now: DateTime<Utc>,
) -> Record<'r> {
    record! {
        job_id: id,
        attempt: attempt,
        tier: claimant.tier,
        model: claimant.model.as_str(),
        revision: claimant.revision.as_str(),
        worker: claimant.worker.as_str(),
        outcome: "running",
        claimed_at: now,
    }
}

/// The claim of a job for a new attempt.
pub(super) fn claimed<'r>(
    claimant: &'r Claimant,
    id: Uuid,
    attempt: i32,
    now: DateTime<Utc>,
) -> Record<'r> {
    record! {
        id: id,
        attempt: attempt,
        worker: claimant.worker.as_str(),
        lease_until: after(now, claimant.lease),
        started_at: now,
        tier: claimant.tier,
    }
}

/// Gives a job to the attempt of [`claimed`].
pub(super) const CLAIM_JOB: &str = "update jobs as j
    set state = 'running', attempts = n.attempt, worker = n.worker, lease_until = n.lease_until,
        started_at = n.started_at, tier = coalesce(j.tier, n.tier), waits_for = null
   from n where j.id = n.id and j.state in ('queued', 'routed', 'running')";

/// An attempt whose worker vanished.
pub(super) fn lost(id: Uuid, attempt: i32, now: DateTime<Utc>) -> Record<'static> {
    record! { job_id: id, attempt: attempt, finished_at: now }
}

/// Closes a [`lost`] attempt.
pub(super) const MARK_LOST: &str = "update attempts as a
    set outcome = 'lost', finished_at = n.finished_at
   from n where a.job_id = n.job_id and a.attempt = n.attempt and a.outcome = 'running'";

/// The end of a job without an answer of its own.
pub(super) fn end<'r>(
    id: Uuid,
    state: JobState,
    reason: &'r Reason,
    now: DateTime<Utc>,
) -> Record<'r> {
    record! {
        id: id,
        state: state,
        reason_code: reason.code.as_str(),
        reason_message: reason.message.as_str(),
        finished_at: now,
    }
}

/// Ends a job as [`end`] says.
pub(super) const END_JOB: &str = "update jobs as j
    set state = n.state, reason_code = n.reason_code, reason_message = n.reason_message,
        finished_at = n.finished_at, waits_for = null
   from n where j.id = n.id and j.state in ('queued', 'routed', 'running')";

/// What a settled attempt left out of the prompt, if anything.
pub(super) fn savings(settlement: &Settlement) -> Option<Record<'static>> {
    let saved = settlement.saved;
    (!saved.is_empty()).then(|| {
        record! {
            id: settlement.job,
            attempt: settlement.attempt,
            cleaned_tokens: saved.cleaned_tokens,
            pruned_tokens: saved.pruned_tokens,
        }
    })
}

/// Writes [`savings`]; runs before [`END_ATTEMPT`], which has the same fence.
pub(super) const WRITE_SAVINGS: &str = "update jobs as j
    set cleaned_tokens = n.cleaned_tokens, pruned_tokens = n.pruned_tokens
   from n where j.id = n.id and j.attempts = n.attempt and j.state = 'running'";

/// What the end of an attempt does to its job.
pub(super) fn ended<'r>(
    settlement: &Settlement,
    effect: &Effect<'r>,
    now: DateTime<Utc>,
) -> Record<'r> {
    let reason = effect.job_reason();
    let escalated = effect.escalated();
    let mut row = record! {
        id: settlement.job,
        attempt: settlement.attempt,
        state: effect.state,
        tier: effect.tier,
        returned: i32::from(effect.is_returned),
        source: effect.source(),
        answered_by: effect.reused.map(|reused| reused.leader),
        cosine: effect.reused.map(|reused| reused.cosine),
        reason_code: reason.map(|reason| reason.code.as_str()),
        reason_message: reason.map(|reason| reason.message.as_str()),
        started_at: settlement.started_at,
        first_token_at: settlement.first_token_at,
        finished_at: effect.state.is_terminal().then_some(now),
        confidence: settlement.confidence,
        escalated_prompt_tokens: escalated.map(|usage| usage.prompt_tokens),
        escalated_prompt_tokens_computed: escalated.map(|usage| usage.prompt_tokens_computed),
        escalated_completion_tokens: escalated.map(|usage| usage.completion_tokens),
    };
    row.extend(answer_record(effect.answer));
    row
}

/// Moves a job to its next state as [`ended`] says, unless the settlement is fenced.
pub(super) const END_ATTEMPT: &str = concat!(
    "update jobs as j
        set state = n.state, tier = coalesce(n.tier, j.tier),
            attempts_returned = j.attempts_returned + n.returned, source = n.source,
            answered_by = n.answered_by, cosine = n.cosine, reason_code = n.reason_code,
            reason_message = n.reason_message, started_at = n.started_at,
            first_token_at = n.first_token_at, finished_at = n.finished_at,
            confidence = coalesce(n.confidence, j.confidence),
            escalated_prompt_tokens = coalesce(
                coalesce(j.escalated_prompt_tokens, 0) + n.escalated_prompt_tokens,
                j.escalated_prompt_tokens),
            escalated_prompt_tokens_computed = coalesce(
                coalesce(j.escalated_prompt_tokens_computed, 0) + n.escalated_prompt_tokens_computed,
                j.escalated_prompt_tokens_computed),
            escalated_completion_tokens = coalesce(
                coalesce(j.escalated_completion_tokens, 0) + n.escalated_completion_tokens,
                j.escalated_completion_tokens),
            model = n.model, revision = n.revision, ",
    answer_is_set!(),
    " from n where j.id = n.id and j.attempts = n.attempt and j.state = 'running'"
);

/// The outcome of an attempt.
pub(super) fn attempt_outcome<'r>(settlement: &'r Settlement, effect: &Effect<'r>) -> Record<'r> {
    let mut row = record! {
        job_id: settlement.job,
        attempt: settlement.attempt,
        outcome: effect.outcome,
        started_at: settlement.started_at,
        first_token_at: settlement.first_token_at,
        finished_at: settlement.finished_at,
        reason_code: effect.reason.map(|reason| reason.code.as_str()),
        reason_message: effect.reason.map(|reason| reason.message.as_str()),
        confidence: settlement.confidence,
        signals: Value::Json(settlement.signals.as_ref().map(Signals::to_json)),
    };
    row.extend(answer_record(effect.generated));
    row
}

/// Closes a running attempt with its [`attempt_outcome`].
pub(super) const CLOSE_ATTEMPT: &str = concat!(
    "update attempts as a
        set outcome = n.outcome, started_at = n.started_at, first_token_at = n.first_token_at,
            finished_at = n.finished_at, reason_code = n.reason_code,
            reason_message = n.reason_message, confidence = n.confidence, signals = n.signals, ",
    answer_is_set!(),
    " from n where a.job_id = n.job_id and a.attempt = n.attempt and a.outcome = 'running'"
);

/// The answer that stays with an attempt, because its job gets another or none.
pub(super) fn attempt_answer<'r>(
    settlement: &Settlement,
    effect: &Effect<'r>,
) -> Option<Record<'r>> {
    let answer = effect.kept()?;
    Some(record! {
        job_id: settlement.job,
        attempt: settlement.attempt,
        text: answer.text.as_str(),
        logprobs: Value::JsonText(logprobs_json(answer)),
    })
}

/// An answer for a job that waits for it.
pub(super) fn shared<'r>(id: Uuid, given: &Given<'r>, now: DateTime<Utc>) -> Record<'r> {
    let mut row = record! {
        id: id,
        source: given.source,
        answered_by: given.by,
        cosine: given.cosine,
        finished_at: now,
    };
    row.extend(answer_record(Some(given.answer)));
    row
}

/// Settles a waiting job with a [`shared`] answer.
pub(super) const SHARE: &str = concat!(
    "update jobs as j
        set state = 'succeeded', source = n.source, answered_by = n.answered_by,
            cosine = n.cosine, waits_for = null, finished_at = n.finished_at, model = n.model,
            revision = n.revision, ",
    answer_is_set!(),
    " from n where j.id = n.id and j.state = 'routed'"
);

/// The row of a dead letter.
pub(super) fn dead_letter(letter: &DeadLetter) -> Record<'_> {
    record! {
        id: letter.id,
        job_id: letter.job,
        tenant: letter.tenant.as_ref().map(|tenant| tenant.as_str()),
        queue: letter.queue.as_str(),
        reason_code: letter.reason.code.as_str(),
        reason_message: letter.reason.message.as_str(),
        body: letter.body.as_slice(),
        died_at: letter.died_at,
    }
}
