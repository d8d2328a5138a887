//! `up`, `route`, `work`, `serve`: run roles until stopped.

use std::process::ExitCode;

use clap::Args;

use crate::{
    config::{Config, Overrides, Tiers},
    console::options::{Common, ModelArgs, init_logs, note_bundled},
    fleet::{Fleet, Roles},
    shutdown::Shutdown,
    telemetry,
};

/// Run router, workers and HTTP interface in one process
#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    models: ModelArgs,
    /// Address of the HTTP interface
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, value_name = "HOST:PORT")]
    metrics_listen: Option<String>,
}

/// Run the router
#[derive(Debug, Args)]
pub struct RouteArgs {
    #[command(flatten)]
    common: Common,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, value_name = "HOST:PORT")]
    metrics_listen: Option<String>,
}

/// Run workers
#[derive(Debug, Args)]
pub struct WorkArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    models: ModelArgs,
    /// Tiers to serve: small, large or small,large
    #[arg(long, value_name = "TIERS")]
    tier: Option<Tiers>,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, value_name = "HOST:PORT")]
    metrics_listen: Option<String>,
}

/// Run the HTTP interface
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    common: Common,
    /// Address of the HTTP interface
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, value_name = "HOST:PORT")]
    metrics_listen: Option<String>,
}

fn listen_overrides(listen: Option<&String>, metrics_listen: Option<&String>) -> Overrides {
    let mut overrides = Overrides::default();
    if let Some(address) = listen {
        overrides.set("--listen", "api.listen", address);
    }
    if let Some(address) = metrics_listen {
        overrides.set("--metrics-listen", "telemetry.listen", address);
    }
    overrides
}

/// Runs `up`.
pub async fn up(args: UpArgs) -> anyhow::Result<ExitCode> {
    let mut overrides = listen_overrides(args.listen.as_ref(), args.metrics_listen.as_ref());
    args.models.apply(&mut overrides);
    let config = args.common.load(overrides)?;
    let tiers = config.worker.tiers.as_slice().to_vec();
    run(
        &config,
        Roles {
            router: true,
            tiers,
            api: true,
            migrate: true,
        },
    )
    .await
}

/// Runs `route`.
pub async fn route(args: RouteArgs) -> anyhow::Result<ExitCode> {
    let config = args
        .common
        .load(listen_overrides(None, args.metrics_listen.as_ref()))?;
    run(
        &config,
        Roles {
            router: true,
            ..Roles::default()
        },
    )
    .await
}

/// Runs `work`.
pub async fn work(args: WorkArgs) -> anyhow::Result<ExitCode> {
    let mut overrides = listen_overrides(None, args.metrics_listen.as_ref());
    args.models.apply(&mut overrides);
    let mut config = args.common.load(overrides)?;
    if let Some(tiers) = args.tier {
        config.worker.tiers = tiers;
    }
    let tiers = config.worker.tiers.as_slice().to_vec();
    run(
        &config,
        Roles {
            tiers,
            ..Roles::default()
        },
    )
    .await
}

/// Runs `serve`.
pub async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let overrides = listen_overrides(args.listen.as_ref(), args.metrics_listen.as_ref());
    let config = args.common.load(overrides)?;
    run(
        &config,
        Roles {
            api: true,
            ..Roles::default()
        },
    )
    .await
}

async fn run(config: &Config, roles: Roles) -> anyhow::Result<ExitCode> {
    init_logs(config)?;
    let metrics = telemetry::init_metrics()?;
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    let fleet = tokio::select! {
        fleet = Fleet::start(config, &roles, Some(metrics), &shutdown) => fleet?,
        () = shutdown.requested() => return Ok(ExitCode::SUCCESS),
    };
    note_bundled(config, &roles.tiers);
    for (tier, engine) in &fleet.engines {
        let info = engine.info();
        let revision: String = info.revision.chars().take(12).collect();
        tracing::info!(%tier, model = %info.model, revision, batch_max = info.batch_max, "model ready");
    }
    tracing::info!(
        router = roles.router,
        api = ?fleet.api_address,
        metrics = ?fleet.metrics_address,
        broker = %config.broker.url.masked(),
        database = %config.store.url.masked(),
        "running",
    );
    fleet.wait().await?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
