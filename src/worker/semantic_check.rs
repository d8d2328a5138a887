//! Whether another question's answer serves a job: its own model is asked, yes or no.

use std::sync::Arc;

use metrics::counter;

use crate::{
    engine::{Engine, Generate, Generation, RequestContext},
    job::{Candidate, Job, Message, Reason, Role, Sampling, Tier},
    metrics::{COMPLETION_TOKENS, PROMPT_TOKENS, PROMPT_TOKENS_COMPUTED, SEMANTIC_CHECKS},
    store::{Reused, Store},
};

use super::generate::Generated;

/// Tokens that the word may take.
const WORD_TOKENS_MAX: u32 = 4;

/// Asks models whether answers serve.
#[derive(Clone, Debug)]
pub(super) struct Checker {
    pub store: Store,
    pub engine: Arc<dyn Engine>,
    pub tier: Tier,
}

impl Checker {
    /// The candidate's answer, if the model says yes and it is still there; any doubt or failure is a
    /// no, and then the job runs as any other.
    pub(super) async fn ask(&self, job: &Job, candidate: &Candidate) -> Option<Generated> {
        let reused = self.decide(job, candidate).await;
        let outcome = if reused.is_some() { "yes" } else { "no" };
        counter!(SEMANTIC_CHECKS, "outcome" => outcome).increment(1);
        reused
    }

    async fn decide(&self, job: &Job, candidate: &Candidate) -> Option<Generated> {
        let question = &job.request.messages.last()?.content;
        let check = self.word_on(job, question, candidate).await?;
        if !is_yes(&check.answer.text) {
            return None;
        }
        let cached = self.store.cached(candidate.entry).await;
        let (answer, leader) = cached
            .inspect_err(|error| tracing::warn!(%error, "a near question's answer cannot be read"))
            .ok()??;
        let reason = Reason::new(
            "semantic_reuse",
            format!(
                "the answer of job {leader} serves: its question has a likeness of {:.3}, and the model says that it asks the same",
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

    /// What the model says; its tokens are counted whatever it is.
    async fn word_on(
        &self,
        job: &Job,
        question: &str,
        candidate: &Candidate,
    ) -> Option<Generation> {
        let request = Generate {
            messages: vec![Message {
                role: Role::User,
                content: prompt(&candidate.question, question),
            }],
            sampling: Sampling {
                temperature: 0.0,
                max_completion_tokens: WORD_TOKENS_MAX,
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

/// The instruction stands first, so that it is found in the prefix cache.
fn prompt(known: &str, asked: &str) -> String {
    format!(
        "Do these two questions ask for exactly the same, so that one answer serves both? Say yes or no, and \
         no if in doubt.\n\nFirst: {known}\n\nSecond: {asked}"
    )
}

fn is_yes(word: &str) -> bool {
    let first = word.split_whitespace().next().unwrap_or_default();
    first
        .trim_matches(|c: char| !c.is_alphanumeric())
        .eq_ignore_ascii_case("yes")
}

#[cfg(test)]
mod tests {
    use crate::worker::semantic_check::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for yes in ["yes", " Yes.", "YES, they do", "**yes**"] {
            assert!(is_yes(yes), "{yes}");
        }
        for no in ["no", "", "yesterday", "I think yes", "maybe"] {
            assert!(!is_yes(no), "{no}");
        }
    }
}
