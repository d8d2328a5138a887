//! Any server that speaks OpenAI's chat completions: vLLM, llama.cpp, TGI, a hosted API.
//!
//! Comes in: conversations. Goes out: the server's answers (`wire`), and its faults sorted by what
//! the caller does next. No more than `batch_max` requests are in flight; a bounded number waits.

mod wire;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use reqwest::{RequestBuilder, Response, StatusCode, header};
use tokio::time::sleep;
use url::Url;

use super::{Engine, EngineFault, EngineInfo, Generate, Generation, admission::Places};
use crate::{
    config::{ModelConfig, Secret},
    job::{Answer, Usage},
};
use wire::{Completion, CompletionRequest, Dialect, ErrorBody, ModelEntry, ModelList};

/// A connection that takes longer is as good as none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A long answer of a loaded server; what takes longer is tried again later.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// A server that is well lists its models at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two questions whether a lost server is back.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// Largest response that is read: an answer of 32,768 tokens with log-probabilities fits.
const RESPONSE_BYTES_MAX: usize = 32 << 20;
/// Longest quotation of a server's own message.
const MESSAGE_CHARS_MAX: usize = 300;

/// A server of an OpenAI-compatible API.
#[derive(Debug)]
pub struct UpstreamEngine {
    info: EngineInfo,
    server: Arc<Server>,
    places: Places,
}

#[derive(Debug)]
struct Server {
    client: reqwest::Client,
    /// Ends in `/v1/`.
    base: Url,
    api_key: Option<Secret>,
    model: String,
    revision: String,
    context_tokens: Option<usize>,
    is_ready: AtomicBool,
    is_probed: AtomicBool,
    /// Cleared when the server refuses to give log-probabilities.
    gives_logprobs: AtomicBool,
}

impl UpstreamEngine {
    /// Connects to a server; `url` is its root or its `/v1`.
    ///
    /// Without a configured name the first model that the server lists is used, so it must answer
    /// now; with one it may come up later.
    ///
    /// # Errors
    /// One line: the URL is none, the server does not answer, or it serves no model.
    pub async fn connect(url: &str, config: &ModelConfig) -> Result<Self, String> {
        // Whoever installed one first is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|fault| format!("cannot make an HTTP client: {fault}"))?;
        let mut server = Server {
            client,
            base: base(url)?,
            api_key: config.api_key.clone(),
            model: String::new(),
            revision: String::new(),
            context_tokens: None,
            is_ready: AtomicBool::new(true),
            is_probed: AtomicBool::new(false),
            gives_logprobs: AtomicBool::new(true),
        };
        let listed = server.models().await;
        let entry = match (&config.name, listed) {
            (Some(name), Ok(models)) => models.into_iter().find(|entry| entry.id == *name),
            (Some(_), Err(_)) => {
                server.is_ready = AtomicBool::new(false);
                None
            }
            (None, Ok(models)) => Some(
                models
                    .into_iter()
                    .next()
                    .ok_or("the server lists no model")?,
            ),
            (None, Err(fault)) => {
                return Err(format!("{fault}; name the model to do without its list"));
            }
        };
        server.describe(config, entry);
        let server = Arc::new(server);
        if !server.is_ready.load(Ordering::Acquire) {
            server.note_lost();
        }
        Ok(Self {
            info: EngineInfo {
                model: server.model.clone(),
                revision: server.revision.clone(),
                context_tokens: server.context_tokens,
                batch_max: config.batch_max,
                parameters: None,
            },
            server,
            places: Places::new(config.batch_max),
        })
    }
}

/// The API's root: `http://host:8000` and `http://host:8000/v1` mean the same.
fn base(url: &str) -> Result<Url, String> {
    let mut base = Url::parse(url).map_err(|fault| format!("this is no URL: {fault}"))?;
    let path = base.path().trim_end_matches('/').to_owned();
    let path = if path.ends_with("/v1") {
        path
    } else {
        path + "/v1"
    };
    base.set_path(&(path + "/"));
    Ok(base)
}

impl Server {
    fn describe(&mut self, config: &ModelConfig, entry: Option<ModelEntry>) {
        // The configured limit is for models in this process; a server knows and keeps its own.
        self.context_tokens = entry.as_ref().and_then(|entry| entry.max_model_len);
        self.model = match (&config.name, &entry) {
            (Some(name), _) => name.clone(),
            (None, Some(entry)) => entry.id.clone(),
            (None, None) => String::new(),
        };
        let created = entry
            .and_then(|entry| entry.created)
            .filter(|_| self.is_openai());
        let mut hasher = blake3::Hasher::new();
        for part in [self.base.as_str(), &self.model] {
            hasher.update(part.as_bytes()).update(&[0]);
        }
        // Local servers write the time of asking there; a hosted one that of the model.
        if let Some(created) = created {
            hasher.update(created.to_string().as_bytes());
        }
        self.revision = hasher.finalize().to_hex()[..32].to_owned();
    }

    fn is_openai(&self) -> bool {
        self.base
            .host_str()
            .is_some_and(|host| host.ends_with("openai.com"))
    }

    fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        let url = self.base.join(path).expect("a plain path joins any base");
        let request = self.client.request(method, url);
        match &self.api_key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        }
    }

    async fn models(&self) -> Result<Vec<ModelEntry>, String> {
        let request = self
            .request(reqwest::Method::GET, "models")
            .timeout(PROBE_TIMEOUT);
        let response = request
            .send()
            .await
            .map_err(|fault| describe_transport(&fault))?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!(
                "the server answers its list of models with status {status}"
            ));
        }
        let body = read_body(response).await?;
        let list: ModelList = serde_json::from_slice(&body)
            .map_err(|fault| format!("the server's list of models is not understood: {fault}"))?;
        Ok(list.data)
    }

    /// Asks every few seconds until the server is back; ends when the engine is gone.
    fn note_lost(self: &Arc<Self>) {
        self.is_ready.store(false, Ordering::Release);
        if self.is_probed.swap(true, Ordering::AcqRel) {
            return;
        }
        let server: Weak<Self> = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                sleep(PROBE_EVERY).await;
                let Some(server) = server.upgrade() else {
                    return;
                };
                if server.is_ready.load(Ordering::Acquire) || server.models().await.is_ok() {
                    server.is_probed.store(false, Ordering::Release);
                    server.is_ready.store(true, Ordering::Release);
                    return;
                }
            }
        });
    }

    async fn complete(self: &Arc<Self>, request: &Generate) -> Result<Completion, EngineFault> {
        loop {
            let logprobs = self.gives_logprobs.load(Ordering::Acquire);
            let dialect = Dialect {
                is_openai: self.is_openai(),
                logprobs,
            };
            let body = CompletionRequest::new(&self.model, request, dialect);
            let sent = self
                .request(reqwest::Method::POST, "chat/completions")
                .timeout(ANSWER_TIMEOUT)
                .json(&body)
                .send()
                .await;
            let response = sent.map_err(|fault| self.lost(describe_transport(&fault)))?;
            let status = response.status();
            let retry_after_ms = retry_after_ms(&response, Utc::now());
            let body = read_body(response)
                .await
                .map_err(|fault| self.lost(fault))?;
            if status.is_success() {
                self.is_ready.store(true, Ordering::Release);
                return serde_json::from_slice(&body).map_err(|fault| {
                    EngineFault::Crashed(format!(
                        "the server's response is not understood: {fault}"
                    ))
                });
            }
            let error = ErrorBody::read(&body);
            if status == StatusCode::BAD_REQUEST && logprobs && error.message.contains("logprobs") {
                self.gives_logprobs.store(false, Ordering::Release);
                continue;
            }
            return Err(self.fault(status, &error, retry_after_ms));
        }
    }

    fn lost(self: &Arc<Self>, message: String) -> EngineFault {
        self.note_lost();
        EngineFault::Unavailable {
            message,
            retry_after_ms: None,
        }
    }

    /// Sorts a refusal by what the caller does next.
    fn fault(
        &self,
        status: StatusCode,
        error: &ErrorBody,
        retry_after_ms: Option<u64>,
    ) -> EngineFault {
        let quoted: String = error.message.chars().take(MESSAGE_CHARS_MAX).collect();
        let message = format!("the server answered with status {status}: {quoted}");
        let is_busy = status.is_server_error()
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY
            );
        if is_busy {
            return EngineFault::Unavailable {
                message,
                retry_after_ms,
            };
        }
        if error.is_context_too_long()
            && let Some((context_tokens, prompt_tokens)) = error.context_numbers()
        {
            return EngineFault::ContextTooLong {
                model: self.model.clone(),
                prompt_tokens,
                context_tokens,
            };
        }
        EngineFault::Unservable(message)
    }

    async fn generate(self: &Arc<Self>, request: &Generate) -> Result<Generation, EngineFault> {
        let started_at = Utc::now();
        let mut completion = self.complete(request).await?;
        let first = completion.take_first().map_err(EngineFault::Crashed)?;
        let usage = completion.usage.unwrap_or_default();
        let cached = usage
            .prompt_tokens_details
            .and_then(|details| details.cached_tokens);
        let revision = match completion
            .system_fingerprint
            .filter(|fingerprint| !fingerprint.is_empty())
        {
            Some(fingerprint) => format!("{}-{fingerprint}", self.revision),
            None => self.revision.clone(),
        };
        Ok(Generation {
            answer: Answer {
                text: first.text,
                finish_reason: first.finish_reason,
                usage: Usage {
                    prompt_tokens: usage.prompt_tokens,
                    prompt_tokens_computed: usage.prompt_tokens.saturating_sub(cached.unwrap_or(0)),
                    completion_tokens: usage.completion_tokens,
                },
                model: self.model.clone(),
                revision,
                mean_logprob: first.signals.map(|signals| signals.mean_logprob),
                logprobs: None,
            },
            signals: first.signals,
            started_at,
            first_token_at: None,
            finished_at: Utc::now(),
        })
    }
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn retry_after_ms(response: &Response, now: DateTime<Utc>) -> Option<u64> {
    let value = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = value.trim().parse::<u64>() {
        return Some(seconds.saturating_mul(1000));
    }
    let date = DateTime::parse_from_rfc2822(value).ok()?;
    let left = date.with_timezone(&Utc) - now;
    Some(u64::try_from(left.num_milliseconds()).unwrap_or(0))
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|fault| describe_transport(&fault))?
    {
        if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
            return Err(format!(
                "the server's response exceeds {RESPONSE_BYTES_MAX} bytes"
            ));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What happened, without the URL, which may hold a secret.
fn describe_transport(fault: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = fault;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let what = if fault.is_timeout() {
        "the server does not answer in time"
    } else if fault.is_connect() {
        "the server cannot be reached"
    } else {
        "the connection to the server broke"
    };
    let detail = cause.to_string();
    if detail.contains("://") {
        what.to_owned()
    } else {
        format!("{what}: {detail}")
    }
}

impl Engine for UpstreamEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn generate(&self, request: Generate) -> BoxFuture<'static, Result<Generation, EngineFault>> {
        let server = self.server.clone();
        self.places
            .begin(async move { server.generate(&request).await })
    }

    fn is_ready(&self) -> bool {
        self.server.is_ready.load(Ordering::Acquire)
    }
}
