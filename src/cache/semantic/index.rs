//! An in-memory index of answered questions by similarity.
//!
//! A search is exact: it compares a whole scope, whose vectors are contiguous, in one pass over memory.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use crate::job::CacheKey;

/// Digest of everything besides the question that two requests must agree in.
pub type QuestionScope = [u8; 32];

/// An answered question.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexedQuestion {
    /// The cache entry that holds the answer.
    pub entry: CacheKey,
    /// Its text.
    pub text: Arc<str>,
    /// Least cosine similarity of questions that may reuse the answer.
    pub cosine_min: f32,
    /// When the answer may no longer be reused.
    pub expires_at: DateTime<Utc>,
}

/// The questions of one scope, and their vectors in the same order.
#[derive(Debug, Default)]
struct ScopeQuestions {
    questions: Vec<IndexedQuestion>,
    vectors: Vec<f32>,
}

/// An index of a bounded number of questions; the oldest are evicted first.
#[derive(Debug)]
pub struct QuestionIndex {
    width: usize,
    capacity: usize,
    scopes: HashMap<QuestionScope, ScopeQuestions>,
    /// Each entry's scope, position in it, and sequence number.
    places: HashMap<CacheKey, (QuestionScope, usize, u64)>,
    by_age: BTreeSet<(u64, [u8; 32])>,
    next_number: u64,
}

impl QuestionIndex {
    /// An empty index over vectors of `width` values, for at most `capacity` questions.
    pub fn new(width: usize, capacity: usize) -> Self {
        Self {
            width,
            capacity,
            scopes: HashMap::new(),
            places: HashMap::new(),
            by_age: BTreeSet::new(),
            next_number: 0,
        }
    }

    /// The number of questions.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Adds a question, replacing an earlier one of the same entry. A vector of another length is
    /// ignored.
    pub fn put(&mut self, scope: QuestionScope, question: IndexedQuestion, vector: &[f32]) {
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
        let number = self.next_number;
        self.next_number += 1;
        let questions = self.scopes.entry(scope).or_default();
        let place = (scope, questions.questions.len(), number);
        self.places.insert(question.entry, place);
        self.by_age.insert((number, question.entry.0));
        questions.questions.push(question);
        questions.vectors.extend_from_slice(vector);
    }

    /// Removes an entry, if it is there.
    pub fn remove(&mut self, entry: CacheKey) {
        let Some((scope, at, number)) = self.places.remove(&entry) else {
            return;
        };
        self.by_age.remove(&(number, entry.0));
        let Some(own) = self.scopes.get_mut(&scope) else {
            return;
        };
        // The last question moves into its place.
        own.questions.swap_remove(at);
        let (width, end) = (self.width, own.vectors.len() - self.width);
        own.vectors.copy_within(end.., at * width);
        own.vectors.truncate(end);
        match own.questions.get(at) {
            Some(moved) => {
                if let Some(place) = self.places.get_mut(&moved.entry) {
                    place.1 = at;
                }
            }
            None if own.questions.is_empty() => {
                self.scopes.remove(&scope);
            }
            None => {}
        }
    }

    /// The questions of a scope that are nearest to a vector and not expired, nearest first: at most
    /// `count`, none below `cosine_min`.
    pub fn nearest(
        &self,
        scope: &QuestionScope,
        vector: &[f32],
        (count, cosine_min): (usize, f32),
        now: DateTime<Utc>,
    ) -> Vec<(&IndexedQuestion, f32)> {
        let Some(own) = self.scopes.get(scope) else {
            return Vec::new();
        };
        if vector.len() != self.width {
            return Vec::new();
        }
        let mut near: Vec<(&IndexedQuestion, f32)> = own
            .vectors
            .chunks_exact(self.width)
            .zip(&own.questions)
            .map(|(other, question)| (question, dot(vector, other)))
            .filter(|(question, cosine)| *cosine >= cosine_min && question.expires_at > now)
            .collect();
        near.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        near.truncate(count);
        near
    }
}

/// The dot product, as sixteen sums that the compiler vectorises.
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

    fn question(entry: u8, lives_s: i64) -> IndexedQuestion {
        IndexedQuestion {
            entry: CacheKey([entry; 32]),
            text: format!("question {entry}").into(),
            cosine_min: 0.9,
            expires_at: Utc::now() + TimeDelta::seconds(lives_s),
        }
    }

    #[test]
    fn nearest_questions_come_first_without_expired_ones_or_other_scopes() {
        let mut index = QuestionIndex::new(2, 8);
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
    fn the_oldest_are_evicted_and_replacing_renews_the_age() {
        let mut index = QuestionIndex::new(1, 2);
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
        /// After any sequence of puts and removals a search agrees with a plain list.
        #[test]
        fn finds_what_a_list_would(steps in prop::collection::vec((0_u8..12, 0_u8..3, -4_i8..=4, any::<bool>()), 1..60)) {
            let mut index = QuestionIndex::new(3, 64);
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
