//! One request to the server and its answer, streamed where the server streams and whole otherwise.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use reqwest::{Method, Response, StatusCode, header::CONTENT_TYPE};
use tokio::time::timeout;

use super::{
    answer::{AnswerCollector, CollectedAnswer, CompletionChunk},
    error::{ErrorBody, ErrorClassifier, ExchangeError, retry_after},
    events::{Event, EventReader},
    server::{RESPONSE_BYTES_MAX, Server, read_body, too_large},
    wire::CompletionRequest,
};
use crate::engine::{EngineError, Generate};

/// Enough for a long answer of a loaded server; slower ones are retried later.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest silence within an answer that has begun. A token takes far less, and a server that
/// preempts an answer resumes it within this time.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);
/// Data of the event that ends a stream.
const DONE: &str = "[DONE]";

impl Server {
    /// Sends the request, again without a parameter whenever the server rejects that parameter by name.
    ///
    /// Dropping the future closes the connection, so the server stops generating.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        request: &Generate,
    ) -> Result<CollectedAnswer, ExchangeError> {
        // Each round drops one parameter, so the loop ends.
        loop {
            let dialect = self.dialect();
            let body = CompletionRequest::new(&self.model, request, dialect);
            let sent = self
                .request(Method::POST, "chat/completions")
                .timeout(ANSWER_TIMEOUT)
                .json(&body)
                .send()
                .await;
            let response = sent.map_err(|error| ExchangeError::of_transport(&error))?;
            let status = response.status();
            if status.is_success() {
                let answer = if is_event_stream(&response) {
                    read_stream(response, request, self.classifier()).await?
                } else {
                    let answer = read_whole(response, request, self.classifier()).await?;
                    if dialect.stream {
                        self.learn(dialect.without_stream());
                    }
                    answer
                };
                return answer
                    .finish(&request.messages)
                    .map_err(ExchangeError::Answered);
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
            return Err(self.classifier().classify(status, &error, retry_after));
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
    classifier: ErrorClassifier<'_>,
) -> Result<AnswerCollector, ExchangeError> {
    let mut reader = EventReader::default();
    let mut answer = AnswerCollector::new(request);
    let mut bytes = 0;
    loop {
        let next = async {
            let next = response.chunk();
            if answer.has_begun() {
                timeout(EVENT_TIMEOUT, next).await.map_err(|_| {
                    ExchangeError::TimedOut(
                        "the server stalled in the middle of its answer".to_owned(),
                    )
                })
            } else {
                Ok(next.await)
            }
        };
        let next = tokio::select! {
            next = next => next?,
            () = request.context.stop.requested(), if answer.has_begun() => {
                answer.cut_short();
                return Ok(answer);
            }
        };
        let part = match next {
            Ok(Some(part)) => part,
            Ok(None) => break,
            // Only the token counts are missing, and they can be estimated.
            Err(_) if answer.is_complete() => return Ok(answer),
            Err(error) => return Err(ExchangeError::of_transport(&error)),
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
            take_event(&mut answer, &event, classifier)?;
        }
    }
    if let Some(event) = reader.finish() {
        if event.data.trim() == DONE {
            answer.end();
        } else if !answer.is_complete()
            && serde_json::from_str::<CompletionChunk>(&event.data).is_ok()
        {
            take_event(&mut answer, &event, classifier)?;
        }
    }
    if answer.is_complete() {
        Ok(answer)
    } else {
        Err(ExchangeError::Broken(
            "the server's stream ended before its answer was complete".to_owned(),
        ))
    }
}

fn take_event(
    answer: &mut AnswerCollector,
    event: &Event,
    classifier: ErrorClassifier<'_>,
) -> Result<(), ExchangeError> {
    let data = event.data.as_bytes();
    if event.name == "error" {
        return Err(sorted(data, classifier));
    }
    let chunk = parse(data)?;
    if chunk.is_error() {
        return Err(sorted(data, classifier));
    }
    answer.take(chunk, Some(Utc::now()));
    Ok(())
}

async fn read_whole(
    response: Response,
    request: &Generate,
    classifier: ErrorClassifier<'_>,
) -> Result<AnswerCollector, ExchangeError> {
    let body = read_body(response).await?;
    let chunk = parse(&body)?;
    if chunk.is_error() {
        return Err(sorted(&body, classifier));
    }
    let mut answer = AnswerCollector::new(request);
    answer.take(chunk, None);
    Ok(answer)
}

/// Classifies an error sent instead of an answer by the status that it stands for.
fn sorted(data: &[u8], classifier: ErrorClassifier<'_>) -> ExchangeError {
    let error = ErrorBody::read(data);
    classifier.classify(error.status(), &error, None)
}

/// Parses a chunk; the error tells the position, never the content.
fn parse(data: &[u8]) -> Result<CompletionChunk, ExchangeError> {
    serde_json::from_slice(data).map_err(|error| {
        ExchangeError::Answered(EngineError::Crashed(format!(
            "cannot parse the server's response: {:?} error at line {} column {}",
            error.classify(),
            error.line(),
            error.column()
        )))
    })
}
