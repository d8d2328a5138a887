//! What producers allow to be left out of a prompt is not sent, and is accounted for.

use serde_json::json;

use crate::support::workdir::{Workdir, text};

/// The scripted engine says back what it was sent, so the test sees the prompt as the model does.
const ECHO: [&str; 4] = [
    "--small",
    "scripted:echo",
    "--large",
    "scripted:echo,model=big",
];

const PRETTY: &str = "Which is dearer?\n\n{\n    \"lamp\": 12.50,\n    \"desk\": 100000000000000000001,\n    \"desk\": 1.0\n}";

#[test]
fn clean_up_is_counted_and_leaves_code_and_stored_prompts_alone() {
    let dir = Workdir::new();
    let fenced = format!("Which is dearer?\n```json\n{}\n```", &PRETTY[18..]);
    let lines = [
        ("clean", PRETTY, "lossless"),
        ("kept", PRETTY, "keep"),
        ("code", &fenced, "lossless"),
    ]
    .map(|(name, prompt, context)| {
        let body = json!({"prompt": prompt, "max_tokens": 200, "promptyard": {"context": context}});
        json!({"custom_id": name, "body": body}).to_string() + "\n"
    });
    dir.write("prompts", lines.concat());
    let arguments = [
        &["run", "prompts", "--json", "--out", "answers.jsonl"],
        &ECHO[..],
    ]
    .concat();
    let summary = dir.run(&arguments).exits(0).json();
    let answers = dir.answers();
    let minified =
        "Which is dearer?\n\n{\"lamp\":12.50,\"desk\":100000000000000000001,\"desk\":1.0}";
    assert_eq!(text(&answers["clean"]), minified);
    assert_eq!(text(&answers["kept"]), PRETTY);
    assert_eq!(text(&answers["code"]), fenced);

    let saved = dir.number("select cleaned_tokens from jobs where custom_id = 'clean'");
    assert!(saved > 4, "{saved}");
    assert_eq!(
        dir.number("select count(*) from jobs where cleaned_tokens > 0"),
        1
    );
    assert_eq!(
        dir.number("select sum(cleaned_tokens) from token_savings"),
        saved
    );
    assert_eq!(summary["tokens_saved"]["cleaned"], saved, "{summary}");
    assert_eq!(summary["tokens_saved"]["pruned"], 0, "{summary}");
    let extension = &answers["clean"]["response"]["body"]["promptyard"];
    assert_eq!(extension["context_saved"]["cleaned_tokens"], saved);
}

#[test]
fn pruning_keeps_the_question_and_its_context() {
    let dir = Workdir::new();
    let paragraphs = [
        "The Elbe rises in the Giant Mountains of Bohemia and reaches the North Sea near Cuxhaven after 1,094 kilometres of way.",
        "Fidelio is the only opera of Ludwig van Beethoven. It was first given in Vienna in November of 1805 and then revised twice.",
        "Bread is baked from flour, water and salt. The dough must rest for some hours in a warm place before it goes into the oven.",
        "Freight trains are made up in marshalling yards, where wagons roll down a hump and are led by switches to their tracks.",
        "A lighthouse keeper lit the lamp at dusk, wound up its clockwork every four hours and wrote the weather into the log book.",
        "Beavers fell trees for their dams, which hold back brooks and make ponds that many other animals and plants then live on.",
    ];
    let ask = |question: &str| format!("# Notes\n\n{}\n\n{question}", paragraphs.join("\n\n"));
    let question = "How many kilometres is the way of the Elbe to the North Sea near Cuxhaven?";
    let question = question.replace("How many kilometres", "What length in kilometres");
    let lines = [
        ("asked", ask(&question)),
        ("whole", ask("Summarise the notes.")),
    ]
    .map(|(name, prompt)| {
        let body = json!({"prompt": prompt, "max_tokens": 999, "promptyard": {"context": "prune"}});
        json!({"custom_id": name, "body": body}).to_string() + "\n"
    });
    dir.write("prompts", lines.concat());
    let arguments = [
        &["run", "prompts", "--json", "--out", "answers.jsonl"],
        &ECHO[..],
    ]
    .concat();
    let summary = dir.run(&arguments).exits(0).json();
    let answers = dir.answers();
    let sent = text(&answers["asked"]);
    assert!(sent.starts_with("# Notes\n\nThe Elbe rises"), "{sent}");
    assert!(
        sent.ends_with(&question) && !sent.contains("Fidelio"),
        "{sent}"
    );
    assert_eq!(text(&answers["whole"]), ask("Summarise the notes."));
    let saved = dir.number("select pruned_tokens from jobs where custom_id = 'asked'");
    assert!(saved > 60, "{saved}");
    assert_eq!(summary["tokens_saved"]["pruned"], saved, "{summary}");
}
