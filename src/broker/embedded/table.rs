//! The statements on `queue_messages`. Each takes a connection; transactions are the caller's.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use crate::{
    broker::{Envelope, HEADER_DEATH_QUEUE, HEADER_DEATH_REASON, Publication, Queue},
    job::Priority,
};

/// A claimed message.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) priority: i64,
    pub(super) deliveries: i64,
    pub(super) envelope: Envelope,
    pub(super) body: Vec<u8>,
}

/// The configuration of the statements.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) prefix: String,
    pub(super) delivery_limit: u32,
}

impl Table {
    fn name(&self, queue: Queue) -> String {
        format!("{}{}", self.prefix, queue.name())
    }

    fn names(&self, queues: &[Queue]) -> String {
        json(&queues.iter().map(|q| self.name(*q)).collect::<Vec<_>>())
    }

    /// Creates the table if it does not exist.
    pub(super) async fn create(connection: &mut SqliteConnection) -> sqlx::Result<()> {
        sqlx::raw_sql(include_str!("schema.sql"))
            .execute(connection)
            .await?;
        Ok(())
    }

    pub(super) async fn insert(
        &self,
        connection: &mut SqliteConnection,
        queue: Queue,
        message: Publication,
        now: DateTime<Utc>,
    ) -> sqlx::Result<()> {
        let envelope = message.envelope;
        let available_at = match queue {
            Queue::Retry(delay) => {
                let most_ms = delay.as_millis();
                let rest_ms = envelope
                    .rest_ms
                    .map_or(most_ms, |rest_ms| rest_ms.min(most_ms));
                Some(now.timestamp_millis() + rest_ms as i64)
            }
            _ => None,
        };
        sqlx::query(
            "INSERT INTO queue_messages (queue, priority, available_at, expires_at, timestamp,
                message_id, correlation_id, reply_to, headers, body)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(self.name(queue))
        .bind(i64::from(envelope.priority.to_amqp()))
        .bind(available_at)
        .bind(envelope.expires_at.map(|at| at.timestamp_millis()))
        .bind(envelope.timestamp.map(|at| at.timestamp_millis()))
        .bind(envelope.message_id)
        .bind(envelope.correlation_id)
        .bind(envelope.reply_to)
        .bind(json(&envelope.headers))
        .bind(message.body)
        .execute(connection)
        .await?;
        Ok(())
    }

