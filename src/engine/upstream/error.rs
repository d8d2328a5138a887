//! Classifies a server's errors by what they tell about the server and what the caller does next.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::{
    StatusCode,
    header::{HeaderMap, RETRY_AFTER},
};
use serde_json::Value;

use crate::{config::Secret, engine::EngineError};

/// Most characters quoted of a server's own message.
const MESSAGE_CHARS_MAX: usize = 300;
/// "Site is overloaded", which some hosted APIs send instead of 503.
const OVERLOADED: u16 = 529;

/// Why an exchange gave no answer, by what it tells about the server.
#[derive(Debug, PartialEq)]
pub(super) enum ExchangeError {
    /// The server takes no more requests now; the same request may be sent again.
    Throttled {
        message: String,
        retry_after: Option<Duration>,
    },
    /// The server, or a proxy before it, took too long.
    TimedOut(String),
    /// The server cannot be connected to.
    Unreachable(String),
    /// The connection broke before the answer was complete.
    Broken(String),
    /// The server is up and returned this error.
    Answered(EngineError),
}

impl ExchangeError {
    /// Classifies a failure below HTTP. Leaves out URLs, which may contain a secret.
    pub(super) fn of_transport(error: &reqwest::Error) -> Self {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let detail = match cause.to_string() {
            detail if detail.contains("://") => String::new(),
            detail => format!(": {detail}"),
        };
        if error.is_connect() {
            Self::Unreachable(format!("cannot connect to the server{detail}"))
        } else if error.is_timeout() {
            Self::TimedOut(format!("the server did not answer in time{detail}"))
        } else {
            Self::Broken(format!("the connection to the server broke{detail}"))
        }
    }

    /// What went wrong, in one line.
    pub(super) fn into_message(self) -> String {
        match self {
            Self::Throttled { message, .. }
            | Self::TimedOut(message)
            | Self::Unreachable(message)
            | Self::Broken(message) => message,
            Self::Answered(error) => error.to_string(),
        }
    }

    /// The engine's error for a caller that does not retry here.
    pub(super) fn into_engine_error(self) -> EngineError {
        match self {
            Self::Answered(error) => error,
            Self::Throttled {
                message,
                retry_after,
            } => unavailable(message, retry_after),
            Self::TimedOut(message) | Self::Unreachable(message) | Self::Broken(message) => {
                unavailable(message, None)
            }
        }
    }
}

/// The engine's error for a request that should be retried later.
pub(super) fn unavailable(message: String, retry_after: Option<Duration>) -> EngineError {
    EngineError::Unavailable {
        message,
        retry_after_ms: retry_after
            .map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// An error body in OpenAI's format or one of the variants that other servers use.
#[derive(Debug, Default)]
pub(super) struct ErrorBody {
    /// An identifier, or a status in digits.
    code: String,
    /// The type of error, which some servers set instead of the code.
    kind: String,
    /// The invalid field of the request, if reported.
    param: String,
    message: String,
}

impl ErrorBody {
    pub(super) fn read(body: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = if value["error"].is_object() {
            &value["error"]
        } else {
            &value
        };
        let text = |name: &str| match &error[name] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        // TGI puts the message into `error` itself, FastAPI a list of failed checks into `detail`.
        let message = match (&value["error"], &value["detail"]) {
            (Value::String(message), _) => message.clone(),
            (_, Value::String(detail)) => detail.clone(),
            (_, Value::Array(details)) => details.iter().map(describe_detail).collect(),
            _ => text("message"),
        };
        let kind = text("type");
        Self {
            code: text("code"),
            kind: if kind.is_empty() {
                text("error_type")
            } else {
                kind
            },
            param: text("param"),
            message,
        }
    }

    /// True when the error is about this field of the request.
    pub(super) fn names(&self, field: &str) -> bool {
        [&self.param, &self.message].into_iter().any(|text| {
            text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .any(|word| word == field)
        })
    }

    /// The HTTP status that an error inside an answer stands for; 500 unless it tells otherwise.
    pub(super) fn status(&self) -> StatusCode {
        let reported = self.code.parse().ok().map(StatusCode::from_u16);
        if let Some(Ok(status)) = reported
            && (status.is_client_error() || status.is_server_error())
        {
            return status;
        }
        let words = format!("{} {}", self.code, self.kind).to_lowercase();
        let mentions = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
        if mentions(&["rate_limit", "ratelimit", "overloaded", "too_many"]) {
            StatusCode::TOO_MANY_REQUESTS
        } else if mentions(&[
            "invalid",
            "bad_request",
            "badrequest",
            "validation",
            "context",
        ]) {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }

    /// True when the prompt exceeds the model's context.
    fn is_context_too_long(&self) -> bool {
        // OpenAI sets the code, llama.cpp the type; vLLM has only the message.
        let is_code = |word: &String| {
            ["context_length_exceeded", "exceed_context_size_error"].contains(&word.as_str())
        };
        is_code(&self.code)
            || is_code(&self.kind)
            || self.message.contains("maximum context length")
    }

    /// Context length and prompt length, if the message contains them: "maximum context length is 4096
    /// tokens. However, … resulted in 5000 tokens", "request has 4999 input tokens".
    fn context_numbers(&self) -> Option<(usize, usize)> {
        let after = self.message.split("context length is ").nth(1)?;
        let mut numbers = after
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse::<usize>().ok());
        let context_tokens = numbers.next()?;
        // The largest number is the whole request, if it is reported at all.
        let tokens = numbers.max()?;
        Some((context_tokens, tokens))
    }
}

/// Location and message, without `input`, which quotes the prompt.
fn describe_detail(detail: &Value) -> String {
    let places = detail["loc"].as_array().into_iter().flatten();
    let places: Vec<&str> = places.filter_map(Value::as_str).collect();
    let what = detail["msg"].as_str().unwrap_or_default();
    format!("{}: {what}. ", places.join("."))
}

/// Context for classifying errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorClassifier<'a> {
    pub(super) model: &'a str,
    /// Removed from messages: servers quote a wrong key.
    pub(super) api_key: Option<&'a Secret>,
}

impl ErrorClassifier<'_> {
    /// Classifies an error by its status.
    pub(super) fn classify(
        self,
        status: StatusCode,
        error: &ErrorBody,
        retry_after: Option<Duration>,
    ) -> ExchangeError {
        let message = format!(
            "the server answered with status {status}: {}",
            self.quote(&error.message)
        );
        match status.as_u16() {
            429 | 503 | OVERLOADED => {
                return ExchangeError::Throttled {
                    message,
                    retry_after,
                };
            }
            408 | 504 => return ExchangeError::TimedOut(message),
            _ => {}
        }
        ExchangeError::Answered(
            if status.is_server_error() || status == StatusCode::TOO_EARLY {
                unavailable(message, retry_after)
            } else if status.is_redirection() {
                EngineError::Unservable(format!(
                    "the server answered with status {status}: it redirects to another origin, where prompts are not sent; configure its new URL"
                ))
            } else if error.is_context_too_long()
                && let Some((context_tokens, prompt_tokens)) = error.context_numbers()
            {
                EngineError::ContextTooLong {
                    model: self.model.to_owned(),
                    prompt_tokens,
                    context_tokens,
                }
            } else {
                EngineError::Unservable(message)
            },
        )
    }

    fn quote(self, message: &str) -> String {
        let hidden = match self.api_key.map(Secret::expose) {
            Some(key) if !key.is_empty() => message.replace(key, "***"),
            _ => message.to_owned(),
        };
        hidden.chars().take(MESSAGE_CHARS_MAX).collect()
    }
}

