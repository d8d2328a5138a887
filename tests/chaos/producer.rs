//! Producers that know nothing but AMQP: what is not confirmed they publish again under the same key.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::book::{Book, Name};

/// Longest wait for the broker's word on anything.
const WORD: Duration = Duration::from_secs(6);
/// How long to rest before the broker is tried again.
const REST: Duration = Duration::from_millis(300);
/// Most messages on the way without a confirm.
const WINDOW: usize = 64;

/// A producer with a durable queue for its replies.
pub struct Producer {
    book: Arc<Mutex<Book>>,
    to_do: Arc<Mutex<VecDeque<Name>>>,
    end: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap()
}

impl Producer {
    /// Starts to publish what it is given, and to note its replies.
    pub fn start(url: String, number: usize, book: Arc<Mutex<Book>>) -> Self {
        let to_do: Arc<Mutex<VecDeque<Name>>> = Arc::default();
        let end = CancellationToken::new();
        let reply_queue = format!("replies-{number}");
        let publishing = again(end.clone(), {
            let (url, queue) = (url.clone(), reply_queue.clone());
            let (book, to_do) = (book.clone(), to_do.clone());
            move || publish(url.clone(), queue.clone(), book.clone(), to_do.clone())
        });
        let listening = again(end.clone(), {
            let book = book.clone();
            move || listen(url.clone(), reply_queue.clone(), book.clone())
        });
        let tasks = vec![tokio::spawn(publishing), tokio::spawn(listening)];
        Self {
            book,
            to_do,
            end,
            tasks,
        }
    }

    /// Gives it a job to publish, or to publish again.
    pub fn give(&self, name: Name) {
        lock(&self.to_do).push_back(name);
    }

    /// Jobs that it has not got rid of.
    pub fn backlog(&self) -> usize {
        lock(&self.to_do).len()
    }

    pub async fn stop(self) -> Arc<Mutex<Book>> {
        self.end.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.book
    }
}

/// Does something again whenever it fails, until the end.
async fn again<F>(end: CancellationToken, mut session: impl FnMut() -> F)
where
    F: Future<Output = Result<(), Failed>>,
{
    while !end.is_cancelled() {
        tokio::select! {
            () = end.cancelled() => return,
            _ = session() => {}
        }
        sleep(REST).await;
    }
}

/// A session is over; what was not confirmed goes to the next.
struct Failed;

impl From<lapin::Error> for Failed {
    fn from(_: lapin::Error) -> Self {
        Self
    }
}

impl From<tokio::time::error::Elapsed> for Failed {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self
    }
}

async fn open(url: &str, reply_queue: &str) -> Result<(Connection, Channel), Failed> {
    let connection = timeout(
        WORD,
        Connection::connect(url, ConnectionProperties::default()),
    )
    .await??;
    let channel = timeout(WORD, connection.create_channel()).await??;
    let mut quorum = FieldTable::default();
    quorum.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    timeout(
        WORD,
        channel.queue_declare(reply_queue.into(), durable, quorum),
    )
    .await??;
    Ok((connection, channel))
}

/// Publishes what there is to do, over one connection.
async fn publish(
    url: String,
    reply_queue: String,
    book: Arc<Mutex<Book>>,
    to_do: Arc<Mutex<VecDeque<Name>>>,
) -> Result<(), Failed> {
    let (_connection, channel) = open(&url, &reply_queue).await?;
    timeout(
        WORD,
        channel.confirm_select(ConfirmSelectOptions::default()),
    )
    .await??;
    loop {
        let batch: Vec<Name> = lock(&to_do).iter().take(WINDOW).cloned().collect();
        if batch.is_empty() {
            sleep(Duration::from_millis(50)).await;
            continue;
        }
        let mut confirms = Vec::new();
        for name in batch {
            let asked = lock(&book).asked[&name].clone();
            let mut properties = BasicProperties::default()
                .with_message_id(name.1.as_str().into())
                .with_correlation_id(format!("{}/{}", name.0, name.1).into())
                .with_priority(asked.priority)
                .with_delivery_mode(2);
            if asked.wants_reply {
                properties = properties.with_reply_to(reply_queue.as_str().into());
            }
            let mandatory = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let sent = channel.basic_publish(
                "promptyard".into(),
                "jobs.in".into(),
                mandatory,
                &asked.body,
                properties,
            );
            confirms.push((name, timeout(WORD, sent).await??));
        }
        for (name, confirm) in confirms {
            let confirmed = matches!(
                timeout(WORD, confirm).await,
                Ok(Ok(Confirmation::Ack(None)))
            );
            let mut book = lock(&book);
            if !confirmed {
                book.unconfirmed += 1;
                // The confirms that are still open belong to messages which are still to do.
                return Err(Failed);
            }
            let asked = book.asked.get_mut(&name).unwrap();
            asked.repeats += usize::from(asked.is_confirmed);
            asked.is_confirmed = true;
            let mut to_do = lock(&to_do);
            let at = to_do.iter().position(|one| *one == name).unwrap();
            to_do.remove(at);
        }
    }
}

/// Notes replies, over one connection.
async fn listen(url: String, reply_queue: String, book: Arc<Mutex<Book>>) -> Result<(), Failed> {
    let (_connection, channel) = open(&url, &reply_queue).await?;
    timeout(WORD, channel.basic_qos(100, BasicQosOptions::default())).await??;
    let consumed = channel.basic_consume(
        reply_queue.as_str().into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut replies = timeout(WORD, consumed).await??;
    while let Some(reply) = replies.next().await {
        let reply = reply?;
        let correlation = reply.properties.correlation_id().as_ref();
        let name = correlation.and_then(|id| {
            let (tenant, key) = id.as_str().split_once('/')?;
            Some((tenant.to_owned(), key.to_owned()))
        });
        let headers = reply.properties.headers().as_ref();
        let state = headers.and_then(|headers| headers.inner().get("promptyard-state"));
        let state = match state {
            Some(AMQPValue::LongString(state)) => state.to_string(),
            other => format!("{other:?}"),
        };
        {
            let mut book = lock(&book);
            match (name, serde_json::from_slice(&reply.data)) {
                (Some(name), Ok(line)) => book.reply(name, line, state),
                (name, line) => book.faults.push(format!("a reply of {name:?}: {line:?}")),
            }
        }
        timeout(WORD, reply.acker.ack(BasicAckOptions::default())).await??;
    }
    Err(Failed)
}
