//! Semantic reuse: a paraphrase is given the answer to an earlier question, where its request allows it.
//!
//! Comes in: admissions that request semantic reuse. Goes out: the same, each with its embedding and the
//! nearest answered question ([`Reuse::consult`]). The database stores the questions; this process
//! indexes the answered ones and refreshes its index at short intervals. Any failure is a miss: the job
//! then runs as usual.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use metrics::{counter, gauge, histogram};
use tokio::time::Instant;

use crate::{
    cache::semantic::{Encoder, IndexedQuestion, QuestionIndex, compare},
    config::CacheConfig,
    engine::Embedder,
    job::JobId,
    metrics::{SEMANTIC_LOOKUPS, SEMANTIC_QUESTIONS, SEMANTIC_SECONDS},
    scoring::random::Random,
    shutdown::Shutdown,
    store::{
        Admission, AdmissionDecision, KnownQuestion, Lookup, NearOutcome, NearQuestion, Store,
    },
};

/// How often the index is refreshed.
const REFRESH_INTERVAL: Duration = Duration::from_millis(250);
/// How much later than its timestamp a row may become visible: clocks differ, and commits take time.
const OVERLAP: TimeDelta = TimeDelta::seconds(10);
/// How often the index is rebuilt, so that removed questions disappear.
const RELOAD_INTERVAL: Duration = Duration::from_secs(600);
/// Most near questions that are compared, nearest first.
const NEAR_MAX: usize = 8;
/// Least cosine of a near question that is recorded in the database.
const NEAR_COSINE_MIN: f32 = 0.7;
/// Most texts embedded in one call.
const TEXTS_TOGETHER: usize = 64;

/// Finds paraphrases of incoming questions.
#[derive(Debug)]
pub(super) struct Reuse {
    pub(super) encoder: Arc<dyn Encoder>,
    config: CacheConfig,
    index: RwLock<QuestionIndex>,
}

impl Reuse {
    /// The index is empty before the first [`Reuse::keep_fresh`].
    pub(super) fn new(encoder: Arc<dyn Encoder>, config: CacheConfig) -> Self {
        let index = RwLock::new(QuestionIndex::new(encoder.width(), config.questions_max));
        Self {
            encoder,
            config,
            index,
        }
    }

    /// Revision of the encoder, and the least similarity of paraphrases.
    pub(super) fn encoder_and_cosine_min(&self) -> (&str, f32) {
        (self.encoder.revision(), self.config.cosine_min as f32)
    }

    /// Embeds the questions of these admissions and looks them up.
    pub(super) async fn consult(
        self: &Arc<Self>,
        mut admissions: Vec<Admission>,
    ) -> Vec<Admission> {
        let begun = Instant::now();
        let questions: Vec<String> = admissions
            .iter_mut()
            .filter_map(|admission| Some(lookup_of(admission)?.question.clone()))
            .collect();
        let reuse = self.clone();
        let embedded = tokio::task::spawn_blocking(move || reuse.embed(&questions)).await;
        let vectors = match embedded {
            Ok(Ok(vectors)) => vectors,
            Ok(Err(error)) => {
                tracing::warn!(
                    error,
                    "cannot embed questions; their jobs run without semantic reuse"
                );
                HashMap::new()
            }
            Err(error) => {
                tracing::error!(%error, "the encoder crashed; jobs run without semantic reuse");
                HashMap::new()
            }
        };
        let index = self.index.read().expect("nobody panics while holding it");
        for admission in &mut admissions {
            let id = admission.head.id;
            let Some(lookup) = lookup_of(admission) else {
                continue;
            };
            let outcome = match vectors.get(&lookup.question) {
                Some(vector) => {
                    lookup.embedding.clone_from(vector);
                    lookup.nearest = self.nearest(&index, lookup, id, Utc::now());
                    match &lookup.nearest {
                        Some(NearQuestion {
                            outcome: NearOutcome::Miss(veto),
                            ..
                        }) => veto,
                        Some(_) => "near",
                        None => "none",
                    }
                }
                None => "failure",
            };
            counter!(SEMANTIC_LOOKUPS, "outcome" => outcome).increment(1);
        }
        histogram!(SEMANTIC_SECONDS).record(begun.elapsed().as_secs_f64());
        admissions
    }

    /// A vector for each text; equal texts are embedded once.
    fn embed(&self, texts: &[String]) -> Result<HashMap<String, Vec<f32>>, String> {
        let mut unique: Vec<&str> = texts.iter().map(String::as_str).collect();
        unique.sort_unstable();
        unique.dedup();
        let mut vectors = HashMap::with_capacity(unique.len());
        for some in unique.chunks(TEXTS_TOGETHER) {
            let embedded = self.encoder.encode(some)?;
            vectors.extend(some.iter().map(|text| (*text).to_owned()).zip(embedded));
        }
        Ok(vectors)
    }

