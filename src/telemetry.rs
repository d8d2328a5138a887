//! Logs, metrics and health of a process.
//!
//! Comes in: the telemetry section. Goes out: log lines on standard error, and `/metrics`,
//! `/healthz` and `/readyz` on a port of every role. It never sees prompt text.

use std::{io::IsTerminal, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use futures::future::BoxFuture;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    config::{LogFormat, TelemetryConfig},
    metrics,
    shutdown::Shutdown,
};

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter is invalid.
    #[error("telemetry.log is not a filter: {0}")]
    Filter(String),
    /// The port is taken or the address is not ours.
    #[error(
        "cannot listen on {address} for metrics: {message}; choose another telemetry.listen, or \"\" for none"
    )]
    Listen {
        /// The configured address.
        address: String,
        /// What went wrong.
        message: String,
    },
    /// A recorder is installed already.
    #[error("cannot install the metrics recorder: {0}")]
    Recorder(String),
}

/// Sends log lines to standard error in the configured format. Call once.
///
/// # Errors
/// When the filter cannot be read.
pub fn init_logs(config: &TelemetryConfig) -> Result<(), TelemetryError> {
    // lapin logs returned messages with their bodies, which hold answers: no filter may enable that.
    let bodies_off = "lapin::returned_messages=off"
        .parse()
        .expect("the directive is valid");
    let filter = EnvFilter::try_new(&config.log)
        .map_err(|error| TelemetryError::Filter(error.to_string()))?
        .add_directive(bodies_off);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A subscriber that an embedding program has installed stays in place.
    let _ = match config.log_format {
        LogFormat::Text => registry.with(lines.with_target(false)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    Ok(())
}

/// Installs this process's metrics recorder, with every metric's help text and buckets.
///
/// # Errors
/// When a recorder is installed already.
pub fn init_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let recorder_error =
        |error: &dyn std::fmt::Display| TelemetryError::Recorder(error.to_string());
    let mut builder = PrometheusBuilder::new();
    for metric in metrics::ALL.iter().filter(|m| !m.buckets.is_empty()) {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), metric.buckets)
            .map_err(|error| recorder_error(&error))?;
    }
    let handle = builder
        .install_recorder()
        .map_err(|error| recorder_error(&error))?;
    metrics::describe();
    Ok(handle)
}

/// Checks whether this process can work now; the error says what it waits for.
pub type Readiness = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Serves `/metrics`, `/healthz` and `/readyz` until the stop is requested. Returns the address,
/// or `None` when none is configured.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    config: &TelemetryConfig,
    handle: PrometheusHandle,
    readiness: Readiness,
    shutdown: Shutdown,
) -> Result<Option<SocketAddr>, TelemetryError> {
    let upkeep = handle.clone();
    tokio::spawn(async move {
        // Histograms keep their samples until they are drained, even if no scraper reads them.
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            upkeep.run_upkeep();
        }
    });
    if config.listen.is_empty() {
        return Ok(None);
    }
    let listen_error = |error: std::io::Error| TelemetryError::Listen {
        address: config.listen.clone(),
        message: error.to_string(),
    };
    let listener = TcpListener::bind(&config.listen)
        .await
        .map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;
    let pages = Router::new()
        .route("/metrics", get(move || render(handle.clone())))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || ready(readiness.clone())));
    tokio::spawn(async move {
        let server = axum::serve(listener, pages);
        let stop = async move { shutdown.requested().await };
        if let Err(error) = server.with_graceful_shutdown(stop).await {
            tracing::warn!(%error, "the metrics server ended; /metrics and /readyz are gone");
        }
    });
    Ok(Some(address))
}

const UPKEEP_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);

async fn render(handle: PrometheusHandle) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        handle.render(),
    )
}

async fn ready(readiness: Readiness) -> impl IntoResponse {
    match readiness().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