    /// All messages of a queue, claimed ones included.
    pub(super) async fn count(
        &self,
        connection: &mut SqliteConnection,
        queue: Queue,
    ) -> sqlx::Result<u64> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM queue_messages WHERE queue = ?")
            .bind(self.name(queue))
            .fetch_one(connection)
            .await?;
        Ok(count.cast_unsigned())
    }

    /// Messages of a queue that wait for a consumer.
    pub(super) async fn ready(
        &self,
        connection: &mut SqliteConnection,
        queue: Queue,
    ) -> sqlx::Result<u64> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM queue_messages WHERE queue = ? AND claimed = 0",
        )
        .bind(self.name(queue))
        .fetch_one(connection)
        .await?;
        Ok(count.cast_unsigned())
    }

    /// Takes up to `limit` messages, urgent ones first, then in their order.
    pub(super) async fn claim(
        &self,
        connection: &mut SqliteConnection,
        queue: Queue,
        limit: usize,
    ) -> sqlx::Result<Vec<Row>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // Looked up first: an UPDATE would take the write lock even with nothing to do.
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM queue_messages
             WHERE queue = ? AND claimed = 0 AND (expires_at IS NULL OR expires_at > ?)
             ORDER BY priority DESC, id LIMIT ?",
        )
        .bind(self.name(queue))
        .bind(self.expiry_now(queue))
        .bind(limit)
        .fetch_all(&mut *connection)
        .await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "UPDATE queue_messages SET claimed = 1, deliveries = deliveries + 1
             WHERE id IN (SELECT value FROM json_each(?)) AND claimed = 0
             RETURNING id, priority, deliveries, expires_at, timestamp,
                message_id, correlation_id, reply_to, headers, body",
        )
        .bind(json(&ids))
        .fetch_all(connection)
        .await?;
        let mut rows = rows.iter().map(read).collect::<sqlx::Result<Vec<_>>>()?;
        rows.sort_by_key(|row| (-row.priority, row.id));
        Ok(rows)
    }

    /// The instant up to which a queue's messages count as expired; the minimum where they never do.
    fn expiry_now(&self, queue: Queue) -> i64 {
        if queue.expires() {
            Utc::now().timestamp_millis()
        } else {
            i64::MIN
        }
    }

    pub(super) async fn delete(
        &self,
        connection: &mut SqliteConnection,
        ids: &[i64],
    ) -> sqlx::Result<()> {
        sqlx::query("DELETE FROM queue_messages WHERE id IN (SELECT value FROM json_each(?))")
            .bind(json(&ids))
            .execute(connection)
            .await?;
        Ok(())
    }

    /// Requeues claimed messages; those delivered too often become dead letters.
    pub(super) async fn release(
        &self,
        connection: &mut SqliteConnection,
        ids: &[i64],
    ) -> sqlx::Result<()> {
        sqlx::query(
            "UPDATE queue_messages SET claimed = 0
             WHERE id IN (SELECT value FROM json_each(?))",
        )
        .bind(json(&ids))
        .execute(&mut *connection)
        .await?;
        let worn_out: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM queue_messages
             WHERE id IN (SELECT value FROM json_each(?)) AND deliveries > ?",
        )
        .bind(json(&ids))
        .bind(self.delivery_limit)
        .fetch_all(&mut *connection)
        .await?;
        self.keep_dead_letters(connection, &worn_out, "delivery_limit")
            .await
    }

    /// Messages that were claimed by a process which ended.
    pub(super) async fn claimed(
        &self,
        connection: &mut SqliteConnection,
    ) -> sqlx::Result<Vec<i64>> {
        sqlx::query_scalar(
            "SELECT id FROM queue_messages
             WHERE queue IN (SELECT value FROM json_each(?)) AND claimed = 1",
        )
        .bind(self.names(&Queue::ALL))
        .fetch_all(connection)
        .await
    }

    /// Moves messages to the dead letters; those that are dead letters already stay unchanged.
    pub(super) async fn keep_dead_letters(
        &self,
        connection: &mut SqliteConnection,
        ids: &[i64],
        reason: &str,
    ) -> sqlx::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "UPDATE queue_messages
             SET queue = ?1, claimed = 0, deliveries = 0, available_at = NULL,
                 headers = json_set(headers, ?2, ?3, ?4, substr(queue, ?5))
             WHERE id IN (SELECT value FROM json_each(?6)) AND queue <> ?1",
        )
        .bind(self.name(Queue::Dead))
        .bind(format!("$.\"{HEADER_DEATH_REASON}\""))
        .bind(reason)
        .bind(format!("$.\"{HEADER_DEATH_QUEUE}\""))
        .bind(self.prefix.len() as i64 + 1)
        .bind(json(&ids))
        .execute(connection)
        .await?;
        Ok(())
    }

    /// Messages whose delay is over, and messages that have expired.
    pub(super) async fn due(
        &self,
        connection: &mut SqliteConnection,
    ) -> sqlx::Result<(Vec<i64>, Vec<i64>)> {
        let now = Utc::now().timestamp_millis();
        let expiring: Vec<Queue> = Queue::ALL.into_iter().filter(|q| q.expires()).collect();
        // The plus keeps SQLite from walking whole queues instead of the few rows with an instant.
        let rested = sqlx::query_scalar(
            "SELECT id FROM queue_messages WHERE available_at <= ? AND claimed = 0
                AND +queue IN (SELECT value FROM json_each(?))",
        )
        .bind(now)
        .bind(self.names(&Queue::ALL))
        .fetch_all(&mut *connection)
        .await?;
        let expired = sqlx::query_scalar(
            "SELECT id FROM queue_messages WHERE expires_at <= ? AND claimed = 0
                AND +queue IN (SELECT value FROM json_each(?))",
        )
        .bind(now)
        .bind(self.names(&expiring))
        .fetch_all(connection)
        .await?;
        Ok((rested, expired))
    }

    /// Moves rested messages to [`Queue::In`].
    pub(super) async fn wake(
        &self,
        connection: &mut SqliteConnection,
        ids: &[i64],
    ) -> sqlx::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "UPDATE queue_messages SET queue = ?, available_at = NULL
             WHERE id IN (SELECT value FROM json_each(?))",
        )
        .bind(self.name(Queue::In))
        .bind(json(&ids))
        .execute(connection)
        .await?;
        Ok(())
    }

    /// Deletes everything in the queues.
    pub(super) async fn clear(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        sqlx::query("DELETE FROM queue_messages WHERE queue IN (SELECT value FROM json_each(?))")
            .bind(self.names(&Queue::ALL))
            .execute(connection)
            .await?;
        Ok(())
    }
}

fn read(row: &SqliteRow) -> sqlx::Result<Row> {
    let instant = |column: &str| -> sqlx::Result<Option<DateTime<Utc>>> {
        let ms: Option<i64> = row.try_get(column)?;
        Ok(ms.and_then(DateTime::from_timestamp_millis))
    };
    let priority: i64 = row.try_get("priority")?;
    let headers: String = row.try_get("headers")?;
    let headers: BTreeMap<String, String> =
        serde_json::from_str(&headers).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(Row {
        id: row.try_get("id")?,
        priority,
        deliveries: row.try_get("deliveries")?,
        envelope: Envelope {
            message_id: row.try_get("message_id")?,
            correlation_id: row.try_get("correlation_id")?,
            reply_to: row.try_get("reply_to")?,
            priority: Priority::from_amqp(u8::try_from(priority).unwrap_or(u8::MAX)),
            expires_at: instant("expires_at")?,
            timestamp: instant("timestamp")?,
            rest_ms: None,
            headers,
        },
        body: row.try_get("body")?,
    })
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("numbers, strings and maps of strings are JSON")
}
