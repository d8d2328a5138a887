//! Questions that ask the same in other words, with all-MiniLM-L6-v2 in the router.

use serde_json::{Value, json};

use crate::support::{
    servers::embedder_folder,
    workdir::{Workdir, extension, text},
};

/// Where all-MiniLM-L6-v2 lies, as a setting.
pub fn embedder() -> String {
    let folder = embedder_folder();
    format!("cache.embedder={folder}")
}

fn semantic(prompt: &str) -> Value {
    json!({"prompt": prompt, "promptyard": {"cache": "semantic"}})
}

/// Runs one body with these small and large models; returns its answer line.
fn ask(dir: &Workdir, name: &str, body: &Value, small: &str, more: &[&str]) -> Value {
    dir.write(
        name,
        json!({"custom_id": name, "body": body}).to_string() + "\n",
    );
    let embedder = embedder();
    let arguments = [
        &["run", name, "--out", "answers.jsonl", "--small", small][..],
        &["--large", "scripted:model=big"][..],
        &["--set", "router.threshold=1", "--set", &embedder][..],
        more,
    ]
    .concat();
    dir.run(&arguments).exits(0);
    dir.answers().remove(name).unwrap()
}

#[test]
fn only_paraphrases_reuse_an_answer() {
    let dir = Workdir::new();
    let ask = |name: &str, body: &Value| ask(&dir, name, body, "scripted:", &[]);
    let first = ask("first", &semantic("How do I reset my password?"));
    assert_eq!(extension(&first)["source"], "computed");

    let other = ask("other", &semantic("How can I reset my password?"));
    assert_eq!(extension(&other)["source"], "semantic", "{other}");
    assert_eq!(
        extension(&other)["answered_by"],
        extension(&first)["job_id"]
    );
    assert!(extension(&other)["cosine"].as_f64().unwrap() > 0.92);
    assert_eq!(text(&other), text(&first));
    assert_eq!(dir.number("select count(*) from attempts"), 1);
    assert_eq!(
        dir.column("select outcome || ' ' || (veto is null) from semantic_lookups"),
        ["hit 1"]
    );

    // The same words again: its own answer was never computed, so it is looked up again.
    let again = ask("again", &semantic("How can I reset my password?"));
    assert_eq!(extension(&again)["source"], "semantic");

    for (name, body) in [
        ("negated", semantic("How do I not reset my password?")),
        ("elsewhere", semantic("How do I reset my router?")),
        ("exact", json!({"prompt": "How may I reset my password?"})),
        (
            "off",
            json!({"prompt": "How may I reset my password?", "promptyard": {"cache": "off"}}),
        ),
        (
            "tenant",
            json!({"prompt": "How may I reset my password?",
                   "promptyard": {"cache": "semantic", "tenant": "acme"}}),
        ),
        (
            "system",
            json!({"promptyard": {"cache": "semantic"}, "messages": [
                {"role": "system", "content": "Answer in French."},
                {"role": "user", "content": "How could I reset my password?"}]}),
        ),
        (
            "turns",
            json!({"promptyard": {"cache": "semantic"}, "messages": [
                {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "How could I reset my password?"}]}),
        ),
        (
            "longer",
            json!({"prompt": "How could I reset my password?", "max_tokens": 9,
                   "promptyard": {"cache": "semantic"}}),
        ),
        (
            "warm",
            json!({"prompt": "How could I reset my password?", "temperature": 0.7,
                   "promptyard": {"cache": "semantic"}}),
        ),
        (
            "large",
            json!({"prompt": "How could I reset my password?", "model": "large",
                   "promptyard": {"cache": "semantic"}}),
        ),
    ] {
        let answer = ask(name, &body);
        assert_eq!(extension(&answer)["source"], "computed", "{name}");
    }
    let vetoes = dir.column("select veto from semantic_lookups where outcome = 'miss' order by 1");
    assert!(vetoes.contains(&"negation".to_owned()), "{vetoes:?}");
    assert_eq!(dir.number("select sum(semantic) from cache_savings"), 2);
    assert_eq!(dir.number("select sum(hits) from semantic_reuse"), 2);
}

/// Another revision of the model has answers of its own, and an embedder is asked for by those only who
/// want one: without it the request is served exactly.
#[test]
fn other_models_or_no_embedder_prevent_reuse() {
    let dir = Workdir::new();
    ask(
        &dir,
        "first",
        &semantic("How do I reset my password?"),
        "scripted:",
        &[],
    );
    let other = semantic("How can I reset my password?");
    let elsewhere = ask(&dir, "model", &other, "scripted:says=so", &[]);
    assert_eq!(extension(&elsewhere)["source"], "computed");
    dir.write(
        "plain",
        json!({"custom_id": "plain", "body": other}).to_string(),
    );
    let models = ["--small", "scripted:", "--large", "scripted:model=big"];
    let arguments = [
        &[
            "run",
            "plain",
            "--out",
            "answers.jsonl",
            "--set",
            "router.threshold=1",
        ][..],
        &models[..],
    ];
    dir.run(&arguments.concat()).exits(0);
    assert_eq!(extension(&dir.answers()["plain"])["source"], "computed");
}

/// With `cache.semantic_check` the model has the last word, and its word is all that is computed.
#[test]
fn the_model_check_decides_on_reuse() {
    let check = ["--set", "cache.semantic_check=true"];
    for (small, source) in [
        ("scripted:says=yes", "semantic"),
        ("scripted:says=perhaps", "computed"),
    ] {
        let dir = Workdir::new();
        let first = ask(
            &dir,
            "first",
            &semantic("How do I reset my password?"),
            small,
            &check,
        );
        let other = ask(
            &dir,
            "other",
            &semantic("How can I reset my password?"),
            small,
            &check,
        );
        assert_eq!(extension(&other)["source"], source, "{small}");
        assert_eq!(text(&other), text(&first));
        assert_eq!(
            dir.column("select outcome from semantic_lookups"),
            ["candidate"]
        );
        let attempts = dir.column(
            "select coalesce(reason_code, 'answered') || ' ' || completion_tokens from attempts order by claimed_at",
        );
        let second = if source == "semantic" {
            "semantic_reuse 1"
        } else {
            "answered 1"
        };
        assert_eq!(attempts, ["answered 1", second]);
        // What the model found to be the same is not kept as this question's own answer.
        let entries = if source == "semantic" { 1 } else { 2 };
        assert_eq!(dir.number("select count(*) from cache_entries"), entries);
    }
}

#[test]
fn a_missing_embedder_is_reported_in_one_line() {
    let dir = Workdir::new();
    dir.write("prompts", "hello\n");
    let failed = dir
        .answer("prompts", &["--set", "cache.embedder=./nowhere"])
        .exits(1);
    let words = failed.stderr.trim();
    assert!(
        words.contains("cannot open the embedder ./nowhere"),
        "{words}"
    );
    assert_eq!(words.lines().count(), 1, "{words}");
}
