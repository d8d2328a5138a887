//! `up`, `route`, `work`, `serve`: run roles until stopped.

use std::process::ExitCode;

use clap::Args;

use crate::{
    config::{Config, Overrides, Tiers},
    console::options::{Common, MetricsArgs, ModelArgs, init_logs, note_bundled},
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
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    metrics: MetricsArgs,
}

/// Run the router
#[derive(Debug, Args)]
pub struct RouteArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    metrics: MetricsArgs,
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
    #[command(flatten)]
    metrics: MetricsArgs,
}

/// Run the HTTP interface
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    metrics: MetricsArgs,
}

/// The address of the HTTP interface.
#[derive(Debug, Args)]
struct ListenArgs {
    /// Address of the HTTP interface
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
}

impl ListenArgs {
    fn apply(&self, overrides: &mut Overrides) {
        if let Some(address) = &self.listen {
            overrides.set("--listen", "api.listen", address);
        }
    }
}

/// Runs `up`.
pub async fn up(args: UpArgs) -> anyhow::Result<ExitCode> {
    let mut overrides = Overrides::default();
    args.listen.apply(&mut overrides);
    args.metrics.apply(&mut overrides);
    args.models.apply(&mut overrides);
    let config = args.common.load(overrides)?;
    let roles = Roles {
        router: true,
        tiers: config.worker.tiers.as_slice().to_vec(),
        api: true,
        migrate: true,
    };
    run(&config, roles).await
}

/// Runs `route`.
pub async fn route(args: RouteArgs) -> anyhow::Result<ExitCode> {
    let mut overrides = Overrides::default();
    args.metrics.apply(&mut overrides);
    let config = args.common.load(overrides)?;
    let roles = Roles {
        router: true,
        ..Roles::default()
    };
    run(&config, roles).await
}

/// Runs `work`.
pub async fn work(args: WorkArgs) -> anyhow::Result<ExitCode> {
    let mut overrides = Overrides::default();
    args.metrics.apply(&mut overrides);
    args.models.apply(&mut overrides);
    let mut config = args.common.load(overrides)?;
    if let Some(tiers) = args.tier {
        config.worker.tiers = tiers;
    }
    let roles = Roles {
        tiers: config.worker.tiers.as_slice().to_vec(),
        ..Roles::default()
    };
    run(&config, roles).await
}

/// Runs `serve`.
pub async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let mut overrides = Overrides::default();
    args.listen.apply(&mut overrides);
    args.metrics.apply(&mut overrides);
    let config = args.common.load(overrides)?;
    let roles = Roles {
        api: true,
        ..Roles::default()
    };
    run(&config, roles).await
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
        api = fleet.api_address.map(tracing::field::display),
        metrics = fleet.metrics_address.map(tracing::field::display),
        broker = %config.broker.url.masked(),
        database = %config.store.url.masked(),
        "running",
    );
    fleet.wait().await?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
