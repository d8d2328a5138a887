//! A job as the database has it, and the OpenAI batch output line it becomes.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    envelope::{JobHead, ReplyTo},
    identity::{JobId, Tenant},
    logprobs::TokenLogprob,
    names::unknown_name,
    state::{JobState, Reason, Tier},
};

/// Why generation stopped.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_name::<FinishReason>)]
pub enum FinishReason {
    /// End-of-sequence token or a stop string.
    Stop,
    /// `max_completion_tokens` or the context length was reached.
    Length,
}

impl FinishReason {
    /// OpenAI's name for it.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Prompt tokens sent to the model, chat template included.
    pub prompt_tokens: u32,
    /// Prompt tokens the model computed; the rest came from a prefix cache.
    pub prompt_tokens_computed: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
}

impl Usage {
    /// Prompt tokens that came from a prefix cache.
    pub fn prompt_tokens_found(self) -> u64 {
        self.prompt_tokens
            .saturating_sub(self.prompt_tokens_computed)
            .into()
    }
}

/// Prompt tokens that were not sent, by the step that removed them; estimates, since the model's
/// tokenizer never counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextSavings {
    /// Removed by lossless clean-up.
    pub cleaned_tokens: u32,
    /// Removed by pruning.
    pub pruned_tokens: u32,
}

impl ContextSavings {
    /// True when nothing was removed.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// A model's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The assistant message.
    pub text: String,
    /// Why generation stopped.
    pub finish_reason: FinishReason,
    /// Tokens used.
    pub usage: Usage,
    /// The served model's name.
    pub model: String,
    /// The model's revision: equal revisions give equal greedy answers.
    pub revision: String,
    /// Mean log-probability of the generated tokens (natural logarithm), where the engine gives it.
    pub mean_logprob: Option<f32>,
    /// Each generated token's log-probability, where the request asked for it and the engine
    /// gives it; the end-of-sequence token, which has no text, is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
}

/// Where a job's answer came from.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_name::<AnswerSource>)]
pub enum AnswerSource {
    /// A model ran for this job.
    Computed,
    /// An answer kept from an earlier identical job.
    Cache,
    /// An identical job was in flight; its answer served both.
    Shared,
    /// The answer to a paraphrase of the question, which the request allows.
    Semantic,
}

impl AnswerSource {
    /// The name used in SQL, JSON and metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A job as the database has it, without its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRecord {
    /// The job's identity.
    pub id: JobId,
    /// Whose job it is.
    pub tenant: Tenant,
    /// The producer's idempotency key.
    pub key: Option<String>,
    /// The producer's own name for the line.
    pub custom_id: Option<String>,
    /// The submission it belongs to.
    pub batch: Option<String>,
    /// Where it stands.
    pub state: JobState,
    /// The tier chosen last.
    pub tier: Option<Tier>,
    /// The router's score, 0 to 1, higher for large.
    pub score: Option<f64>,
    /// The answer, once succeeded.
    pub answer: Option<Answer>,
    /// Where the answer came from.
    pub source: Option<AnswerSource>,
    /// The job that computed the answer, where that is another one.
    pub answered_by: Option<JobId>,
    /// Cosine similarity to the question that was answered, where the source is semantic.
    pub cosine: Option<f32>,
    /// What its last attempt removed from the prompt.
    pub saved: ContextSavings,
    /// Why there is no answer, once terminal without one; or why the large model gave none, where
    /// the small model's serves instead.
    pub reason: Option<Reason>,
    /// Attempts begun.
    pub attempts: u32,
    /// Calibrated probability that the small model's answer is right, where it was computed; kept
    /// when the large model took over.
    pub confidence: Option<f32>,
    /// Tokens of escalated attempts, if there was one; they are not part of the answer's usage.
    pub escalated: Option<Usage>,
    /// Where the producer wants its answer.
    pub reply_to: Option<ReplyTo>,
    /// When the producer submitted the job.
    pub submitted_at: DateTime<Utc>,
    /// When its last attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it became terminal.
    pub finished_at: Option<DateTime<Utc>>,
}

