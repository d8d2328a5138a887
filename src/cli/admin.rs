//! `migrate` and `config`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{
    config::Overrides,
    console::{
        options::{Common, init_logs},
        terminal::{eprint_line, print_line},
    },
    store::Store,
};

/// Create or upgrade the job database's tables
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
    eprint_line(&match applied {
        0 => "the job database is up to date".to_owned(),
        1 => "1 migration applied".to_owned(),
        count => format!("{count} migrations applied"),
    });
    Ok(ExitCode::SUCCESS)
}

/// Check or show the configuration
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Report all errors in file, environment and flags
    Check(ConfigArgs),
    /// Print all settings as TOML, with secrets masked
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
            eprint_line("the configuration is valid");
        }
        ConfigCommand::Show(args) => {
            let config = args.common.load(Overrides::default())?;
            print_line(config.to_toml().trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
