//! The sections of the configuration and their settings; the doc comments are the help texts.

use std::path::PathBuf;

use super::{
    names::{DeviceKind, LogFormat, PrefixSharing, PrivateAddresses, Tiers, WeightKind},
    secret::{Secret, SecretUrl},
    setting::{Field, RawValue, Section, Setting, settings},
    target::{RouteTarget, RouteTargets},
};

/// `router.load_shift_max` of a fleet that does not set it.
const LOAD_SHIFT_DEFAULT: f64 = 0.1;

settings! {
    /// Where jobs wait.
    pub struct BrokerConfig {
        /// `embedded` (tables in the job database's SQLite file) or an `amqp://` / `amqps://` URL of RabbitMQ.
        url: SecretUrl = SecretUrl::new("embedded"), "\"embedded\" or an amqp:// or amqps:// URL",
            |url| url.expose() == "embedded" || url.has_scheme(&["amqp", "amqps"]);
        /// Prefix of every queue's and the exchange's name, so that fleets can share a server.
        prefix: String = String::new(), "up to 64 characters of A-Z a-z 0-9 . _ -",
            |p| p.len() <= 64 && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        /// Most messages in a queue; beyond them it refuses new ones. Applies when the queue is first declared.
        queue_messages_max: u64 = 1_000_000, "a whole number from 1", |n| *n >= 1;
        /// Most milliseconds to wait for the broker to confirm a publish.
        publish_timeout_ms: u64 = 30_000, "a whole number from 1", |n| *n >= 1;
        /// Most milliseconds to wait for a connection.
        connect_timeout_ms: u64 = 10_000, "a whole number from 1", |n| *n >= 1;
        /// Deliveries of a message without an acknowledgement before the broker dead-letters it (the quorum queues' own limit).
        delivery_limit: u32 = 20, "a whole number from 1", |n| *n >= 1;
    }
}

settings! {
    /// The job database: jobs, attempts, answers and cache entries.
    pub struct StoreConfig {
        /// `sqlite:PATH` or a `postgres://` URL.
        url: SecretUrl = SecretUrl::new("sqlite:promptyard.db"), "a sqlite: path or a postgres:// URL",
            |url| url.has_scheme(&["sqlite", "postgres", "postgresql"]);
        /// Postgres schema that holds the tables.
        schema: String = "promptyard".to_owned(), "a lower-case SQL name of up to 48 characters",
            |s| !s.is_empty() && s.len() <= 48 && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') && !s.as_bytes()[0].is_ascii_digit();
        /// Most connections of one process.
        connections_max: u32 = 8, "a whole number from 1 to 1000", |n| (1..=1000).contains(n);
        /// Most milliseconds to wait for a connection.
        connect_timeout_ms: u64 = 10_000, "a whole number from 1", |n| *n >= 1;
    }
}

settings! {
    /// Which answers may be reused.
    pub struct CacheConfig {
        /// Seconds an answer may be reused.
        ttl_s: u64 = 86_400, "a whole number from 1", |n| *n >= 1;
        /// Seconds after which a job that computes an answer for identical jobs counts as stuck and one of them takes over.
        lease_s: u64 = 600, "a whole number from 1", |n| *n >= 1;
        /// Most answers kept; the least recently used are evicted first.
        entries_max: u64 = 1_000_000, "a whole number";
        /// Most answers kept for one tenant.
        tenant_entries_max: u64 = 250_000, "a whole number";
        /// Most bytes of kept answers.
        bytes_max: u64 = 4 << 30, "a whole number";
        /// Seconds after which answers of a model revision that no worker serves are removed, once workers serve another revision of that model.
        stale_s: u64 = 3_600, "a whole number";
        /// A directory or hub name of a BERT sentence encoder (all-MiniLM-L6-v2) with which the router finds paraphrases; without one `cache: semantic` is served as `exact`.
        embedder: Option<String> = None, "a directory or a hub name", |m| m.as_deref() != Some("");
        /// Least cosine similarity of two questions that may share an answer.
        cosine_min: f64 = 0.92, "a number from 0 to 1", |c| (0.0..=1.0).contains(c);
        /// Whether the model must confirm that a similar question's answer fits before it is reused; anything but a yes counts as a no.
        semantic_check: bool = false, "true or false";
        /// Share of the semantic hits that are also computed in the background, to measure how often the reused answer differs.
        recheck_share: f64 = 0.02, "a number from 0 to 1", |s| (0.0..=1.0).contains(s);
        /// Most questions that a router indexes for semantic reuse; the oldest are evicted first.
        questions_max: usize = 50_000, "1 to 10000000", |n| (1..=10_000_000).contains(n);
    }
}

