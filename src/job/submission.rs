//! The job contract: OpenAI chat-completions bodies, `{"prompt": …}`, and OpenAI batch lines.
//!
//! A body is parsed once, on entry, into a [`Submission`]; every error becomes a [`Rejection`] that names
//! the field, what was expected and what was found, and never quotes prompt text.

use serde_json::{Map, Value};

use super::{
    body::fields::{Fields, unknown_field, wrong_type, wrong_value},
    identity::Tenant,
    request::{ChatRequest, RequestLimits},
    schedule::Schedule,
    state::Reason,
};

/// A body that cannot become a job, with the parts of its envelope that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What is wrong and where.
    pub reason: Reason,
    /// The line's own name, if it could be read.
    pub custom_id: Option<String>,
    /// The tenant, if it could be read.
    pub tenant: Option<Tenant>,
}

/// A parsed body, before it has an identity.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// The line's own name (batch lines only).
    pub custom_id: Option<String>,
    /// The tenant, if the body names one.
    pub tenant: Option<Tenant>,
    /// Deadline, start and attempts.
    pub schedule: Schedule,
    /// The request.
    pub request: ChatRequest,
}

impl Submission {
    /// Reads a body: chat completion, `{"prompt": …}` or a batch line.
    ///
    /// # Errors
    /// A [`Rejection`] that names the first invalid field, what was expected and what was found.
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, Rejection> {
        let bare = |reason| Rejection {
            reason,
            custom_id: None,
            tenant: None,
        };
        if body.len() > limits.body_bytes_max {
            return Err(bare(Reason::new(
                "body_too_large",
                format!(
                    "the body has {} bytes; at most {} are accepted",
                    body.len(),
                    limits.body_bytes_max
                ),
            )));
        }
        let text = std::str::from_utf8(body).map_err(|error| {
            bare(Reason::new(
                "invalid_utf8",
                format!(
                    "the body is not UTF-8: bad byte at offset {}",
                    error.valid_up_to()
                ),
            ))
        })?;
        let value: Value = serde_json::from_str(text).map_err(|error| {
            bare(Reason::new(
                "invalid_json",
                format!(
                    "the body is not valid JSON at line {} column {}",
                    error.line(),
                    error.column()
                ),
            ))
        })?;
        let Value::Object(object) = value else {
            return Err(bare(wrong_type("the body", "an object", &value)));
        };
        Self::from_object(object, limits)
    }

    /// A submission of a plain-text prompt.
    ///
    /// # Errors
    /// A [`Rejection`] when the text is blank.
    pub fn from_prompt(prompt: &str, limits: &RequestLimits) -> Result<Self, Rejection> {
        let mut object = Map::new();
        object.insert("prompt".into(), Value::String(prompt.to_owned()));
        Self::from_object(object, limits)
    }

    fn from_object(object: Map<String, Value>, limits: &RequestLimits) -> Result<Self, Rejection> {
        let is_batch_line = object.contains_key("custom_id") || object.contains_key("body");
        let (custom_id, body) = if is_batch_line {
            let (custom_id, body) = unwrap_batch_line(object);
            match body {
                Ok(body) => (custom_id, body),
                Err(reason) => {
                    return Err(Rejection {
                        reason,
                        custom_id,
                        tenant: None,
                    });
                }
            }
        } else {
            (None, object)
        };
        let mut fields = Fields { object: body };
        let mut tenant = None;
        match fields.read(limits, &mut tenant) {
            Ok((request, schedule)) => Ok(Self {
                custom_id,
                tenant,
                schedule,
                request,
            }),
            Err(reason) => Err(Rejection {
                reason,
                custom_id,
                tenant,
            }),
        }
    }
}

/// Longest `custom_id`, in bytes.
const CUSTOM_ID_BYTES_MAX: usize = 512;

/// Splits a batch line into its name, if readable, and its body or an error.
fn unwrap_batch_line(
    mut line: Map<String, Value>,
) -> (Option<String>, Result<Map<String, Value>, Reason>) {
    let custom_id = match line.remove("custom_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) if id.is_empty() || id.len() > CUSTOM_ID_BYTES_MAX => {
            let message = format!(
                "custom_id has {} bytes; expected 1 to {CUSTOM_ID_BYTES_MAX}",
                id.len()
            );
            return (None, Err(Reason::new("invalid_value", message)));
        }
        Some(Value::String(id)) => Some(id),
        Some(other) => return (None, Err(wrong_type("custom_id", "a string", &other))),
    };
    let body = take_batch_body(&mut line);
    (custom_id, body)
}

