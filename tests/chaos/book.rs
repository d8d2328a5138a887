//! What producers asked and what they were told: the truth that the database is held against.

use std::collections::BTreeMap;

use promptyard::{
    config::ModelConfig,
    engine::{Engine, Generate, scripted::ScriptedEngine},
    job::{RequestLimits, Submission},
};
use rand::{RngExt, rngs::StdRng};
use serde_json::{Value, json};

/// In a prompt that brings down all that runs beside it.
pub const POISON: &str = "BOOM";
/// Prompts that many jobs have in common.
const COMMON: u32 = 150;
const TENANTS: [&str; 3] = ["acme", "bell", "cray"];

/// A tenant and an idempotency key.
pub type Name = (String, String);

/// A job as its producer knows it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub prompt: String,
    pub body: Vec<u8>,
    pub priority: u8,
    pub wants_reply: bool,
    pub is_confirmed: bool,
    /// Published though it was confirmed already.
    pub repeats: usize,
}

/// A reply, and how often it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub line: Value,
    pub state: String,
    pub times: usize,
}

/// Everything that was asked and answered.
#[derive(Debug, Default)]
pub struct Book {
    pub asked: BTreeMap<Name, Asked>,
    pub replies: BTreeMap<Name, Reply>,
    /// What no producer may see, such as two replies that differ.
    pub faults: Vec<String>,
    /// Publishes whose confirm never came.
    pub unconfirmed: usize,
    /// Jobs whose reply has not come.
    pub outstanding: usize,
    made: u64,
}

impl Book {
    /// Makes up a job and notes it.
    pub fn ask(&mut self, random: &mut StdRng) -> Name {
        let number = self.made;
        let prompt = if random.random_bool(0.4) {
            format!("Common question {}?", random.random_range(0..COMMON))
        } else {
            let filler = "Explain each step: 3 * 7 + 12. ".repeat(random.random_range(0..6));
            format!("{filler}Question {number}?")
        };
        let model = ["auto", "auto", "auto", "small", "large"][random.random_range(0..5)];
        let cache = ["exact", "exact", "off"][random.random_range(0..3)];
        self.note(random, prompt, model, cache)
    }

    /// Makes up a job that kills and notes it.
    pub fn poison(&mut self, random: &mut StdRng) -> Name {
        let prompt = format!("{POISON} {}", self.made);
        let model = ["small", "large"][random.random_range(0..2)];
        self.note(random, prompt, model, "off")
    }

    fn note(&mut self, random: &mut StdRng, prompt: String, model: &str, cache: &str) -> Name {
        // Tenants use the same keys.
        let tenant = TENANTS[usize::try_from(self.made % 3).unwrap()].to_owned();
        let key = format!("key-{}", self.made / 3);
        self.made += 1;
        let options = json!({"tenant": tenant, "cache": cache});
        let body = json!({"prompt": prompt, "model": model, "promptyard": options});
        let line = json!({"custom_id": format!("{tenant}/{key}"), "body": body});
        let asked = Asked {
            prompt,
            body: line.to_string().into_bytes(),
            priority: if random.random_bool(0.1) { 9 } else { 0 },
            wants_reply: random.random_bool(0.9),
            is_confirmed: false,
            repeats: 0,
        };
        let name = (tenant, key);
        self.outstanding += usize::from(asked.wants_reply);
        self.asked.insert(name.clone(), asked);
        name
    }

    /// Notes a reply.
    pub fn reply(&mut self, name: Name, line: Value, state: String) {
        let new = Reply {
            line,
            state,
            times: 1,
        };
        match self.replies.get_mut(&name) {
            None => {
                self.outstanding = self.outstanding.saturating_sub(1);
                self.replies.insert(name, new);
            }
            Some(reply) => {
                reply.times += 1;
                let told = |reply: &Reply| {
                    let line = &reply.line;
                    (
                        content(line).cloned(),
                        line["error"].clone(),
                        line["id"].clone(),
                    )
                };
                if told(reply) != told(&new) || reply.state != new.state {
                    self.faults
                        .push(format!("{name:?} got {reply:?} and then {new:?}"));
                }
            }
        }
    }

    /// Jobs that are to be answered to their producer.
    pub fn replies_owed(&self) -> usize {
        let owed = |(name, asked): &(&Name, &Asked)| {
            asked.is_confirmed && asked.wants_reply && !self.replies.contains_key(*name)
        };
        self.asked.iter().filter(owed).count()
    }
}

/// The answer's text in a reply.
pub fn content(line: &Value) -> Option<&Value> {
    line.pointer("/response/body/choices/0/message/content")
}

/// What a scripted engine answers when nothing goes wrong; `None` where it always fails.
pub async fn undisturbed(script: &str, asked: &Asked) -> Option<String> {
    if asked.prompt.contains(POISON) {
        return None;
    }
    let engine = ScriptedEngine::from_script(script, &ModelConfig::default()).unwrap();
    let submission = Submission::parse(&asked.body, &RequestLimits::default()).unwrap();
    let generation = engine.generate(Generate {
        messages: submission.request.messages,
        sampling: submission.request.sampling,
        seed_default: 0,
        context: Default::default(),
    });
    generation.await.ok().map(|done| done.answer.text)
}
