//! Questions with answers, in this process, found by likeness.
//!
//! A search compares the whole scope: vectors of a scope lie end to end, so that it is one pass over
//! memory and no approximation decides who is found.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use crate::job::CacheKey;

/// All that two requests must agree in beside the question.
pub type Scope = [u8; 32];

/// A question with an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The cache entry that holds the answer.
    pub entry: CacheKey,
    /// What was asked.
    pub text: Arc<str>,
    /// NearQuestion that others must have to it.
    pub cosine_min: f32,
    /// From then on the answer is not reused.
    pub expires_at: DateTime<Utc>,
}

/// The questions of one scope; vectors lie end to end in the order of the questions.
#[derive(Debug, Default)]
struct Shelf {
    questions: Vec<Question>,
    vectors: Vec<f32>,
}

/// An index over at most a fixed number of questions; the longest known give way.
#[derive(Debug)]
pub struct Index {
    width: usize,
    capacity: usize,
    shelves: HashMap<Scope, Shelf>,
    /// Where an entry lies, and its turn to give way.
    places: HashMap<CacheKey, (Scope, usize, u64)>,
    by_age: BTreeSet<(u64, [u8; 32])>,
    next_turn: u64,
}

impl Index {
    /// An empty index over vectors of `width` values, for at most `capacity` questions.
    pub fn new(width: usize, capacity: usize) -> Self {
        Self {
            width,
            capacity,
            shelves: HashMap::new(),
            places: HashMap::new(),
            by_age: BTreeSet::new(),
            next_turn: 0,
        }
    }

