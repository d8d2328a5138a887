//! The server: its address, model and API dialect, and whether it is up.

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
    address_filter::{self, FilteredResolver},
    error::{ErrorClassifier, ExchangeError},
    gate::RequestGate,
    wire::{Dialect, ModelEntry, ModelList},
};
use crate::{
    config::{ModelConfig, Secret},
    engine::EngineError,
};

/// Limit for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for listing the models, which a healthy server does at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between probes of a server that is down.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// Largest response read: an answer of 32,768 tokens with log-probabilities fits.
pub(super) const RESPONSE_BYTES_MAX: usize = 32 << 20;
/// Most redirects followed within the server; ends loops.
const REDIRECTS_MAX: usize = 5;

/// An OpenAI-compatible model server.
pub(super) struct Server {
    client: Client,
    /// Ends in `/v1/`.
    base: Url,
    api_key: Option<Secret>,
    pub(super) model: String,
    pub(super) revision: String,
    pub(super) context_tokens: Option<usize>,
    pub(super) gate: Arc<RequestGate>,
    is_probed: AtomicBool,
    /// What the server has not rejected so far.
    dialect: Mutex<Dialect>,
    /// Whether missing token counts were logged.
    pub(super) estimate_logged: AtomicBool,
}

impl fmt::Debug for Server {
    /// Leaves out the URL and the key, which contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("model", &self.model)
            .field("dialect", &self.dialect())
            .field("gate", &self.gate)
            .finish_non_exhaustive()
    }
}

/// Why a server's models are not known.
pub(super) enum ModelListError {
    /// It is down or not ready.
    Down(String),
    /// It is up but provides no list.
    Refused(String),
}

impl Server {
    /// A server at a URL, not contacted yet.
    ///
    /// # Errors
    /// When the URL is invalid or its address is not allowed.
    pub(super) fn new(
        url: &str,
        config: &ModelConfig,
        gate: Arc<RequestGate>,
    ) -> Result<Self, String> {
        // An already installed provider serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(same_origin())
            .dns_resolver(Arc::new(FilteredResolver(config.private_addresses)))
            .build()
            .map_err(|error| format!("cannot create an HTTP client: {error}"))?;
        let base = base(url)?;
        // A literal address bypasses the resolver.
        let literal = match base.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) | None => None,
        };
        if let Some(address) = literal {
            address_filter::check(address, config.private_addresses)
                .map_err(|error| error.to_string())?;
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
            estimate_logged: AtomicBool::new(false),
        })
    }

    /// Sets the model's name, revision and context length from the configuration and the list.
    pub(super) fn describe(&mut self, config: &ModelConfig, entry: Option<ModelEntry>) {
        // The configured limit is for local models; a server enforces its own.
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
        // Local servers report the time of the request as `created`; OpenAI reports the model's.
        if let Some(created) = created {
            hasher.update(created.to_string().as_bytes());
        }
        self.revision = hasher.finalize().to_hex()[..32].to_owned();
    }

    pub(super) fn classifier(&self) -> ErrorClassifier<'_> {
        ErrorClassifier {
            model: &self.model,
            api_key: self.api_key.as_ref(),
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        *self.dialect.lock().expect("nobody panics while holding it")
    }

    /// Remembers unsupported parameters, so that they are not sent again.
    pub(super) fn learn(&self, dialect: Dialect) {
        let mut known = self.dialect.lock().expect("nobody panics while holding it");
        let both = known.and(dialect);
        if both != *known {
            tracing::info!(
                model.name = %self.model,
                logprobs = both.logprobs,
                stream = both.stream,
                stream_options = both.stream_options,
                "the server rejects some parameters; they are no longer sent"
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

    /// Lists its models.
    ///
    /// # Errors
    /// When the server is down or provides no list.
    pub(super) async fn models(&self) -> Result<Vec<ModelEntry>, ModelListError> {
        let down = |error: ExchangeError| ModelListError::Down(error.into_message());
        let response = self
            .request(Method::GET, "models")
            .timeout(PROBE_TIMEOUT)
            .send()
            .await
            .map_err(|error| down(ExchangeError::of_transport(&error)))?;
        let status = response.status();
        if !status.is_success() {
            let message =
                format!("the server answered the model list request with status {status}");
            return Err(
                if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
                    ModelListError::Down(message)
                } else {
                    ModelListError::Refused(message)
                },
            );
        }
        let body = read_body(response).await.map_err(down)?;
        let list: ModelList = serde_json::from_slice(&body).map_err(|error| {
            ModelListError::Refused(format!("cannot parse the server's model list: {error}"))
        })?;
        Ok(list.data)
    }

    /// Closes the gate after a failed connection and probes the server until it lists its models again.
    pub(super) fn note_down(self: &Arc<Self>) {
        self.gate.close();
        self.probe(PROBE_EVERY);
    }

    /// Probes the server at once after an error that may mean it is down.
    pub(super) fn probe_now(self: &Arc<Self>) {
        self.probe(Duration::ZERO);
    }

    /// Probes every few seconds until the server is up; ends when the engine is dropped.
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
                    Ok(_) | Err(ModelListError::Refused(_)) => {
                        server.is_probed.store(false, Ordering::Release);
                        server.gate.open();
                        return;
                    }
                    Err(ModelListError::Down(_)) => server.gate.close(),
                }
                drop(server);
                sleep(PROBE_EVERY).await;
            }
        });
    }
}

/// The API's root: `http://host:8000` and `http://host:8000/v1` are equivalent.
fn base(url: &str) -> Result<Url, String> {
    let mut base = Url::parse(url).map_err(|error| format!("invalid URL: {error}"))?;
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

/// Follows redirects within the server's origin only, so that prompts and the key go nowhere else.
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
/// When the connection breaks or the response is too large.
pub(super) async fn read_body(mut response: Response) -> Result<Vec<u8>, ExchangeError> {
    let mut body = Vec::new();
    while let Some(part) = response
        .chunk()
        .await
        .map_err(|error| ExchangeError::of_transport(&error))?
    {
        if body.len() + part.len() > RESPONSE_BYTES_MAX {
            return Err(too_large());
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// The error for a response that exceeds [`RESPONSE_BYTES_MAX`].
pub(super) fn too_large() -> ExchangeError {
    ExchangeError::Answered(EngineError::Crashed(format!(
        "the server's response exceeds {RESPONSE_BYTES_MAX} bytes"
    )))
}
