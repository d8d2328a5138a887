//! An [`Envelope`] as AMQP properties, and back.

use chrono::{DateTime, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use crate::{
    broker::{Envelope, HEADER_DEATH_QUEUE, HEADER_DEATH_REASON, Queue},
    job::Priority,
};

/// Delivery mode of messages that survive a restart of the broker.
const PERSISTENT: u8 = 2;
/// Longest `expiration` that RabbitMQ accepts; it closes the channel over a longer one.
const EXPIRATION_MS_MAX: i64 = u32::MAX as i64;
/// The deadline in milliseconds of Unix time. RabbitMQ strips `expiration` when it dead-letters a
/// message, and does not record when it was measured from.
const HEADER_EXPIRES_AT: &str = "promptyard-expires-at";
/// Header of a message id that is longer than the 255 bytes of AMQP's property.
const HEADER_MESSAGE_ID: &str = "promptyard-message-id";
/// As [`HEADER_MESSAGE_ID`].
const HEADER_CORRELATION_ID: &str = "promptyard-correlation-id";
/// As [`HEADER_MESSAGE_ID`].
const HEADER_REPLY_TO: &str = "promptyard-reply-to";

/// Writes an envelope. `None` when a header's name is longer than AMQP allows.
pub(super) fn properties(envelope: &Envelope, queue: Option<Queue>) -> Option<BasicProperties> {
    let mut headers = FieldTable::default();
    for (name, value) in &envelope.headers {
        let name = ShortString::try_new(name.as_str()).ok()?;
        headers.insert(name, AMQPValue::LongString(value.as_str().into()));
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_priority(envelope.priority.to_amqp());
    let mut short = |value: &Option<String>, header: &str| {
        let value = value.as_ref()?;
        ShortString::try_new(value.as_str())
            .inspect_err(|_| {
                headers.insert(header.into(), AMQPValue::LongString(value.as_str().into()));
            })
            .ok()
    };
    if let Some(value) = short(&envelope.message_id, HEADER_MESSAGE_ID) {
        properties = properties.with_message_id(value);
    }
    if let Some(value) = short(&envelope.correlation_id, HEADER_CORRELATION_ID) {
        properties = properties.with_correlation_id(value);
    }
    if let Some(value) = short(&envelope.reply_to, HEADER_REPLY_TO) {
        properties = properties.with_reply_to(value);
    }
    if let Some(timestamp) = envelope.timestamp {
        properties = properties.with_timestamp(timestamp.timestamp().max(0).cast_unsigned());
    }
    if let (Some(rest_ms), Some(Queue::Retry(_))) = (envelope.rest_ms, queue) {
        properties = properties.with_expiration(rest_ms.to_string().into());
    }
    if let Some(expires_at) = envelope.expires_at {
        let at = expires_at.timestamp_millis();
        let value = AMQPValue::LongString(at.to_string().into());
        headers.insert(HEADER_EXPIRES_AT.into(), value);
        // A dead letter is kept for good, and a delayed message must not return early.
        let expires = !matches!(queue, Some(Queue::Dead | Queue::Retry(_)));
        let left = at.saturating_sub(Utc::now().timestamp_millis()).max(0);
        if expires && left <= EXPIRATION_MS_MAX {
            properties = properties.with_expiration(left.to_string().into());
        }
    }
    Some(properties.with_headers(headers))
}

/// Reads the envelope of a message that came from `queue`; `strip` takes the prefix off a name.
pub(super) fn envelope<'a>(
    properties: &'a BasicProperties,
    queue: Queue,
    strip: impl Fn(&'a str) -> &'a str,
) -> Envelope {
    let short = |value: &Option<ShortString>| value.as_ref().map(ShortString::to_string);
    let mut envelope = Envelope {
        message_id: short(properties.message_id()),
        correlation_id: short(properties.correlation_id()),
        reply_to: short(properties.reply_to()),
        priority: Priority::from_amqp(properties.priority().unwrap_or(0)),
        timestamp: properties
            .timestamp()
            .and_then(|seconds| DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)),
        ..Envelope::default()
    };
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    for (name, value) in headers.into_iter().flatten() {
        let value = match value {
            AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
            AMQPValue::ShortString(text) => text.to_string(),
            _ => continue,
        };
        match name.as_str() {
            HEADER_EXPIRES_AT => {
                let at = value.parse().ok().and_then(DateTime::from_timestamp_millis);
                envelope.expires_at = at;
            }
            HEADER_MESSAGE_ID => envelope.message_id = Some(value),
            HEADER_CORRELATION_ID => envelope.correlation_id = Some(value),
            HEADER_REPLY_TO => envelope.reply_to = Some(value),
            // The broker's own dead-lettering headers mean nothing in the next queue.
            name if name.starts_with("x-first-death-") || name.starts_with("x-last-death-") => {}
            name => {
                envelope.headers.insert(name.to_owned(), value);
            }
        }
    }
    if envelope.expires_at.is_none() {
        envelope.expires_at = expires_at(properties, envelope.timestamp);
    }
    if queue == Queue::Dead
        && let Some((reason, died_in)) = death(properties)
    {
        let headers = &mut envelope.headers;
        headers.insert(HEADER_DEATH_REASON.to_owned(), reason);
        headers.insert(HEADER_DEATH_QUEUE.to_owned(), strip(died_in).to_owned());
    }
    envelope
}

/// A producer's `expiration`, measured from its timestamp if it gave one, else from now.
fn expires_at(
    properties: &BasicProperties,
    timestamp: Option<DateTime<Utc>>,
) -> Option<DateTime<Utc>> {
    let ms = properties.expiration().as_ref()?.as_str().parse().ok()?;
    timestamp
        .unwrap_or_else(Utc::now)
        .checked_add_signed(chrono::TimeDelta::try_milliseconds(ms)?)
}

/// Reason and queue of the latest death, which RabbitMQ puts first.
fn death(properties: &BasicProperties) -> Option<(String, &str)> {
    let headers = properties.headers().as_ref()?.inner();
    let AMQPValue::FieldArray(deaths) = headers.get("x-death")? else {
        return None;
    };
    let AMQPValue::FieldTable(latest) = deaths.as_slice().first()? else {
        return None;
    };
    let text = |name: &str| match latest.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        _ => None,
    };
    Some((text("reason")?.to_owned(), text("queue")?))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use crate::broker::rabbitmq::properties::*;

    fn expiration(left: TimeDelta, queue: Option<Queue>) -> Option<i64> {
        let envelope = Envelope {
            expires_at: Some(Utc::now() + left),
            ..Envelope::default()
        };
        let written = properties(&envelope, queue).expect("no long header");
        let read = crate::broker::rabbitmq::properties::envelope(&written, Queue::In, |name| name);
        let ms = |at: Option<DateTime<Utc>>| at.map(|at| at.timestamp_millis());
        assert_eq!(ms(read.expires_at), ms(envelope.expires_at));
        let expiration = written.expiration().as_ref()?;
        Some(expiration.as_str().parse().expect("a number"))
    }

    #[test]
    fn expiration_is_set_only_where_the_broker_can_honour_it() {
        let minute = expiration(TimeDelta::minutes(1), Some(Queue::In)).expect("sent");
        assert!((59_000..=60_000).contains(&minute), "{minute}");
        assert_eq!(expiration(TimeDelta::minutes(-1), None), Some(0));
        assert_eq!(expiration(TimeDelta::days(60), Some(Queue::In)), None);
        assert_eq!(expiration(TimeDelta::minutes(1), Some(Queue::Dead)), None);
        let retry = Some(Queue::Retry(crate::broker::Delay::S10));
        assert_eq!(expiration(TimeDelta::seconds(1), retry), None);
    }

    #[test]
    fn only_the_latest_death_is_reported() {
        let entry = |reason: &str, queue: &str| {
            let mut table = FieldTable::default();
            table.insert("reason".into(), AMQPValue::LongString(reason.into()));
            table.insert("queue".into(), AMQPValue::LongString(queue.into()));
            AMQPValue::FieldTable(table)
        };
        let deaths = vec![
            entry("rejected", "p.jobs.in"),
            entry("expired", "p.jobs.retry.1s"),
        ];
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(deaths.into()));
        headers.insert(
            "x-first-death-reason".into(),
            AMQPValue::LongString("expired".into()),
        );
        let died = BasicProperties::default().with_headers(headers);
        let strip = |name| str::strip_prefix(name, "p.").unwrap_or(name);
        let read = envelope(&died, Queue::Dead, strip).headers;
        assert_eq!(read[HEADER_DEATH_REASON], "rejected");
        assert_eq!(read[HEADER_DEATH_QUEUE], "jobs.in");
        assert_eq!(read.len(), 2);
        // In any other queue deaths are history.
        assert!(envelope(&died, Queue::In, strip).headers.is_empty());
    }
}