    /// The number of questions.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Puts a question in, in place of an earlier word about its entry. One whose vector has another
    /// width is passed over.
    pub fn put(&mut self, scope: Scope, question: Question, vector: &[f32]) {
        if vector.len() != self.width || self.capacity == 0 {
            return;
        }
        self.remove(question.entry);
        while self.places.len() >= self.capacity {
            let Some(&(_, oldest)) = self.by_age.first() else {
                return;
            };
            self.remove(CacheKey(oldest));
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        let shelf = self.shelves.entry(scope).or_default();
        let place = (scope, shelf.questions.len(), turn);
        self.places.insert(question.entry, place);
        self.by_age.insert((turn, question.entry.0));
        shelf.questions.push(question);
        shelf.vectors.extend_from_slice(vector);
    }

    /// Takes an entry out, if it is there.
    pub fn remove(&mut self, entry: CacheKey) {
        let Some((scope, at, turn)) = self.places.remove(&entry) else {
            return;
        };
        self.by_age.remove(&(turn, entry.0));
        let Some(shelf) = self.shelves.get_mut(&scope) else {
            return;
        };
        // The last one takes its place.
        shelf.questions.swap_remove(at);
        let (width, end) = (self.width, shelf.vectors.len() - self.width);
        shelf.vectors.copy_within(end.., at * width);
        shelf.vectors.truncate(end);
        match shelf.questions.get(at) {
            Some(moved) => {
                if let Some(place) = self.places.get_mut(&moved.entry) {
                    place.1 = at;
                }
            }
            None if shelf.questions.is_empty() => {
                self.shelves.remove(&scope);
            }
            None => {}
        }
    }

    /// The questions of a scope that are nearest to a vector and whose answers may be reused, the
    /// nearest first: at most `count`, none below `cosine_min`.
    pub fn nearest(
        &self,
        scope: &Scope,
        vector: &[f32],
        (count, cosine_min): (usize, f32),
        now: DateTime<Utc>,
    ) -> Vec<(&Question, f32)> {
        let Some(shelf) = self.shelves.get(scope) else {
            return Vec::new();
        };
        if vector.len() != self.width {
            return Vec::new();
        }
        let mut near: Vec<(&Question, f32)> = shelf
            .vectors
            .chunks_exact(self.width)
            .zip(&shelf.questions)
            .map(|(other, question)| (question, dot(vector, other)))
            .filter(|(question, cosine)| *cosine >= cosine_min && question.expires_at > now)
            .collect();
        near.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        near.truncate(count);
        near
    }
}

/// Sixteen sums side by side, which the compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_parts, a_rest) = a.as_chunks::<16>();
    let (b_parts, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0_f32; 16];
    for (a, b) in a_parts.iter().zip(b_parts) {
        for at in 0..16 {
            sums[at] += a[at] * b[at];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn question(entry: u8, lives_s: i64) -> Question {
        Question {
            entry: CacheKey([entry; 32]),
            text: format!("question {entry}").into(),
            cosine_min: 0.9,
            expires_at: Utc::now() + TimeDelta::seconds(lives_s),
        }
    }

    #[test]
    fn the_nearest_of_its_own_scope_come_first_and_what_has_expired_does_not() {
        let mut index = Index::new(2, 8);
        index.put([1; 32], question(1, 60), &[1.0, 0.0]);
        index.put([1; 32], question(2, 60), &[0.8, 0.6]);
        index.put([1; 32], question(3, -1), &[1.0, 0.0]);
        index.put([2; 32], question(4, 60), &[1.0, 0.0]);
        let found = index.nearest(&[1; 32], &[1.0, 0.0], (8, 0.5), Utc::now());
        let entries: Vec<u8> = found.iter().map(|(q, _)| q.entry.0[0]).collect();
        assert_eq!(entries, [1, 2]);
        assert!((found[1].1 - 0.8).abs() < 1e-6);
        assert!(
            index
                .nearest(&[1; 32], &[1.0], (8, 0.5), Utc::now())
                .is_empty()
        );
    }

    #[test]
    fn the_longest_known_give_way_and_a_word_told_again_counts_as_new() {
        let mut index = Index::new(1, 2);
        index.put([1; 32], question(1, 60), &[1.0]);
        index.put([1; 32], question(2, 60), &[1.0]);
        index.put([1; 32], question(1, 60), &[1.0]);
        index.put([1; 32], question(3, 60), &[1.0]);
        let found = index.nearest(&[1; 32], &[1.0], (8, 0.5), Utc::now());
        let mut entries: Vec<u8> = found.iter().map(|(q, _)| q.entry.0[0]).collect();
        entries.sort_unstable();
        assert_eq!((entries, index.len()), (vec![1, 3], 2));
    }

    proptest! {
        /// Whatever is put in, told again and taken out: a search finds what a plain list would.
        #[test]
        fn finds_what_a_list_would(steps in prop::collection::vec((0_u8..12, 0_u8..3, -4_i8..=4, any::<bool>()), 1..60)) {
            let mut index = Index::new(3, 64);
            let mut list: Vec<(u8, u8, [f32; 3])> = Vec::new();
            for (entry, scope, value, goes) in steps {
                list.retain(|(known, ..)| *known != entry);
                if goes {
                    index.remove(CacheKey([entry; 32]));
                } else {
                    let vector = [f32::from(value), 1.0, f32::from(entry)];
                    index.put([scope; 32], question(entry, 60), &vector);
                    list.push((entry, scope, vector));
                }
                prop_assert_eq!(index.len(), list.len());
            }
            for scope in 0..3_u8 {
                let probe = [1.0, 0.5, -0.25];
                let mut expected: Vec<(u8, f32)> = list
                    .iter()
                    .filter(|(_, of, _)| *of == scope)
                    .map(|(entry, _, v)| (*entry, v[0] + 0.5 * v[1] - 0.25 * v[2]))
                    .filter(|(_, cosine)| *cosine >= -2.0)
                    .collect();
                let found = index.nearest(&[scope; 32], &probe, (64, -2.0), Utc::now());
                let mut found: Vec<(u8, f32)> = found.iter().map(|(q, c)| (q.entry.0[0], *c)).collect();
                prop_assert!(found.is_sorted_by(|a, b| a.1 >= b.1));
                expected.sort_by_key(|(entry, _)| *entry);
                found.sort_by_key(|(entry, _)| *entry);
                prop_assert_eq!(found, expected);
            }
        }
    }
}
