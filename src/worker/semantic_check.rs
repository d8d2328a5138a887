//! Asks a job's own model whether a near question's answer serves the job, yes or no.

use std::sync::Arc;

use metrics::counter;

use crate::{
    engine::{Engine, Generate, Generation, RequestContext},
    job::{Candidate, Job, Message, Reason, Role, Sampling, Tier},
    metrics::{COMPLETION_TOKENS, PROMPT_TOKENS, PROMPT_TOKENS_COMPUTED, SEMANTIC_CHECKS},
    store::{Reused, Store},
};

use super::generate::Generated;

/// Most tokens of the model's yes or no.
const REPLY_TOKENS_MAX: u32 = 4;

/// Asks models whether answers serve.
#[derive(Clone, Debug)]
pub(super) struct SemanticCheck {
    pub store: Store,
    pub engine: Arc<dyn Engine>,
    pub tier: Tier,
}

impl SemanticCheck {
    /// The candidate's answer, if the model says yes and it is still cached. Anything else, failures
    /// included, is a no, and the job runs as any other.
    pub(super) async fn reuse(&self, job: &Job, candidate: &Candidate) -> Option<Generated> {
        let reused = self.try_reuse(job, candidate).await;
        let outcome = if reused.is_some() { "yes" } else { "no" };
        counter!(SEMANTIC_CHECKS, "outcome" => outcome).increment(1);
        reused
    }

    async fn try_reuse(&self, job: &Job, candidate: &Candidate) -> Option<Generated> {
        let question = &job.request.messages.last()?.content;
        let check = self.ask(job, question, candidate).await?;
        if !is_yes(&check.answer.text) {
            return None;
        }
        let cached = self.store.cached(candidate.entry).await;
        let (answer, leader) = cached
            .inspect_err(|error| tracing::warn!(%error, "cannot read a near question's answer; the job runs"))
            .ok()??;
        let reason = Reason::new(
            "semantic_reuse",
            format!(
                "the answer of job {leader} serves: its question has a similarity of {:.3}, and the model calls it a paraphrase",
                candidate.cosine
            ),
        );
        let reused = Reused {
            entry: candidate.entry,
            leader,
            cosine: candidate.cosine,
            answer,
            check: check.answer.clone(),
            reason,
        };
        Some(Generated {
            reused: Some(Box::new(reused)),
            ..Ok(check).into()
        })
    }

    /// The model's reply; its tokens are counted whether it is yes or no.
    async fn ask(&self, job: &Job, question: &str, candidate: &Candidate) -> Option<Generation> {
        let request = Generate {
            messages: vec![Message {
                role: Role::User,
                content: prompt(&candidate.question, question),
            }],
            sampling: Sampling {
                temperature: 0.0,
                max_completion_tokens: REPLY_TOKENS_MAX,
                ..Sampling::default()
            },
            seed_default: 0,
            context: RequestContext {
                tenant: job.head.tenant.clone(),
                priority: job.head.priority,
                deadline: job.head.deadline,
                ..RequestContext::default()
            },
        };
        let generation = self.engine.generate(request).await.ok()?;
        let (tier, usage) = (self.tier.as_str(), generation.answer.usage);
        counter!(PROMPT_TOKENS, "tier" => tier).increment(usage.prompt_tokens.into());
        counter!(PROMPT_TOKENS_COMPUTED, "tier" => tier)
            .increment(usage.prompt_tokens_computed.into());
        counter!(COMPLETION_TOKENS, "tier" => tier).increment(usage.completion_tokens.into());
        Some(generation)
    }
}

/// The instruction comes first, so that the prefix cache holds it.
fn prompt(known: &str, asked: &str) -> String {
    format!(
        "Do these two questions ask for exactly the same, so that one answer serves both? Say yes or no, and \
         no if in doubt.\n\nFirst: {known}\n\nSecond: {asked}"
    )
}

fn is_yes(reply: &str) -> bool {
    let first = reply.split_whitespace().next().unwrap_or_default();
    first
        .trim_matches(|c: char| !c.is_alphanumeric())
        .eq_ignore_ascii_case("yes")
}

#[cfg(test)]
mod tests {
    use crate::worker::semantic_check::*;

    #[test]
    fn only_a_reply_that_begins_with_yes_is_a_yes() {
        for yes in ["yes", " Yes.", "YES, they do", "**yes**"] {
            assert!(is_yes(yes), "{yes}");
        }
        for no in ["no", "", "yesterday", "I think yes", "maybe"] {
            assert!(!is_yes(no), "{no}");
        }
    }
}
