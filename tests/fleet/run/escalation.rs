//! Unsure answers of the small model continue to the large one; what producers forbid and what is sure
//! does not.

use serde_json::{Value, json};

use crate::support::workdir::{Workdir, extension, text};

const SMALL: &str = "scripted:model=little,unsure=riddle";
const LARGE: &str = "scripted:model=big,echo";

fn line(name: &str, body: &Value) -> String {
    json!({"custom_id": name, "body": body}).to_string() + "\n"
}

/// Runs lines with every job left to the router on the small tier.
fn run(dir: &Workdir, lines: &str, large: &str, more: &[&str]) -> Value {
    dir.write("prompts", lines);
    let arguments = [
        &[
            "run",
            "prompts",
            "--out",
            "answers.jsonl",
            "--json",
            "--small",
            SMALL,
            "--large",
            large,
            "--set",
            "router.threshold=1",
        ],
        more,
    ]
    .concat();
    dir.run(&arguments).exits(0).json()
}

fn history(dir: &Workdir, statement: &'static str) -> Vec<String> {
    dir.column(statement)
}

#[test]
fn a_low_confidence_answer_is_escalated_and_both_are_stored() {
    let dir = Workdir::new();
    let riddle = "a riddle for you";
    let lines = line("unsure", &json!({"prompt": riddle}))
        + &line("sure", &json!({"prompt": "an easy one"}))
        + &line("small", &json!({"prompt": riddle, "model": "small"}))
        + &line(
            "stay",
            &json!({"prompt": riddle, "promptyard": {"escalate": false, "cache": "off"}}),
        )
        + &line("large", &json!({"prompt": riddle, "model": "large"}));
    let summary = run(&dir, &lines, LARGE, &[]);
    assert_eq!(
        summary["route"],
        json!({"small": 3, "large": 2, "escalated": 1}),
        "{summary}"
    );
    let answers = dir.answers();
    let told = |name: &str| {
        let told = extension(&answers[name]);
        (
            told["tier"].clone(),
            told["escalated"].clone(),
            told["attempts"].clone(),
        )
    };
    assert_eq!(text(&answers["unsure"]), riddle, "the large one's");
    assert_eq!(told("unsure"), (json!("large"), json!(true), json!(2)));
    assert!(
        extension(&answers["unsure"])["confidence"]
            .as_f64()
            .unwrap()
            < 0.5
    );
    assert_eq!(told("sure"), (json!("small"), json!(false), json!(1)));
    assert!(extension(&answers["sure"])["confidence"].as_f64().unwrap() > 0.9);
    for name in ["small", "stay"] {
        assert_eq!(
            told(name),
            (json!("small"), json!(false), json!(1)),
            "{name}"
        );
    }
    assert_eq!(told("large"), (json!("large"), json!(false), json!(1)));
    assert_eq!(extension(&answers["large"])["confidence"], Value::Null);
    let attempts = history(
        &dir,
        "select a.tier || ' ' || a.outcome || ' ' || coalesce(a.reason_code, '') || ' '
                || (a.completion_tokens > 0) || ' ' || (a.confidence is not null) || ' ' || (t.text is not null)
           from attempts a join jobs j on j.id = a.job_id
           left join attempt_answers t on t.job_id = a.job_id and t.attempt = a.attempt
          where j.custom_id = 'unsure' order by a.attempt",
    );
    assert_eq!(
        attempts,
        [
            "small escalated low_confidence 1 1 1",
            "large succeeded  1 0 0"
        ]
    );
    // What escalated attempts generated counts as computed.
    let generated = dir.number("select sum(completion_tokens) from tokens");
    assert_eq!(summary["tokens"]["generated"], generated, "{summary}");
}

#[test]
fn reuse_takes_the_final_answer() {
    let dir = Workdir::new();
    let riddle = json!({"prompt": "the same riddle"});
    let twins: String = (0..20).map(|at| line(&format!("a{at}"), &riddle)).collect();
    let first = run(&dir, &twins, LARGE, &[]);
    assert_eq!(first["cache_hits"]["shared_in_flight"], 19, "{first}");
    assert_eq!(dir.number("select count(*) from attempts"), 2);
    assert!(
        dir.answers()
            .values()
            .all(|answer| text(answer) == "the same riddle")
    );
    let later = run(&dir, &line("later", &riddle), LARGE, &[]);
    assert_eq!(later["cache_hits"]["earlier_answers"], 1, "{later}");
    // Those that asked for the small model get its own answer.
    let own = json!({"prompt": "the same riddle", "model": "small"});
    run(&dir, &line("own", &own), LARGE, &[]);
    assert_ne!(text(&dir.answers()["own"]), "the same riddle");
    // Another large model is another pair.
    run(
        &dir,
        &line("other", &riddle),
        "scripted:model=bigger,echo",
        &[],
    );
    assert_eq!(extension(&dir.answers()["other"])["source"], "computed");
}

#[test]
fn the_small_answer_serves_when_the_large_model_fails() {
    let dir = Workdir::new();
    let lines = line("unsure", &json!({"prompt": "a riddle for you"}));
    let failing = "scripted:model=big,fail_percent=100";
    let summary = run(&dir, &lines, failing, &["--set", "worker.attempts_max=2"]);
    assert_eq!(
        (&summary["answered"], &summary["failed"]),
        (&json!(1), &json!(0)),
        "{summary}"
    );
    let answer = dir.answers().remove("unsure").unwrap();
    let told = extension(&answer);
    assert_eq!(told["tier"], "small", "{answer}");
    assert_eq!(told["fallback"]["code"], "engine_crashed", "{answer}");
    assert_eq!(answer["error"], Value::Null);
    assert_eq!(
        dir.number("select count(*) from jobs where finished_at is not null"),
        1
    );
    dir.run(&["dead", "list"])
        .exits(0)
        .complains("no dead letters");
}

