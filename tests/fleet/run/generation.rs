//! What a line may ask of its answer's tokens and form, answered by the bundled checkpoints.

use serde_json::{Value, json};

use crate::{
    run::{
        http::post,
        roles::{stop, up},
    },
    support::workdir::{Workdir, extension, text},
};

fn file(bodies: &[(&str, Value)]) -> String {
    bodies
        .iter()
        .map(|(name, body)| json!({"custom_id": name, "body": body}).to_string() + "\n")
        .collect()
}

fn content(line: &Value) -> &Vec<Value> {
    let logprobs = &line["response"]["body"]["choices"][0]["logprobs"];
    logprobs["content"].as_array().unwrap()
}

/// Log-probabilities come as OpenAI's clients read them, and again from the cache; an answer that
/// was computed without them is not given to a request that asks for them.
#[test]
fn log_probabilities_are_returned_and_stored() {
    let dir = Workdir::new();
    let plain =
        json!({"prompt": "Where is my parcel?", "max_completion_tokens": 9, "model": "small"});
    let mut asked = plain.clone();
    asked["logprobs"] = json!(true);
    asked["top_logprobs"] = json!(2);
    dir.write("plain", file(&[("plain", plain)]));
    dir.write("asked", file(&[("asked", asked.clone())]));
    dir.write("again", file(&[("again", asked)]));
    let run = |name: &str| {
        dir.run(&["run", name, "--out", "answers.jsonl"]).exits(0);
        dir.answers().remove(name).unwrap()
    };
    let plain = run("plain");
    assert_eq!(
        plain["response"]["body"]["choices"][0]["logprobs"],
        Value::Null
    );
    let asked = run("asked");
    assert_eq!(extension(&asked)["source"], "computed");
    assert_eq!(text(&asked), text(&plain));
    let mut bytes = Vec::new();
    for token in content(&asked) {
        assert!(token["logprob"].as_f64().unwrap() <= 0.0, "{token}");
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2, "{token}");
        assert_eq!(
            (&top[0]["token"], &top[0]["bytes"]),
            (&token["token"], &token["bytes"])
        );
        let of_token = token["bytes"].as_array().unwrap().iter();
        bytes.extend(of_token.map(|byte| byte.as_u64().unwrap() as u8));
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), text(&asked));
    let again = run("again");
    assert_eq!(extension(&again)["source"], "cache");
    assert_eq!(content(&again), content(&asked));
    assert_eq!(
        dir.number("select count(*) from answers where logprobs is not null"),
        2
    );
}

/// Over HTTP the fields are OpenAI's too, and what is wrong with one is said at once.
#[test]
fn the_http_interface_takes_the_same_fields() {
    let dir = Workdir::new();
    let up = up(&dir, &[]);
    let ask = |more: Value| {
        let mut body = json!({"model": "small", "max_completion_tokens": 5,
            "messages": [{"role": "user", "content": "Where is my parcel?"}]});
        let fields = body.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        post(up.api, "/v1/chat/completions", &body)
    };
    let asked = ask(
        json!({"logprobs": true, "top_logprobs": 1, "frequency_penalty": 0.5,
        "presence_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"5": -100}}),
    );
    assert_eq!(asked.status, 200, "{asked:?}");
    let logprobs = &asked.json()["choices"][0]["logprobs"];
    assert_eq!(logprobs["content"].as_array().unwrap().len(), 5);
    ask(json!({"logit_bias": {"5": -101}})).is_error(400, "invalid_value");
    ask(json!({"top_logprobs": 2})).is_error(400, "invalid_value");
    let unknown = ask(json!({"logit_bias": {"4000000000": 1}}));
    assert!(
        unknown.body.contains("logit_bias names token 4000000000"),
        "{unknown:?}"
    );
    stop(up);
}

/// A schema is obeyed, and one that nothing can obey ends its own line only.
#[cfg(feature = "structured")]
#[test]
fn answers_follow_the_requested_schema() {
    let dir = Workdir::new();
    let body = |schema: Value| {
        json!({"prompt": "Where is my parcel?", "max_completion_tokens": 200, "model": "small",
            "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}})
    };
    let good = json!({"type": "object", "required": ["answered", "mood"], "additionalProperties": false,
        "properties": {"answered": {"type": "boolean"}, "mood": {"enum": ["calm", "cross"]}}});
    let lines = [
        ("good", body(good)),
        ("bad", body(json!({"type": "objekt"}))),
    ];
    dir.write("prompts", file(&lines));
    let done = dir
        .run(&["run", "prompts", "--out", "answers.jsonl"])
        .exits(1);
    let answers = dir.answers();
    let reply: Value = serde_json::from_str(text(&answers["good"])).unwrap();
    assert!(reply["answered"].is_boolean(), "{reply} of {done}");
    assert!(
        ["calm", "cross"].contains(&reply["mood"].as_str().unwrap()),
        "{reply}"
    );
    let error = &answers["bad"]["error"];
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("response_format"),
        "{error}"
    );
}
