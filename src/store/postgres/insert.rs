//! Writes new jobs with their requests, and answers.

use std::{borrow::Cow, collections::HashSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    deferral, learning, semantic,
    text::{encode, encode_json},
};
use crate::{
    job::{Answer, CacheKey},
    store::{Decision, error::BackendError, row::logprobs_json, rules::NewJob},
};

type Text<'a> = Option<Cow<'a, str>>;

/// The columns of new jobs, one array each.
#[derive(Default)]
struct Columns<'a> {
    id: Vec<Uuid>,
    tenant: Vec<&'a str>,
    key: Vec<Text<'a>>,
    custom_id: Vec<Text<'a>>,
    batch: Vec<Text<'a>>,
    state: Vec<&'static str>,
    model_asked: Vec<Text<'a>>,
    tier: Vec<Option<&'static str>>,
    score: Vec<Option<f64>>,
    threshold: Vec<Option<f64>>,
    scorer: Vec<Option<&'a str>>,
    features: Vec<Option<String>>,
    cache_key: Vec<Option<&'a [u8]>>,
    waits_for: Vec<Option<&'a [u8]>>,
    source: Vec<Option<&'static str>>,
    answered_by: Vec<Option<Uuid>>,
    cosine: Vec<Option<f32>>,
    reason_code: Vec<Option<&'a str>>,
    reason_message: Vec<Text<'a>>,
    digest: Vec<Option<&'a [u8]>>,
    redrive_of: Vec<Option<Uuid>>,
    reply_to: Vec<Text<'a>>,
    correlation_id: Vec<Text<'a>>,
    priority: Vec<i16>,
    deadline: Vec<Option<DateTime<Utc>>>,
    not_before: Vec<Option<DateTime<Utc>>>,
    attempts_max: Vec<Option<i32>>,
    submitted_at: Vec<DateTime<Utc>>,
    routed_at: Vec<Option<DateTime<Utc>>>,
    finished_at: Vec<Option<DateTime<Utc>>>,
    tags: Vec<Option<String>>,
    decision: DecisionColumns<'a>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, job: &NewJob<'a>, now: DateTime<Utc>) {
        let head = job.head;
        let route = job.route();
        let reason = job.reason();
        let key_bytes = |key: &'a CacheKey| key.0.as_slice();
        self.id.push(head.id.0);
        self.tenant.push(head.tenant.as_str());
        self.key.push(head.key.as_deref().map(encode));
        self.custom_id.push(head.custom_id.as_deref().map(encode));
        self.batch.push(head.batch.as_deref().map(encode));
        self.state.push(job.state().as_str());
        self.model_asked
            .push(job.request.map(|request| encode(request.model.as_str())));
        self.tier.push(route.map(|route| route.tier.as_str()));
        self.score.push(route.map(|route| route.decision.score));
        self.threshold
            .push(route.map(|route| route.decision.threshold));
        self.scorer
            .push(route.map(|route| route.decision.scorer.as_str()));
        self.features
            .push(route.map(|route| encode_json(&route.decision.features)));
        self.cache_key
            .push(route.and_then(|route| route.cache_key.as_ref().map(key_bytes)));
        self.waits_for.push(job.waits_for().map(key_bytes));
        self.source.push(job.source().map(|source| source.as_str()));
        self.answered_by.push(job.hit().map(|hit| hit.leader.0));
        self.cosine.push(job.hit().and_then(|hit| hit.cosine));
        self.reason_code
            .push(reason.map(|reason| reason.code.as_str()));
        self.reason_message
            .push(reason.map(|reason| encode(&reason.message)));
        self.digest.push(job.digest.map(|digest| digest.as_slice()));
        self.redrive_of.push(head.redrive_of.map(|id| id.0));
        let reply = head.reply_to.as_ref();
        self.reply_to.push(reply.map(|reply| encode(&reply.queue)));
        self.correlation_id
            .push(reply.and_then(|reply| reply.correlation_id.as_deref().map(encode)));
        self.priority.push(i16::from(head.priority.to_amqp()));
        self.deadline.push(head.deadline);
        self.not_before.push(head.not_before);
        self.attempts_max
            .push(head.attempts_max.and_then(|count| count.try_into().ok()));
        self.submitted_at.push(head.submitted_at);
        self.routed_at.push(route.map(|_| now));
        self.finished_at.push(job.finished_at(now));
        self.tags.push(job.tags().map(|tags| tags.to_string()));
        self.decision.push(route.map(|route| &route.decision));
    }
}

