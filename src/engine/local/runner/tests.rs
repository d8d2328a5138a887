//! Tests of the thread's loop with a model that fails on demand.

use std::{sync::mpsc::sync_channel, thread};

use tokio::sync::{Semaphore, oneshot};

use crate::{engine::Generation, job::FinishReason, prompt::Specials};

use super::*;

/// Repeats the last token it saw; fails on the tokens that a test chose.
struct FaultyModel {
    panics_on: u32,
    errs_on: u32,
    nan_on: u32,
}

impl Forward for FaultyModel {
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Logits, String> {
        let mut values = Vec::new();
        for chunk in chunks {
            assert!(!chunk.tokens.contains(&self.panics_on), "requested panic");
            if chunk.tokens.contains(&self.errs_on) {
                return Err("requested error".to_owned());
            }
            let last = chunk.tokens[chunk.tokens.len() - 1];
            if chunk.rows == LogitRows::Last {
                let filler = if last == self.nan_on { f32::NAN } else { 0.0 };
                let mut row = vec![filler; 384];
                row[last as usize] = 5.0;
                values.extend(row);
            }
        }
        Ok(Logits::new(values, 384))
    }
}

fn vocabulary() -> Vocabulary {
    let json = include_bytes!("../../../../tests/fixtures/models/tiny-qwen2/tokenizer.json");
    Vocabulary::from_json(json).expect("the fixture is a tokenizer")
}

fn token(text: &str) -> u32 {
    let tokens = vocabulary()
        .encode(text, Specials::Written)
        .expect("encodes");
    assert_eq!(tokens.len(), 1, "{text} is one token");
    tokens[0]
}

const LIMITS: Limits = Limits {
    batch_max: 2,
    waiting_max: 8,
    step_tokens_max: 16,
    kv_blocks: 8,
    step_seconds_max: None,
};

type AnswerReceiver = oneshot::Receiver<Result<Generation, EngineError>>;

/// Queues prompts before the thread starts and closes the engine once all are answered.
fn run(prompts: &[&str]) -> Vec<Result<Generation, EngineError>> {
    let (requests, receiver) = sync_channel(LIMITS.waiting_max);
    let answers: Vec<AnswerReceiver> = prompts
        .iter()
        .map(|prompt| send(&requests, prompt))
        .collect();
    let thread = thread::spawn(move || runner(receiver).run());
    let answers = answers
        .into_iter()
        .map(|answer| answer.blocking_recv().expect("answered"))
        .collect();
    drop(requests);
    thread
        .join()
        .expect("the thread ends when the engine is closed");
    answers
}

fn send(requests: &std::sync::mpsc::SyncSender<EngineRequest>, prompt: &str) -> AnswerReceiver {
    let (reply, answer) = oneshot::channel();
    let request = Generate::from_prompt(prompt, 4);
    let prompt = codec().prompt(&request).expect("encodes");
    let queued = EngineRequest {
        request,
        prompt,
        grammar: None,
        reply,
        slot: Arc::new(Semaphore::new(1))
            .try_acquire_owned()
            .expect("free"),
    };
    requests.send(queued).expect("accepted");
    answer
}

fn codec() -> TextCodec {
    TextCodec {
        template: ChatTemplate::plain(),
        vocabulary: vocabulary(),
        eos: Vec::new(),
    }
}

fn runner(receiver: Receiver<EngineRequest>) -> Runner<FaultyModel> {
    let model = FaultyModel {
        panics_on: token("X"),
        errs_on: token("Y"),
        nan_on: token("Z"),
    };
    let info = EngineInfo {
        model: "faulty".to_owned(),
        revision: "1".to_owned(),
        context_tokens: Some(32),
        batch_max: LIMITS.batch_max,
        parameters: None,
    };
    Runner::new(
        model,
        Arc::new(codec()),
        info,
        Tier::Small,
        (LIMITS, PrefixSharing::Tenant),
        (receiver, Arc::new(StepTimer::new())),
    )
}

fn text(outcome: &Result<Generation, EngineError>) -> &str {
    &outcome.as_ref().expect("an answer").answer.text
}

#[test]
fn a_failed_step_fails_running_requests_but_not_waiting_ones() {
    for (poison, expected) in [("X", "panic"), ("Y", "requested error")] {
        let outcomes = run(&["a", poison, "b", "c"]);
        assert!(
            matches!(&outcomes[0], Err(EngineError::Crashed(_))),
            "it ran in the same step"
        );
        let Err(EngineError::Crashed(error)) = &outcomes[1] else {
            panic!("it crashed");
        };
        assert!(error.contains(expected), "{error}");
        assert_eq!(text(&outcomes[2]), "bbbb");
        assert_eq!(text(&outcomes[3]), "cccc");
    }
}

#[test]
fn nan_logits_fail_only_their_own_request() {
    let outcomes = run(&["a", "Z", "b"]);
    assert_eq!(text(&outcomes[0]), "aaaa");
    assert!(
        matches!(&outcomes[1], Err(EngineError::Crashed(error)) if error.contains("not finite"))
    );
    assert_eq!(text(&outcomes[2]), "bbbb");
}

#[test]
fn cancelled_requests_free_their_slots() {
    let (requests, receiver) = sync_channel(LIMITS.waiting_max);
    for _ in 0..4 {
        drop(send(&requests, "X"));
    }
    let kept = send(&requests, "a");
    let thread = thread::spawn(move || runner(receiver).run());
    assert_eq!(text(&kept.blocking_recv().expect("answered")), "aaaa");
    drop(requests);
    thread.join().expect("the thread ends");
}

#[test]
fn a_sequence_cancelled_while_running_is_dropped_at_the_next_step() {
    let (requests, receiver) = sync_channel(LIMITS.waiting_max);
    let (cancelled, kept) = (send(&requests, "a"), send(&requests, "b"));
    let mut runner = runner(receiver);
    assert!(runner.receive());
    runner.step().expect("computed");
    assert_eq!(runner.sequences.len(), 2);
    drop(cancelled);
    runner.step().expect("computed");
    assert_eq!(runner.sequences.len(), 1);
    drop((requests, kept));
}

#[test]
fn closing_the_engine_fails_running_requests() {
    let (requests, receiver) = sync_channel(LIMITS.waiting_max);
    let answer = send(&requests, "a");
    let mut runner = runner(receiver);
    assert!(runner.receive());
    runner.step().expect("computed");
    drop(requests);
    runner.run();
    assert_eq!(
        answer.blocking_recv().expect("a reply"),
        Err(EngineError::Closed)
    );
}

#[test]
fn the_context_limits_prompt_and_answer() {
    let outcomes = run(&[&"a ".repeat(40), &"a".repeat(30)]);
    assert!(
        matches!(&outcomes[0], Err(EngineError::ContextTooLong { prompt_tokens, context_tokens: 32, .. }) if *prompt_tokens >= 32),
        "{:?}",
        outcomes[0]
    );
    let answer = &outcomes[1].as_ref().expect("an answer").answer;
    assert_eq!(answer.finish_reason, FinishReason::Length);
    let usage = answer.usage;
    assert!(
        usage.prompt_tokens + usage.completion_tokens <= 32,
        "{usage:?}"
    );
}
