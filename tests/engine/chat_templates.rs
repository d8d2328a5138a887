//! Chat templates of published models, rendered as Hugging Face transformers renders them.

use std::collections::BTreeMap;

use chrono::NaiveDateTime;
use promptyard::{
    job::Message,
    prompt::{ChatTemplate, PromptError, SpecialTokens},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    now: NaiveDateTime,
    bos_token: String,
    eos_token: String,
    templates: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    rendered: Option<String>,
    fault: Option<String>,
}

#[test]
fn renderings_and_refusals_are_those_of_transformers() {
    let golden: Golden =
        serde_json::from_str(include_str!("../fixtures/chat_templates.json")).unwrap();
    assert!(golden.cases.len() >= 110);
    for case in golden.cases {
        let specials = SpecialTokens::new([
            ("bos_token".to_owned(), golden.bos_token.clone()),
            ("eos_token".to_owned(), golden.eos_token.clone()),
        ]);
        let template = ChatTemplate::new(&golden.templates[&case.template], specials).unwrap();
        let rendered = template.render_at(&case.messages, case.add_generation_prompt, golden.now);
        let expected = match (case.rendered, case.fault) {
            (Some(rendered), None) => Ok(rendered),
            (None, Some(fault)) => Err(PromptError::Refused(fault)),
            _ => panic!("a case has a rendering or a fault"),
        };
        assert_eq!(
            rendered, expected,
            "template {}, {:?}",
            case.template, case.messages
        );
    }
}
