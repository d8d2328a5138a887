//! The embedder's vectors are those of sentence-transformers.

use promptyard::engine::{Embedder, cosine};
use serde_json::Value;

use crate::support::servers::embedder_folder;

/// Largest difference of a component: f32 sums in another order.
const TOLERANCE: f32 = 2e-5;

/// all-MiniLM-L6-v2, from the package that scripts/weights.txt names.
fn embedder() -> Embedder {
    Embedder::open(&embedder_folder()).unwrap()
}

/// Each text by itself and all together give the reference's vectors (tests/fixtures/embeddings.py).
#[test]
fn vectors_are_those_of_sentence_transformers() {
    let rows: Vec<Value> =
        serde_json::from_str(include_str!("../fixtures/embeddings.json")).unwrap();
    let texts: Vec<&str> = rows
        .iter()
        .map(|row| row["text"].as_str().unwrap())
        .collect();
    let embedder = embedder();
    let together = embedder.embed(&texts).unwrap();
    for ((text, row), vector) in texts.iter().zip(&rows).zip(&together) {
        let alone = embedder.embed(&[text]).unwrap().remove(0);
        let expected = row["vector"].as_array().unwrap();
        assert_eq!(vector.len(), expected.len());
        for (at, expected) in expected.iter().enumerate() {
            let expected = expected.as_f64().unwrap() as f32;
            assert!(
                (vector[at] - expected).abs() < TOLERANCE,
                "{text:.20} [{at}]"
            );
            assert!(
                (alone[at] - expected).abs() < TOLERANCE,
                "{text:.20} [{at}] alone"
            );
        }
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-5);
    }
}

/// What is no BERT encoder is refused in one line.
#[test]
fn other_checkpoints_are_refused() {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/models/tiny-qwen2"
    );
    let error = Embedder::open(folder).unwrap_err().to_string();
    assert!(
        error.contains("\"qwen2\"") || error.contains("cannot parse"),
        "{error}"
    );
    assert!(!error.contains('\n'), "{error}");
    assert!(Embedder::open("no/such/thing/here").is_err());
}
