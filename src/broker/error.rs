//! Why a message was not published, and why the broker cannot be used.

/// Why a message was not published. In every case the message is not in the queue, or is not
/// known to be there; publishing it again is safe since jobs carry idempotency keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The queue is full: try again later, and tell the producer so.
    #[error("the queue is full")]
    Refused,
    /// There is no such queue, or AMQP cannot say its name or a header's (over 255 bytes).
    #[error("no queue takes the message")]
    Unroutable,
    /// No confirm came in time (a memory or disk alarm on the broker, or a lost connection).
    #[error("the broker did not confirm within {0} ms")]
    TimedOut(u64),
    /// The connection is down and being re-made: try again.
    #[error("the broker cannot be reached: {0}")]
    Unreachable(String),
}

/// Why the broker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No connection; the message contains no password.
    #[error("cannot reach the broker at {url}: {message}")]
    Unreachable {
        /// The URL, masked.
        url: String,
        /// What went wrong.
        message: String,
    },
    /// A queue exists with other arguments than ours.
    #[error(
        "queue {queue} exists with other arguments ({message}); delete it or choose another broker.prefix"
    )]
    Conflict {
        /// The queue's full name.
        queue: String,
        /// What the broker said.
        message: String,
    },
    /// Another process consumes from this embedded broker.
    #[error(
        "{path} is in use by another promptyard process; for several processes use RabbitMQ and Postgres"
    )]
    InUse {
        /// The SQLite file.
        path: String,
    },
    /// The embedded broker's file cannot be used.
    #[error("cannot use the queue tables in {path}: {message}")]
    Storage {
        /// The SQLite file.
        path: String,
        /// What went wrong.
        message: String,
    },
    /// The broker was closed by this process.
    #[error("the broker is closed")]
    Closed,
}
