//! Weights as bytes.
//!
//! ```text
//! "PYGAIN\r\n" │ format u32 │ features u32 │ body bytes u64 │ BLAKE3 of the body, 32 bytes │ body
//! ```
//!
//! The body is [`Weights`] and the fingerprints of their prompts, encoded by `postcard`; the header's
//! numbers are little-endian. The hash detects damage, not forgery; values are validated all the same.

use std::path::PathBuf;

use super::{
    features::FEATURES_VERSION,
    trees::{Forest, LEAF, Node},
    weights::{INPUTS, Weights},
};

/// Changes whenever the layout of the body does.
const FORMAT: u32 = 3;
/// First bytes; the line ends reveal a transfer in text mode.
const MAGIC: &[u8; 8] = b"PYGAIN\r\n";
/// Bytes before the body.
const HEADER_BYTES: usize = 8 + 4 + 4 + 8 + 32;

/// Why weights cannot be used. The message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ScorerError {
    /// The file cannot be read.
    #[error("cannot read the router's weights {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something is wrong with a file's contents.
    #[error("{}: {error}", path.display())]
    In {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Box<Self>,
    },
    /// The bytes are not weights, or are damaged.
    #[error("these are no router weights, or they are damaged: {0}")]
    Damaged(&'static str),
    /// Weights of another format or for other features.
    #[error("the router's weights have {what} version {found}; this program reads {expected}")]
    WrongVersion {
        /// `format` or `features`.
        what: &'static str,
        /// Of this program.
        expected: u32,
        /// Of the weights.
        found: u32,
    },
}

/// Writes weights; equal weights give equal bytes.
pub fn to_bytes(weights: &Weights) -> Vec<u8> {
    let seen = weights.record.as_ref().map(|record| &record.seen);
    let body = postcard::to_stdvec(&(weights, seen)).expect("weights have a fixed layout");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend(FEATURES_VERSION.to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(blake3::hash(&body).as_bytes());
    bytes.extend(body);
    bytes
}

/// Reads weights; returns them with the first characters of their hash.
///
/// # Errors
/// When the bytes are damaged or of another version.
pub fn from_bytes(bytes: &[u8]) -> Result<(Weights, String), ScorerError> {
    let (magic, rest) = take::<8>(bytes)?;
    if magic != *MAGIC {
        return Err(ScorerError::Damaged("they do not begin as weights do"));
    }
    let (format, rest) = take(rest)?;
    let (features, rest) = take(rest)?;
    for (what, expected, found) in [
        ("format", FORMAT, u32::from_le_bytes(format)),
        ("features", FEATURES_VERSION, u32::from_le_bytes(features)),
    ] {
        if found != expected {
            return Err(ScorerError::WrongVersion {
                what,
                expected,
                found,
            });
        }
    }
    let (length, rest) = take(rest)?;
    let (hash, body) = take::<32>(rest)?;
    if body.len() as u64 != u64::from_le_bytes(length) {
        return Err(ScorerError::Damaged("bytes are missing or left over"));
    }
    let hash = blake3::Hash::from_bytes(hash);
    if blake3::hash(body) != hash {
        return Err(ScorerError::Damaged("the checksum is wrong"));
    }
    let (mut weights, seen): (Weights, Option<Vec<u32>>) =
        postcard::from_bytes(body).map_err(|_| ScorerError::Damaged("the body is malformed"))?;
    match (&mut weights.record, seen) {
        (Some(record), Some(seen)) => record.seen = seen,
        (None, None) => {}
        _ => return Err(ScorerError::Damaged("the body is malformed")),
    }
    check(&weights).map_err(ScorerError::Damaged)?;
    // A number may have several encodings, of which only the shortest is written.
    if to_bytes(&weights) != bytes {
        return Err(ScorerError::Damaged("the body is malformed"));
    }
    Ok((weights, hash.to_hex()[..8].to_owned()))
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), ScorerError> {
    let (taken, rest) = bytes
        .split_first_chunk()
        .ok_or(ScorerError::Damaged("they end too early"))?;
    Ok((*taken, rest))
}

/// Checks what scoring relies on.
fn check(weights: &Weights) -> Result<(), &'static str> {
    let singles = [
        weights.mean,
        weights.fails_mean,
        weights.length_slope,
        weights.length_center,
    ];
    let values = singles
        .into_iter()
        .chain(weights.shapes)
        .chain(weights.support)
        .chain(weights.shares)
        .chain(weights.familiar)
        .chain(weights.table.scales)
        .chain(weights.knots.iter().copied());
    let [low, high] = weights.familiar;
    let sets = weights
        .record
        .iter()
        .flat_map(|record| record.sets.values());
    let seen = weights.record.iter().flat_map(|record| &record.seen);
    let checks = [
        (
            values.into_iter().all(f32::is_finite),
            "a number is not finite",
        ),
        (low < high, "the bounds of familiarity are not in order"),
        (
            weights.knots.is_sorted_by(|a, b| a < b),
            "the knots do not rise",
        ),
        (
            weights.table.cells.len().is_power_of_two(),
            "the table's size is no power of two",
        ),
        (
            sets.flat_map(|set| [set.new, set.present])
                .all(f64::is_finite),
            "a number is not finite",
        ),
        (
            seen.is_sorted_by(|a, b| a < b),
            "the fingerprints do not rise",
        ),
    ];
    if let Some((_, problem)) = checks.iter().find(|(holds, _)| !holds) {
        return Err(problem);
    }
    check_forest(&weights.trees)?;
    check_forest(&weights.fails)
}

