//! Chooses the tier: the producer's choice first, then hard rules, then the score's threshold, set by
//! target, load and exploration.

use std::sync::{Mutex, MutexGuard, RwLock};

use crate::{
    config::{RouteTarget, RouterConfig, TargetScope},
    job::{ChatRequest, JobHead, JobId, ModelChoice, Reason, Tier},
    scoring::{features::Features, scorer::Scorer},
    store::{Decision, PastDecision, RouteReason, ScopedTarget},
};

use super::{
    model_registry::ServedModels,
    target::{
        self, Calibrations, ScopedObservation,
        load::{LoadShift, TierLoad},
    },
};

/// Mean bytes of a token, for most languages and code. A prompt that is underestimated here escalates
/// once the small model's tokenizer has counted it.
const BYTES_PER_TOKEN: usize = 4;

/// The routing policy, shared by concurrent batches.
#[derive(Debug)]
pub struct Policy {
    config: RouterConfig,
    scorer: RwLock<Scorer>,
    state: Mutex<PolicyState>,
}

#[derive(Debug)]
struct PolicyState {
    calibrations: Calibrations,
    load: LoadShift,
}

impl Policy {
    /// A policy with empty traffic windows.
    pub fn new(config: &RouterConfig, scorer: Scorer) -> Self {
        Self {
            scorer: RwLock::new(scorer),
            state: Mutex::new(PolicyState {
                calibrations: Calibrations::new(config),
                load: LoadShift::default(),
            }),
            config: config.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, PolicyState> {
        self.state.lock().expect("nobody panics while holding it")
    }

    /// The scorer in use.
    pub fn scorer(&self) -> Scorer {
        let scorer = self.scorer.read().expect("nobody panics while holding it");
        scorer.clone()
    }

    /// Replaces the scorer. The traffic windows are cleared, since they hold the old one's scores.
    pub fn promote(&self, scorer: Scorer) {
        *self.scorer.write().expect("nobody panics while holding it") = scorer;
        self.state().calibrations.forget();
    }

    /// True when the targets in force are these of the database over those of the configuration.
    pub fn follows(&self, stored: &[ScopedTarget]) -> bool {
        let wanted = target::in_force(&self.config, stored);
        self.state().calibrations.targets().eq(wanted)
    }

    /// Puts the database's targets in force, over those of the configuration. `past` decisions fill the
    /// windows of new scopes. Returns what changed: see [`Calibrations::retarget`].
    pub fn set_targets(
        &self,
        stored: &[ScopedTarget],
        past: &[PastDecision],
    ) -> Vec<(TargetScope, Option<RouteTarget>)> {
        let calibrations = &mut self.state().calibrations;
        let changed = calibrations.retarget(target::in_force(&self.config, stored));
        calibrations.remember(past);
        changed
    }

    /// True when load affects routing.
    pub fn wants_load(&self) -> bool {
        self.config.load_shift_max() > 0.0 || self.state().calibrations.want_load()
    }

    /// Records each tier's load. Returns the resulting shift.
    pub fn observe_load(&self, small: TierLoad, large: TierLoad) -> f64 {
        let state = &mut *self.state();
        state.calibrations.observe_load(large);
        let (most, full_s) = (self.config.load_shift_max(), self.config.load_wait_s);
        state.load.observe(small, large, most, full_s);
        state.load.shift()
    }

    /// True when a target is a quality.
    pub fn wants_pairs(&self) -> bool {
        self.state().calibrations.want_pairs()
    }

    /// Replaces the jobs with both tiers' outcomes.
    pub fn observe_pairs(&self, observations: &[ScopedObservation]) {
        self.state().calibrations.observe_pairs(observations);
    }

    /// Chooses the tier of a request.
    ///
    /// # Errors
    /// `model_not_found` when the producer names a model that the fleet does not serve.
    pub fn decide(
        &self,
        head: &JobHead,
        request: &ChatRequest,
        models: &ServedModels,
    ) -> Result<(Tier, Decision), Reason> {
        let mut decision = self.score(head, request);
        let tier = match &request.model {
            ModelChoice::Small => Tier::Small,
            ModelChoice::Large => Tier::Large,
            ModelChoice::Named(name) => named(name, models)?,
            ModelChoice::Auto if is_too_long_for_small(request, models) => {
                decision.reason = RouteReason::Rule;
                Tier::Large
            }
            ModelChoice::Auto => {
                let is_large = decision.score >= decision.threshold_base;
                let calibrations = &mut self.state().calibrations;
                let at = calibrations.scope(head.tenant.as_str(), &request.options.tags);
                calibrations.at(at).observe(decision.score, is_large);
                self.choose(head.id, &mut decision)
            }
        };
        Ok((tier, decision))
    }

    /// Scores a request under the present thresholds, without choosing a tier or recording the score.
    pub fn score(&self, head: &JobHead, request: &ChatRequest) -> Decision {
        let features = Features::of(request);
        let scorer = self.scorer();
        let score = scorer.score(&features).gain;
        let state = self.state();
        let at = state
            .calibrations
            .scope(head.tenant.as_str(), &request.options.tags);
        let (target_scope, target) = state.calibrations.names(at);
        let thresholds = state.calibrations.thresholds(at, state.load.shift());
        drop(state);
        Decision {
            score,
            threshold: thresholds.effective,
            threshold_base: thresholds.base,
            scorer: scorer.version().to_owned(),
            features_version: Scorer::features_version(),
            features: features.to_json(),
            target,
            target_scope,
            reason: RouteReason::Producer,
            propensity: 1.0,
            shadow: None,
            shadow_of: None,
        }
    }

    /// Chooses by score, load and exploration. Random draws depend on the job's id, so that a redelivered
    /// message gets the same decision.
    fn choose(&self, job: JobId, decision: &mut Decision) -> Tier {
        let by_score = tier_at(decision.score, decision.threshold_base);
        let mut tier = tier_at(decision.score, decision.threshold);
        decision.reason = if tier == by_score {
            RouteReason::Score
        } else {
            RouteReason::Load
        };
        let explore = self.config.explore_share;
        if explore > 0.0 && draw(job, "explore") < explore {
            decision.reason = RouteReason::Explore;
            decision.propensity = explore;
            tier = match tier {
                Tier::Small => Tier::Large,
                Tier::Large => Tier::Small,
            };
        } else {
            decision.propensity = 1.0 - explore;
        }
        let shadow = self.config.shadow_share;
        if tier == Tier::Small && shadow > 0.0 && draw(job, "shadow") < shadow {
            decision.shadow = Some(shadow);
        }
        tier
    }
}

fn tier_at(score: f64, threshold: f64) -> Tier {
    if score >= threshold {
        Tier::Large
    } else {
        Tier::Small
    }
}

/// A uniform number from 0 to below 1, determined by the job and the purpose.
fn draw(job: JobId, purpose: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(purpose.as_bytes()).update(job.0.as_bytes());
    let digest = hasher.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest.as_bytes()[..8]);
    // A double holds 53 bits.
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

/// The tier that serves a model.
fn named(name: &str, models: &ServedModels) -> Result<Tier, Reason> {
    models.tier_of(name).ok_or_else(|| {
        let served = models.names().collect::<Vec<_>>().join(", ");
        let shown: String = name.chars().take(64).collect();
        let also = if served.is_empty() {
            String::new()
        } else {
            format!(", {served}")
        };
        Reason::new(
            "model_not_found",
            format!("no worker serves the model {shown:?}; known are auto, small, large{also}"),
        )
    })
}

/// True when the prompt likely exceeds the small model's context and the large one has a longer one.
fn is_too_long_for_small(request: &ChatRequest, models: &ServedModels) -> bool {
    let Some(small) = models.context_tokens(Tier::Small) else {
        return false;
    };
    let takes_more = models
        .context_tokens(Tier::Large)
        .is_none_or(|large| large > small);
    let bytes: usize = request.messages.iter().map(|turn| turn.content.len()).sum();
    let may_pass = request.options.escalate != Some(false);
    let is_served = models.of_tier(Tier::Large).is_some();
    may_pass && takes_more && is_served && bytes / BYTES_PER_TOKEN >= small as usize
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use serde_json::json;

    use crate::router::policy::*;
    use crate::{
        config::{Config, Overrides},
        job::{RequestLimits, Submission, Tenant},
        store::WorkerRecord,
    };

    fn request(body: &str) -> ChatRequest {
        Submission::parse(body.as_bytes(), &RequestLimits::default())
            .expect("valid")
            .request
    }

    fn head() -> JobHead {
        JobHead::new(Tenant::default())
    }

    fn policy(settings: &[(&str, &str)]) -> Policy {
        let mut overrides = Overrides::default();
        for (field, value) in settings {
            overrides.set("--set", &format!("router.{field}"), *value);
        }
        let config = Config::load(None, [], &overrides).expect("valid");
        Policy::new(&config.router, Scorer::bundled())
    }

    fn worker(tier: Tier, context_tokens: Option<u32>) -> WorkerRecord {
        WorkerRecord {
            worker: tier.to_string(),
            tier,
            model: format!("{tier}-model"),
            revision: "r1".to_owned(),
            batch_max: 8,
            context_tokens,
            running: 0,
            draining: false,
            takes_affinity_queues: false,
            lease_until: Utc::now(),
            seen_at: Utc::now(),
        }
    }

    #[test]
    fn the_producers_choice_overrides_the_score() {
        let models = ServedModels::default();
        let decide = |body: &str, threshold| {
            policy(&[("threshold", threshold)])
                .decide(&head(), &request(body), &models)
                .map(|(tier, decision)| (tier, decision.reason))
        };
        let (score, producer) = (RouteReason::Score, RouteReason::Producer);
        assert_eq!(decide(r#"{"prompt":"hi"}"#, "1"), Ok((Tier::Small, score)));
        assert_eq!(decide(r#"{"prompt":"hi"}"#, "0"), Ok((Tier::Large, score)));
        let large = r#"{"prompt":"hi","model":"large"}"#;
        assert_eq!(decide(large, "1"), Ok((Tier::Large, producer)));
        let small = r#"{"prompt":"hi","model":"small"}"#;
        assert_eq!(decide(small, "0"), Ok((Tier::Small, producer)));
        let error = decide(r#"{"prompt":"hi","model":"gpt-9"}"#, "0.5").expect_err("unknown");
        assert_eq!(error.code, "model_not_found");
    }

    #[test]
    fn prompts_too_long_for_small_go_to_large_unless_the_producer_forbids_it() {
        let policy = policy(&[("threshold", "1")]);
        let models = ServedModels::of(vec![
            worker(Tier::Small, Some(64)),
            worker(Tier::Large, Some(256)),
        ]);
        let reason = |prompt: &str, model: &str, models: &ServedModels| {
            let body = format!(r#"{{"prompt":"{prompt}","model":"{model}"}}"#);
            let decided = policy.decide(&head(), &request(&body), models);
            let (tier, decision) = decided.expect("served");
            (tier, decision.reason)
        };
        let long = "word ".repeat(60);
        assert_eq!(
            reason(&long, "auto", &models),
            (Tier::Large, RouteReason::Rule)
        );
        assert_eq!(reason("short", "auto", &models).0, Tier::Small);
        let body = json!({"prompt": long, "promptyard": {"escalate": false}}).to_string();
        let kept = policy.decide(&head(), &request(&body), &models);
        assert_eq!(
            kept.expect("served").0,
            Tier::Small,
            "it may not be passed on"
        );
        assert_eq!(
            reason(&long, "small", &models),
            (Tier::Small, RouteReason::Producer)
        );
        let equal = ServedModels::of(vec![
            worker(Tier::Small, Some(64)),
            worker(Tier::Large, Some(64)),
        ]);
        assert_eq!(reason(&long, "auto", &equal).0, Tier::Small);
        assert_eq!(
            reason(&long, "auto", &ServedModels::default()).0,
            Tier::Small
        );
    }

    #[test]
    fn exploration_and_copies_have_their_shares_and_record_propensities() {
        let policy = policy(&[
            ("threshold", "1"),
            ("explore_share", "0.1"),
            ("shadow_share", "0.25"),
        ]);
        let request = request(r#"{"prompt":"hi"}"#);
        let (mut explored, mut drawn, mut small) = (0, 0, 0);
        for _ in 0..4000 {
            let head = head();
            let (tier, decision) = policy
                .decide(&head, &request, &ServedModels::default())
                .expect("served");
            let again = policy.decide(&head, &request, &ServedModels::default());
            assert_eq!(
                again.expect("served").0,
                tier,
                "the same job is decided alike"
            );
            match decision.reason {
                RouteReason::Explore => {
                    explored += 1;
                    assert_eq!((tier, decision.propensity), (Tier::Large, 0.1));
                    assert_eq!(decision.shadow, None, "large jobs have no copy");
                }
                _ => {
                    small += 1;
                    assert_eq!((tier, decision.propensity), (Tier::Small, 0.9));
                    drawn += u32::from(decision.shadow == Some(0.25));
                }
            }
        }
        assert!((320..480).contains(&explored), "{explored} of 4000");
        let share = f64::from(drawn) / f64::from(small);
        assert!((0.22..0.28).contains(&share), "{share}");
    }
}
