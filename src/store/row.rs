//! A job's row as both backends read it, and the public values that it becomes.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::job::{
    Answer, AnswerSource, CacheKey, ChatRequest, ContextSavings, FinishReason, Job, JobHead, JobId,
    JobRecord, JobState, Priority, Reason, ReplyTo, RoutedJob, Tenant, Tier, TokenLogprob, Usage,
};

/// A stored value that this version does not understand.
#[derive(Debug, thiserror::Error)]
#[error("job {id}: {message}")]
pub(super) struct BadRow {
    id: Uuid,
    message: String,
}

/// A stored number of tokens; 0 if none.
fn count(tokens: Option<i32>) -> u32 {
    u32::try_from(tokens.unwrap_or(0)).unwrap_or(0)
}

/// An answer's log-probabilities as stored, if requested.
pub(super) fn logprobs_json(answer: &Answer) -> Option<String> {
    let logprobs = answer.logprobs.as_ref()?;
    Some(serde_json::to_string(logprobs).expect("numbers and texts are representable in JSON"))
}

macro_rules! job_row {
    ($($column:ident: $stored:ty,)*) => {
        /// The columns of `jobs` that decisions and records need, and the answer's text.
        #[derive(Clone, Debug, sqlx::FromRow)]
        pub(super) struct Row {
            $(pub $column: $stored,)*
            pub text: Option<String>,
            /// The answer's log-probabilities as JSON.
            pub logprobs: Option<String>,
        }

        /// The columns of a [`Row`] from `jobs j`, each followed by a comma: `text` and `logprobs`
        /// are to follow.
        pub(super) const JOB_COLUMNS: &str = concat!($(" j.", stringify!($column), ",",)* " ");
    };
}

job_row! {
    id: Uuid,
    tenant: Tenant,
    key: Option<String>,
    custom_id: Option<String>,
    batch: Option<String>,
    state: JobState,
    tier: Option<Tier>,
    score: Option<f64>,
    cache_key: Option<Vec<u8>>,
    waits_for: Option<Vec<u8>>,
    source: Option<AnswerSource>,
    answered_by: Option<Uuid>,
    cosine: Option<f32>,
    attempts: i32,
    attempts_returned: i32,
    worker: Option<String>,
    lease_until: Option<DateTime<Utc>>,
    prompt_tokens: Option<i32>,
    prompt_tokens_computed: Option<i32>,
    completion_tokens: Option<i32>,
    cleaned_tokens: Option<i32>,
    pruned_tokens: Option<i32>,
    finish_reason: Option<FinishReason>,
    model: Option<String>,
    revision: Option<String>,
    mean_logprob: Option<f32>,
    confidence: Option<f32>,
    escalated_prompt_tokens: Option<i32>,
    escalated_prompt_tokens_computed: Option<i32>,
    escalated_completion_tokens: Option<i32>,
    reason_code: Option<String>,
    reason_message: Option<String>,
    digest: Option<Vec<u8>>,
    redrive_of: Option<Uuid>,
    reply_to: Option<String>,
    correlation_id: Option<String>,
    priority: i16,
    deadline: Option<DateTime<Utc>>,
    not_before: Option<DateTime<Utc>>,
    attempts_max: Option<i32>,
    submitted_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

/// A statement that selects or returns [`Row`]s: the words before the columns and those after.
pub(super) fn job_rows(before: &str, after: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("{before}{JOB_COLUMNS}{after}"))
}

impl Row {
    /// Applies `change` to every text that a producer or a model wrote.
    pub(super) fn map_texts(mut self, change: impl Fn(String) -> String) -> Self {
        for text in [
            &mut self.key,
            &mut self.custom_id,
            &mut self.batch,
            &mut self.reason_message,
            &mut self.reply_to,
            &mut self.correlation_id,
            &mut self.model,
            &mut self.revision,
            &mut self.text,
        ] {
            *text = text.take().map(&change);
        }
        self
    }

    /// True while something else than a terminal state is written.
    pub(super) fn is_open(&self) -> bool {
        !self.state.is_terminal()
    }

    /// True when the job has just ended without an answer but an escalated attempt may hold one.
    pub(super) fn may_fall_back(&self) -> bool {
        matches!(self.state, JobState::Failed | JobState::Expired)
            && self.escalated_prompt_tokens.is_some()
    }

    /// True until an answer is written.
    pub(super) fn is_unanswered(&self) -> bool {
        self.state != JobState::Succeeded
    }

    /// The key whose entry this job may lead.
    pub(super) fn cache_key(&self) -> Option<CacheKey> {
        let key = self.cache_key.as_deref()?;
        key.try_into().ok().map(CacheKey)
    }

