//! `submit`: publishes a file of prompts.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;

use crate::{
    broker::{Broker, Publication, PublishError, wire::WireMessage},
    config::Overrides,
    console::{
        input::{self, Line},
        options::{Common, init_logs},
        terminal::{eprint_line, print_line},
    },
    fleet,
    job::{JobId, Priority},
};

/// Most lines published at once.
const CHUNK_MAX: usize = 256;

/// Submit a file of prompts to the queue
///
/// Prints the name of the batch, for `promptyard results --batch`. Submitting the same file under the
/// same batch name again runs nothing twice.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// File of prompts, one per line; `-` for standard input
    file: PathBuf,
    /// Name of the batch [default: a new one]
    #[arg(long, value_name = "NAME")]
    batch: Option<String>,
    /// Run these jobs before the tenant's other waiting jobs, and first of all with RabbitMQ 4
    #[arg(long)]
    urgent: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs `submit`.
pub async fn submit(args: SubmitArgs) -> anyhow::Result<ExitCode> {
    let config = args.common.load(Overrides::default())?;
    init_logs(&config)?;
    let mut lines = input::open(&args.file, config.request_limits())
        .with_context(|| format!("cannot open {}", args.file.display()))?;
    let broker = Broker::connect(&config.broker, &fleet::embedded_path(&config)).await?;
    let batch = args
        .batch
        .unwrap_or_else(|| format!("batch-{}", JobId::now()));
    let priority = if args.urgent {
        Priority::High
    } else {
        Priority::Normal
    };
    let (mut sent, mut failed) = (0_u64, 0_u64);
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_MAX);
        for line in lines.by_ref().take(CHUNK_MAX) {
            let line = line.with_context(|| format!("cannot read {}", args.file.display()))?;
            let number = line.number;
            match publication(line, &batch, priority) {
                Ok(publication) => chunk.push((number, publication)),
                Err(reason) => {
                    failed += 1;
                    eprint_line(&format!("line {number} not submitted: {reason}"));
                }
            }
        }
        if chunk.is_empty() {
            break;
        }
        let (numbers, messages): (Vec<_>, Vec<_>) = chunk.into_iter().unzip();
        for (number, outcome) in numbers.into_iter().zip(broker.publish(&messages).await) {
            match outcome {
                Ok(()) => sent += 1,
                Err(error) => {
                    failed += 1;
                    eprint_line(&format!("line {number} not submitted: {}", hint(&error)));
                }
            }
        }
    }
    broker.close().await;
    print_line(&batch)?;
    eprint_line(&format!("{sent} submitted, {failed} failed"));
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn publication(line: Line, batch: &str, priority: Priority) -> Result<Publication, String> {
    let body = line.body.map_err(|reason| reason.to_string())?;
    let mut publication = Publication::from(WireMessage {
        key: Some(format!("{batch}:{}", line.key))
            .filter(|key| key.len() <= 255)
            .or(Some(line.key)),
        custom_id: Some(line.custom_id),
        batch: Some(batch.to_owned()),
        ..WireMessage::new(body)
    });
    publication.envelope.priority = priority;
    Ok(publication)
}

fn hint(error: &PublishError) -> String {
    match error {
        PublishError::Refused => {
            format!("{error}; submit the file again later with the same --batch")
        }
        error => error.to_string(),
    }
}