/// What is kept of decisions beside score, threshold and features, one array for each column.
#[derive(Default)]
pub(super) struct DecisionColumns<'a> {
    pub features_version: Vec<Option<i32>>,
    pub threshold_base: Vec<Option<f64>>,
    pub target: Vec<Option<&'a str>>,
    pub target_scope: Vec<Option<&'a str>>,
    pub route_reason: Vec<Option<&'static str>>,
    pub propensity: Vec<Option<f64>>,
    pub shadow_of: Vec<Option<Uuid>>,
}

impl<'a> DecisionColumns<'a> {
    pub(super) fn push(&mut self, decision: Option<&'a Decision>) {
        self.features_version
            .push(decision.map(|d| i32::try_from(d.features_version).unwrap_or(i32::MAX)));
        self.threshold_base.push(decision.map(|d| d.threshold_base));
        self.target.push(decision.map(|d| d.target.as_str()));
        self.target_scope
            .push(decision.map(|d| d.target_scope.as_str()));
        self.route_reason.push(decision.map(|d| d.reason.as_str()));
        self.propensity.push(decision.map(|d| d.propensity));
        self.shadow_of
            .push(decision.and_then(|d| Some(d.shadow_of?.0)));
    }
}

/// Writes jobs whose ids are not known; returns the ids of those that were.
pub(super) async fn insert_jobs(
    connection: &mut PgConnection,
    jobs: &[NewJob<'_>],
    now: DateTime<Utc>,
) -> Result<HashSet<Uuid>, BackendError> {
    if jobs.is_empty() {
        return Ok(HashSet::new());
    }
    let mut c = Columns::default();
    for job in jobs {
        c.push(job, now);
    }
    let inserted = sqlx::query_scalar!(
        r#"insert into jobs (
               id, tenant, key, custom_id, batch, state, model_asked, tier, score, threshold, scorer, features,
               cache_key, waits_for, source, answered_by, reason_code, reason_message, digest, redrive_of,
               reply_to, correlation_id, priority, deadline, submitted_at, routed_at, finished_at,
               tags, features_version, threshold_base, target, target_scope, route_reason, propensity, shadow_of,
               cosine, not_before, attempts_max)
           select n.id, n.tenant, n.key, n.custom_id, n.batch, n.state, n.model_asked, n.tier, n.score,
                  n.threshold, n.scorer, n.features::jsonb, n.cache_key, n.waits_for, n.source, n.answered_by,
                  n.reason_code, n.reason_message, n.digest, n.redrive_of, n.reply_to, n.correlation_id,
                  n.priority, n.deadline, n.submitted_at, n.routed_at, n.finished_at, n.tags::jsonb,
                  n.features_version, n.threshold_base, n.target, n.target_scope, n.route_reason, n.propensity,
                  n.shadow_of, n.cosine, n.not_before, n.attempts_max
             from unnest(
                      $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                      $8::text[], $9::float8[], $10::float8[], $11::text[], $12::text[], $13::bytea[],
                      $14::bytea[], $15::text[], $16::uuid[], $17::text[], $18::text[], $19::bytea[],
                      $20::uuid[], $21::text[], $22::text[], $23::int2[], $24::timestamptz[],
                      $25::timestamptz[], $26::timestamptz[], $27::timestamptz[], $28::text[], $29::int4[],
                      $30::float8[], $31::text[], $32::text[], $33::text[], $34::float8[], $35::uuid[],
                      $36::float4[], $37::timestamptz[], $38::int4[])
                  as n (id, tenant, key, custom_id, batch, state, model_asked, tier, score, threshold, scorer,
                        features, cache_key, waits_for, source, answered_by, reason_code, reason_message,
                        digest, redrive_of, reply_to, correlation_id, priority, deadline, submitted_at,
                        routed_at, finished_at, tags, features_version, threshold_base, target,
                        target_scope, route_reason, propensity, shadow_of, cosine, not_before, attempts_max)
               on conflict (id) do nothing
           returning id"#,
        &c.id as &[Uuid],
        &c.tenant as &[&str],
        &c.key as &[Text<'_>],
        &c.custom_id as &[Text<'_>],
        &c.batch as &[Text<'_>],
        &c.state as &[&str],
        &c.model_asked as &[Text<'_>],
        &c.tier as &[Option<&str>],
        &c.score as &[Option<f64>],
        &c.threshold as &[Option<f64>],
        &c.scorer as &[Option<&str>],
        &c.features as &[Option<String>],
        &c.cache_key as &[Option<&[u8]>],
        &c.waits_for as &[Option<&[u8]>],
        &c.source as &[Option<&str>],
        &c.answered_by as &[Option<Uuid>],
        &c.reason_code as &[Option<&str>],
        &c.reason_message as &[Text<'_>],
        &c.digest as &[Option<&[u8]>],
        &c.redrive_of as &[Option<Uuid>],
        &c.reply_to as &[Text<'_>],
        &c.correlation_id as &[Text<'_>],
        &c.priority as &[i16],
        &c.deadline as &[Option<DateTime<Utc>>],
        &c.submitted_at as &[DateTime<Utc>],
        &c.routed_at as &[Option<DateTime<Utc>>],
        &c.finished_at as &[Option<DateTime<Utc>>],
        &c.tags as &[Option<String>],
        &c.decision.features_version as &[Option<i32>],
        &c.decision.threshold_base as &[Option<f64>],
        &c.decision.target as &[Option<&str>],
        &c.decision.target_scope as &[Option<&str>],
        &c.decision.route_reason as &[Option<&str>],
        &c.decision.propensity as &[Option<f64>],
        &c.decision.shadow_of as &[Option<Uuid>],
        &c.cosine as &[Option<f32>],
        &c.not_before as &[Option<DateTime<Utc>>],
        &c.attempts_max as &[Option<i32>],
    )
    .fetch_all(&mut *connection)
    .await?;
    let inserted: HashSet<Uuid> = inserted.into_iter().collect();
    insert_requests(connection, jobs, &inserted).await?;
    // Should an id stand here twice, only its first appearance was written.
    let mut unseen = inserted.clone();
    let written: Vec<_> = jobs
        .iter()
        .filter(|job| unseen.remove(&job.head.id.0))
        .collect();
    deferral::hold(connection, &written, now).await?;
    learning::note_shadows(connection, &written, now).await?;
    semantic::note_lookups(connection, &written, now).await?;
    let hits: Vec<_> = written
        .into_iter()
        .filter(|job| job.hit().is_some())
        .collect();
    write_hits(connection, &hits).await?;
    Ok(inserted)
}

async fn insert_requests(
    connection: &mut PgConnection,
    jobs: &[NewJob<'_>],
    inserted: &HashSet<Uuid>,
) -> Result<(), BackendError> {
    let (ids, requests): (Vec<Uuid>, Vec<String>) = jobs
        .iter()
        .filter(|job| inserted.contains(&job.head.id.0))
        .filter_map(|job| {
            // JSON writes U+0000 as an escape, so this text never holds one.
            let request = serde_json::to_string(job.request?)
                .expect("a request's fields are all representable in JSON");
            Some((job.head.id.0, request))
        })
        .unzip();
    if !ids.is_empty() {
        sqlx::query!(
            "insert into requests (job_id, request) select * from unnest($1::uuid[], $2::text[])
             on conflict do nothing",
            &ids,
            &requests
        )
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Gives jobs that are written as succeeded what they took from the cache.
pub(super) async fn write_hits(
    connection: &mut PgConnection,
    jobs: &[&NewJob<'_>],
) -> Result<(), BackendError> {
    let answers: Vec<(Uuid, &Answer)> = jobs
        .iter()
        .filter_map(|job| Some((job.head.id.0, &job.hit()?.answer)))
        .collect();
    if answers.is_empty() {
        return Ok(());
    }
    let mut c = AnswerColumns::default();
    for (_, answer) in &answers {
        c.push(answer);
    }
    let ids: Vec<Uuid> = answers.iter().map(|(id, _)| *id).collect();
    sqlx::query!(
        "update jobs j
            set prompt_tokens = n.prompt_tokens, prompt_tokens_computed = n.prompt_tokens_computed,
                completion_tokens = n.completion_tokens, finish_reason = n.finish_reason,
                model = n.model, revision = n.revision, mean_logprob = n.mean_logprob
           from unnest($1::uuid[], $2::int4[], $3::int4[], $4::int4[], $5::text[], $6::text[], $7::text[],
                       $8::float4[])
                as n (id, prompt_tokens, prompt_tokens_computed, completion_tokens, finish_reason, model,
                      revision, mean_logprob)
          where j.id = n.id",
        &ids,
        &c.prompt_tokens as &[Option<i32>],
        &c.prompt_tokens_computed as &[Option<i32>],
        &c.completion_tokens as &[Option<i32>],
        &c.finish_reason as &[Option<&str>],
        &c.model as &[Text<'_>],
        &c.revision as &[Text<'_>],
        &c.mean_logprob as &[Option<f32>],
    )
    .execute(&mut *connection)
    .await?;
    insert_texts(connection, &answers).await
}

/// Keeps the texts of answers, and their log-probabilities where they were asked for.
pub(super) async fn insert_texts(
    connection: &mut PgConnection,
    answers: &[(Uuid, &Answer)],
) -> Result<(), BackendError> {
    if answers.is_empty() {
        return Ok(());
    }
    let (ids, texts): (Vec<Uuid>, Vec<Cow<'_, str>>) = answers
        .iter()
        .map(|(id, answer)| (*id, encode(&answer.text)))
        .unzip();
    let logprobs: Vec<_> = answers
        .iter()
        .map(|(_, answer)| logprobs_json(answer))
        .collect();
    sqlx::query!(
        "insert into answers (job_id, text, logprobs)
         select * from unnest($1::uuid[], $2::text[], $3::text[])",
        &ids,
        &texts as &[Cow<'_, str>],
        &logprobs as &[Option<String>]
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What is kept of answers beside their texts, one array for each column.
#[derive(Default)]
pub(super) struct AnswerColumns<'a> {
    pub prompt_tokens: Vec<Option<i32>>,
    pub prompt_tokens_computed: Vec<Option<i32>>,
    pub completion_tokens: Vec<Option<i32>>,
    pub finish_reason: Vec<Option<&'static str>>,
    pub model: Vec<Text<'a>>,
    pub revision: Vec<Text<'a>>,
    pub mean_logprob: Vec<Option<f32>>,
}

impl<'a> AnswerColumns<'a> {
    pub(super) fn push(&mut self, answer: &'a Answer) {
        self.push_option(Some(answer));
    }

    pub(super) fn push_option(&mut self, answer: Option<&'a Answer>) {
        let count = |tokens: u32| i32::try_from(tokens).unwrap_or(i32::MAX);
        let usage = answer.map(|answer| answer.usage);
        self.prompt_tokens
            .push(usage.map(|usage| count(usage.prompt_tokens)));
        self.prompt_tokens_computed
            .push(usage.map(|usage| count(usage.prompt_tokens_computed)));
        self.completion_tokens
            .push(usage.map(|usage| count(usage.completion_tokens)));
        self.finish_reason
            .push(answer.map(|answer| answer.finish_reason.as_str()));
        self.model.push(answer.map(|answer| encode(&answer.model)));
        self.revision
            .push(answer.map(|answer| encode(&answer.revision)));
        self.mean_logprob
            .push(answer.and_then(|answer| answer.mean_logprob));
    }
}
