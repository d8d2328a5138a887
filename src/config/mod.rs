//! Every setting of promptyard: its unit, default and effect, declared once.
//!
//! Comes in: a TOML file, `PROMPTYARD_*` variables and `section.field=value` flags, in rising
//! precedence over the defaults. Goes out: one section for each stage; no stage reads the
//! environment itself. [`Config::load`] collects all errors, so that one run of
//! `promptyard config check` shows them all.

mod load;
mod names;
mod secret;
mod sections;
mod setting;
mod show;
mod target;

pub use load::{ConfigError, Overrides};
pub use names::{DeviceKind, LogFormat, PrefixSharing, PrivateAddresses, Tiers, WeightKind};
pub use secret::{Secret, SecretUrl};
pub use sections::{
    ApiConfig, BrokerConfig, CacheConfig, Config, LimitsConfig, ModelConfig, RouterConfig,
    StoreConfig, TelemetryConfig, WorkerConfig,
};
pub use setting::{Field, Section, Setting};
pub use target::{RouteTarget, RouteTargets, TargetScope};