settings! {
    /// The stage that chooses each job's tier.
    pub struct RouterConfig {
        /// Messages taken from the broker before the first is acknowledged.
        prefetch: u16 = 1536, "1 to 65535", |n| *n >= 1;
        /// Most jobs routed in one database transaction.
        batch_max: usize = 512, "1 to 4096", |n| (1..=4096).contains(n);
        /// Milliseconds to wait for a batch to fill after its first job.
        linger_ms: u64 = 5, "0 to 10000", |n| *n <= 10_000;
        /// Batches routed concurrently; order within a priority is kept only with 1.
        batches_in_flight_max: usize = 3, "1 to 64", |n| (1..=64).contains(n);
        /// Score from which a job goes to the large model, where no target applies.
        threshold: f64 = 0.5, "a number from 0 to 1", |t| (0.0..=1.0).contains(t);
        /// File of fitted weights that score prompts (`promptyard router train`); if not set, those promoted in the database, else the bundled ones.
        weights: Option<String> = None, "a path", |w| w.as_deref() != Some("");
        /// The routing target: `threshold`, `share:30%` of the jobs to large, `quality:99%` of large alone, or `latency:2s`.
        target: RouteTarget = RouteTarget::Threshold, "threshold, threshold:0.4, share:30%, quality:99% or latency:2s (ms or s)";
        /// Targets of tenants and tags, `"tenant:acme" = "share:10%"`; a tag's overrides its tenant's, and both override `target`.
        targets: RouteTargets = RouteTargets::default(), "a table of tenant:NAME or tag:NAME to a target";
        /// Largest share of the jobs that a backlog may move to the other tier, in either direction; 0 routes by prompt alone. By default 0.1, and 0 for `promptyard run`.
        load_shift_max: Option<f64> = None, "a number from 0 to 0.5", |s| s.is_none_or(|s| (0.0..=0.5).contains(&s));
        /// Seconds by which one tier's backlog must exceed the other's for the full shift.
        load_wait_s: f64 = 10.0, "a number above 0, up to 3600", |s| *s > 0.0 && *s <= 3600.0;
        /// Share of the jobs routed to small by score that also run on large while it is idle, as training data.
        shadow_share: f64 = 0.0, "a number from 0 to 1", |s| (0.0..=1.0).contains(s);
        /// Whether jobs go to the worker that has their prompt prefix in its cache, where several workers share a tier. Workers consume affinity queues regardless.
        prefix_affinity: bool = true, "true or false";
        /// Jobs that may wait in a tier's queues, more where its workers are fast; further jobs are deferred in the database and released by fair scheduling between tenants. 0 for no limit.
        window_jobs: u64 = 64, "0 to 65536", |n| *n <= 65_536;
        /// Most deferred jobs; beyond them the router stops consuming, so that its queue fills and refuses.
        deferred_max: u32 = 5_000_000, "a whole number from 1", |n| *n >= 1;
        /// Seconds without progress after which a job counts as stuck and its message is sent again; six times as long while its queue is not empty.
        stuck_after_s: u64 = 120, "a whole number from 1", |n| *n >= 1;
        /// Share of the jobs that are routed against their score, as training data.
        explore_share: f64 = 0.0, "a number from 0 to 0.5", |s| (0.0..=0.5).contains(s);
    }
}

settings! {
    /// The stage that runs jobs on an engine.
    pub struct WorkerConfig {
        /// Tiers that this process serves.
        tiers: Tiers = Tiers::default(), "\"small\", \"large\" or \"small,large\"";
        /// A directory or hub name of a BERT sentence encoder with which `context: prune` rates paragraphs; without one it compares words only.
        embedder: Option<String> = None, "a directory or a hub name", |m| m.as_deref() != Some("");
        /// Confidence below which an answer of the small tier is escalated to the large one; 0 for never, by default the calibration's threshold.
        escalate_below: Option<f64> = None, "a number from 0 to 1", |t| t.is_none_or(|t| (0.0..=1.0).contains(&t));
        /// File of the small model's confidence weights, written by `promptyard router calibrate`; by default those of the bundled model, or a rough rule for any other.
        confidence: Option<String> = None, "a path", |p| p.as_deref() != Some("");
        /// Attempts before a job becomes a dead letter; an escalated attempt counts, and the last is never escalated for low confidence.
        attempts_max: u32 = 4, "1 to 100", |n| (1..=100).contains(n);
        /// Milliseconds that finished answers wait to be committed together.
        settle_linger_ms: u64 = 20, "0 to 10000", |n| *n <= 10_000;
        /// Seconds without a heartbeat after which a worker's jobs may be taken over.
        lease_s: u64 = 60, "a whole number from 1", |n| *n >= 1;
        /// Seconds that running jobs may take to finish when the process stops.
        drain_s: u64 = 30, "0 to 3600", |n| *n <= 3600;
    }
}

