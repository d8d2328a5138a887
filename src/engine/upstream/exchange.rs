//! One request to the server and its answer: streamed where the server streams, whole where not.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use reqwest::{Method, Response, StatusCode, header::CONTENT_TYPE};
use tokio::time::timeout;

use super::{
    answer::{Chunk, Collected, Collector},
    events::{Event, EventReader},
    refusal::{ErrorBody, Refusal, Sorter, retry_after},
    server::{RESPONSE_BYTES_MAX, Server, read_body, too_large},
    wire::CompletionRequest,
};
use crate::engine::{EngineError, Generate};

/// A long answer of a loaded server; what takes longer is tried again later.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest silence within an answer that has begun. A token takes far less; a server that puts an
/// answer aside for others comes back to it within this.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);
/// What a stream announces its end with.
const DONE: &str = "[DONE]";

impl Server {
    /// Asks once, or again at once without what the server refuses by name.
    ///
    /// Dropping the future closes the connection, so that the server stops.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        request: &Generate,
    ) -> Result<Collected, Refusal> {
        // Each round leaves one thing less to refuse.
        loop {
            let dialect = self.dialect();
            let body = CompletionRequest::new(&self.model, request, dialect);
            let sent = self
                .request(Method::POST, "chat/completions")
                .timeout(ANSWER_TIMEOUT)
                .json(&body)
                .send()
                .await;
            let response = sent.map_err(|error| Refusal::of_transport(&error))?;
            let status = response.status();
            if status.is_success() {
                let answer = if is_event_stream(&response) {
                    read_stream(response, request, self.sorter()).await?
                } else {
                    let answer = read_whole(response, request, self.sorter()).await?;
                    if dialect.stream {
                        self.learn(dialect.without_stream());
                    }
                    answer
                };
                return answer.finish(&request.messages).map_err(Refusal::Answered);
            }
            let retry_after = retry_after(response.headers(), Utc::now());
            let error = ErrorBody::read(&read_body(response).await?);
            let is_invalid = matches!(
                status,
                StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY
            );
            if is_invalid && let Some(less) = dialect.without_refused(&error) {
                self.learn(less);
                continue;
            }
            return Err(self.sorter().sort(status, &error, retry_after));
        }
    }
}

fn is_event_stream(response: &Response) -> bool {
    response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| {
            kind.trim_start()
                .to_lowercase()
                .starts_with("text/event-stream")
        })
}

async fn read_stream(
    mut response: Response,
    request: &Generate,
    sorter: Sorter<'_>,
) -> Result<Collector, Refusal> {
    let mut reader = EventReader::default();
    let mut answer = Collector::new(request);
    let mut bytes = 0;
    loop {
        let next = async {
            let next = response.chunk();
            if answer.has_begun() {
                timeout(EVENT_TIMEOUT, next).await.map_err(|_| {
                    Refusal::TimedOut("the server fell silent amid its answer".to_owned())
                })
            } else {
                Ok(next.await)
            }
        };
        let next = tokio::select! {
            next = next => next?,
            () = request.terms.stop.requested(), if answer.has_begun() => {
                answer.cut_short();
                return Ok(answer);
            }
        };
        let part = match next {
            Ok(Some(part)) => part,
            Ok(None) => break,
            // What was to come are counts, and they can be estimated.
            Err(_) if answer.is_whole() => return Ok(answer),
            Err(error) => return Err(Refusal::of_transport(&error)),
        };
        bytes += part.len();
        if bytes > RESPONSE_BYTES_MAX {
            return Err(too_large());
        }
        for event in reader.push(&part) {
            if event.data.trim() == DONE {
                answer.end();
                return Ok(answer);
            }
            take_event(&mut answer, &event, sorter)?;
        }
    }
    if let Some(event) = reader.finish() {
        if event.data.trim() == DONE {
            answer.end();
        } else if !answer.is_whole() && serde_json::from_str::<Chunk>(&event.data).is_ok() {
            take_event(&mut answer, &event, sorter)?;
        }
    }
    if answer.is_whole() {
        Ok(answer)
    } else {
        Err(Refusal::Broken(
            "the server's stream ended before its answer".to_owned(),
        ))
    }
}

fn take_event(answer: &mut Collector, event: &Event, sorter: Sorter<'_>) -> Result<(), Refusal> {
    let data = event.data.as_bytes();
    if event.name == "error" {
        return Err(sorted(data, sorter));
    }
    let chunk = parse(data)?;
    if chunk.is_error() {
        return Err(sorted(data, sorter));
    }
    answer.take(chunk, Some(Utc::now()));
    Ok(())
}

async fn read_whole(
    response: Response,
    request: &Generate,
    sorter: Sorter<'_>,
) -> Result<Collector, Refusal> {
    let body = read_body(response).await?;
    let chunk = parse(&body)?;
    if chunk.is_error() {
        return Err(sorted(&body, sorter));
    }
    let mut answer = Collector::new(request);
    answer.take(chunk, None);
    Ok(answer)
}

/// An error in an answer's place, sorted by the status that it stands for.
fn sorted(data: &[u8], sorter: Sorter<'_>) -> Refusal {
    let error = ErrorBody::read(data);
    sorter.sort(error.status(), &error, None)
}

/// Says where a response is not understood, never what stands there.
fn parse(data: &[u8]) -> Result<Chunk, Refusal> {
    serde_json::from_slice(data).map_err(|error| {
        Refusal::Answered(EngineError::Crashed(format!(
            "the server's response is not understood: {:?} error at line {} column {}",
            error.classify(),
            error.line(),
            error.column()
        )))
    })
}
