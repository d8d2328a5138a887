//! Weights as bytes.
//!
//! ```text
//! "PYGAIN\r\n" │ format u32 │ features u32 │ body bytes u64 │ BLAKE3 of the body, 32 bytes │ body
//! ```
//!
//! Format 2 has behind what format 1 has how the weights were made and judged ([`Record`]): JSON, and the
//! prints of their prompts. All numbers are little-endian. The hash finds damage; whoever may write the file is trusted
//! with more than that, but a body that passes it is still checked before it is used.

use std::path::PathBuf;

use super::{
    features::FEATURES_VERSION,
    record::Record,
    ridge::HEADS,
    trees::{Forest, LEAF, Node},
    weights::{INPUTS, Weights},
    words::{Cell, Table},
};

/// Weights without a record, and with one; another number whenever the layout changes.
const FORMATS: [u32; 2] = [1, 2];
/// First bytes; the line ends show a transfer that changed them.
const MAGIC: &[u8; 8] = b"PYGAIN\r\n";
/// Bytes before the body.
const HEADER_BYTES: usize = 8 + 4 + 4 + 8 + 32;
/// Most cells of a table; 2^24 are 50 MB.
const CELLS_MAX: u32 = 1 << 24;
/// Most trees, nodes of a tree, and knots.
const ITEMS_MAX: u32 = 1 << 15;
/// Most bytes of a record's JSON, and most prompts whose prints it has.
const RECORD_BYTES_MAX: u32 = 1 << 20;
const SEEN_MAX: u32 = 1 << 24;

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
    /// The bytes are no weights, or not all of them, or not as they were written.
    #[error("these are no router weights, or they are damaged: {0}")]
    Damaged(&'static str),
    /// Weights of another format or for other features.
    #[error("the router's weights are of {what} version {found}; this program reads {expected}")]
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
    let mut body = Vec::with_capacity(weights.table.cells.len() * (1 + HEADS) + (64 << 10));
    for value in scalars(weights) {
        body.extend(value.to_le_bytes());
    }
    list(&mut body, &weights.knots, |body, knot| {
        body.extend(knot.to_le_bytes())
    });
    for forest in [&weights.trees, &weights.fails] {
        list(&mut body, &forest.trees, |body, tree| {
            list(body, tree, |body, node| {
                body.extend(node.feature.to_le_bytes());
                body.extend(node.left.to_le_bytes());
                body.extend(node.threshold.to_le_bytes());
                body.extend(node.value.to_le_bytes());
            });
        });
    }
    list(&mut body, &weights.table.cells, |body, cell| {
        body.push(cell.print);
        body.extend(cell.steps.map(|step| step.to_le_bytes()[0]));
    });
    if let Some(record) = &weights.record {
        list(&mut body, &json(record), |body, byte| body.push(*byte));
        list(&mut body, &record.seen, |body, print| {
            body.extend(print.to_le_bytes());
        });
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(MAGIC);
    bytes.extend(FORMATS[usize::from(weights.record.is_some())].to_le_bytes());
    bytes.extend(FEATURES_VERSION.to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(blake3::hash(&body).as_bytes());
    bytes.extend(body);
    bytes
}

fn json(record: &Record) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record is numbers and text by name")
}

fn list<T>(body: &mut Vec<u8>, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    body.extend((items.len() as u32).to_le_bytes());
    for item in items {
        write(body, item);
    }
}

/// Numbers of the body that stand alone.
const SCALARS: usize = 16;

fn scalars(weights: &Weights) -> [f32; SCALARS] {
    let Weights {
        mean,
        fails_mean,
        shapes: [none, few, many],
        support: [none_known, few_known, many_known],
        shares: [words, trees],
        length_slope,
        length_center,
        familiar: [low, high],
        table,
        ..
    } = weights;
    let [gain, difficulty] = table.scales;
    [
        *mean,
        *fails_mean,
        *none,
        *few,
        *many,
        *none_known,
        *few_known,
        *many_known,
        *words,
        *trees,
        *length_slope,
        *length_center,
        *low,
        *high,
        gain,
        difficulty,
    ]
}

/// Reads weights; returns them with the first characters of their hash.
///
/// # Errors
/// When the bytes are damaged or of another version.
pub fn from_bytes(bytes: &[u8]) -> Result<(Weights, String), ScorerError> {
    let mut header = Reader(bytes);
    if header.take::<8>()? != *MAGIC {
        return Err(ScorerError::Damaged("they do not begin as weights do"));
    }
    let (format, features) = (header.u32()?, header.u32()?);
    let wrong = |what, expected, found| ScorerError::WrongVersion {
        what,
        expected,
        found,
    };
    if !FORMATS.contains(&format) {
        return Err(wrong("format", FORMATS[1], format));
    }
    if features != FEATURES_VERSION {
        return Err(wrong("features", FEATURES_VERSION, features));
    }
    let length = u64::from_le_bytes(header.take()?);
    let hash: [u8; 32] = header.take()?;
    let body = header.0;
    if body.len() as u64 != length {
        return Err(ScorerError::Damaged(
            "they are cut off, or something follows",
        ));
    }
    if *blake3::hash(body).as_bytes() != hash {
        return Err(ScorerError::Damaged("their checksum does not fit"));
    }
    let weights = Reader(body).weights(format == FORMATS[1])?;
    let hex = blake3::Hash::from_bytes(hash).to_hex();
    Ok((weights, hex[..8].to_owned()))
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ScorerError> {
        let (taken, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(ScorerError::Damaged("they end too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, ScorerError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn f32(&mut self) -> Result<f32, ScorerError> {
        let value = f32::from_le_bytes(self.take()?);
        if value.is_finite() {
            Ok(value)
        } else {
            Err(ScorerError::Damaged("a number is not finite"))
        }
    }

    fn count(&mut self, max: u32) -> Result<usize, ScorerError> {
        let count = self.u32()?;
        if count > max {
            return Err(ScorerError::Damaged("a list is too long"));
        }
        Ok(count as usize)
    }

    fn weights(&mut self, has_record: bool) -> Result<Weights, ScorerError> {
        let mut scalars = [0.0; SCALARS];
        for value in &mut scalars {
            *value = self.f32()?;
        }
        let [
            mean,
            fails_mean,
            none,
            few,
            many,
            none_known,
            few_known,
            many_known,
            words,
            trees,
            length_slope,
            length_center,
            low,
            high,
            gain,
            difficulty,
        ] = scalars;
        if low >= high {
            return Err(ScorerError::Damaged(
                "the bounds of familiarity are not in order",
            ));
        }
        let count = self.count(ITEMS_MAX)?;
        let knots = (0..count)
            .map(|_| self.f32())
            .collect::<Result<Vec<_>, _>>()?;
        if !knots.is_sorted_by(|a, b| a < b) {
            return Err(ScorerError::Damaged("the knots do not rise"));
        }
        let (gain_trees, fails) = (self.forest()?, self.forest()?);
        let count = self.count(CELLS_MAX)?;
        if !count.is_power_of_two() {
            return Err(ScorerError::Damaged("the table's size is no power of two"));
        }
        let mut cells = Vec::with_capacity(count.min(self.0.len()));
        for _ in 0..count {
            let [print, steps @ ..] = self.take::<3>()?;
            let steps = steps.map(|step| i8::from_le_bytes([step]));
            cells.push(Cell { print, steps });
        }
        let record = has_record.then(|| self.record()).transpose()?;
        if !self.0.is_empty() {
            return Err(ScorerError::Damaged("something follows the weights"));
        }
        Ok(Weights {
            table: Table {
                scales: [gain, difficulty],
                cells,
            },
            trees: gain_trees,
            fails,
            fails_mean,
            mean,
            shapes: [none, few, many],
            support: [none_known, few_known, many_known],
            shares: [words, trees],
            length_slope,
            length_center,
            familiar: [low, high],
            knots,
            record,
        })
    }

    fn record(&mut self) -> Result<Record, ScorerError> {
        let damaged = ScorerError::Damaged("the record of how they were made cannot be read");
        let count = self.count(RECORD_BYTES_MAX)?;
        let Some((text, rest)) = self.0.split_at_checked(count) else {
            return Err(damaged);
        };
        self.0 = rest;
        let Ok(mut record) = serde_json::from_slice::<Record>(text) else {
            return Err(damaged);
        };
        if json(&record) != text {
            return Err(damaged);
        }
        let count = self.count(SEEN_MAX)?;
        record.seen.reserve(count.min(self.0.len() / 4));
        for _ in 0..count {
            record.seen.push(self.u32()?);
        }
        if !record.seen.is_sorted_by(|a, b| a < b) {
            return Err(ScorerError::Damaged("the prints of prompts do not rise"));
        }
        Ok(record)
    }

    fn forest(&mut self) -> Result<Forest, ScorerError> {
        let count = self.count(ITEMS_MAX)?;
        let trees = (0..count).map(|_| self.tree()).collect::<Result<_, _>>()?;
        Ok(Forest { trees })
    }

    /// Reads a tree; children stand behind their parents, so that every way down ends.
    fn tree(&mut self) -> Result<Vec<Node>, ScorerError> {
        let count = self.count(ITEMS_MAX)?;
        let mut nodes = Vec::with_capacity(count.min(self.0.len()));
        for at in 0..count {
            let node = Node {
                feature: u16::from_le_bytes(self.take()?),
                left: u16::from_le_bytes(self.take()?),
                threshold: self.f32()?,
                value: self.f32()?,
            };
            let left = usize::from(node.left);
            let is_leaf = node.feature == LEAF;
            let is_sound = usize::from(node.feature) < INPUTS && left > at && left + 1 < count;
            if !is_leaf && !is_sound {
                return Err(ScorerError::Damaged("a tree's node leads nowhere"));
            }
            nodes.push(node);
        }
        if nodes.is_empty() {
            return Err(ScorerError::Damaged("a tree has no root"));
        }
        Ok(nodes)
    }
}

#[cfg(test)]
mod tests {
    use crate::scoring::codec::*;
    use crate::scoring::{record::tests::record, train::tests::fitted};

    #[test]
    fn reads_back_what_it_wrote() {
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
        assert_ne!(other, hash, "made otherwise, they are others");
    }

    #[test]
    fn the_bundled_weights_are_sound() {
        from_bytes(include_bytes!("../../models/router/gain.weights")).expect("sound");
    }

    #[test]
    fn every_damage_is_found() {
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
    fn another_version_is_named() {
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

    /// A body may pass its checksum and still be nonsense.
    #[test]
    fn a_body_is_checked_beyond_its_checksum() {
        let spoil = |change: fn(&mut Weights)| {
            let mut weights = fitted(1);
            change(&mut weights);
            from_bytes(&to_bytes(&weights))
                .expect_err("nonsense")
                .to_string()
        };
        assert!(spoil(|w| w.mean = f32::NAN).contains("not finite"));
        assert!(spoil(|w| w.familiar = [0.5, 0.5]).contains("familiarity"));
        assert!(spoil(|w| w.knots = vec![1.0, 0.0]).contains("knots"));
        assert!(spoil(|w| w.trees.trees[0][0].left = 0).contains("leads nowhere"));
        assert!(spoil(|w| w.trees.trees[0][0].feature = INPUTS as u16).contains("leads nowhere"));
        assert!(spoil(|w| w.table.cells.truncate(3)).contains("power of two"));
        let unsorted = |w: &mut Weights| {
            w.record = Some(Record {
                seen: vec![2, 2],
                ..record(&[])
            });
        };
        assert!(spoil(unsorted).contains("prints"));
    }
}