settings! {
    /// One tier's model.
    pub struct ModelConfig {
        /// A Hugging Face directory, a hub name, or the http(s):// base URL of an OpenAI-compatible server.
        model: Option<String> = None, "a directory, a hub name or a URL",
            |m| m.as_deref() != Some("");
        /// Name under which the model is served; by default that of the directory or on the hub.
        name: Option<String> = None, "a name of 1 to 128 bytes", |n| n.as_ref().is_none_or(|n| (1..=128).contains(&n.len()));
        /// Bearer token for an OpenAI-compatible server.
        api_key: Option<Secret> = None, "a string";
        /// Non-public addresses allowed for an OpenAI-compatible server: `local` (private and loopback), `all` (link-local as well, where clouds serve their metadata) or `none`.
        private_addresses: PrivateAddresses = PrivateAddresses::Local, "\"local\", \"all\" or \"none\"";
        /// Number format of the in-process engine's matrix products; bf16 is faster and less exact than f32, q8 more so.
        weights: WeightKind = WeightKind::F32, "\"f32\", \"bf16\" or \"q8\"";
        /// Device of the in-process engine; auto is a GPU if this binary supports one and it is present, else the CPU.
        device: DeviceKind = DeviceKind::Auto, "\"auto\", \"cpu\", \"cuda\" or \"metal\"";
        /// Most sequences in one step, or requests in flight to a server.
        batch_max: usize = 16, "1 to 1024", |n| (1..=1024).contains(n);
        /// Most tokens computed in one step, prefill chunks included.
        step_tokens_max: usize = 512, "16 to 65536", |n| (16..=65_536).contains(n);
        /// Most milliseconds of a step that delays running answers: prompts are split into smaller chunks and fewer sequences run concurrently to meet it; 0 for no limit.
        step_ms_max: u64 = 500, "0 to 600000", |n| *n <= 600_000;
        /// Seconds after which a step of the in-process engine counts as hung: the engine is restarted and its jobs are retried; 0 for never.
        step_hang_s: u64 = 300, "0 to 86400", |n| *n <= 86_400;
        /// Most bytes of the KV cache, prefixes of earlier prompts included; one whole context always fits.
        kv_bytes_max: usize = 1 << 30, "a whole number";
        /// Which requests may share the cached prefix of a prompt: those of one `tenant`, `all`, or none (`off`).
        prefix_cache: PrefixSharing = PrefixSharing::Tenant, "\"tenant\", \"all\" or \"off\"";
        /// Longest context in tokens; the model's limit if that is shorter or this is 0.
        context_tokens_max: usize = 4096, "a whole number, 0 for the model's limit";
    }
}

settings! {
    /// The HTTP interface of `up` and `serve`.
    pub struct ApiConfig {
        /// Address to listen on.
        listen: String = "127.0.0.1:8080".to_owned(), "HOST:PORT", |a| a.contains(':');
        /// File with the certificate chain (PEM) for TLS; plain HTTP without one.
        tls_cert: Option<String> = None, "a path", |p| p.as_deref() != Some("");
        /// File with the certificate's private key (PEM).
        tls_key: Option<String> = None, "a path", |p| p.as_deref() != Some("");
        /// Most seconds that a request waits for its answer.
        wait_s: u64 = 300, "a whole number from 1", |n| *n >= 1;
        /// Whether requests need a key (`promptyard key create`); without keys, anyone who reaches the address may do everything.
        keys: bool = false, "true or false";
        /// Most requests waiting for an answer; more are refused with 429.
        waiting_max: usize = 4096, "a whole number from 1", |n| *n >= 1;
    }
}