    /// Writes the end without an answer into the row, as the statement beside it does.
    pub(super) fn ended(mut self, state: JobState, reason: &Reason, now: DateTime<Utc>) -> Self {
        self.state = state;
        self.reason_code = Some(reason.code.clone());
        self.reason_message = Some(reason.message.clone());
        self.finished_at = Some(now);
        self
    }

    fn bad(&self, message: impl Into<String>) -> BadRow {
        BadRow {
            id: self.id,
            message: message.into(),
        }
    }

    fn reply_to(&self) -> Option<ReplyTo> {
        Some(ReplyTo {
            queue: self.reply_to.clone()?,
            correlation_id: self.correlation_id.clone(),
        })
    }

    /// What escalated attempts took, once there was one.
    pub(super) fn escalated(&self) -> Option<Usage> {
        self.escalated_prompt_tokens.map(|prompt_tokens| Usage {
            prompt_tokens: count(Some(prompt_tokens)),
            prompt_tokens_computed: count(self.escalated_prompt_tokens_computed),
            completion_tokens: count(self.escalated_completion_tokens),
        })
    }

    /// The answer, when the row has all of it.
    fn take_answer(&mut self) -> Result<Option<Answer>, BadRow> {
        let (Some(text), Some(finish_reason)) = (self.text.take(), self.finish_reason) else {
            return Ok(None);
        };
        Ok(Some(Answer {
            text,
            finish_reason,
            usage: Usage {
                prompt_tokens: count(self.prompt_tokens),
                prompt_tokens_computed: count(self.prompt_tokens_computed),
                completion_tokens: count(self.completion_tokens),
            },
            model: self.model.take().unwrap_or_default(),
            revision: self.revision.take().unwrap_or_default(),
            mean_logprob: self.mean_logprob,
            logprobs: self.take_logprobs()?,
        }))
    }

    fn take_logprobs(&mut self) -> Result<Option<Vec<TokenLogprob>>, BadRow> {
        self.logprobs
            .take()
            .map(|json| serde_json::from_str(&json))
            .transpose()
            .map_err(|error| self.bad(format!("its log-probabilities cannot be read: {error}")))
    }

    /// Puts an answer's texts into the row, as the statement beside it does into `answers`.
    pub(super) fn give(&mut self, answer: &Answer) {
        self.text = Some(answer.text.clone());
        self.logprobs = logprobs_json(answer);
    }

    pub(super) fn into_record(mut self) -> Result<JobRecord, BadRow> {
        let answer = self.take_answer()?;
        let (escalated, reply_to) = (self.escalated(), self.reply_to());
        let reason = self.reason_code.take().map(|code| Reason {
            code,
            message: self.reason_message.take().unwrap_or_default(),
        });
        Ok(JobRecord {
            id: JobId(self.id),
            tenant: self.tenant,
            state: self.state,
            tier: self.tier,
            score: self.score,
            answer,
            source: self.source,
            answered_by: self.answered_by.map(JobId),
            cosine: self.cosine,
            saved: ContextSavings {
                cleaned_tokens: count(self.cleaned_tokens),
                pruned_tokens: count(self.pruned_tokens),
            },
            reason,
            attempts: u32::try_from(self.attempts).unwrap_or(0),
            confidence: self.confidence,
            escalated,
            reply_to,
            submitted_at: self.submitted_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            key: self.key,
            custom_id: self.custom_id,
            batch: self.batch,
        })
    }

    pub(super) fn head(&self) -> JobHead {
        JobHead {
            id: JobId(self.id),
            tenant: self.tenant.clone(),
            key: self.key.clone(),
            custom_id: self.custom_id.clone(),
            batch: self.batch.clone(),
            deadline: self.deadline,
            not_before: self.not_before,
            attempts_max: self
                .attempts_max
                .and_then(|count| u32::try_from(count).ok()),
            reply_to: self.reply_to(),
            priority: Priority::from_amqp(u8::try_from(self.priority).unwrap_or(0)),
            redrive_of: self.redrive_of.map(JobId),
            submitted_at: self.submitted_at,
        }
    }

    /// The job with the request that is kept beside it.
    pub(super) fn job(&self, request: &str) -> Result<Job, BadRow> {
        let request: ChatRequest = serde_json::from_str(request)
            .map_err(|error| self.bad(format!("its request cannot be read: {error}")))?;
        Ok(Job {
            head: self.head(),
            request,
        })
    }

    /// The message that puts the job back on its tier's queue.
    pub(super) fn routed_job(&self, request: &str) -> Result<RoutedJob, BadRow> {
        let tier = self.tier.ok_or_else(|| self.bad("it has no tier"))?;
        Ok(RoutedJob {
            job: self.job(request)?,
            tier,
            cache_key: self.cache_key(),
            pair: None,
            candidate: None,
            poison_candidate: false,
        })
    }
}