fn take_batch_body(line: &mut Map<String, Value>) -> Result<Map<String, Value>, Reason> {
    match line.remove("method") {
        None => {}
        Some(Value::String(method)) if method == "POST" => {}
        Some(other) => return Err(wrong_value("method", "\"POST\"", &other)),
    }
    match line.remove("url") {
        None => {}
        Some(Value::String(url)) if url == "/v1/chat/completions" => {}
        Some(other) => return Err(wrong_value("url", "\"/v1/chat/completions\"", &other)),
    }
    let body = match line.remove("body") {
        Some(Value::Object(body)) => body,
        Some(other) => return Err(wrong_type("body", "an object", &other)),
        None => {
            return Err(Reason::new(
                "missing_field",
                "a batch line needs body, the chat-completions request",
            ));
        }
    };
    match line.keys().next() {
        Some(field) => Err(unknown_field(field, "custom_id, method, url, body")),
        None => Ok(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{CacheMode, Role};

    fn parse(body: &str) -> Result<Submission, Rejection> {
        Submission::parse(body.as_bytes(), &RequestLimits::default())
    }

    fn code(body: &str) -> String {
        parse(body).expect_err("must be rejected").reason.code
    }

    #[test]
    fn reads_the_three_shapes_of_a_body() {
        let chat = parse(r#"{"messages":[{"role":"user","content":"hi"}],"temperature":0}"#);
        let prompt = parse(r#"{"prompt":"hi"}"#).expect("prompt");
        let line = parse(
            r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"prompt":"hi"}}"#,
        )
        .expect("line");
        assert_eq!(chat.expect("chat").request, prompt.request);
        assert_eq!(line.request, prompt.request);
        assert_eq!(line.custom_id.as_deref(), Some("a"));
    }

    #[test]
    fn joins_text_parts_and_reads_the_extension() {
        let body = r#"{"messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
            "stop":"x","max_tokens":5,"promptyard":{"cache":"off","tenant":"t1","deadline_ms":10,"escalate":false}}"#;
        let read = parse(body).expect("valid");
        assert_eq!(read.request.messages[0].role, Role::System);
        assert_eq!(read.request.messages[0].content, "ab");
        assert_eq!(read.request.options.cache, CacheMode::Off);
        assert_eq!(read.tenant.expect("tenant").as_str(), "t1");
        assert_eq!(read.schedule.deadline_ms, Some(10));
        assert_eq!(read.request.sampling.max_completion_tokens, 5);
    }

    #[test]
    fn a_request_round_trips() {
        let body = r#"{"model":"large","messages":[{"role":"user","content":"hi"}],"temperature":0.7,"top_p":0.9,
            "top_k":40,"seed":18446744073709551615,"stop":["a"],"max_tokens":9,"promptyard":{"cache":"off","tenant":"t","tags":["a","b:1"]}}"#;
        let read = parse(body).expect("valid");
        let tenant = read.tenant.clone().expect("tenant");
        let again = parse(&read.request.to_body(&tenant).to_string()).expect("valid again");
        assert_eq!(again, read);
        assert_eq!(again.request.options.tags, ["a", "b:1"]);
    }

    #[test]
    fn every_sampling_field_round_trips() {
        let body = r#"{"prompt":"a","temperature":0.5,"min_p":0.05,"repetition_penalty":1.1,"presence_penalty":-0.5,
            "frequency_penalty":2,"logit_bias":{"50256":-100,"7":0.25,"8":0},"logprobs":true,"top_logprobs":3,
            "response_format":{"type":"json_schema","json_schema":{"name":"reply","strict":true,
                "description":"for the model","schema":{"type":"object","properties":{"b":{},"a":{}}}}}}"#;
        let read = parse(body).expect("valid");
        let sampling = &read.request.sampling;
        assert_eq!(
            sampling.logit_bias.clone().into_iter().collect::<Vec<_>>(),
            [(7, 0.25), (50256, -100.0)]
        );
        assert_eq!(sampling.logprobs, Some(3));
        let tenant = Tenant::default();
        let again = parse(&read.request.to_body(&tenant).to_string()).expect("valid again");
        assert_eq!(again.request, read.request);
        let stored = serde_json::to_string(&read.request).expect("JSON");
        let stored = serde_json::from_str(&stored).expect("what was written");
        assert_eq!(read.request, stored);
        let none = parse(
            r#"{"prompt":"a","logprobs":false,"top_logprobs":null,"response_format":{"type":"text"}}"#,
        );
        assert_eq!(none, parse(r#"{"prompt":"a"}"#));
    }

    #[test]
    fn numbers_of_a_schema_round_trip() {
        let schema = r#"{"maximum":6.934698245112694e+276}"#;
        let read = parse(&format!(
            r#"{{"prompt":"a","response_format":{{"type":"json_schema","json_schema":{{"name":"n","schema":{schema}}}}}}}"#
        ))
        .expect("valid");
        let body = read.request.to_body(&Tenant::default());
        let written = &body["response_format"]["json_schema"]["schema"];
        assert_eq!(written.to_string(), schema);
    }

    #[test]
    fn each_error_names_its_field() {
        for (body, expected) in [
            ("{", "invalid_json"),
            ("[]", "invalid_type"),
            ("{}", "missing_field"),
            (r#"{"prompt":"  "}"#, "empty_prompt"),
            (r#"{"messages":[]}"#, "empty_prompt"),
            (r#"{"prompt":3}"#, "invalid_type"),
            (r#"{"prompt":"a","max_tokens":-1}"#, "invalid_value"),
            (r#"{"prompt":"a","max_tokens":1.5}"#, "invalid_value"),
            (r#"{"prompt":"a","temperature":"hot"}"#, "invalid_value"),
            (r#"{"prompt":"a","temperature":3}"#, "invalid_value"),
            (r#"{"prompt":"a","n":2}"#, "unsupported_parameter"),
            (r#"{"prompt":"a","max_token":2}"#, "unknown_field"),
            (
                r#"{"prompt":"a","promptyard":{"cachet":"off"}}"#,
                "unknown_field",
            ),
            (
                r#"{"prompt":"a","promptyard":{"cache":"on"}}"#,
                "invalid_value",
            ),
            (
                r#"{"prompt":"a","promptyard":{"deadline_ms":-5}}"#,
                "invalid_value",
            ),
            (
                r#"{"prompt":"a","promptyard":{"tenant":"a b"}}"#,
                "invalid_value",
            ),
            (
                r#"{"prompt":"a","promptyard":{"tags":"a"}}"#,
                "invalid_type",
            ),
            (
                r#"{"prompt":"a","promptyard":{"tags":["a b"]}}"#,
                "invalid_value",
            ),
            (
                r#"{"prompt":"a","promptyard":{"tags":["1","2","3","4","5","6","7","8","9"]}}"#,
                "invalid_value",
            ),
            (
                r#"{"messages":[{"role":"robot","content":"a"}]}"#,
                "invalid_value",
            ),
            (
                r#"{"messages":[{"role":"user","content":"a","tool_calls":[]}]}"#,
                "unknown_field",
            ),
            (r#"{"custom_id":7,"body":{"prompt":"a"}}"#, "invalid_type"),
            (
                r#"{"custom_id":"a","url":"/v1/embeddings","body":{"prompt":"a"}}"#,
                "invalid_value",
            ),
            (
                r#"{"prompt":"a","stop":["a","b","c","d","e"]}"#,
                "invalid_value",
            ),
            (r#"{"prompt":"a","top_p":1e-60}"#, "invalid_value"),
            (r#"{"prompt":"a","min_p":1.5}"#, "invalid_value"),
            (r#"{"prompt":"a","repetition_penalty":0}"#, "invalid_value"),
            (
                r#"{"prompt":"a","repetition_penalty":1e-60}"#,
                "invalid_value",
            ),
            (r#"{"prompt":"a","presence_penalty":2.5}"#, "invalid_value"),
            (r#"{"prompt":"a","frequency_penalty":"x"}"#, "invalid_value"),
            (r#"{"prompt":"a","logit_bias":[]}"#, "invalid_type"),
            (r#"{"prompt":"a","logit_bias":{"a":1}}"#, "invalid_value"),
            (r#"{"prompt":"a","logit_bias":{"1":101}}"#, "invalid_value"),
            (r#"{"prompt":"a","logprobs":1}"#, "invalid_type"),
            (r#"{"prompt":"a","top_logprobs":2}"#, "invalid_value"),
            (
                r#"{"prompt":"a","logprobs":true,"top_logprobs":21}"#,
                "invalid_value",
            ),
            (r#"{"prompt":"a","response_format":"json"}"#, "invalid_type"),
            (
                r#"{"prompt":"a","response_format":{"type":"xml"}}"#,
                "invalid_value",
            ),
            (
                r#"{"prompt":"a","response_format":{"type":"text","schema":{}}}"#,
                "unknown_field",
            ),
            (
                r#"{"prompt":"a","response_format":{"type":"json_schema"}}"#,
                "missing_field",
            ),
            (
                r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"name":"a b","schema":{}}}}"#,
                "invalid_value",
            ),
            (
                r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"name":"a","schema":[]}}}"#,
                "invalid_type",
            ),
        ] {
            assert_eq!(code(body), expected, "{body}");
        }
        let limits = RequestLimits::default();
        let many: Map<_, _> = (0..1025).map(|id| (id.to_string(), 1.into())).collect();
        let many = serde_json::json!({"prompt": "a", "logit_bias": many}).to_string();
        assert_eq!(code(&many), "invalid_value");
        let utf8 = Submission::parse(b"{\"prompt\":\"\xff\"}", &limits).expect_err("not UTF-8");
        assert_eq!(utf8.reason.code, "invalid_utf8");
        let large = vec![b' '; limits.body_bytes_max + 1];
        let large = Submission::parse(&large, &limits).expect_err("too large");
        assert_eq!(large.reason.code, "body_too_large");
    }

    #[test]
    fn a_rejection_keeps_the_custom_id_and_quotes_no_text() {
        let secret = "the patient's name";
        let body =
            format!(r#"{{"custom_id":"row-9","body":{{"prompt":"a","temperature":"{secret}"}}}}"#);
        let rejection = parse(&body).expect_err("wrong type");
        assert_eq!(rejection.custom_id.as_deref(), Some("row-9"));
        assert!(!rejection.reason.message.contains(secret));
    }
}
