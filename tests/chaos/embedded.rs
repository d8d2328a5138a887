//! `promptyard run` on its SQLite database, killed at random instants and run again until it is done.

use std::{collections::BTreeMap, thread, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    SEED,
    book::{Asked, undisturbed},
    setting,
    support::workdir::{Workdir, text},
};

/// Kills of a run that nobody asked to be longer.
const KILLS: u64 = 10;
const LINES: usize = 60;
/// Kills after which a file may be finished.
const KILLS_OF_A_FILE: u64 = 6;
/// Longest that a process lives before it is killed; undisturbed, a file takes about a second.
const LIFE_MAX_MS: u64 = 700;
const ENGINE: &str = "scripted:latency_ms=60,jitter_ms=60";

/// A line of the input, and how it is answered when nothing goes wrong.
fn lines() -> (String, BTreeMap<String, String>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (mut input, mut expected) = (String::new(), BTreeMap::new());
    for at in 0..LINES {
        let model = ["auto", "small", "large"][at % 3];
        // Some ask the same.
        let prompt = format!("question {}", if at % 5 == 4 { at % 10 } else { at });
        let body = json!({"prompt": prompt, "model": model});
        let line = json!({"custom_id": format!("q{at}"), "body": body}).to_string();
        let asked = Asked {
            prompt,
            body: line.clone().into_bytes(),
            priority: 0,
            wants_reply: false,
            is_confirmed: true,
            repeats: 0,
        };
        let answer = runtime.block_on(undisturbed("scripted:", &asked)).unwrap();
        expected.insert(format!("q{at}"), answer);
        input.push_str(&line);
        input.push('\n');
    }
    (input, expected)
}

/// Whenever it is killed, it continues where it was: each line is answered once, as without a kill.
#[test]
fn run_answers_each_line_once_when_killed_at_random() {
    let kills = setting("PROMPTYARD_CHAOS_KILLS").unwrap_or(KILLS);
    let seed = setting("PROMPTYARD_CHAOS_SEED").unwrap_or(SEED);
    eprintln!("chaos: seed {seed}, {kills} kills of the embedded mode");
    let mut random = StdRng::seed_from_u64(seed);
    let (input, expected) = lines();
    let (mut done, mut files, mut lost) = (0, 0, 0);
    while done < kills {
        let fleet = Workdir::new();
        fleet.write("prompts", &input);
        let most = (kills - done).min(random.random_range(1..=KILLS_OF_A_FILE));
        for _ in 0..most {
            let mut run = fleet.start(&arguments(false));
            thread::sleep(Duration::from_millis(random.random_range(0..LIFE_MAX_MS)));
            if run.has_ended() {
                break;
            }
            run.kill();
            done += 1;
        }
        let summary = fleet.run(&arguments(true)).exits(0).json();
        assert_eq!(summary["answered"], LINES, "{summary}");
        check(&fleet, &expected);
        lost += fleet.number("select count(*) from attempts where outcome = 'lost'");
        files += 1;
    }
    eprintln!(
        "{done} kills over {files} files of {LINES} lines; {lost} attempts were lost and repeated"
    );
}

fn arguments(json: bool) -> Vec<&'static str> {
    let mut arguments = vec!["run", "prompts", "--out", "answers.jsonl"];
    arguments.extend(["--small", ENGINE, "--large", ENGINE]);
    arguments.extend(["--set", "small.batch_max=4", "--set", "large.batch_max=4"]);
    // An attempt that is lost counts, and a file is killed more often than a job is tried.
    arguments.extend(["--set", "worker.attempts_max=20"]);
    arguments.extend(json.then_some("--json"));
    arguments
}

fn check(fleet: &Workdir, expected: &BTreeMap<String, String>) {
    let answers = fleet.answers();
    let found: BTreeMap<_, _> = answers
        .iter()
        .map(|(name, line): (&String, &Value)| (name.clone(), text(line).to_owned()))
        .collect();
    assert_eq!(&found, expected);
    for (query, count) in [
        ("select count(*) from jobs", LINES),
        (
            "select count(distinct custom_id) from jobs where state = 'succeeded'",
            LINES,
        ),
        ("select count(*) from answers", LINES),
        ("select count(*) from attempts where outcome = 'running'", 0),
        (
            "select count(*) from jobs j where attempts <> (select count(*) from attempts a where a.job_id = j.id)",
            0,
        ),
        (
            "select count(*) from jobs j where (source = 'computed') <>
                (select count(*) from attempts a where a.job_id = j.id and outcome = 'succeeded')",
            0,
        ),
        ("select count(*) from queue_messages", 0),
        ("select count(*) from dead_letters", 0),
    ] {
        assert_eq!(fleet.number(query), count as i64, "{query}");
    }
}