#[test]
fn confidence_threshold_and_weights_are_settings() {
    let lines =
        line("unsure", &json!({"prompt": "a riddle"})) + &line("sure", &json!({"prompt": "plain"}));
    for (below, escalated) in [("0", 0), ("0.5", 1), ("1", 2)] {
        let dir = Workdir::new();
        let setting = format!("worker.escalate_below={below}");
        let summary = run(&dir, &lines, LARGE, &["--set", &setting]);
        assert_eq!(
            summary["route"]["escalated"], escalated,
            "{below}: {summary}"
        );
    }
    let dir = Workdir::new();
    dir.write("prompts", lines.as_str());
    dir.write("weights.json", "{\"format\": 1}");
    dir.run(&[
        "run",
        "prompts",
        "--small",
        SMALL,
        "--large",
        LARGE,
        "--set",
        "worker.confidence=weights.json",
    ])
    .exits(1)
    .complains("cannot use the confidence weights weights.json");
}

#[test]
fn calibrated_confidence_weights_are_used() {
    let dir = Workdir::new();
    // The small model is right where it is sure: it answers the same words to the same prompt.
    let mut lines = String::new();
    for at in 0..120 {
        let prompt = if at % 3 == 0 {
            format!("riddle {at}")
        } else {
            format!("plain {at}")
        };
        let body = json!({"prompt": prompt, "model": "small"});
        lines += &line(&format!("q{at}"), &body);
    }
    run(&dir, &lines, LARGE, &["--set", "worker.escalate_below=0"]);
    let answers = dir.answers();
    let marked: String = lines
        .lines()
        .enumerate()
        .map(|(at, line)| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            let right = text(&answers[&format!("q{at}")]).to_owned();
            let expect = if at % 3 == 0 {
                "nothing".to_owned()
            } else {
                right
            };
            line["expect"] = json!(expect);
            line["family"] = json!(if at % 3 == 0 { "riddle" } else { "plain" });
            line.to_string() + "\n"
        })
        .collect();
    let fresh = Workdir::new();
    let more = [
        "--set",
        "worker.escalate_below=0",
        "--labels",
        "labels.jsonl",
    ];
    run(&fresh, &marked, LARGE, &more);
    assert_eq!(fresh.read("labels.jsonl").lines().count(), 120);
    let report = fresh
        .run(&[
            "router",
            "calibrate",
            "--from",
            "labels.jsonl",
            "--out",
            "weights.json",
            "--json",
        ])
        .exits(0)
        .json();
    assert_eq!(
        (&report["rows"], &report["auc"]),
        (&json!(120), &json!(1.0)),
        "{report}"
    );
    let lines = line("unsure", &json!({"prompt": "riddle me"}))
        + &line("sure", &json!({"prompt": "plain"}));
    let summary = run(
        &fresh,
        &lines,
        LARGE,
        &["--set", "worker.confidence=weights.json"],
    );
    assert_eq!(summary["route"]["escalated"], 1, "{summary}");
    // Rows that teach nothing leave the weights as they are.
    let weights = fresh.read("weights.json");
    fresh.write(
        "one.jsonl",
        fresh
            .read("labels.jsonl")
            .replace("\"right\":false", "\"right\":true"),
    );
    for (file, cause) in [
        ("one.jsonl", "every labelled answer is right"),
        ("prompts", "line 1: not a labelled answer"),
    ] {
        fresh
            .run(&[
                "router",
                "calibrate",
                "--from",
                file,
                "--out",
                "weights.json",
            ])
            .exits(1)
            .complains(cause);
        assert_eq!(fresh.read("weights.json"), weights);
    }
}

#[test]
fn the_cascade_is_evaluated_on_both_models_answers() {
    let dir = Workdir::new();
    let mut lines = String::new();
    for at in 0..40 {
        let prompt = if at % 4 == 0 {
            format!("riddle {at}")
        } else {
            format!("plain {at}")
        };
        let marked = json!({"custom_id": format!("q{at}"), "body": {"prompt": prompt},
                            "expect": prompt, "family": if at % 4 == 0 { "riddle" } else { "plain" }});
        lines += &(marked.to_string() + "\n");
    }
    dir.write("marked", lines);
    let found = dir
        .run(&[
            "bench",
            "cascade",
            "marked",
            "--json",
            "--cost-ratio",
            "4",
            "--small",
            SMALL,
            "--large",
            LARGE,
            "--set",
            "router.threshold=1",
            "--mix",
            "riddle=1,plain=1",
            "--set",
            "router.threshold=1",
        ])
        .exits(0)
        .json();
    // The small model makes words up, the large one repeats the prompt, which is what is expected.
    assert_eq!(found["always_small"]["accuracy"], 0.0, "{found}");
    assert_eq!(found["always_large"]["accuracy"], 1.0, "{found}");
    // Within a point of it: 99 of 100 must go there.
    let bound = found["oracle"]["direct"].as_f64().unwrap();
    assert!((bound - 0.99).abs() < 1e-9, "{found}");
    let escalated = found["configured"]["escalated"].as_f64().unwrap();
    assert!(
        (escalated - 0.5).abs() < 1e-9,
        "half of the traffic is riddles: {found}"
    );
    assert!(
        !found["curves"]["both"]["points"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    dir.run(&[
        "bench", "cascade", "marked", "--small", SMALL, "--large", LARGE,
    ])
    .exits(2)
    .complains("--cost-ratio");
}