impl JobRecord {
    /// The record of a job in a state, with nothing known beyond its head.
    pub fn new(head: &JobHead, state: JobState) -> Self {
        Self {
            id: head.id,
            tenant: head.tenant.clone(),
            key: head.key.clone(),
            custom_id: head.custom_id.clone(),
            batch: head.batch.clone(),
            state,
            tier: None,
            score: None,
            answer: None,
            source: None,
            answered_by: None,
            cosine: None,
            saved: ContextSavings::default(),
            reason: None,
            attempts: 0,
            confidence: None,
            escalated: None,
            reply_to: head.reply_to.clone(),
            submitted_at: head.submitted_at,
            started_at: None,
            finished_at: None,
        }
    }

    /// The HTTP status of the job's outcome, or 202 while it has none.
    pub fn status_code(&self) -> u16 {
        match self.state {
            JobState::Queued | JobState::Routed | JobState::Running => 202,
            JobState::Succeeded => 200,
            JobState::Rejected => match self.reason.as_ref().map(|r| r.code.as_str()) {
                Some("model_not_found") => 404,
                Some("idempotency_key_reused" | "duplicate_custom_id") => 409,
                Some("body_too_large") => 413,
                _ => 400,
            },
            JobState::Failed => match self.reason.as_ref().map(|r| r.code.as_str()) {
                Some("context_length_exceeded") => 400,
                _ => 500,
            },
            JobState::Cancelled => 499,
            JobState::Expired => 504,
        }
    }

    /// The OpenAI `chat.completion` object of a succeeded job.
    pub fn to_chat_completion(&self) -> Option<Value> {
        let answer = self.answer.as_ref()?;
        let created = self.finished_at.unwrap_or(self.submitted_at).timestamp();
        let usage = answer.usage;
        Some(json!({
            "id": format!("chatcmpl-{}", self.id),
            "object": "chat.completion",
            "created": created,
            "model": answer.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": answer.logprobs.as_ref().map(|content| json!({"content": content})),
                "finish_reason": answer.finish_reason.as_str(),
            }],
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                "prompt_tokens_details": {
                    "cached_tokens": usage.prompt_tokens_found(),
                },
            },
            "promptyard": self.to_extension(),
        }))
    }

    /// OpenAI's error object for a job that ended without an answer.
    pub fn to_error(&self) -> Option<Value> {
        let reason = self.reason.as_ref()?;
        let kind = match self.status_code() {
            400..=498 => "invalid_request_error",
            _ => "server_error",
        };
        Some(json!({"message": reason.message, "type": kind, "param": null, "code": reason.code}))
    }

    /// The OpenAI batch output line: the shape of `run`, `results` and reply messages.
    pub fn to_batch_line(&self) -> Value {
        let body = match (self.to_chat_completion(), self.to_error()) {
            (Some(completion), _) => completion,
            (None, Some(error)) => json!({"error": error}),
            (None, None) => Value::Null,
        };
        let error = match (&self.answer, &self.reason) {
            (None, Some(reason)) => json!({"code": reason.code, "message": reason.message}),
            _ => Value::Null,
        };
        json!({
            "id": self.id,
            "custom_id": self.custom_id,
            "response": {
                "status_code": self.status_code(),
                "request_id": self.id,
                "body": body,
            },
            "error": error,
        })
    }

    /// The fields that OpenAI's API does not have: `GET /v1/jobs/{id}` and the `promptyard` field.
    pub fn to_extension(&self) -> Value {
        let millis = |a: DateTime<Utc>, b: DateTime<Utc>| (b - a).num_milliseconds().max(0);
        json!({
            "job_id": self.id,
            "tenant": self.tenant,
            "state": self.state,
            "tier": self.tier,
            "score": self.score,
            "source": self.source,
            "answered_by": self.answered_by,
            "cosine": self.cosine,
            "context_saved": self.saved,
            "attempts": self.attempts,
            "escalated": self.escalated.is_some(),
            "confidence": self.confidence,
            // Why the large model gave no answer, where the small one's serves instead.
            "fallback": self.answer.as_ref().and(self.reason.as_ref()),
            "revision": self.answer.as_ref().map(|a| &a.revision),
            "latency_ms": self.finished_at.map(|end| millis(self.submitted_at, end)),
        })
    }
}
