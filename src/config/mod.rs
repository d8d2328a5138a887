//! Every setting of promptyard: its unit, default and effect, declared once.
//!
//! Comes in: a TOML file, `PROMPTYARD_*` variables and `section.field=value` flags, in rising
//! precedence over the defaults. Goes out: one section for each stage; no stage reads the
//! environment itself. All errors are collected, so that one run of `promptyard config check`
//! shows them all ([`Config::load`]).

mod addresses;
mod device;
mod load;
mod setting;
mod target;

use std::path::PathBuf;

pub use addresses::PrivateAddresses;
pub use device::DeviceKind;
pub use load::{ConfigError, Overrides};
use setting::{Given, settings};
pub use setting::{LogFormat, PrefixSharing, Secret, SecretUrl, Setting, Tiers, WeightKind};
pub use target::{RouteTarget, RouteTargets, TargetScope};

/// Describes one setting to people: `config show`, the documentation and the compose-file test.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The field's name within its section.
    pub name: &'static str,
    /// What it does, with unit.
    pub doc: &'static str,
    /// What values are accepted.
    pub expected: &'static str,
}

/// A section of the configuration, addressed by field names.
pub trait Section {
    /// Its fields, in order.
    fn fields(&self) -> &'static [Field];
    /// Sets one field. The error says what was expected and what came.
    ///
    /// # Errors
    /// When the field is unknown, or the value has the wrong type or is out of range.
    fn set(&mut self, field: &str, given: &Given<'_>) -> Result<(), String>;
    /// The present value as a TOML literal with secrets masked; `None` when unset.
    fn show(&self, field: &str) -> Option<String>;
}

settings! {
    /// Where jobs wait.
    pub struct BrokerConfig {
        /// `embedded` (tables of the ledger's SQLite file) or an `amqp://` / `amqps://` URL of RabbitMQ.
        url: SecretUrl = SecretUrl::new("embedded"), "\"embedded\" or an amqp:// or amqps:// URL",
            |url| url.expose() == "embedded" || url.has_scheme(&["amqp", "amqps"]);
        /// Put before the name of every queue and of the exchange, so that fleets can share a server.
        prefix: String = String::new(), "up to 64 characters of A-Z a-z 0-9 . _ -",
            |p| p.len() <= 64 && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        /// Most messages a queue holds before it refuses new ones (used when the queue is first declared).
        queue_messages_max: u64 = 1_000_000, "a whole number from 1", |n| *n >= 1;
        /// Most milliseconds to wait for the broker to confirm a publish.
        publish_timeout_ms: u64 = 30_000, "a whole number from 1", |n| *n >= 1;
        /// Most milliseconds to wait for a connection.
        connect_timeout_ms: u64 = 10_000, "a whole number from 1", |n| *n >= 1;
        /// Times a message may come back unsettled before the broker dead-letters it (quorum queues' own limit).
        delivery_limit: u32 = 20, "a whole number from 1", |n| *n >= 1;
    }
}

settings! {
    /// The ledger: jobs, attempts, answers and cache entries.
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
        /// Seconds after which a job that computes an answer for others is presumed lost and another takes over.
        lease_s: u64 = 600, "a whole number from 1", |n| *n >= 1;
        /// Most answers that are kept; those used longest ago go first.
        entries_max: u64 = 1_000_000, "a whole number";
        /// Most answers that are kept for one tenant.
        tenant_entries_max: u64 = 250_000, "a whole number";
        /// Most bytes that kept answers may take.
        bytes_max: u64 = 4 << 30, "a whole number";
        /// Seconds after which answers of a revision go that no worker serves any more, while others serve another one of the same model.
        stale_s: u64 = 3_600, "a whole number";
        /// A directory or hub name of a BERT sentence encoder (all-MiniLM-L6-v2) with which the router finds questions that ask the same; without one `cache: semantic` is served as `exact`.
        embedder: Option<String> = None, "a directory or a hub name", |m| m.as_deref() != Some("");
        /// Least likeness of two questions of which one's answer serves the other.
        cosine_min: f64 = 0.92, "a number from 0 to 1", |c| (0.0..=1.0).contains(c);
        /// Whether the model that would answer is asked first if a near question's answer serves; anything but a yes is a no.
        semantic_check: bool = false, "true or false";
        /// Share of the semantic hits that are run again in the background, to see whether the answer fits.
        recheck_share: f64 = 0.02, "a number from 0 to 1", |s| (0.0..=1.0).contains(s);
        /// Most questions that a router knows for semantic reuse; the longest known give way.
        questions_max: usize = 50_000, "1 to 10000000", |n| (1..=10_000_000).contains(n);
    }
}

