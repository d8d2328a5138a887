//! The server: where it is, what it serves, how it likes to be asked, and whether it is there.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, redirect};
use tokio::time::sleep;
use url::{Host, Url};

use super::{
    gate::Gate,
    reach::{self, Guarded},
    refusal::{Refusal, Sorter},
    wire::{Dialect, ModelEntry, ModelList},
};
use crate::{
    config::{ModelConfig, Secret},
    engine::EngineError,
};

/// A connection that takes longer is as good as none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that is well lists its models at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two questions whether a lost server is back.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// Largest response that is read: an answer of 32,768 tokens with log-probabilities fits.
pub(super) const RESPONSE_BYTES_MAX: usize = 32 << 20;
/// Most redirects within the server; a loop ends here.
const REDIRECTS_MAX: usize = 5;

/// A server of an OpenAI-compatible API.
pub(super) struct Server {
    client: Client,
    /// Ends in `/v1/`.
    base: Url,
    api_key: Option<Secret>,
    pub(super) model: String,
    pub(super) revision: String,
    pub(super) context_tokens: Option<usize>,
    pub(super) gate: Arc<Gate>,
    is_probed: AtomicBool,
    /// What it has not refused so far.
    dialect: Mutex<Dialect>,
    /// Set once it was told that the server's counts are missing.
    pub(super) is_estimate_told: AtomicBool,
}

impl fmt::Debug for Server {
    /// Leaves out the URL and the key, which hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("model", &self.model)
            .field("dialect", &self.dialect())
            .field("gate", &self.gate)
            .finish_non_exhaustive()
    }
}

/// Why a server's models are not known.
pub(super) enum ListError {
    /// It is not there, or not ready.
    Down(String),
    /// It is there, but gives no list.
    Refused(String),
}

