//! From a score to a tier: the producer's word first, then the threshold.

use crate::{
    job::{ChatRequest, ModelChoice, Reason, Tier},
    store::Decision,
};

use super::{directory::Models, features::Features, scorer::Scorer};

/// Chooses the tier of a request.
///
/// # Errors
/// `model_not_found` when the producer names a model that the fleet does not serve.
pub fn decide(
    request: &ChatRequest,
    threshold: f64,
    models: &Models,
    scorer: &Scorer,
) -> Result<(Tier, Decision), Reason> {
    let features = Features::of(request);
    let score = scorer.score(&features).gain;
    let tier = match &request.model {
        ModelChoice::Auto if score >= threshold => Tier::Large,
        ModelChoice::Auto | ModelChoice::Small => Tier::Small,
        ModelChoice::Large => Tier::Large,
        ModelChoice::Named(name) => models.tier_of(name).ok_or_else(|| {
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
        })?,
    };
    let decision = Decision {
        score,
        threshold,
        scorer: scorer.version().to_owned(),
        features: features.to_json(),
    };
    Ok((tier, decision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{RequestLimits, Submission};

    fn request(body: &str) -> ChatRequest {
        Submission::parse(body.as_bytes(), &RequestLimits::default())
            .expect("valid")
            .request
    }

    #[test]
    fn the_producers_word_beats_the_score() {
        let (models, scorer) = (Models::default(), Scorer::bundled());
        let tier = |body: &str, threshold| {
            decide(&request(body), threshold, &models, &scorer).map(|(tier, _)| tier)
        };
        assert_eq!(tier(r#"{"prompt":"hi"}"#, 0.5), Ok(Tier::Small));
        assert_eq!(tier(r#"{"prompt":"hi"}"#, 0.0), Ok(Tier::Large));
        assert_eq!(
            tier(r#"{"prompt":"hi","model":"large"}"#, 0.5),
            Ok(Tier::Large)
        );
        assert_eq!(
            tier(r#"{"prompt":"hi","model":"small"}"#, 0.0),
            Ok(Tier::Small)
        );
        let fault = tier(r#"{"prompt":"hi","model":"gpt-9"}"#, 0.5).expect_err("unknown");
        assert_eq!(fault.code, "model_not_found");
    }
}
