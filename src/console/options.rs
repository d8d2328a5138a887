//! Options that commands share, and loading the configuration from them.

use std::path::PathBuf;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;

use crate::{
    config::{Config, LogFormat, Overrides},
    engine, fleet,
    job::Tier,
    store::Store,
    telemetry,
};

use super::terminal::eprint_line;

/// Invalid usage or configuration; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Broker, job database, settings and logs.
#[derive(Clone, Debug, Default, Args)]
pub struct Common {
    /// TOML file of settings; see `promptyard config show`
    #[arg(long, env = "PROMPTYARD_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Broker: `embedded`, or RabbitMQ's amqp:// URL
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// Job database: sqlite:PATH or a postgres:// URL
    #[arg(long, value_name = "URL", conflicts_with = "ledger")]
    pub store: Option<String>,
    /// Job database in a SQLite file; short for --store sqlite:FILE
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Set any setting, such as router.threshold=0.4 (repeatable)
    #[arg(long = "set", value_name = "SECTION.FIELD=VALUE")]
    pub set: Vec<String>,
    /// Format of log lines
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<LogFormat>,
    /// Log filter, such as info,promptyard=debug
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// The models to run.
#[derive(Clone, Debug, Default, Args)]
pub struct ModelArgs {
    /// Small model: a Hugging Face directory, a hub name, or an OpenAI-compatible server's URL
    #[arg(long, value_name = "DIR|NAME|URL")]
    pub small: Option<String>,
    /// Large model, likewise
    #[arg(long, value_name = "DIR|NAME|URL")]
    pub large: Option<String>,
}

impl ModelArgs {
    /// Adds the models to the overrides.
    pub fn apply(&self, overrides: &mut Overrides) {
        for (flag, path, model) in [
            ("--small", "small.model", &self.small),
            ("--large", "large.model", &self.large),
        ] {
            if let Some(model) = model {
                overrides.set(flag, path, model);
            }
        }
    }
}

/// The address of the operators' endpoints.
#[derive(Clone, Debug, Default, Args)]
pub struct MetricsArgs {
    /// Serve /metrics, /healthz and /readyz at this address
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,
}

impl MetricsArgs {
    /// Adds the address to the overrides.
    pub fn apply(&self, overrides: &mut Overrides) {
        if let Some(address) = &self.metrics_listen {
            overrides.set("--metrics-listen", "telemetry.listen", address);
        }
    }
}

impl Common {
    /// Loads the configuration; `overrides` holds the command's own flags.
    ///
    /// # Errors
    /// A [`UsageError`] that lists every error.
    pub fn load(&self, mut overrides: Overrides) -> Result<Config, UsageError> {
        if let Some(url) = &self.broker {
            overrides.set("--broker", "broker.url", url);
        }
        if let Some(url) = &self.store {
            overrides.set("--store", "store.url", url);
        }
        if let Some(path) = &self.ledger {
            overrides.set(
                "--ledger",
                "store.url",
                format!("sqlite:{}", path.display()),
            );
        }
        if let Some(format) = self.log_format {
            let name = if format == LogFormat::Json {
                "json"
            } else {
                "text"
            };
            overrides.set("--log-format", "telemetry.log_format", name);
        }
        if let Some(filter) = &self.log {
            overrides.set("--log", "telemetry.log", filter);
        }
        for assignment in &self.set {
            let Some((path, value)) = assignment.split_once('=') else {
                return Err(UsageError(format!(
                    "--set {assignment}: expected section.field=value"
                )));
            };
            overrides.set("--set", path, value);
        }
        Config::load(self.config.as_deref(), std::env::vars(), &overrides).map_err(|errors| {
            let lines: Vec<_> = errors.iter().map(|error| format!("\n  {error}")).collect();
            UsageError(format!(
                "the configuration has {} error(s):{}",
                lines.len(),
                lines.concat()
            ))
        })
    }
}

/// Fails when the job database is a file that does not exist, for commands that must not create it.
///
/// # Errors
/// When the file is missing.
pub fn require_database(config: &Config) -> anyhow::Result<()> {
    match config.sqlite_path() {
        Some(path) if !path.exists() => Err(anyhow::anyhow!(
            "there is no job database at {}; `run` and `up` create it, --ledger and --store choose another",
            path.display()
        )),
        _ => Ok(()),
    }
}

/// Loads the configuration and opens its job database, which must exist.
///
/// # Errors
/// When the configuration is invalid, or the job database cannot be opened.
pub async fn open_database(common: &Common) -> anyhow::Result<(Config, Store)> {
    let config = common.load(Overrides::default())?;
    init_logs(&config)?;
    require_database(&config)?;
    let store = fleet::open_store(&config, false).await?;
    Ok((config, store))
}

/// Parses a time or an age, given with `flag`.
///
/// # Errors
/// A [`UsageError`] that names the flag.
pub fn read_instant(flag: &str, text: &str) -> Result<DateTime<Utc>, UsageError> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    read_age(text)
        .and_then(|age| Utc::now().checked_sub_signed(age))
        .ok_or_else(|| {
            UsageError(format!(
                "{flag} {text}: expected a time such as 2026-01-31T12:00:00Z or an age such as 15m"
            ))
        })
}

/// Parses a time span, given with `flag`.
///
/// # Errors
/// A [`UsageError`] that names the flag.
pub fn read_span(flag: &str, text: &str) -> Result<TimeDelta, UsageError> {
    read_age(text)
        .filter(|span| *span > TimeDelta::zero())
        .ok_or_else(|| UsageError(format!("{flag} {text}: expected a span such as 12h or 90d")))
}

fn read_age(text: &str) -> Option<TimeDelta> {
    let (at, unit) = text.char_indices().last()?;
    let count: i64 = text[..at].parse().ok()?;
    match unit {
        's' => TimeDelta::try_seconds(count),
        'm' => TimeDelta::try_minutes(count),
        'h' => TimeDelta::try_hours(count),
        'd' => TimeDelta::try_days(count),
        _ => None,
    }
}

/// Starts logging.
///
/// # Errors
/// A [`UsageError`] when the filter is invalid.
pub fn init_logs(config: &Config) -> Result<(), UsageError> {
    telemetry::init_logs(&config.telemetry).map_err(|error| UsageError(error.to_string()))
}

/// Prints a note about the tiers that use a bundled model, if any do.
pub fn note_bundled(config: &Config, tiers: &[Tier]) {
    let bundled: Vec<_> = tiers
        .iter()
        .filter(|tier| {
            engine::local::is_bundled(match tier {
                Tier::Small => &config.small,
                Tier::Large => &config.large,
            })
        })
        .map(|tier| tier.as_str())
        .collect();
    if !bundled.is_empty() {
        eprint_line(&format!(
            "note: no model given for {}: using the bundled support-desk model, which only answers questions like those in examples/prompts.jsonl; choose models with --small and --large",
            bundled.join(" and ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_times_or_ages() {
        let read = |text| read_instant("--since", text);
        let noon = read("2026-01-31T12:00:00Z").expect("a time");
        assert_eq!(noon.to_rfc3339(), "2026-01-31T12:00:00+00:00");
        let age = Utc::now() - read("15m").expect("an age");
        assert!((899..=901).contains(&age.num_seconds()));
        for wrong in ["", "m", "15", "15w", "99999999999999999d", "é"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