settings! {
    /// What producers may send.
    pub struct LimitsConfig {
        /// Largest body in bytes.
        body_bytes_max: usize = 4 << 20, "1024 to 134217728", |n| (1024..=128 << 20).contains(n);
        /// Most messages in one request.
        messages_max: usize = 1024, "a whole number from 1", |n| *n >= 1;
        /// Largest token limit that a request may name.
        completion_tokens_max: u32 = 32_768, "a whole number from 1", |n| *n >= 1;
        /// Token limit of a request that names none.
        completion_tokens_default: u32 = 256, "a whole number from 1", |n| *n >= 1;
        /// Temperature of requests that name none; 0 (greedy) lets their answers be reused.
        temperature_default: f64 = 0.0, "a number from 0 to 2", |t| (0.0..=2.0).contains(t);
    }
}

settings! {
    /// Logs, metrics and health.
    pub struct TelemetryConfig {
        /// Address of `/metrics`, `/healthz` and `/readyz`; empty for none.
        listen: String = "127.0.0.1:9464".to_owned(), "HOST:PORT or an empty string", |a| a.is_empty() || a.contains(':');
        /// Format of log lines: `text`, or `json` for log collectors.
        log_format: LogFormat = LogFormat::Text, "\"text\" or \"json\"";
        /// Log filter in tracing syntax, such as `info,promptyard=debug`.
        log: String = "info,sqlx=warn,lapin=error,lapin::returned_messages=off".to_owned(), "a tracing filter";
    }
}

/// The whole configuration; each stage receives its own section.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the section types say what they hold")]
pub struct Config {
    pub broker: BrokerConfig,
    pub store: StoreConfig,
    pub cache: CacheConfig,
    pub router: RouterConfig,
    pub worker: WorkerConfig,
    pub small: ModelConfig,
    pub large: ModelConfig,
    pub api: ApiConfig,
    pub limits: LimitsConfig,
    pub telemetry: TelemetryConfig,
}

impl Config {
    /// The names of the sections, in the order they are shown.
    pub const SECTIONS: [&'static str; 10] = [
        "broker",
        "store",
        "cache",
        "router",
        "worker",
        "small",
        "large",
        "api",
        "limits",
        "telemetry",
    ];

    /// A section by its name.
    pub fn section(&self, name: &str) -> Option<&dyn Section> {
        Some(match name {
            "broker" => &self.broker,
            "store" => &self.store,
            "cache" => &self.cache,
            "router" => &self.router,
            "worker" => &self.worker,
            "small" => &self.small,
            "large" => &self.large,
            "api" => &self.api,
            "limits" => &self.limits,
            "telemetry" => &self.telemetry,
            _ => return None,
        })
    }

    /// A section by its name, to be changed.
    pub fn section_mut(&mut self, name: &str) -> Option<&mut dyn Section> {
        Some(match name {
            "broker" => &mut self.broker,
            "store" => &mut self.store,
            "cache" => &mut self.cache,
            "router" => &mut self.router,
            "worker" => &mut self.worker,
            "small" => &mut self.small,
            "large" => &mut self.large,
            "api" => &mut self.api,
            "limits" => &mut self.limits,
            "telemetry" => &mut self.telemetry,
            _ => return None,
        })
    }

    /// The environment variable that sets a field: `PROMPTYARD_BROKER_URL`.
    pub fn variable(section: &str, field: &str) -> String {
        format!(
            "PROMPTYARD_{}_{}",
            section.to_uppercase(),
            field.to_uppercase()
        )
    }

    /// The limits that request parsing applies.
    pub fn request_limits(&self) -> crate::job::RequestLimits {
        crate::job::RequestLimits {
            body_bytes_max: self.limits.body_bytes_max,
            messages_max: self.limits.messages_max,
            completion_tokens_max: self.limits.completion_tokens_max,
            completion_tokens_default: self.limits.completion_tokens_default,
            temperature_default: self.limits.temperature_default as f32,
        }
    }

    /// Path of the SQLite file, when the database is one.
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        self.store.sqlite_path()
    }
}

impl RouterConfig {
    /// The largest share of the jobs that a backlog may move, 0 to 0.5.
    pub fn load_shift_max(&self) -> f64 {
        self.load_shift_max.unwrap_or(LOAD_SHIFT_DEFAULT)
    }
}

impl StoreConfig {
    /// Path of the SQLite file, taken as it stands: nothing in it is escaped or a parameter.
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        let path = self.url.expose().strip_prefix("sqlite:")?;
        Some(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
    }
}
