//! Targets, tags, copies for learning and feedback, in one process on a SQLite file.

use serde_json::{Value, json};

use crate::{
    run::{
        http::{get, post},
        roles::{stop, up},
    },
    support::{poll::until_blocking, workdir::Workdir},
};

/// Small and large say the same.
const AGREEING: [&str; 4] = [
    "--small",
    "scripted:echo",
    "--large",
    "scripted:model=big,echo",
];

/// Small's jobs run on large as well once they are answered, as jobs that are in nobody's results;
/// feedback by HTTP and by SQL stands beside them, and `router explain` tells all of it.
#[test]
fn shadow_copies_and_feedback_stay_out_of_the_results() {
    let dir = Workdir::new();
    let settings = [
        "--set",
        "router.threshold=1",
        "--set",
        "router.shadow_share=1",
    ];
    let up = up(&dir, &[&AGREEING[..], &settings].concat());
    let mut ids = Vec::new();
    for at in 0..4 {
        let body = json!({"prompt": format!("question {at}"), "promptyard": {"tags": ["draft"]}});
        let answered = post(up.api, "/v1/chat/completions", &body).json();
        assert_eq!(answered["promptyard"]["tier"], "small", "{answered}");
        ids.push(
            answered["promptyard"]["job_id"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    dir.wait_for(4, "select count(*) from shadow_pairs where agrees");
    assert_eq!(dir.number("select sum(copies) from shadow_costs"), 4);
    assert_eq!(dir.number("select sum(jobs) from tenant_usage"), 4);
    assert_eq!(
        dir.number("select count(*) from jobs where tags = '[\"draft\"]'"),
        8
    );
    let results = dir.run(&["results", "--since", "1h"]).exits(0);
    assert_eq!(results.stdout.lines().count(), 4);

    let path = format!("/v1/jobs/{}/feedback", ids[0]);
    let said = post(up.api, &path, &json!({"score": 0.25, "comment": "half"}));
    assert_eq!(
        (said.status, said.json()["source"].as_str()),
        (200, Some("api")),
        "{said:?}"
    );
    assert_eq!(post(up.api, &path, &json!({"score": 0.5})).status, 200);
    post(up.api, &path, &json!({"score": 1.5})).is_error(400, "invalid_value");
    post(up.api, &path, &json!({"score": "good"})).is_error(400, "invalid_value");
    post(up.api, &path, &json!({"score": 1, "stars": 5})).is_error(400, "invalid_value");
    post(up.api, &path, &json!({"score": 1, "tenant": "other"})).is_error(404, "job_not_found");
    post(up.api, "/v1/jobs/x/feedback", &json!({"score": 1})).is_error(404, "job_not_found");
    assert_eq!(get(up.api, &path).status, 405);
    assert_eq!(
        dir.number("select count(*) from feedback"),
        1,
        "the later word took the earlier one's place"
    );

    let explained = dir
        .run(&["router", "explain", &ids[0], "--json"])
        .exits(0)
        .json();
    assert_eq!(explained["reason"], "score", "{explained}");
    assert_eq!(explained["threshold"], 1.0);
    assert_eq!(
        explained["feedback"],
        json!([{"source": "api", "score": 0.5}])
    );
    let other = &explained["other"];
    assert_eq!(
        (&other["tier"], &other["measured_on"]),
        (&json!("large"), &json!("its copy"))
    );
    assert!(
        other["seconds"].is_number() && explained["shadow"].is_string(),
        "{explained}"
    );
    assert!(
        !explained["features"].as_array().unwrap().is_empty(),
        "{explained}"
    );
    let told = dir.run(&["router", "explain", &ids[1]]).exits(0);
    assert!(told.stdout.contains("threshold  1.0000"), "{told}");
    let told = dir.run(&["router", "explain", "seven"]).exits(0);
    assert!(told.stdout.contains("familiarity"), "a prompt: {told}");
    let nobody = "01a20a00-5046-76c8-a691-5caeb76282ef";
    dir.run(&["router", "explain", nobody])
        .exits(1)
        .complains("no job");
    stop(up);
    let labels = dir.run(&["router", "pairs"]).exits(0);
    let labels: Vec<Value> = labels
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(labels.len(), 4);
    let judged = labels
        .iter()
        .find(|line| line["id"] == ids[0].as_str())
        .unwrap();
    assert_eq!(
        (&judged["prompt"], &judged["domain"]),
        (&json!("question 0"), &json!("draft"))
    );
    assert_eq!(
        (&judged["weak_score"], &judged["strong_score"]),
        (&json!(0.5), &json!(0.5))
    );
}

/// A share is delivered, also by a router that starts anew, per tenant, and visibly.
#[test]
fn a_share_target_holds_across_restarts() {
    let dir = Workdir::new();
    let line = |at: usize, tenant: &str| {
        // Every part is of the same kind: scores that drift are another test's.
        let at = at * 389 % 600;
        let prompt = format!("{at} {}", "word ".repeat(at * 7919 % 97));
        json!({"prompt": prompt, "promptyard": {"tenant": tenant}}).to_string() + "\n"
    };
    let targets = "router.targets=tenant:gold=share:100%";
    for part in 0..4 {
        let lines: String = (part * 150..(part + 1) * 150)
            .map(|at| line(at, if at % 5 == 0 { "gold" } else { "default" }))
            .collect();
        dir.write("prompts", lines);
        dir.answer(
            "prompts",
            &["--set", "router.target=share:30%", "--set", targets],
        )
        .exits(0);
    }
    let gold = dir.number("select count(*) from jobs where tenant = 'gold' and tier = 'large'");
    assert_eq!(gold, 120);
    let percent = dir.number(
        "select cast(round(100 * sum(jobs * share) / sum(jobs)) as integer) from share_delivered
          where target_scope = 'all' and share_asked = 0.3",
    );
    assert!((28..=32).contains(&percent), "{percent} % of 480 jobs");
    // A prompt is explained by the threshold that this traffic makes.
    let share = ["--set", "router.target=share:30%"];
    let explain = ["router", "explain", "word word", "--json"];
    let told = dir.run(&[&explain[..], &share].concat()).exits(0).json();
    let threshold = told["threshold"].as_f64().unwrap();
    let scores = dir.column("select cast(score as text) from jobs where target_scope = 'all'");
    let reach = scores.iter().map(|score| score.parse::<f64>().unwrap());
    let above = 100 * reach.filter(|score| *score >= threshold).count() / scores.len();
    assert!((28..=32).contains(&above), "{above} % reach {threshold}");
}

/// Targets change under a running router, go before its configuration, and what is none changes nothing.
#[test]
fn targets_are_set_while_a_router_runs() {
    let dir = Workdir::new();
    let settings = ["--set", "router.target=threshold:1"];
    let up = up(&dir, &[&AGREEING[..], &settings].concat());
    let mut asked = 0;
    let mut tier = |tenant: &str| {
        asked += 1;
        let prompt = format!("question {asked}");
        let body = json!({"prompt": prompt, "promptyard": {"tenant": tenant}});
        let answered = post(up.api, "/v1/chat/completions", &body).json();
        answered["promptyard"]["tier"].as_str().unwrap().to_owned()
    };
    let target = |arguments: &[&str]| dir.run(&[&["router", "target"], arguments].concat());
    assert_eq!(tier("acme"), "small");
    target(&["list"])
        .exits(0)
        .complains("the routers' configuration applies");
    let set = target(&["set", "all", "threshold:0"]).exits(0);
    assert!(set.stdout.contains("all: threshold:0"), "{set}");
    until_blocking("jobs that go to large", || tier("acme") == "large");
    target(&["set", "tenant:acme", "share:0%"]).exits(0);
    until_blocking("acme's to go to small", || tier("acme") == "small");
    assert_eq!(tier("other"), "large", "the rest stays");

    for (scope, wrong, why) in [
        ("all", "share:130%", "expected threshold"),
        ("everybody", "share:30%", "expected all, tenant:NAME"),
        ("tag:a b", "share:30%", "a tag is 1 to 64 characters"),
    ] {
        let refused = target(&["set", scope, wrong]).exits(2).complains(why);
        assert!(refused.stderr.lines().count() <= 3, "{refused}");
    }
    let listed = target(&["list", "--json"]).exits(0);
    let listed: Vec<Value> = listed
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let shown = |at: usize| (&listed[at]["scope"], &listed[at]["target"]);
    assert_eq!(listed.len(), 2);
    assert_eq!(shown(0), (&json!("all"), &json!("threshold:0")));
    assert_eq!(shown(1), (&json!("tenant:acme"), &json!("share:0%")));

    // An invalid target in the database is logged once, and the previous ones stay in force.
    dir.execute("update route_targets set target = 'most' where scope = 'tenant:acme'");
    target(&["list"]).exits(1).complains("tenant:acme");
    until_blocking("the complaint", || {
        up.said().contains("cannot read the targets")
    });
    assert_eq!(
        (tier("acme").as_str(), tier("other").as_str()),
        ("small", "large")
    );
    target(&["unset", "tenant:acme"]).exits(0);
    until_blocking("acme's to go as all do", || tier("acme") == "large");
    assert_eq!(
        up.said().matches("cannot read the targets").count(),
        1,
        "{}",
        up.said()
    );
    target(&["set", "tag:gold", "share:10%"]).exits(0);
    let explained = |more: &[&str]| {
        let explain = ["router", "explain", "seven", "--json"];
        dir.run(&[&explain, more].concat()).exits(0).json()["target"].clone()
    };
    assert_eq!(explained(&[]), "threshold:0");
    assert_eq!(explained(&["--tag", "other", "--tag", "gold"]), "share:10%");
    target(&["unset", "tag:gold"]).exits(0);
    target(&["unset", "all"]).exits(0);
    until_blocking("the configuration to hold", || tier("acme") == "small");
    target(&["unset", "all"])
        .exits(0)
        .complains("no target was set");
    let scopes = dir.column("select distinct target_scope || ' ' || target from jobs order by 1");
    assert_eq!(
        scopes,
        ["all threshold:0", "all threshold:1", "tenant:acme share:0%"]
    );
    stop(up);
}

/// As shipped, a back-log of large's moves a part of what comes after it to small, and no more than that.
#[test]
fn a_backlog_shifts_jobs_to_small() {
    let dir = Workdir::new();
    let settings = [
        "--small",
        "scripted:latency_ms=1",
        "--large",
        "scripted:model=big,latency_ms=1000",
        "--set",
        "large.batch_max=1",
        "--set",
        "router.target=share:50%",
    ];
    let up = up(&dir, &settings);
    let submit = |name: &str| {
        let line = |at: usize| format!("{name} {at} {}\n", "word ".repeat(at * 7919 % 97));
        dir.write(name, (0..200).map(line).collect::<String>());
        dir.run(&["submit", name, "--batch", name]).exits(0);
    };
    submit("before");
    until_blocking("the shift", || {
        let shift = up.metric(promptyard::metrics::ROUTER_SHIFT);
        shift.is_some_and(|shift| shift > 0.09)
    });
    submit("after");
    dir.wait_for(
        200,
        "select count(*) from jobs where batch = 'after' and tier is not null",
    );
    let spilled = "select count(*) from jobs where route_reason = 'load' and tier = 'small'";
    let spilled = dir.number(spilled);
    assert!((5..=40).contains(&spilled), "{spilled} of 200 jobs");
    let base = "select count(*) from jobs where batch = 'after' and score >= threshold_base";
    let base = dir.number(base);
    assert!(
        (90..=110).contains(&base),
        "{base} of 200 jobs by the share"
    );
    up.end();
}

/// The marks of a labelled run are feedback, told once however often it is run.
#[test]
fn marks_are_stored_as_feedback() {
    let dir = Workdir::new();
    dir.write(
        "marked",
        "{\"prompt\":\"a b\",\"expect\":\"a b\"}\n{\"prompt\":\"c\",\"expect\":\"d\"}\n",
    );
    for _ in 0..2 {
        let arguments = [&["run", "marked", "--out", "answers.jsonl"], &AGREEING[..]].concat();
        dir.run(&arguments).exits(0);
    }
    let kept = dir.column("select source || ' ' || score from feedback order by score");
    assert_eq!(kept, ["expect 0.0", "expect 1.0"]);
}

/// Weights in the database that are none are refused with one line, and routing continues.
#[test]
fn broken_weights_in_the_database_are_refused() {
    let dir = Workdir::new();
    dir.write("prompts", "one\n");
    dir.answer("prompts", &[]).exits(0);
    dir.column(
        "insert into router_weights (version, created_at, metrics, weights, active)
         values ('broken-1', '2026-01-01T00:00:00+00:00', '{}', x'00ff00', 1) returning version",
    );
    dir.write("more", "two\n");
    let done = dir
        .answer("more", &[])
        .exits(0)
        .complains("stored weights are refused");
    assert_eq!(done.stderr.matches("refused").count(), 1, "{}", done.stderr);
    assert_eq!(
        dir.number("select count(*) from jobs where state = 'succeeded'"),
        2
    );
}

/// Weights are fitted to what a database knows of both models; one that knows nothing is one error.
#[test]
fn weights_are_trained_from_a_database() {
    let dir = Workdir::new();
    let models = [
        "--small",
        "scripted:model=little,unsure=riddle",
        "--large",
        "scripted:model=big,echo",
        "--set",
        "router.threshold=1",
    ];
    let run = [&["run", "prompts", "--out", "answers.jsonl"], &models[..]].concat();
    let train = [
        "router",
        "train",
        "--from",
        "sqlite:promptyard.db",
        "--out",
        "new.weights",
        "--force",
    ];
    dir.run(&train)
        .exits(1)
        .complains("there is no job database");
    dir.write("prompts", "an easy one\n");
    dir.run(&run).exits(0);
    let empty = dir.run(&train).exits(1);
    assert_eq!(empty.stderr.lines().count(), 1, "{empty}");
    empty.complains("was answered by both tiers");
    // The large model is right where it is to multiply, and nobody is elsewhere.
    let line = |at: u32| {
        let is_hard = at.is_multiple_of(3);
        let task = if is_hard { "Multiply" } else { "Describe" };
        let prompt = format!("{task} riddle {at}");
        let expect = if is_hard { prompt.as_str() } else { "nothing" };
        json!({"prompt": prompt, "expect": expect}).to_string() + "\n"
    };
    dir.write("prompts", (0..300).map(line).collect::<String>());
    dir.run(&run).exits(0);
    let told = dir.run(&train).exits(0);
    assert!(told.stdout.contains("fitted to 300 prompts, "), "{told}");
    let judged = [
        "router",
        "evaluate",
        "--input",
        "sqlite:promptyard.db",
        "--json",
    ];
    let judged = dir.run(&judged).exits(0).json();
    assert_eq!(judged["n"], 300, "{judged}");
    let score = |text: &str| {
        let weights = ["--set", "router.weights=new.weights", "--json"];
        let told = dir.run(&[&["router", "explain", text], &weights[..]].concat());
        told.exits(0).json()["score"].as_f64().unwrap()
    };
    assert!(score("Multiply riddle 7") > score("Describe riddle 7"));
    // What was judged by length alone has not won against what is in use.
    dir.run(&[&train[..5], &["length.weights", "--against", "length"]].concat())
        .exits(0);
    dir.run(&["router", "promote", "length.weights"])
        .exits(1)
        .complains("it was compared with length alone, but gain-2-");
    assert_eq!(dir.column("select count(*) from router_weights"), ["0"]);
    // What was promoted is what prompts are explained by and new weights are compared with.
    dir.run(&["router", "promote", "new.weights"]).exits(0);
    let told = dir.run(&["router", "promote", "new.weights"]).exits(0);
    assert!(told.stdout.contains("is already in use"), "{told}");
    let metrics = dir.column("select metrics from router_weights");
    let metrics: Value = serde_json::from_str(&metrics[0]).unwrap();
    assert_eq!(metrics["prompts"], 300, "{metrics}");
    assert!(metrics["against"].as_str().unwrap().starts_with("gain-2-"));
    let (_, set) = metrics["sets"].as_object().unwrap().iter().next().unwrap();
    assert!(set["new"].as_f64() > set["present"].as_f64(), "{metrics}");
    // The weights that lost to nobody then are out of date now.
    dir.run(&["router", "promote", "length.weights"])
        .exits(1)
        .complains(" is in use; compare with it by `router train --against DATABASE_URL`");
    dir.run(&["router", "promote", "length.weights", "--force"])
        .exits(0);
    dir.run(&["router", "promote", "new.weights", "--force"])
        .exits(0);
    let told = dir
        .run(&["router", "explain", "Multiply riddle 7", "--json"])
        .exits(0)
        .json();
    assert_eq!(told["score"].as_f64(), Some(score("Multiply riddle 7")));
    assert_eq!(told["costs"].as_array().map(Vec::len), Some(2), "{told}");
    let again = [
        "router",
        "train",
        "--from",
        "sqlite:promptyard.db",
        "--out",
        "other.weights",
    ];
    let told = dir.run(&again);
    let active = dir.column("select version from router_weights where active");
    assert!(
        told.stdout.contains(&format!("the current {}", active[0])),
        "{told}"
    );
    // What cannot be used is not promoted.
    dir.write("short.weights", "PYGAIN");
    let refused = dir.run(&["router", "promote", "short.weights"]).exits(1);
    assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    refused.complains("short.weights is refused");
    assert_eq!(
        dir.column("select version from router_weights where active"),
        active
    );
    // Damaged ones are refused in one line, the bundled ones stand in, and nothing else is lost.
    dir.column("update router_weights set weights = x'00ff' where active returning version");
    let told = dir
        .run(&["router", "explain", "Multiply riddle 7", "--json"])
        .exits(0);
    assert_ne!(
        told.json()["score"].as_f64(),
        Some(score("Multiply riddle 7"))
    );
    told.complains("are refused");
    let again = [&again[..5], &["third.weights", "--force"]].concat();
    let told = dir.run(&again).exits(0);
    assert_eq!(told.stderr.lines().count(), 1, "{told}");
    told.complains("are refused");
}
