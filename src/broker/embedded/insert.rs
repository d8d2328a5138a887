//! Inserts messages unless their queue is full.

use std::{collections::HashMap, time::Duration};

use chrono::Utc;
use sqlx::SqliteConnection;
use tokio::time::Instant;

use crate::broker::{Publication, PublishError, Queue, Target};

use super::table::Table;

/// How long a queue's counted length is trusted while other processes may publish too.
const COUNT_TRUST: Duration = Duration::from_secs(1);
/// How long a full queue is taken to be full: counting a million messages for each refused one
/// would delay every other command.
const FULL_TRUST: Duration = Duration::from_millis(50);

/// A queue's length as last counted, plus the messages that this process inserted since.
#[derive(Clone, Copy)]
pub(super) struct Length {
    messages: u64,
    counted_at: Instant,
}

/// Inserts messages within the queues' limits.
pub(super) struct Insert<'a> {
    pub(super) table: &'a Table,
    pub(super) lengths: &'a mut HashMap<Queue, Length>,
    pub(super) queue_messages_max: u64,
}

impl Insert<'_> {
    pub(super) async fn one(
        &mut self,
        connection: &mut SqliteConnection,
        message: Publication,
    ) -> sqlx::Result<Result<(), PublishError>> {
        let queue = match &message.target {
            Target::Queue(queue) => *queue,
            // Reply queues exist only on a server.
            Target::Reply(_) => return Ok(Err(PublishError::Unroutable)),
        };
        let known = self.lengths.get(&queue).copied();
        let trusted = known.filter(|length| {
            let is_full = length.messages >= self.queue_messages_max;
            let trust = if is_full { FULL_TRUST } else { COUNT_TRUST };
            length.counted_at.elapsed() < trust
        });
        let length = match trusted {
            Some(length) => length,
            None => Length {
                messages: self.table.count(connection, queue).await?,
                counted_at: Instant::now(),
            },
        };
        self.lengths.insert(queue, length);
        if length.messages >= self.queue_messages_max {
            return Ok(Err(PublishError::Refused));
        }
        let now = Utc::now();
        self.table.insert(connection, queue, message, now).await?;
        let messages = length.messages + 1;
        self.lengths.insert(queue, Length { messages, ..length });
        Ok(Ok(()))
    }
}
