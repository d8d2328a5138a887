//! `migrate` and `config`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{
    config::Overrides,
    console::options::{Common, complain, init_logs, say},
    store::Store,
};

/// Bring the ledger's tables up to date.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    common: Common,
}

/// Runs `migrate`.
pub async fn migrate(args: MigrateArgs) -> anyhow::Result<ExitCode> {
    let config = args.common.load(Overrides::default())?;
    init_logs(&config)?;
    let store = Store::connect(&config.store).await?;
    let applied = store.migrate().await?;
    store.ensure_partitions().await?;
    store.close().await;
    complain(&match applied {
        0 => "the ledger's tables are up to date".to_owned(),
        1 => "1 migration applied".to_owned(),
        count => format!("{count} migrations applied"),
    });
    Ok(ExitCode::SUCCESS)
}

/// Check or show the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Report every error of the file, the environment and the flags
    Check(ConfigArgs),
    /// Print every setting as TOML, with secrets masked
    Show(ConfigArgs),
}

/// Arguments of `config check` and `config show`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    common: Common,
}

/// Runs `config`.
pub fn config(command: ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check(args) => {
            args.common.load(Overrides::default())?;
            complain("the configuration is valid");
        }
        ConfigCommand::Show(args) => {
            let config = args.common.load(Overrides::default())?;
            say(config.to_toml().trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
