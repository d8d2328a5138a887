//! The example files are what they claim to be: every prompt is accepted, every bad line is refused
//! for the reason it was written for.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::Path,
};

use promptyard::job::{RequestLimits, Submission};

fn lines(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let text = bytes
        .strip_suffix(b"\n")
        .expect("the file ends in a newline");
    text.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect()
}

#[test]
fn every_example_prompt_is_accepted_and_some_repeat_others() {
    let limits = RequestLimits::default();
    let lines = lines("shapes.jsonl");
    assert_eq!(lines.len(), 200);
    let mut shapes = BTreeMap::<&str, usize>::new();
    let mut names = BTreeSet::new();
    let mut requests = HashSet::new();
    let mut repeats = 0;
    for (at, line) in lines.iter().enumerate() {
        let text = std::str::from_utf8(line).unwrap();
        let (shape, read) = if text.starts_with('{') {
            let shape = if text.contains("\"custom_id\"") {
                "batch line"
            } else if text.starts_with("{\"prompt\"") {
                "prompt"
            } else {
                "chat body"
            };
            (shape, Submission::parse(line, &limits))
        } else {
            ("plain text", Submission::from_prompt(text, &limits))
        };
        let read = read.unwrap_or_else(|error| panic!("line {}: {error:?}", at + 1));
        *shapes.entry(shape).or_default() += 1;
        if let Some(name) = read.custom_id {
            assert!(names.insert(name), "line {}: its name is taken", at + 1);
        }
        assert!(read.request.sampling.is_deterministic(), "line {}", at + 1);
        let request = serde_json::to_string(&read.request).unwrap();
        repeats += usize::from(!requests.insert(request));
    }
    assert!(
        shapes.len() == 4 && shapes.values().all(|n| *n >= 10),
        "{shapes:?}"
    );
    assert!(
        (5..=20).contains(&repeats),
        "{repeats} lines repeat another one"
    );
    let distinct: HashSet<_> = lines.iter().collect();
    assert_eq!(
        distinct.len(),
        lines.len(),
        "two lines are the same byte for byte"
    );
}

/// Every line of the marked files names its family and its one right answer, and is a request
/// without them.
#[test]
fn marked_examples_say_what_is_right() {
    for (name, count) in [("prompts.jsonl", 200), ("support_1000.jsonl", 1000)] {
        let lines = lines(name);
        assert_eq!(lines.len(), count, "{name}");
        let mut families = BTreeSet::new();
        for (at, line) in lines.iter().enumerate() {
            let mut line: serde_json::Value = serde_json::from_slice(line).unwrap();
            let fields = line.as_object_mut().unwrap();
            let expect = fields.remove("expect").unwrap();
            assert!(
                !expect.as_str().unwrap().is_empty(),
                "{name} line {}",
                at + 1
            );
            families.insert(fields.remove("family").unwrap().to_string());
            let request = line.to_string();
            Submission::parse(request.as_bytes(), &RequestLimits::default())
                .unwrap_or_else(|error| panic!("{name} line {}: {error:?}", at + 1));
        }
        assert!(families.len() >= 10, "{name}: {families:?}");
    }
}

#[test]
fn every_bad_line_is_refused_for_its_reason() {
    // What only the fleet can see (an unknown model, a deadline in the past, a name given twice)
    // passes here as `ok`.
    let expected = [
        "ok",
        "invalid_json",
        "invalid_type",
        "invalid_value",
        "invalid_type",
        "empty_prompt",
        "missing_field",
        "invalid_value",
        "ok",
        "unknown_field",
        "unknown_field",
        "unsupported_parameter",
        "invalid_value",
        "invalid_value",
        "ok",
        "invalid_utf8",
        "invalid_value",
        "ok",
        "ok",
        "ok",
    ];
    let limits = RequestLimits::default();
    let found: Vec<_> = lines("bad.jsonl")
        .iter()
        .map(|line| match Submission::parse(line, &limits) {
            Ok(_) => "ok".to_owned(),
            Err(rejection) => rejection.reason.code,
        })
        .collect();
    assert_eq!(found, expected);
}
