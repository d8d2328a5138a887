//! The cache key of a request: a digest of everything that can change its answer.

use blake3::Hasher;

use super::semantic::guards::WORDS_MAX;
use crate::{
    job::{CacheKey, CacheMode, ChatRequest, ContextMode, Role, Sampling, Tenant},
    prompt::CONTEXT_RULES,
};

/// Raised whenever the layout below changes, so that old entries are never misread.
const LAYOUT: &[u8] = b"promptyard-cache-2";
/// The same for the layout of scopes.
const SCOPE_LAYOUT: &[u8] = b"promptyard-scope-1";

/// The key under which an answer may be reused, or `None` when the request forbids it (`cache: off`) or
/// its answer is random (a temperature without a seed).
///
/// `models` are the names and revisions of the models that may answer: one, or small and large where
/// the job may be escalated. A key over two models differs from the key of a request for either.
///
/// With temperature 0 the key leaves out sampling parameters without effect (top-p, top-k, min-p,
/// seed); it never depends on the order of stop strings. Log-probabilities are part of the key, so that
/// an answer without them is never given to a request for them.
pub fn cache_key(
    tenant: &Tenant,
    models: &[(&str, &str)],
    request: &ChatRequest,
) -> Option<CacheKey> {
    let sampling = &request.sampling;
    if request.options.cache == CacheMode::Off || !sampling.is_deterministic() {
        return None;
    }
    let mut hasher = Hasher::new();
    put(&mut hasher, LAYOUT);
    put(&mut hasher, tenant.as_str().as_bytes());
    hasher.update(&(models.len() as u64).to_le_bytes());
    for (model, revision) in models {
        put(&mut hasher, model.as_bytes());
        put(&mut hasher, revision.as_bytes());
    }
    hasher.update(&(request.messages.len() as u64).to_le_bytes());
    for message in &request.messages {
        put(&mut hasher, message.role.as_str().as_bytes());
        put(&mut hasher, message.content.as_bytes());
    }
    hasher.update(&sampling.max_completion_tokens.to_le_bytes());
    let mut stop: Vec<_> = sampling.stop.iter().collect();
    stop.sort();
    stop.dedup();
    hasher.update(&(stop.len() as u64).to_le_bytes());
    for text in stop {
        put(&mut hasher, text.as_bytes());
    }
    if sampling.temperature > 0.0 {
        hasher.update(&sampling.temperature.to_le_bytes());
        hasher.update(&sampling.top_p.to_le_bytes());
        hasher.update(&sampling.top_k.to_le_bytes());
        hasher.update(&sampling.seed.unwrap_or_default().to_le_bytes());
    }
    // The context mode changes the prompt that is sent.
    if request.options.context != ContextMode::Keep {
        hasher.update(&[request.options.context as u8, CONTEXT_RULES]);
    }
    put_optional(&mut hasher, sampling);
    Some(CacheKey(*hasher.finalize().as_bytes()))
}

/// The question of a request that may reuse a similar question's answer: the request allows it, is one
/// user turn (a system message may come first), has a reusable answer, and is short enough for the
/// guards, which reject longer ones.
pub fn question_of(request: &ChatRequest) -> Option<&str> {
    let (last, before) = request.messages.split_last()?;
    let is_single = last.role == Role::User && before.iter().all(|m| m.role == Role::System);
    let is_open =
        request.options.cache == CacheMode::Semantic && request.sampling.is_deterministic();
    let words = last.content.split_whitespace().count();
    (is_single && is_open && (1..=WORDS_MAX).contains(&words)).then_some(last.content.as_str())
}

/// A digest of what two requests must agree in, besides the question, before one's answer may serve the
/// other: everything else in the cache key, and the encoder that computes their similarity.
pub fn scope_key(
    tenant: &Tenant,
    models: &[(&str, &str)],
    request: &ChatRequest,
    embedder: &str,
) -> Option<[u8; 32]> {
    let mut rest = request.clone();
    rest.messages.last_mut()?.content.clear();
    let key = cache_key(tenant, models, &rest)?;
    let mut hasher = Hasher::new();
    put(&mut hasher, SCOPE_LAYOUT);
    put(&mut hasher, embedder.as_bytes());
    hasher.update(&key.0);
    Some(*hasher.finalize().as_bytes())
}

