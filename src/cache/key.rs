//! The canonical key of a request: everything that can change its answer, and nothing else.

use blake3::Hasher;

use crate::{
    job::{CacheKey, CacheMode, ChatRequest, ContextMode, Tenant},
    prompt::CONTEXT_RULES,
};

/// Raised whenever the layout below changes, so that old entries are never misread.
const LAYOUT: &[u8] = b"promptyard-cache-2";

/// Makes the key under which an answer may be reused, or `None` when the request forbids it
/// (`cache: off`) or its answer is left to chance (a temperature without a seed).
///
/// `models` are the names and revisions of those whose answer it may be: one, or small and large
/// where the large one may take over. The second kind of key stands for the final answer, so it
/// never meets the key of a request for the small model itself.
///
/// With temperature 0 the sampling parameters that cannot matter (top-p, top-k, seed) are left
/// out, and the order of stop strings always is.
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
    // What may be done to the context changes what is sent.
    if request.options.context != ContextMode::Keep {
        hasher.update(&[request.options.context as u8, CONTEXT_RULES]);
    }
    Some(CacheKey(*hasher.finalize().as_bytes()))
}

/// Length first, so that no two sequences of fields run into the same bytes.
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
    fn what_cannot_change_the_answer_does_not_change_the_key() {
        let base = key(r#"{"prompt":"a","temperature":0,"stop":["x","y"]}"#);
        assert!(base.is_some());
        for same in [
            r#"{ "stop": ["y","x","x"], "temperature": 0.0, "messages": [{"role":"user","content":"a"}] }"#,
            r#"{"prompt":"a","temperature":0,"stop":["x","y"],"user":"u1","seed":7,"top_p":0.5}"#,
            r#"{"prompt":"a","temperature":0,"stop":["x","y"],"promptyard":{"deadline_ms":9}}"#,
        ] {
            assert_eq!(key(same), base, "{same}");
        }
    }

    #[test]
    fn what_can_change_the_answer_changes_the_key() {
        let base = r#"{"prompt":"a","temperature":1,"seed":1}"#;
        for other in [
            r#"{"prompt":"b","temperature":1,"seed":1}"#,
            r#"{"prompt":"a","temperature":1,"seed":2}"#,
            r#"{"prompt":"a","temperature":0.9,"seed":1}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"top_p":0.9}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"top_k":4}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"max_tokens":4}"#,
            r#"{"prompt":"a","temperature":1,"seed":1,"stop":"z"}"#,
            r#"{"prompt":"a","temperature":0}"#,
            r#"{"messages":[{"role":"system","content":"a"}],"temperature":1,"seed":1}"#,
        ] {
            assert_ne!(key(other), key(base), "{other}");
        }
    }

    #[test]
    fn a_final_answer_of_two_models_has_a_key_of_its_own() {
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
    fn chance_and_off_are_never_reused() {
        assert_eq!(key(r#"{"prompt":"a","temperature":0.7}"#), None);
        assert_eq!(key(r#"{"prompt":"a","promptyard":{"cache":"off"}}"#), None);
    }

    proptest! {
        /// Fields of any content never run together: equal keys mean equal tenant, model,
        /// revision and conversation.
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