settings! {
    /// The stage that gives each job its tier.
    pub struct RouterConfig {
        /// Messages taken from the broker before the first is acknowledged.
        prefetch: u16 = 1536, "1 to 65535", |n| *n >= 1;
        /// Most jobs routed in one ledger transaction.
        batch_max: usize = 512, "1 to 4096", |n| (1..=4096).contains(n);
        /// Milliseconds to wait for a batch to fill once its first job is there.
        linger_ms: u64 = 5, "0 to 10000", |n| *n <= 10_000;
        /// Batches in the making at once; their order within a priority is not kept.
        batches_in_flight_max: usize = 3, "1 to 64", |n| (1..=64).contains(n);
        /// Score from which a job goes to the large model, where no target says otherwise.
        threshold: f64 = 0.5, "a number from 0 to 1", |t| (0.0..=1.0).contains(t);
        /// File of fitted weights that score prompts (`promptyard router train`); if not set, the ones promoted in the ledger, else the bundled ones.
        weights: Option<String> = None, "a path", |w| w.as_deref() != Some("");
        /// What the router is to deliver: `threshold`, `share:30%` to large, `quality:99%` of large alone, or `latency:2s`.
        target: RouteTarget = RouteTarget::Threshold, "threshold, threshold:0.4, share:30%, quality:99% or latency:2s (ms or s)";
        /// Targets of tenants and tags, `"tenant:acme" = "share:10%"`; a tag's goes before its tenant's, and both before `target`.
        targets: RouteTargets = RouteTargets::default(), "a table of tenant:NAME or tag:NAME to a target";
        /// Largest share of the jobs that a back-log may move to the other tier, either way; 0 leaves routes to the prompts alone. By default 0.1, and 0 for `promptyard run`.
        load_shift_max: Option<f64> = None, "a number from 0 to 0.5", |s| s.is_none_or(|s| (0.0..=0.5).contains(&s));
        /// Seconds by which one tier's back-log must exceed the other's for the whole of that shift.
        load_wait_s: f64 = 10.0, "a number above 0, up to 3600", |s| *s > 0.0 && *s <= 3600.0;
        /// Share of the jobs routed to small by their score that also run on large, for learning, while it is idle.
        shadow_share: f64 = 0.0, "a number from 0 to 1", |s| (0.0..=1.0).contains(s);
        /// Whether jobs go to the worker that holds their beginning, where several workers share a tier; workers empty the affinity queues for it whatever this says.
        affinity_queues: bool = true, "true or false";
        /// Jobs that may wait in a tier's queues, more where its workers are fast; what comes beyond them is held in the ledger, where tenants take turns. 0 for no such limit.
        window_jobs: u64 = 64, "0 to 65536", |n| *n <= 65_536;
        /// Jobs that may be held in the ledger; beyond them the router takes no more, so that its queue fills and refuses.
        deferred_max: u32 = 5_000_000, "a whole number from 1", |n| *n >= 1;
        /// Seconds without a sign of a job after which its message counts as lost and is sent again; six times as long while its queue is not empty.
        stuck_after_s: u64 = 120, "a whole number from 1", |n| *n >= 1;
        /// Share of the jobs that are sent to the other tier than their score says, for learning.
        explore_share: f64 = 0.0, "a number from 0 to 0.5", |s| (0.0..=0.5).contains(s);
    }
}

settings! {
    /// The stage that runs jobs on an engine.
    pub struct WorkerConfig {
        /// Tiers that this process serves.
        tiers: Tiers = Tiers::default(), "\"small\", \"large\" or \"small,large\"";
        /// A directory or hub name of a BERT sentence encoder that helps `context: prune` to tell what a question needs; without one words alone do.
        embedder: Option<String> = None, "a directory or a hub name", |m| m.as_deref() != Some("");
        /// Confidence below which an answer of the small tier is escalated to the large one; 0 for never, by default the calibration's own.
        escalate_below: Option<f64> = None, "a number from 0 to 1", |t| t.is_none_or(|t| (0.0..=1.0).contains(&t));
        /// File of the small model's confidence weights, as `promptyard router calibrate` writes it; by default those of the bundled model, a rough rule for any other.
        confidence: Option<String> = None, "a path", |p| p.as_deref() != Some("");
        /// Attempts a job gets before it is quarantined as a dead letter; an escalated one counts, and the last is never escalated for its confidence.
        attempts_max: u32 = 4, "1 to 100", |n| (1..=100).contains(n);
        /// Milliseconds that finished answers wait for others to be committed with them.
        settle_linger_ms: u64 = 20, "0 to 10000", |n| *n <= 10_000;
        /// Seconds without a sign of life after which a worker's jobs may be taken over.
        lease_s: u64 = 60, "a whole number from 1", |n| *n >= 1;
        /// Seconds that running jobs get to finish when the process is told to stop.
        drain_s: u64 = 30, "0 to 3600", |n| *n <= 3600;
    }
}

