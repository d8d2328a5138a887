//! The commands that fit, judge and explain the router's scorer, as people use and misuse them.

use std::{fs, path::Path};

use promptyard::job::{RequestLimits, Submission};
use serde_json::{Value, json};

use crate::support::binary::promptyard;

/// The command, run in a folder; its exit code and what it wrote.
fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = promptyard();
    command.current_dir(folder).args(arguments);
    let output = command.output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Labelled prompts of two domains: the large model helps where something is to be multiplied.
fn write_labels(path: &Path, rows: usize) {
    let lines = (0..rows).map(|at| {
        let is_hard = at * 7 % 5 < 2;
        let task = if is_hard { "Multiply" } else { "Describe" };
        // One label in eight is turned round.
        let weak = u8::from(is_hard == (at % 8 == 0));
        format!(
            r#"{{"id": {at}, "prompt": "{task} the {} of case {}", "weak_score": {weak}, "strong_score": 1, "set": "made-up", "domain": "{}"}}"#,
            ["parts", "sums", "heads"][at % 3],
            ["amber", "birch", "cedar", "delta"][at / 3 % 4],
            ["north", "south"][at / 2 % 2],
        )
    });
    fs::write(path, lines.collect::<Vec<_>>().join("\n")).unwrap();
}

#[test]
fn trains_evaluates_scores_and_explains() {
    let folder = tempfile::tempdir().unwrap();
    write_labels(&folder.path().join("rows.jsonl"), 480);
    let train = [
        "router",
        "train",
        "--from",
        "rows.jsonl",
        "--out",
        "new.weights",
    ];
    let (code, out, err) = run(
        folder.path(),
        &[&train[..], &["--against", "length"]].concat(),
    );
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(
        out.contains("made-up: exact APGR") && out.contains("written: new.weights"),
        "{out}"
    );
    // The same again is the same file.
    let first = fs::read(folder.path().join("new.weights")).unwrap();
    let (code, ..) = run(
        folder.path(),
        &[&train[..], &["--against", "length"]].concat(),
    );
    assert_eq!(code, 0);
    let again = fs::read(folder.path().join("new.weights")).unwrap();
    assert!(again == first);

    let weights = ["--weights", "new.weights"];
    let evaluate = ["router", "evaluate", "--input", "rows.jsonl", "--json"];
    let (code, out, _) = run(folder.path(), &[&evaluate[..], &weights].concat());
    assert_eq!(code, 0);
    let report: Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!(
        (&report["name"], &report["n"]),
        (&"made-up".into(), &480.into())
    );
    assert!(report["exact_apgr"].as_f64().unwrap() > 0.7, "{report}");
    assert!(
        report["calibration_error"].as_f64().unwrap() < 0.3,
        "{report}"
    );

    let score = ["router", "score", "--input", "rows.jsonl"];
    let (code, out, _) = run(folder.path(), &[&score[..], &weights].concat());
    assert_eq!((code, out.lines().count()), (0, 480));
    let first: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    assert_eq!(first.as_object().unwrap().len(), 2);
    assert_eq!(first["id"], 0);
    assert!((0.0..=1.0).contains(&first["score"].as_f64().unwrap()));

    let set = ["--set", "router.weights=new.weights"];
    let explain = [
        "router",
        "explain",
        "Multiply the sums of case cedar",
        "--json",
    ];
    let (code, out, err) = run(folder.path(), &[&explain[..], &set].concat());
    assert_eq!((code, err.as_str()), (0, ""));
    let told: Value = serde_json::from_str(&out).unwrap();
    let shares = told["moved_by"].as_array().unwrap();
    let sum: f64 = shares
        .iter()
        .map(|one| one["share"].as_f64().unwrap())
        .sum();
    assert!(
        (sum - told["expected_gain"].as_f64().unwrap()).abs() < 1e-6,
        "{told}"
    );
}

