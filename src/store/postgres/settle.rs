//! Settlements: fenced by the attempt, shared with the jobs that wait, all in one transaction.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    PostgresStore, attempts, batch,
    cache::{self, Filling},
    dead,
    insert::insert_texts,
    lock_rows,
};
use crate::{
    job::{Answer, CacheKey, JobId, JobRecord, JobState, RoutedJob},
    store::{
        AttemptOutcome, Settled, Settlement,
        effect::{Effect, Given},
        error::BackendError,
        records,
        row::Row,
    },
};

impl PostgresStore {
    pub(crate) async fn settle(
        &self,
        settlements: &[Settlement],
        ttl: Duration,
    ) -> Result<Vec<Settled>, BackendError> {
        let now = self.clock.now();
        let mut seen = HashSet::new();
        // The same attempt twice in a batch: the first settles, the second is fenced.
        let firsts: Vec<&Settlement> = settlements
            .iter()
            .filter(|settlement| seen.insert((settlement.job, settlement.attempt)))
            .collect();
        let (superseded, firsts): (Vec<&Settlement>, Vec<&Settlement>) = firsts
            .into_iter()
            .partition(|one| matches!(one.outcome, AttemptOutcome::Cancelled(..)));
        let mut transaction = self.pool.begin().await?;
        let savings: Vec<_> = firsts
            .iter()
            .filter_map(|one| records::savings(one))
            .collect();
        batch::execute(&mut transaction, &savings, records::WRITE_SAVINGS).await?;
        let rows = end_attempts(&mut transaction, &firsts, now).await?;
        let mut rows: HashMap<Uuid, Row> = rows.into_iter().map(|row| (row.id, row)).collect();
        let committed: Vec<(&Settlement, Effect<'_>)> = firsts
            .iter()
            .filter(|settlement| {
                // Attempts are never reused, so the row's number tells which settlement it obeyed.
                rows.get(&settlement.job.0)
                    .is_some_and(|row| u32::try_from(row.attempts) == Ok(settlement.attempt))
            })
            .map(|settlement| (*settlement, Effect::of(&settlement.outcome)))
            .collect();
        attempts::write(&mut transaction, &committed).await?;
        let is_fenced = |one: &&Settlement| !committed.iter().any(|(done, _)| done.job == one.job);
        let fenced = firsts.iter().copied().filter(is_fenced).chain(superseded);
        close_fenced(&mut transaction, fenced.collect()).await?;
        let answers = committed
            .iter()
            .filter_map(|(settlement, effect)| Some((settlement.job.0, effect.answer?)));
        insert_texts(&mut transaction, answers).await?;
        let answered = attempts::fall_back(&mut transaction, rows.values()).await?;
        rows.extend(answered);
        let mut shared = settle_cache(&mut transaction, &committed, &rows, now, ttl).await?;
        let spent: Vec<_> = committed
            .iter()
            .filter(|(_, effect)| effect.keep_dead_letters)
            .filter_map(|(settlement, effect)| Some((rows.get(&settlement.job.0)?, effect.reason?)))
            .filter(|(row, _)| row.is_unanswered())
            .collect();
        dead::quarantine(&mut transaction, &spent, now).await?;
        transaction.commit().await?;

        let mut records = HashMap::new();
        for (settlement, effect) in &committed {
            if let Some(mut row) = rows.remove(&settlement.job.0) {
                if let Some(answer) = effect.answer {
                    row.give(answer);
                }
                let record = row.into_record()?;
                records.insert((settlement.job, settlement.attempt), record);
            }
        }
        let outcomes = settlements.iter().map(|settlement| {
            match records.remove(&(settlement.job, settlement.attempt)) {
                Some(record) => Settled::Committed {
                    record: Box::new(record),
                    shared: shared.remove(&settlement.job).unwrap_or_default(),
                },
                None => Settled::Fenced,
            }
        });
        Ok(outcomes.collect())
    }

    pub(crate) async fn take_over_flights(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<RoutedJob>, BackendError> {
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        let candidates = sqlx::query!(
            r#"select distinct on (j.waits_for) j.waits_for as "key!", j.id, j.tenant
                 from jobs j left join cache_entries e on e.key = j.waits_for
                where j.waits_for is not null and j.state = 'routed'
                  and (e.key is null or (e.state = 'computing' and e.lease_until < $1)
                       or (e.state = 'ready' and e.expires_at <= $1))
                order by j.waits_for, j.id limit $2"#,
            now,
            i64::try_from(limit).unwrap_or(i64::MAX)
        )
        .fetch_all(&mut *transaction)
        .await?;
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let bids: Vec<cache::Bid<'_>> = candidates
            .iter()
            .filter_map(|row| {
                Some(cache::Bid {
                    key: cache::to_key(row.key.clone())?,
                    tenant: &row.tenant,
                    job: JobId(row.id),
                    wanted: 0,
                })
            })
            .collect();
        let won: HashSet<CacheKey> = cache::lead(&mut transaction, &bids, now, lease)
            .await?
            .into_iter()
            .collect();
        let ids: Vec<Uuid> = bids
            .iter()
            .filter(|bid| won.contains(&bid.key))
            .map(|bid| bid.job.0)
            .collect();
        // Meanwhile a worker may have claimed one or its deadline ended it; it leads nobody then.
        let (waiting, gone): (Vec<Row>, Vec<Row>) = lock_rows(&mut transaction, &ids)
            .await?
            .into_iter()
            .partition(|row| row.state == JobState::Routed);
        let led: Vec<_> = gone
            .iter()
            .filter_map(|row| Some((row.cache_key()?, row.id)))
            .collect();
        cache::give_up(&mut transaction, &led).await?;
        let ids: Vec<Uuid> = waiting.iter().map(|row| row.id).collect();
        let requests = dead::requests(&mut transaction, &ids).await?;
        transaction.commit().await?;
        waiting
            .iter()
            .filter_map(|row| {
                let request = requests.get(&row.id)?;
                Some(row.routed_job(request).map_err(BackendError::from))
            })
            .collect()
    }
}

/// Closes fenced attempts of cancelled jobs; others are closed already.
async fn close_fenced(
    connection: &mut PgConnection,
    fenced: Vec<&Settlement>,
) -> Result<(), BackendError> {
    let outcomes: Vec<_> = fenced
        .iter()
        .map(|one| AttemptOutcome::superseded(Effect::of(&one.outcome).generated))
        .collect();
    let closing: Vec<_> = fenced
        .into_iter()
        .zip(&outcomes)
        .map(|(one, outcome)| (one, Effect::of(outcome)))
        .collect();
    attempts::write(connection, &closing).await
}

/// Moves the jobs of settlements that are not fenced to their next state.
async fn end_attempts(
    connection: &mut PgConnection,
    settlements: &[&Settlement],
    now: DateTime<Utc>,
) -> Result<Vec<Row>, BackendError> {
    let rows: Vec<_> = settlements
        .iter()
        .map(|one| records::ended(one, &Effect::of(&one.outcome), now))
        .collect();
    batch::update_jobs(connection, &rows, records::END_ATTEMPT).await
}

/// Fills and gives up cache entries; returns the jobs that waited, by the job that answered them.
async fn settle_cache(
    connection: &mut PgConnection,
    committed: &[(&Settlement, Effect<'_>)],
    rows: &HashMap<Uuid, Row>,
    now: DateTime<Utc>,
    ttl: Duration,
) -> Result<HashMap<JobId, Vec<JobRecord>>, BackendError> {
    // By rising key; should two jobs of a batch have computed the same, the later answer stays.
    let mut kept: BTreeMap<[u8; 32], Filling<'_>> = BTreeMap::new();
    let mut sharing: BTreeMap<[u8; 32], (JobId, Given<'_>)> = BTreeMap::new();
    let mut led = Vec::new();
    for (settlement, effect) in committed {
        let Some(key) = settlement.cache_key else {
            continue;
        };
        let job = settlement.job;
        if effect.gives_up() || !settlement.reusable && effect.answer.is_some() {
            led.push((key, job.0));
        }
        let tenant = rows.get(&job.0).map(|row| row.tenant.as_str());
        let (Some(given), Some(tenant)) = (effect.given(job), tenant) else {
            continue;
        };
        if settlement.reusable {
            let answer = given.answer;
            kept.insert(
                key.0,
                Filling {
                    key,
                    tenant,
                    job,
                    answer,
                },
            );
            sharing.insert(key.0, (job, given));
        } else if !kept.contains_key(&key.0) {
            sharing.insert(key.0, (job, given));
        }
    }
    let passing = sharing.keys().filter(|key| !kept.contains_key(*key));
    let passing: Vec<&[u8; 32]> = passing.collect();
    let locked: Vec<&[u8]> = passing.iter().map(|key| key.as_slice()).collect();
    cache::lock(connection, &locked).await?;
    let fillings: Vec<Filling<'_>> = kept.into_values().collect();
    cache::fill(connection, &fillings, now, ttl).await?;
    let shared = share(connection, &sharing, now).await?;
    // A job that took over the flight meanwhile may have led an entry that is not filled.
    for key in passing {
        let (job, _) = &sharing[key];
        let settled = shared.get(job).into_iter().flatten();
        led.extend(settled.map(|record| (CacheKey(*key), record.id.0)));
    }
    cache::give_up(connection, &led).await?;
    Ok(shared)
}

/// Gives answers, by key, to the jobs that wait for them; their entries are locked. Returns the jobs
/// by the one whose settlement answered them.
async fn share(
    connection: &mut PgConnection,
    sharing: &BTreeMap<[u8; 32], (JobId, Given<'_>)>,
    now: DateTime<Utc>,
) -> Result<HashMap<JobId, Vec<JobRecord>>, BackendError> {
    if sharing.is_empty() {
        return Ok(HashMap::new());
    }
    let keys: Vec<&[u8]> = sharing.keys().map(|key| key.as_slice()).collect();
    let waiting = sqlx::query!(
        r#"select j.id, j.waits_for as "key!", l.entry as "entry?"
             from jobs j left join semantic_lookups l on l.job_id = j.id
            where j.waits_for = any($1) and j.state = 'routed' order by j.id for update of j"#,
        &keys as &[&[u8]]
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut rows = Vec::new();
    let mut given_to: HashMap<Uuid, (JobId, &Answer)> = HashMap::new();
    for row in waiting {
        let Some((settled, given)) = sharing.get(row.key.as_slice()) else {
            continue;
        };
        if let Some(entry) = given.only_of
            && row.entry.as_deref() != Some(entry.0.as_slice())
        {
            continue;
        }
        rows.push(records::shared(row.id, given, now));
        given_to.insert(row.id, (*settled, given.answer));
    }
    let rows = batch::update_jobs(connection, &rows, records::SHARE).await?;
    let answers = given_to.iter().map(|(id, (_, answer))| (*id, *answer));
    insert_texts(connection, answers).await?;
    let mut shared: HashMap<JobId, Vec<JobRecord>> = HashMap::new();
    for mut row in rows {
        let Some((settled, answer)) = given_to.get(&row.id) else {
            continue;
        };
        row.give(answer);
        shared.entry(*settled).or_default().push(row.into_record()?);
    }
    Ok(shared)
}
