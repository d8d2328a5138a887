//! One connection to RabbitMQ, re-established whenever it breaks.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures::StreamExt;
use lapin::{Connection, ConnectionProperties, uri::AMQPUri};
use metrics::counter;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{topology::Topology, transport};
use crate::{
    broker::BrokerError,
    config::{BrokerConfig, SecretUrl},
    metrics::RECONNECTED,
};

/// Seconds between heartbeats unless the URL or the server asks for fewer: a silent connection is
/// given up after two of them.
const HEARTBEAT_SECONDS: u16 = 20;
/// How often a connection's state is polled, besides its events.
const STATE_LOOK: Duration = Duration::from_millis(250);
/// Most time for closing a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits between attempts: 100 ms to 10 s, each with up to as much again at random so that a
/// fleet does not come back in step.
pub(super) fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(10))
        .without_max_times()
        .with_jitter()
        .build()
}

/// The state of a connection, as its keeper reports it.
#[derive(Clone, Debug)]
enum State {
    Up(Arc<Connection>),
    Down(String),
}

/// A connection and the task that keeps it.
#[derive(Debug)]
pub(super) struct Link {
    url: SecretUrl,
    state: watch::Receiver<State>,
    keeper: TaskTracker,
}

impl Link {
    /// Connects, declares the queues and starts the keeper.
    pub(super) async fn open(
        config: &BrokerConfig,
        name: &'static str,
        topology: &Arc<Topology>,
        closed: &CancellationToken,
    ) -> Result<Self, BrokerError> {
        let dial = Dial::new(config, name, topology.clone())?;
        let connection = dial.connect().await?;
        let (sender, state) = watch::channel(State::Up(connection.clone()));
        let url = config.url.clone();
        let keeper = TaskTracker::new();
        keeper.spawn(keep(dial, connection, sender, closed.clone()));
        keeper.close();
        Ok(Self { url, state, keeper })
    }

    /// The connection, if it is up at this moment.
    pub(super) fn current(&self) -> Option<Arc<Connection>> {
        match &*self.state.borrow() {
            State::Up(connection) if connection.status().connected() => Some(connection.clone()),
            _ => None,
        }
    }

    /// The connection, waiting at most `wait` for a broken one to be re-established.
    pub(super) async fn connection(&self, wait: Duration) -> Result<Arc<Connection>, BrokerError> {
        let deadline = Instant::now() + wait;
        let mut state = self.state.clone();
        loop {
            state.mark_unchanged();
            if let Some(connection) = self.current() {
                return Ok(connection);
            }
            // A connection may break before its keeper has noticed, hence the polling.
            let look = deadline.min(Instant::now() + STATE_LOOK);
            match timeout_at(look, state.changed()).await {
                Ok(Err(_)) => return Err(BrokerError::Closed),
                Err(_) if Instant::now() >= deadline => {
                    let message = match &*self.state.borrow() {
                        State::Down(message) => message.clone(),
                        State::Up(_) => "the connection broke".to_owned(),
                    };
                    return Err(self.unreachable(message));
                }
                _ => {}
            }
        }
    }

    /// Waits until the keeper has ended, after the broker was closed.
    pub(super) async fn ended(&self) {
        self.keeper.wait().await;
    }

    /// The broker error of a call that failed on this connection.
    pub(super) fn error(&self, error: &lapin::Error) -> BrokerError {
        self.unreachable(error.to_string())
    }

    pub(super) fn unreachable(&self, message: String) -> BrokerError {
        BrokerError::Unreachable {
            url: self.url.masked(),
            message,
        }
    }
}

/// The parameters of a connection.
struct Dial {
    uri: AMQPUri,
    masked: String,
    name: &'static str,
    timeout: Duration,
    topology: Arc<Topology>,
}

impl Dial {
    fn new(
        config: &BrokerConfig,
        name: &'static str,
        topology: Arc<Topology>,
    ) -> Result<Self, BrokerError> {
        let masked = config.url.masked();
        // The parser's own error quotes the URL, password included.
        let mut uri: AMQPUri =
            config
                .url
                .expose()
                .parse()
                .map_err(|_| BrokerError::Unreachable {
                    url: masked.clone(),
                    message: "expected amqp://user:password@host:port/vhost".to_owned(),
                })?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        uri.query
            .connection_timeout
            .get_or_insert(config.connect_timeout_ms);
        Ok(Self {
            uri,
            masked,
            name,
            timeout: Duration::from_millis(config.connect_timeout_ms),
            topology,
        })
    }

    async fn connect(&self) -> Result<Arc<Connection>, BrokerError> {
        let unreachable = |message: String| BrokerError::Unreachable {
            url: self.masked.clone(),
            message,
        };
        let attempt = async {
            let properties = ConnectionProperties::default().with_connection_name(self.name.into());
            let connection = transport::connect(self.uri.clone(), properties)
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            self.topology
                .declare(&connection)
                .await
                .map_err(|error| error.into_broker_error(&unreachable))?;
            Ok(Arc::new(connection))
        };
        match timeout(self.timeout, attempt).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(format!(
                "no answer within {} ms",
                self.timeout.as_millis()
            ))),
        }
    }
}

/// Watches a connection and re-establishes it, until the broker is closed.
async fn keep(
    dial: Dial,
    mut connection: Arc<Connection>,
    state: watch::Sender<State>,
    closed: CancellationToken,
) {
    loop {
        tokio::select! {
            () = closed.cancelled() => break,
            () = broken(&connection) => {}
        }
        tracing::warn!(
            connection = dial.name,
            "the connection to RabbitMQ broke; reconnecting"
        );
        state.send_replace(State::Down("the connection broke".to_owned()));
        let mut waits = backoff();
        connection = loop {
            let wait = waits.next().unwrap_or(Duration::from_secs(10));
            tokio::select! {
                () = closed.cancelled() => return,
                () = sleep(wait) => {}
            }
            match dial.connect().await {
                Ok(connection) => break connection,
                Err(error) => {
                    tracing::warn!(connection = dial.name, %error, "cannot reconnect to RabbitMQ; trying again");
                    state.send_replace(State::Down(error.to_string()));
                }
            }
        };
        counter!(RECONNECTED).increment(1);
        tracing::info!(connection = dial.name, "reconnected to RabbitMQ");
        state.send_replace(State::Up(connection.clone()));
    }
    // A server that does not answer closes the connection after missed heartbeats.
    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
}

/// Returns when the connection is no longer up.
async fn broken(connection: &Connection) {
    let mut events = connection.events_listener();
    while connection.status().connected() {
        if let Ok(None) = timeout(STATE_LOOK, events.next()).await {
            return;
        }
    }
}