#[test]
fn bad_input_is_one_error_and_keeps_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| fs::write(folder.path().join(name), text).unwrap();
    let row = |weak: &str| format!(r#"{{"prompt": "p", "weak_score": {weak}, "strong_score": 1}}"#);
    write("empty.jsonl", b"\n");
    write("nan.jsonl", row("NaN").as_bytes());
    write("one.jsonl", vec![row("1"); 60].join("\n").as_bytes());
    write("few.jsonl", row("0").as_bytes());
    let half: Vec<_> = (0..60)
        .map(|at| row(["0", "1"][at % 2]).replacen("\"p\"", &format!("\"p {at}\""), 1))
        .collect();
    write("half.jsonl", half.join("\n").as_bytes());
    write("broken.jsonl", b"{\"prompt\": 3");
    write(
        "bad.weights",
        b"PYGAIN\r\nno weights at all, and much too short",
    );
    write("present.weights", b"present");
    write(
        "text.jsonl",
        [row("0"), row("\"good\"")].join("\n").as_bytes(),
    );
    write("missing.jsonl", br#"{"prompt": "p", "weak_score": 1}"#);
    write("list.jsonl", b"[1, 2]");
    write(
        "latin.jsonl",
        &[row("0").as_bytes(), b"\n\"caf\xe9\"\n"].concat(),
    );
    let named = |id: u32| row("0").replacen('{', &format!("{{\"id\": {id}, "), 1);
    write(
        "twice.jsonl",
        [named(7), named(8), named(7)].join("\n").as_bytes(),
    );
    write(
        "chance.jsonl",
        row("0").replacen('{', "{\"propensity\": 0, ", 1).as_bytes(),
    );
    write("anonymous.jsonl", br#"{"prompt": "p"}"#);
    let answer = |mean: &str| {
        format!(
            r#"{{"id": "a", "right": true, "signals": {{"tokens": 1, "mean_logprob": {mean}, "min_logprob": -1, "p10_logprob": -1, "p50_logprob": -1, "first_logprob": -1, "truncated": false}}}}"#
        )
    };
    write("answers.jsonl", answer("NaN").as_bytes());
    write(
        "same.jsonl",
        [answer("-1"), answer("-2")].join("\n").as_bytes(),
    );
    // The bundled weights, damaged in three ways.
    let whole = fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/models/router/gain.weights"
    ))
    .unwrap();
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    write("short.weights", &whole[..whole.len() / 2]);
    write("changed.weights", &changed(whole.len() - 100));
    write("version.weights", &changed(8));
    let router = |arguments: &str| {
        let arguments: Vec<&str> = ["router"].into_iter().chain(arguments.split(' ')).collect();
        run(folder.path(), &arguments)
    };
    let score = |from| format!("score --input {from}");
    let calibrate = |from| format!("calibrate --from {from} --out present.weights");
    let train = |from| format!("train --from {from} --out present.weights --force");
    let cases = [
        (train("empty.jsonl"), "0 labelled prompts are too few"),
        (
            train("nan.jsonl"),
            "line 1: weak_score must be a number from 0 to 1",
        ),
        (train("one.jsonl"), "the same on every prompt"),
        (train("few.jsonl"), "too few"),
        (
            train("broken.jsonl"),
            "broken.jsonl: line 1: expected an object",
        ),
        (train("text.jsonl"), "line 2: weak_score must be a number"),
        (
            train("missing.jsonl"),
            "line 1: expected an object with a string prompt and numbers weak_score and strong_score: strong_score is missing",
        ),
        (train("list.jsonl"), "it is a list"),
        (
            train("latin.jsonl"),
            "latin.jsonl: line 2: it is not valid UTF-8",
        ),
        (
            train("twice.jsonl"),
            "line 3: its id is already used on line 1",
        ),
        (
            train("chance.jsonl"),
            "line 1: propensity must be a number above 0 and up to 1, found 0",
        ),
        (
            train("sqlite:absent.db"),
            "there is no job database at absent.db",
        ),
        (train("."), "it is a directory"),
        (score("empty.jsonl"), "empty.jsonl: the file has no prompts"),
        (score("absent.jsonl"), "cannot open absent.jsonl"),
        (
            score("latin.jsonl"),
            "latin.jsonl: line 1: expected an object with id",
        ),
        (
            score("broken.jsonl"),
            "line 1: expected an object with id and a string prompt",
        ),
        (
            score("anonymous.jsonl"),
            "line 1: expected an object with id and a string prompt: id is missing",
        ),
        (
            calibrate("empty.jsonl"),
            "0 labelled answers; at least 50 are needed",
        ),
        (calibrate("absent.jsonl"), "cannot open absent.jsonl"),
        (
            calibrate("latin.jsonl"),
            "latin.jsonl: line 1: not a labelled answer",
        ),
        (calibrate("answers.jsonl"), "line 1: not a labelled answer"),
        (
            calibrate("same.jsonl"),
            "line 2: its id is already used on line 1",
        ),
        (train("absent.jsonl"), "cannot open absent.jsonl"),
        (
            "evaluate --input empty.jsonl".to_owned(),
            "there are no labelled prompts",
        ),
        (
            "evaluate --input half.jsonl --cv 2".to_owned(),
            "with part of the prompts held out: ",
        ),
        (
            "evaluate --input few.jsonl --weights bad.weights".to_owned(),
            "bad.weights",
        ),
        (
            "explain x --set router.weights=bad.weights".to_owned(),
            "bad.weights",
        ),
        (
            "score --input few.jsonl --weights absent.weights".to_owned(),
            "cannot read the router's weights absent.weights",
        ),
    ];
    for (arguments, expected) in cases {
        let (code, out, err) = router(&arguments);
        assert_eq!((code, out.as_str()), (1, ""), "{arguments:?}: {err}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    for (weights, expected) in [
        ("short.weights", "damaged"),
        ("changed.weights", "damaged"),
        ("version.weights", "version"),
        ("empty.jsonl", "damaged"),
    ] {
        for arguments in [
            format!("score --input few.jsonl --weights {weights}"),
            format!("evaluate --input few.jsonl --weights {weights}"),
            format!("explain x --set router.weights={weights}"),
        ] {
            let (code, out, err) = router(&arguments);
            assert_eq!((code, out.as_str()), (1, ""), "{arguments:?}: {err}");
            assert!(
                err.contains(weights) && err.contains(expected),
                "{arguments:?}: {err}"
            );
            assert_eq!(err.lines().count(), 1, "{err}");
        }
    }
    let present = fs::read(folder.path().join("present.weights")).unwrap();
    assert_eq!(present, b"present");
    // A table of nothing but errors is an error.
    let evaluate = ["router", "evaluate", "--input", "one.jsonl"];
    let (code, out, err) = run(folder.path(), &evaluate);
    assert_eq!(code, 1, "{out}");
    assert!(err.contains("there is no gap to recover"), "{err}");
}

/// A prompt of a megabyte is a prompt.
#[test]
fn long_prompts_are_scored() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = "why is that so? ".repeat(1 << 16);
    let lines = [
        json!({"id": 1, "prompt": prompt}),
        json!({"id": 2, "prompt": ""}),
    ];
    let text = lines.map(|line| line.to_string()).join("\n");
    fs::write(folder.path().join("long.jsonl"), text).unwrap();
    let (code, out, err) = run(folder.path(), &["router", "score", "--input", "long.jsonl"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out.lines().count(), 2, "{out}");
}

/// Rows that a database collected by chance count by their probabilities, in training and judging.
#[test]
fn randomly_collected_labels_are_weighted() {
    let folder = tempfile::tempdir().unwrap();
    // One row in ten is one of the easy prompts, which are in truth ten times as many.
    let lines = (0..300).map(|at| {
        let (task, weak, chance) = match at % 10 {
            0 => ("Name", 1, 0.01),
            at => ("Multiply", at % 2, 1.0),
        };
        json!({"id": at, "prompt": format!("{task} what stands in row {at}"), "weak_score": weak,
               "strong_score": 1, "propensity": chance})
        .to_string()
    });
    fs::write(
        folder.path().join("rows.jsonl"),
        lines.collect::<Vec<_>>().join("\n"),
    )
    .unwrap();
    let evaluate = ["router", "evaluate", "--input", "rows.jsonl", "--json"];
    let (code, out, err) = run(folder.path(), &evaluate);
    assert_eq!((code, err.as_str()), (0, ""));
    let report: Value = serde_json::from_str(&out).unwrap();
    // 30 rows of weight 100, all right, and 270 of weight 1, of which 150 are.
    let weak = 100.0 * (3_000.0 + 150.0) / 3_270.0;
    assert!(
        (report["weak"].as_f64().unwrap() - weak).abs() < 1e-6,
        "{report}"
    );
    let train = [
        "router",
        "train",
        "--from",
        "rows.jsonl",
        "--out",
        "new.weights",
        "--force",
    ];
    let (code, out, err) = run(folder.path(), &train);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(
        out.contains("fitted to 300 prompts (weighing as 36 of equal weight)"),
        "{out}"
    );
}

/// Rows of which the large model gains on those that are to multiply, or on the others.
fn rows_of(place: &str, domain: &str, rows: usize, is_turned: bool) -> String {
    let row = |at: usize| {
        let is_hard = at.is_multiple_of(2);
        let task = if is_hard { "Multiply" } else { "Describe" };
        let weak = u8::from(is_hard == is_turned);
        json!({"prompt": format!("{task} the parts of {place} {at}"), "domain": domain, "weak_score": weak, "strong_score": 1})
            .to_string() + "\n"
    };
    (0..rows).map(row).collect()
}

/// New weights that rank worse than the present ones are not written, nor those that cannot be compared.
#[test]
fn worse_weights_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: String| fs::write(folder.path().join(name), rows).unwrap();
    let train = |from: &[&str], more: &[&str]| {
        let mut arguments = vec!["router", "train", "--out", "new.weights"];
        arguments.extend(from.iter().flat_map(|from| ["--from", from]));
        arguments.extend(more);
        run(folder.path(), &arguments)
    };
    let present = || fs::read(folder.path().join("new.weights")).unwrap();
    let lots = [("north", 90), ("south", 70)].map(|(at, n)| rows_of("lot", at, n, false));
    write("lots", lots.concat());
    let (code, out, err) = train(&["lots"], &["--against", "length"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let first = present();

    // They saw these very labels; held out, nobody beats that, and nobody has to.
    let (code, out, err) = train(&["lots"], &["--seed", "9"]);
    assert_eq!(code, 1, "{out}");
    assert!(err.contains("could not be compared"), "{err}");
    assert!(
        err.contains("nothing was written") && err.contains("--force"),
        "{err}"
    );
    assert!(present() == first);

    // What one domain teaches is wrong in the other.
    let boxes = [("north", 90, false), ("south", 60, true)];
    write(
        "boxes",
        boxes
            .map(|(at, n, is_turned)| rows_of("box", at, n, is_turned))
            .concat(),
    );
    let (code, out, err) = train(&["boxes"], &[]);
    assert_eq!(code, 1, "{out}");
    assert!(err.contains("do not rank better"), "{err}");
    assert!(present() == first);

    // Among known prompts those count that are new to the present weights.
    let carts = [("north", 90), ("south", 60)].map(|(at, n)| rows_of("cart", at, n, false));
    write("carts", carts.concat());
    let (code, out, err) = train(&["lots", "carts"], &[]);
    assert!(
        out.contains("was fitted to 160 of the 310 prompts; comparing on the others"),
        "{out}{err}"
    );
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(present() != first);
}

/// The prompts of an example file, as lines of a set.
fn example(name: &str, set: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name);
    let text = fs::read_to_string(path).unwrap();
    let limits = RequestLimits::default();
    let prompt = |line: &str| {
        let read = match serde_json::from_str(line) {
            Ok(Value::Object(mut body)) => {
                // What is right is said to `run` alone.
                body.retain(|field, _| !["expect", "family"].contains(&field.as_str()));
                Submission::parse(Value::Object(body).to_string().as_bytes(), &limits)
            }
            _ => Submission::from_prompt(line, &limits),
        };
        read.unwrap().request.messages.pop().unwrap().content
    };
    text.lines()
        .map(|line| json!({"prompt": prompt(line), "set": set}).to_string() + "\n")
        .collect()
}

/// A share of 30 % is delivered within 2 points in domain and within 5 after a shift, on the example
/// prompts, and on real ones where they are at hand.
#[test]
fn the_routed_share_matches_its_target() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("examples.jsonl");
    let sets = [
        ("support_1000.jsonl", "support"),
        ("prompts.jsonl", "prompts"),
        ("shapes.jsonl", "shapes"),
    ];
    let lines = sets.map(|(name, set)| example(name, set)).concat();
    fs::write(&path, lines).unwrap();
    let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/router/dev.jsonl");
    for input in [path, real].iter().filter(|path| path.exists()) {
        for seed in ["0", "1", "2"] {
            let arguments = [
                "router",
                "simulate",
                "--target",
                "share:30%",
                "--seed",
                seed,
                "--input",
            ];
            let (code, out, err) = run(
                folder.path(),
                &[&arguments[..], &[input.to_str().unwrap()]].concat(),
            );
            assert_eq!((code, err.as_str()), (0, ""));
            let told: Value = serde_json::from_str(&out).unwrap();
            for (at, set) in told["sets"].as_array().unwrap().iter().enumerate() {
                let within = if at == 0 { 0.02 } else { 0.05 };
                let miss = set["share"].as_f64().unwrap() - 0.3;
                assert!(miss.abs() <= within, "seed {seed}: {set}");
            }
        }
    }
}