impl Server {
    /// The server at a URL, of which nothing is known yet.
    ///
    /// # Errors
    /// One line: the URL is none.
    pub(super) fn new(url: &str, config: &ModelConfig, gate: Arc<Gate>) -> Result<Self, String> {
        // Whoever installed one first is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(same_origin())
            .dns_resolver(Arc::new(Guarded(config.private_addresses)))
            .build()
            .map_err(|error| format!("cannot make an HTTP client: {error}"))?;
        let base = base(url)?;
        // A literal address is not resolved.
        let literal = match base.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) | None => None,
        };
        if let Some(address) = literal {
            reach::check(address, config.private_addresses).map_err(|error| error.to_string())?;
        }
        let is_openai = is_openai(&base);
        Ok(Self {
            client,
            base,
            api_key: config.api_key.clone(),
            model: String::new(),
            revision: String::new(),
            context_tokens: None,
            gate,
            is_probed: AtomicBool::new(false),
            dialect: Mutex::new(Dialect::new(is_openai)),
            is_estimate_told: AtomicBool::new(false),
        })
    }

    /// Takes the model's name, revision and context length from configuration and list.
    pub(super) fn describe(&mut self, config: &ModelConfig, entry: Option<ModelEntry>) {
        // The configured limit is for models in this process; a server knows and keeps its own.
        self.context_tokens = entry.as_ref().and_then(|entry| entry.max_model_len);
        self.model = match (&config.name, &entry) {
            (Some(name), _) => name.clone(),
            (None, Some(entry)) => entry.id.clone(),
            (None, None) => String::new(),
        };
        let created = entry
            .and_then(|entry| entry.created)
            .filter(|_| is_openai(&self.base));
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

    pub(super) fn sorter(&self) -> Sorter<'_> {
        Sorter {
            model: &self.model,
            api_key: self.api_key.as_ref(),
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        *self.dialect.lock().expect("nobody panics while holding it")
    }

    /// Remembers what the server does not speak, so that it is asked only once.
    pub(super) fn learn(&self, dialect: Dialect) {
        let mut known = self.dialect.lock().expect("nobody panics while holding it");
        let both = known.and(dialect);
        if both != *known {
            tracing::info!(
                model.name = %self.model,
                logprobs = both.logprobs,
                stream = both.stream,
                stream_options = both.stream_options,
                "the server does not take all that it was asked for"
            );
            *known = both;
        }
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = self.base.join(path).expect("a plain path joins any base");
        let request = self.client.request(method, url);
        match &self.api_key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        }
    }

    /// The models it lists.
    ///
    /// # Errors
    /// It is not there, or gives no list.
    pub(super) async fn models(&self) -> Result<Vec<ModelEntry>, ListError> {
        let down = |refusal: Refusal| ListError::Down(refusal.into_message());
        let response = self
            .request(Method::GET, "models")
            .timeout(PROBE_TIMEOUT)
            .send()
            .await
            .map_err(|error| down(Refusal::of_transport(&error)))?;
        let status = response.status();
        if !status.is_success() {
            let message = format!("the server answers its list of models with status {status}");
            return Err(
                if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
                    ListError::Down(message)
                } else {
                    ListError::Refused(message)
                },
            );
        }
        let body = read_body(response).await.map_err(down)?;
        let list: ModelList = serde_json::from_slice(&body).map_err(|error| {
            ListError::Refused(format!(
                "the server's list of models is not understood: {error}"
            ))
        })?;
        Ok(list.data)
    }

    /// There is no connection: nothing is sent until the server lists its models again.
    pub(super) fn note_lost(self: &Arc<Self>) {
        self.gate.shut();
        self.probe(PROBE_EVERY);
    }

    /// Something broke that may be the server: it is asked at once, and lost if it does not answer.
    pub(super) fn note_doubt(self: &Arc<Self>) {
        self.probe(Duration::ZERO);
    }

    /// Asks every few seconds until the server is there; ends when the engine is gone.
    fn probe(self: &Arc<Self>, first_after: Duration) {
        if self.is_probed.swap(true, Ordering::AcqRel) {
            return;
        }
        let server: Weak<Self> = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep(first_after).await;
            loop {
                let Some(server) = server.upgrade() else {
                    return;
                };
                match server.models().await {
                    Ok(_) | Err(ListError::Refused(_)) => {
                        server.is_probed.store(false, Ordering::Release);
                        server.gate.open();
                        return;
                    }
                    Err(ListError::Down(_)) => server.gate.shut(),
                }
                drop(server);
                sleep(PROBE_EVERY).await;
            }
        });
    }
}

/// The API's root: `http://host:8000` and `http://host:8000/v1` mean the same.
fn base(url: &str) -> Result<Url, String> {
    let mut base = Url::parse(url).map_err(|error| format!("this is no URL: {error}"))?;
    let path = base.path().trim_end_matches('/').to_owned();
    let path = if path.ends_with("/v1") {
        path
    } else {
        path + "/v1"
    };
    base.set_path(&(path + "/"));
    Ok(base)
}

fn is_openai(base: &Url) -> bool {
    base.host_str()
        .is_some_and(|host| host == "openai.com" || host.ends_with(".openai.com"))
}

/// Follows redirects within the server only: elsewhere, prompts and key are nobody's business.
fn same_origin() -> redirect::Policy {
    redirect::Policy::custom(|attempt| {
        let first = attempt.previous().first().map(Url::origin);
        if first == Some(attempt.url().origin()) && attempt.previous().len() <= REDIRECTS_MAX {
            attempt.follow()
        } else {
            attempt.stop()
        }
    })
}

/// Reads a whole response.
///
/// # Errors
/// The connection broke, or it is too large.
pub(super) async fn read_body(mut response: Response) -> Result<Vec<u8>, Refusal> {
    let mut body = Vec::new();
    while let Some(part) = response
        .chunk()
        .await
        .map_err(|error| Refusal::of_transport(&error))?
    {
        if body.len() + part.len() > RESPONSE_BYTES_MAX {
            return Err(too_large());
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// What a response hears that exceeds [`RESPONSE_BYTES_MAX`].
pub(super) fn too_large() -> Refusal {
    Refusal::Answered(EngineError::Crashed(format!(
        "the server's response exceeds {RESPONSE_BYTES_MAX} bytes"
    )))
}
