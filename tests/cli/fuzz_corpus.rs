//! Every input of `fuzz/corpus` keeps the laws of its fuzz target.

use std::{collections::BTreeSet, fs, panic, path::PathBuf};

#[path = "../../fuzz/src/lib.rs"]
mod laws;

/// A fuzz target and its law.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 7] = [
    ("batch_file", laws::batch_file),
    ("chat_template", laws::chat_template),
    ("config_file", laws::config_file),
    ("message_body", laws::message_body),
    ("router_weights", laws::router_weights),
    ("safetensors_header", laws::safetensors_header),
    ("tokenizer_input", laws::tokenizer_input),
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// What a fuzzer found once, or would find first, is never broken again.
#[test]
fn every_input_keeps_its_laws() {
    let mut broken = Vec::new();
    for (target, law) in TARGETS {
        let files = fs::read_dir(folder().join(target)).expect("every target has inputs");
        for file in files {
            let path = file.expect("the folder can be read").path();
            let input = fs::read(&path).expect("the file can be read");
            // The panic's own message is shown by then.
            if panic::catch_unwind(|| law(&input)).is_err() {
                broken.push(path);
            }
        }
    }
    assert!(broken.is_empty(), "laws are broken by {broken:?}");
}

/// No inputs lie about that nothing reads.
#[test]
fn every_folder_has_its_target() {
    let entries = fs::read_dir(folder()).expect("the corpus is there");
    let folders: BTreeSet<String> = entries
        .map(|entry| entry.expect("the folder can be read").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let targets = TARGETS.map(|(target, _)| target.to_owned());
    assert_eq!(folders, BTreeSet::from(targets));
}