/// Checks that every path through a tree ends: children come after their parents.
fn check_forest(forest: &Forest) -> Result<(), &'static str> {
    for tree in &forest.trees {
        if tree.is_empty() {
            return Err("a tree has no root");
        }
        for (at, node) in tree.iter().enumerate() {
            let Node {
                feature,
                left,
                threshold,
                value,
            } = *node;
            if !(threshold.is_finite() && value.is_finite()) {
                return Err("a number is not finite");
            }
            let left = usize::from(left);
            let leads_on = usize::from(feature) < INPUTS && left > at && left + 1 < tree.len();
            if feature != LEAF && !leads_on {
                return Err("a tree's node leads nowhere");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::scoring::codec::*;
    use crate::scoring::{
        record::{TrainingRecord, tests::record},
        train::tests::fitted,
    };

    #[test]
    fn weights_round_trip() {
        let weights = fitted(1);
        let bytes = to_bytes(&weights);
        let (read, hash) = from_bytes(&bytes).expect("sound");
        assert_eq!(read, weights);
        assert_eq!(hash.len(), 8);
        assert_eq!(to_bytes(&read), bytes);
        let recorded = Weights {
            record: Some(record(&[("a set", 0.612_345_678_901, 1.0 / 3.0)])),
            ..weights
        };
        let bytes = to_bytes(&recorded);
        let (read, other) = from_bytes(&bytes).expect("sound");
        assert_eq!((&read, to_bytes(&read)), (&recorded, bytes));
        assert_ne!(other, hash, "the record is part of the hash");
    }

    #[test]
    fn the_bundled_weights_are_sound() {
        from_bytes(include_bytes!("../../models/router/gain.weights")).expect("sound");
    }

    #[test]
    fn damage_is_detected() {
        let bytes = to_bytes(&Weights {
            record: Some(record(&[("a", 0.6, 0.5)])),
            ..fitted(1)
        });
        for at in [
            0,
            9,
            13,
            17,
            30,
            HEADER_BYTES,
            bytes.len() / 2,
            bytes.len() - 1,
        ] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            let message = from_bytes(&damaged).expect_err("damaged").to_string();
            assert!(!message.contains('\n'), "{message}");
        }
        for length in [0, 7, HEADER_BYTES, bytes.len() - 1] {
            from_bytes(&bytes[..length]).expect_err("cut off");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        from_bytes(&longer).expect_err("too long");
    }

    #[test]
    fn a_wrong_version_is_reported() {
        let mut bytes = to_bytes(&fitted(1));
        bytes[12] = 99;
        let error = from_bytes(&bytes).expect_err("other features");
        assert!(matches!(
            error,
            ScorerError::WrongVersion {
                what: "features",
                found: 99,
                ..
            }
        ));
        assert!(error.to_string().contains("version 99"));
    }

    #[test]
    fn invalid_values_are_rejected_despite_a_valid_checksum() {
        let spoil = |change: fn(&mut Weights)| {
            let mut weights = fitted(1);
            change(&mut weights);
            from_bytes(&to_bytes(&weights))
                .expect_err("invalid")
                .to_string()
        };
        assert!(spoil(|w| w.mean = f32::NAN).contains("not finite"));
        assert!(spoil(|w| w.familiar = [0.5, 0.5]).contains("familiarity"));
        assert!(spoil(|w| w.knots = vec![1.0, 0.0]).contains("knots"));
        assert!(spoil(|w| w.trees.trees[0][0].left = 0).contains("leads nowhere"));
        assert!(spoil(|w| w.trees.trees[0][0].feature = INPUTS as u16).contains("leads nowhere"));
        assert!(spoil(|w| w.table.cells.truncate(3)).contains("power of two"));
        let unsorted = |w: &mut Weights| {
            w.record = Some(TrainingRecord {
                seen: vec![2, 2],
                ..record(&[])
            });
        };
        assert!(spoil(unsorted).contains("fingerprints"));
    }
}