    /// The nearest question whose answer may be reused, or else the nearest one and why it may not.
    fn nearest(
        &self,
        index: &QuestionIndex,
        lookup: &Lookup,
        job: JobId,
        now: DateTime<Utc>,
    ) -> Option<NearQuestion> {
        let limits = (NEAR_MAX, NEAR_COSINE_MIN);
        let near = index.nearest(&lookup.scope, &lookup.embedding, limits, now);
        let mut nearest: Option<NearQuestion> = None;
        for (question, cosine) in near {
            let cosine_min = question.cosine_min.max(self.config.cosine_min as f32);
            let comparison = compare(&lookup.question, &question.text, Some(cosine), cosine_min);
            let outcome = match comparison.veto {
                Some(veto) => NearOutcome::Miss(veto.as_str()),
                None if self.config.semantic_check => NearOutcome::Candidate,
                None => NearOutcome::Hit,
            };
            let is_miss = comparison.veto.is_some();
            if is_miss && nearest.is_some() {
                continue;
            }
            nearest = Some(NearQuestion {
                entry: question.entry,
                question: question.text.to_string(),
                cosine,
                cosine_min,
                outcome,
                recheck: (!is_miss && self.draws(job)).then_some(self.config.recheck_share),
            });
            if !is_miss {
                break;
            }
        }
        nearest
    }

    /// Whether a job's hit is rechecked: drawn from its id, so that a redelivered message gets the same
    /// decision.
    fn draws(&self, job: JobId) -> bool {
        let (high, low) = job.0.as_u64_pair();
        Random::new(high ^ low.rotate_left(32)).unit() < self.config.recheck_share
    }

    /// Refreshes the index from the database at intervals, until shutdown.
    pub(super) async fn keep_fresh(self: Arc<Self>, store: Store, shutdown: Shutdown) {
        let mut since = DateTime::<Utc>::UNIX_EPOCH;
        let mut reloaded = Instant::now();
        loop {
            if reloaded.elapsed() >= RELOAD_INTERVAL {
                (since, reloaded) = (DateTime::<Utc>::UNIX_EPOCH, Instant::now());
            }
            let limit = self.config.questions_max;
            match store
                .known_questions(self.encoder.revision(), since, limit)
                .await
            {
                Ok(known) => since = self.take(known, since),
                Err(error) => {
                    tracing::warn!(%error, "cannot refresh the index of answered questions; lookups use the present one");
                }
            }
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(REFRESH_INTERVAL) => {}
            }
        }
    }

    /// Adds questions to the index, or replaces the index if `since` is the epoch. Returns the instant
    /// from which to read next.
    fn take(&self, known: Vec<KnownQuestion>, since: DateTime<Utc>) -> DateTime<Utc> {
        let latest = known.iter().map(|question| question.changed_at).max();
        let mut fresh = None;
        let mut present;
        let index: &mut QuestionIndex = if since == DateTime::<Utc>::UNIX_EPOCH {
            fresh.insert(QuestionIndex::new(
                self.encoder.width(),
                self.config.questions_max,
            ))
        } else {
            present = self.index.write().expect("nobody panics while holding it");
            &mut present
        };
        // The latest come first and must be evicted last.
        for known in known.into_iter().rev() {
            let question = IndexedQuestion {
                entry: known.entry,
                text: known.question.into(),
                cosine_min: known.cosine_min,
                expires_at: known.expires_at,
            };
            index.put(known.scope, question, &known.embedding);
        }
        gauge!(SEMANTIC_QUESTIONS).set(index.len() as f64);
        if let Some(fresh) = fresh {
            *self.index.write().expect("nobody panics while holding it") = fresh;
        }
        latest.map_or(since, |latest| since.max(latest - OVERLAP))
    }
}

impl Encoder for Embedder {
    fn revision(&self) -> &str {
        self.revision()
    }

    fn width(&self) -> usize {
        self.width()
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
        self.embed(texts).map_err(|error| error.to_string())
    }
}

/// Whether an admission requests semantic reuse.
pub(super) fn requests_reuse(admission: &Admission) -> bool {
    matches!(&admission.decision, AdmissionDecision::Route(route) if route.lookup.is_some())
}

fn lookup_of(admission: &mut Admission) -> Option<&mut Lookup> {
    match &mut admission.decision {
        AdmissionDecision::Route(route) => route.lookup.as_deref_mut(),
        _ => None,
    }
}