/// Reads the retry delay: milliseconds as OpenAI and Azure send, else seconds or a date (RFC 9110,
/// section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok();
    if let Some(ms) = text("retry-after-ms").and_then(number) {
        return Duration::try_from_secs_f64(ms / 1000.0).ok();
    }
    let value = text(RETRY_AFTER.as_str())?;
    if let Some(seconds) = number(value) {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = DateTime::parse_from_rfc2822(value).ok()?;
    let left = date.with_timezone(&Utc) - now;
    // A date in the past means no delay.
    Some(left.to_std().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(body: &str) -> ErrorBody {
        ErrorBody::read(body.as_bytes())
    }

    #[test]
    fn errors_inside_an_answer_map_to_a_status() {
        for (body, expected) in [
            (r#"{"error":{"code":429,"message":"m"}}"#, 429),
            (r#"{"error":{"code":"503","message":"m"}}"#, 503),
            (
                r#"{"object":"error","type":"BadRequestError","message":"m"}"#,
                400,
            ),
            (r#"{"error":"m","error_type":"overloaded"}"#, 429),
            (r#"{"error":"m","error_type":"generation"}"#, 500),
            (r#"{"error":{"code":"rate_limit_exceeded"}}"#, 429),
            (r#"{"error":{"code":200}}"#, 500),
            ("no JSON", 500),
        ] {
            assert_eq!(error(body).status().as_u16(), expected, "{body}");
        }
    }

    #[test]
    fn fields_match_whole_words_and_inputs_are_never_quoted() {
        let refused = error(
            r#"{"detail":[{"loc":["body","stream_options"],"msg":"extra field","input":{"messages":"secret"}}]}"#,
        );
        assert!(refused.names("stream_options") && !refused.names("stream"));
        assert_eq!(refused.message, "body.stream_options: extra field. ");
        assert!(error(r#"{"error":{"param":"logprobs"}}"#).names("logprobs"));
        assert!(!error(r#"{"message":"an upstream broke"}"#).names("stream"));
    }

    #[test]
    fn the_api_key_is_never_quoted() {
        let key = Secret::new("sk-test");
        let classifier = ErrorClassifier {
            model: "m",
            api_key: Some(&key),
        };
        let refused = error(r#"{"error":{"message":"wrong key sk-test given"}}"#);
        let error = classifier.classify(StatusCode::UNAUTHORIZED, &refused, None);
        let expected = "the server answered with status 401 Unauthorized: wrong key *** given";
        assert_eq!(
            error,
            ExchangeError::Answered(EngineError::Unservable(expected.to_owned()))
        );
    }

    #[test]
    fn retry_delays_are_read_in_all_formats() {
        let now = DateTime::parse_from_rfc3339("2015-10-21T07:27:00Z")
            .expect("a date")
            .to_utc();
        for (name, value, expected_ms) in [
            ("retry-after", "3", Some(3000)),
            ("retry-after", " 1.5 ", Some(1500)),
            ("retry-after-ms", "20", Some(20)),
            ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT", Some(60_000)),
            ("retry-after", "Wed, 21 Oct 2015 07:26:00 GMT", Some(0)),
            ("retry-after", "-1", None),
            ("retry-after", "NaN", None),
            ("retry-after", "soon", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a header"));
            let expected = expected_ms.map(Duration::from_millis);
            assert_eq!(retry_after(&headers, now), expected, "{name}: {value}");
        }
    }
}