settings! {
    /// One tier's model.
    pub struct ModelConfig {
        /// A Hugging Face directory, a hub name, or the http(s):// base URL of an OpenAI-compatible server.
        model: Option<String> = None, "a directory, a hub name or a URL",
            |m| m.as_deref() != Some("");
        /// Name under which the model is served; by default the directory's or the hub's.
        name: Option<String> = None, "a name of 1 to 128 bytes", |n| n.as_ref().is_none_or(|n| (1..=128).contains(&n.len()));
        /// Bearer token for an OpenAI-compatible server.
        api_key: Option<Secret> = None, "a string";
        /// Addresses that an OpenAI-compatible server may have besides public ones: `local` (private and loopback), `all` (link-local too, where clouds keep their metadata) or `none`.
        private_addresses: PrivateAddresses = PrivateAddresses::Local, "\"local\", \"all\" or \"none\"";
        /// What the in-process engine computes products in; bf16 is faster and less exact, and q8 more so.
        weights: WeightKind = WeightKind::F32, "\"f32\", \"bf16\" or \"q8\"";
        /// Where the in-process engine computes; auto is a GPU when this binary was built for one and it is there, else the CPU.
        device: DeviceKind = DeviceKind::Auto, "\"auto\", \"cpu\", \"cuda\" or \"metal\"";
        /// Sequences that share a step, or requests in flight to a server.
        batch_max: usize = 16, "1 to 1024", |n| (1..=1024).contains(n);
        /// Most tokens computed in one step, prefill chunks included.
        step_tokens_max: usize = 512, "16 to 65536", |n| (16..=65_536).contains(n);
        /// Milliseconds that a step may take where it holds up running answers: prompts are cut into smaller chunks and fewer sequences run side by side to keep to it; 0 for no limit.
        step_ms_max: u64 = 500, "0 to 600000", |n| *n <= 600_000;
        /// Seconds after which a step of the in-process engine counts as hung: the engine is opened again and what ran on it is tried again; 0 for never.
        step_hang_s: u64 = 300, "0 to 86400", |n| *n <= 86_400;
        /// Bytes that the KV cache may take, beginnings of earlier prompts included; one whole context always fits.
        kv_bytes_max: usize = 1 << 30, "a whole number";
        /// Whose earlier prompts' beginnings are used instead of being computed again: `tenant`, `all` or `off`.
        prefix_cache: PrefixSharing = PrefixSharing::Tenant, "\"tenant\", \"all\" or \"off\"";
        /// Longest context in tokens; the model's own limit if that is shorter or this is 0.
        context_tokens_max: usize = 4096, "a whole number, 0 for the model's own";
    }
}

settings! {
    /// The HTTP interface of `up` and `serve`.
    pub struct ApiConfig {
        /// Address to listen on.
        listen: String = "127.0.0.1:8080".to_owned(), "HOST:PORT", |a| a.contains(':');
        /// File with the certificate chain (PEM) to speak TLS with; plain HTTP without one.
        tls_cert: Option<String> = None, "a path", |p| p.as_deref() != Some("");
        /// File with the certificate's private key (PEM).
        tls_key: Option<String> = None, "a path", |p| p.as_deref() != Some("");
        /// Most seconds that a request waits for its answer.
        wait_s: u64 = 300, "a whole number from 1", |n| *n >= 1;
        /// Whether requests need a key (`promptyard key create`); without, whoever reaches the address may do everything.
        keys: bool = false, "true or false";
        /// Requests waiting at once; more are refused with 429.
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
        /// Most tokens a request may ask to be generated.
        completion_tokens_max: u32 = 32_768, "a whole number from 1", |n| *n >= 1;
        /// Tokens generated for a request that names no limit.
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
        /// `text` for people, `json` for collectors.
        log_format: LogFormat = LogFormat::Text, "\"text\" or \"json\"";
        /// What is logged, as a tracing filter such as `info,promptyard=debug`.
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

    /// The configuration as TOML with a comment for each field and every secret masked.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for name in Self::SECTIONS {
            let section = self.section(name).expect("SECTIONS names sections");
            text.push_str(&format!("[{name}]\n"));
            for field in section.fields() {
                text.push_str(&format!("# {} ({})\n", field.doc.trim(), field.expected));
                match section.show(field.name) {
                    Some(value) => text.push_str(&format!("{} = {value}\n", field.name)),
                    None => text.push_str(&format!("# {} is not set\n", field.name)),
                }
            }
            text.push('\n');
        }
        text
    }

    /// Path of the SQLite file, when the ledger is one.
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        self.store.sqlite_path()
    }
}

impl StoreConfig {
    /// Path of the SQLite file, taken as it stands: nothing in it is escaped or a parameter.
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        let path = self.url.expose().strip_prefix("sqlite:")?;
        Some(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
    }
}