/// Adds the parameters that most requests leave at a neutral value, and nothing if all are neutral.
fn put_optional(hasher: &mut Hasher, sampling: &Sampling) {
    let mut asked = Sampling {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        seed: None,
        stop: Vec::new(),
        max_completion_tokens: 1,
        ..sampling.clone()
    };
    if sampling.temperature == 0.0 {
        asked.min_p = 0.0;
    }
    if asked == Sampling::default() {
        return;
    }
    // No temperature (this is NaN) and no context mode begins with these bytes.
    hasher.update(&u32::MAX.to_le_bytes());
    let json = serde_json::to_vec(&asked).expect("a request's fields are representable in JSON");
    put(hasher, &json);
}

/// Writes the length first, so that different sequences of fields never give the same bytes.
fn put(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::{RequestLimits, Submission};

    fn request(body: &str) -> ChatRequest {
        Submission::parse(body.as_bytes(), &RequestLimits::default())
            .expect("valid body")
            .request
    }

    fn key(body: &str) -> Option<CacheKey> {
        cache_key(&Tenant::default(), &[("m", "r")], &request(body))
    }

    #[test]
    fn parameters_without_effect_do_not_change_the_key() {
        let base = key(r#"{"prompt":"a","temperature":0,"stop":["x","y"]}"#);
        assert!(base.is_some());
        for same in [
            r#"{ "stop": ["y","x","x"], "temperature": 0.0, "messages": [{"role":"user","content":"a"}] }"#,
            r#"{"prompt":"a","temperature":0,"stop":["x","y"],"user":"u1","seed":7,"top_p":0.5}"#,
            r#"{"prompt":"a","temperature":0,"stop":["x","y"],"promptyard":{"deadline_ms":9}}"#,
            r#"{"prompt":"a","temperature":0,"stop":["x","y"],"min_p":0.5,"presence_penalty":0,
                "frequency_penalty":0,"repetition_penalty":1,"logit_bias":{"7":0},"logprobs":false,
                "top_logprobs":0,"response_format":{"type":"text"}}"#,
        ] {
            assert_eq!(key(same), base, "{same}");
        }
    }

    #[test]
    fn parameters_with_effect_change_the_key() {
        let base = r#"{"prompt":"a","temperature":1,"seed":1}"#;
        for other in [
            r#"{"prompt":"b","temperature":1,"seed":1}"#,
            r#"{"prompt":"a","temperature":1,"seed":2}"#,
            r#"{"prompt":"a","temperature":0.9,"seed":1}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"top_p":0.9}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"top_k":4}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"max_tokens":4}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"stop":"z"}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"min_p":0.1}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"repetition_penalty":1.1}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"presence_penalty":1}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"frequency_penalty":1}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"logit_bias":{"7":-1}}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"logprobs":true}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"response_format":{"type":"json_object"}}"#,
            r#"{"prompt":"a","temperature":0}"#,
            r#"{"messages":[{"role":"system","content":"a"}],"temperature":1,"seed":1}"#,
        ] {
            assert_ne!(key(other), key(base), "{other}");
        }
    }

    #[test]
    fn penalties_logprobs_and_formats_change_greedy_keys() {
        let schema = |schema: &str| {
            format!(
                r#""response_format":{{"type":"json_schema","json_schema":{{"name":"a","schema":{schema}}}}}"#
            )
        };
        let fields = [
            r#""top_k":0"#.to_owned(),
            r#""presence_penalty":1"#.to_owned(),
            r#""frequency_penalty":1"#.to_owned(),
            r#""repetition_penalty":2"#.to_owned(),
            r#""logit_bias":{"1":1}"#.to_owned(),
            r#""logit_bias":{"2":1}"#.to_owned(),
            r#""logprobs":true"#.to_owned(),
            r#""logprobs":true,"top_logprobs":1"#.to_owned(),
            schema(r#"{"type":"object"}"#),
            schema(r#"{"type":"array"}"#),
        ];
        let keys: std::collections::HashSet<_> = fields
            .iter()
            .map(|field| {
                key(&format!(r#"{{"prompt":"a",{field}}}"#))
                    .expect("greedy")
                    .0
            })
            .collect();
        assert_eq!(keys.len(), fields.len());
    }

    #[test]
    fn keys_are_stable_across_versions() {
        for (body, expected) in [
            (
                r#"{"prompt":"a","temperature":0,"stop":["x","y"]}"#,
                "84122f71272914f4b6304523169add27ac21fa0b4ecfae2f175d549a2b284907",
            ),
            (
                r#"{"prompt":"a","temperature":1,"seed":1}"#,
                "5ff40f3640a8879127f0aced47dcea68d553db70a7d6d5e9914ea48ed7665a70",
            ),
        ] {
            assert_eq!(key(body).expect("deterministic").to_string(), expected);
        }
    }

    #[test]
    fn a_key_over_two_models_differs_from_either_models_key() {
        let request = request(r#"{"prompt":"a"}"#);
        let key = |models: &[(&str, &str)]| cache_key(&Tenant::default(), models, &request);
        let pair = key(&[("s", "1"), ("l", "1")]);
        for other in [
            key(&[("s", "1")]),
            key(&[("l", "1")]),
            key(&[("l", "1"), ("s", "1")]),
            key(&[("s", "2"), ("l", "1")]),
            key(&[("s", "1"), ("l", "2")]),
        ] {
            assert_ne!(other, pair);
        }
    }

    #[test]
    fn only_short_single_turn_questions_are_looked_up() {
        let allowed = r#"{"prompt":"why?","promptyard":{"cache":"semantic"}}"#;
        assert_eq!(question_of(&request(allowed)), Some("why?"));
        let long = format!(
            r#"{{"prompt":"{}","promptyard":{{"cache":"semantic"}}}}"#,
            "why ".repeat(WORDS_MAX + 1)
        );
        for other in [
            r#"{"prompt":"why?"}"#,
            r#"{"prompt":"why?","temperature":1,"promptyard":{"cache":"semantic"}}"#,
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
                {"role":"user","content":"why?"}],"promptyard":{"cache":"semantic"}}"#,
            &long,
        ] {
            assert_eq!(question_of(&request(other)), None, "{other}");
        }
    }

    #[test]
    fn a_scope_covers_everything_but_the_question() {
        let scope = |body: &str, revision: &str, embedder: &str| {
            let tenant = Tenant::default();
            scope_key(&tenant, &[("m", revision)], &request(body), embedder)
        };
        let base = scope(r#"{"prompt":"a"}"#, "r", "e");
        assert!(base.is_some());
        assert_eq!(scope(r#"{"prompt":"b"}"#, "r", "e"), base);
        for other in [
            scope(r#"{"prompt":"a"}"#, "s", "e"),
            scope(r#"{"prompt":"a"}"#, "r", "f"),
            scope(r#"{"prompt":"a","max_tokens":3}"#, "r", "e"),
            scope(
                r#"{"messages":[{"role":"system","content":"x"},{"role":"user","content":"a"}]}"#,
                "r",
                "e",
            ),
        ] {
            assert_ne!(other, base);
        }
    }

    #[test]
    fn random_answers_and_cache_off_have_no_key() {
        assert_eq!(key(r#"{"prompt":"a","temperature":0.7}"#), None);
        assert_eq!(key(r#"{"prompt":"a","promptyard":{"cache":"off"}}"#), None);
    }

    proptest! {
        /// Equal keys mean equal tenant, model, revision and conversation.
        #[test]
        fn keys_separate_tenants_models_revisions_and_turns(
            a in ("[a-z]{1,3}", "[ab]{0,2}", "[ab]{0,2}", prop::collection::vec("[ab]{1,2}", 1..3)),
            b in ("[a-z]{1,3}", "[ab]{0,2}", "[ab]{0,2}", prop::collection::vec("[ab]{1,2}", 1..3)),
        ) {
            let make = |(tenant, model, revision, turns): &(String, String, String, Vec<String>)| {
                let mut request = request(r#"{"prompt":"x"}"#);
                let turn = request.messages[0].clone();
                request.messages = turns
                    .iter()
                    .map(|content| crate::job::Message { content: content.clone(), ..turn.clone() })
                    .collect();
                cache_key(&tenant.parse().expect("letters"), &[(model, revision)], &request)
            };
            prop_assert_eq!(a == b, make(&a) == make(&b));
        }
    }
}
