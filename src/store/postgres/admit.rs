//! Admissions: the hot path. A batch of new jobs costs four statements: keys, cache
//! entries, jobs, requests; only jobs that are known, hits and repeats cost more.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    PostgresStore, cache, deferral,
    insert::{insert_jobs, move_queued},
    lock_rows,
    text::encode,
};
use crate::{
    job::{CacheKey, JobHead, JobId},
    store::{
        Admission, AdmissionDecision, Admitted,
        error::BackendError,
        row::Row,
        rules::{self, Entry, Hit, Meeting, NewJob},
    },
};

impl PostgresStore {
    pub(crate) async fn admit(
        &self,
        admissions: &[Admission],
        lease: Duration,
    ) -> Result<Vec<Admitted>, BackendError> {
        let (firsts, repeats) = rules::split_repeats(admissions);
        let mut transaction = self.pool.begin().await?;
        let mut round = Round {
            admissions,
            lease,
            now: self.clock.now(),
            outcomes: vec![None; admissions.len()],
            deferred: Vec::new(),
        };
        round.run(&mut transaction, firsts).await?;
        // What appeared before in this batch is known by now.
        let mut positions = repeats;
        while !positions.is_empty() {
            round.run(&mut transaction, positions).await?;
            positions = std::mem::take(&mut round.deferred);
        }
        transaction.commit().await?;
        let outcomes = round.outcomes.into_iter().collect::<Option<_>>();
        outcomes.ok_or_else(|| {
            BackendError::Rule("an admission was left without an outcome".to_owned())
        })
    }
}

/// One pass over a batch; positions index into it.
struct Round<'a> {
    admissions: &'a [Admission],
    lease: Duration,
    now: DateTime<Utc>,
    outcomes: Vec<Option<Admitted>>,
    /// Repeats of jobs that move in this pass: the next one sees what became of them.
    deferred: Vec<usize>,
}

impl<'a> Round<'a> {
    fn head(&self, at: usize) -> &'a JobHead {
        &self.admissions[at].head
    }

    async fn run(
        &mut self,
        connection: &mut PgConnection,
        positions: Vec<usize>,
    ) -> Result<(), BackendError> {
        if positions.is_empty() {
            return Ok(());
        }
        let (owners, keyless) = self.claim_keys(connection, &positions).await?;
        let (moving, mut fresh) = self.meet_owners(connection, &positions, owners).await?;
        let mut unkeyed = moving.clone();
        unkeyed.retain(|at| keyless.contains(at));
        self.adopt(connection, &unkeyed).await?;
        // An id can be known although its key is not; only writing the job tells.
        let clashes = self.write(connection, &fresh, &moving).await?;
        if clashes.is_empty() {
            return Ok(());
        }
        fresh.retain(|at| clashes.contains(at));
        let owners = fresh.iter().map(|&at| (at, self.head(at).id.0)).collect();
        let (moving, lost) = self.meet_owners(connection, &fresh, owners).await?;
        if !lost.is_empty() {
            return Err(BackendError::Rule(
                "a job that exists cannot be found".to_owned(),
            ));
        }
        self.disown(connection, &fresh).await?;
        self.write(connection, &[], &moving).await?;
        Ok(())
    }

    /// Takes the keys that nobody owns for jobs that nobody knows; returns the owners of the others by
    /// position, and those positions where a known job comes with a key that nobody owns: it owns itself.
    async fn claim_keys(
        &self,
        connection: &mut PgConnection,
        positions: &[usize],
    ) -> Result<(HashMap<usize, Uuid>, HashSet<usize>), BackendError> {
        let mut keyed: Vec<(&str, &str, usize)> = positions
            .iter()
            .filter_map(|&at| {
                let head = self.head(at);
                Some((head.tenant.as_str(), head.key.as_deref()?, at))
            })
            .collect();
        if keyed.is_empty() {
            return Ok((HashMap::new(), HashSet::new()));
        }
        keyed.sort_unstable();
        let tenants: Vec<&str> = keyed.iter().map(|(tenant, ..)| *tenant).collect();
        let keys: Vec<_> = keyed.iter().map(|(_, key, _)| encode(key)).collect();
        let ids: Vec<Uuid> = keyed.iter().map(|(.., at)| self.head(*at).id.0).collect();
        let taken: HashSet<Uuid> = sqlx::query_scalar!(
            "insert into idempotency (tenant, key, job_id)
             select n.tenant, n.key, n.id
               from unnest($1::text[], $2::text[], $3::uuid[]) as n (tenant, key, id)
              where not exists (select from jobs j where j.id = n.id)
                 on conflict (tenant, key) do nothing
             returning job_id",
            &tenants as &[&str],
            &keys as &[std::borrow::Cow<'_, str>],
            &ids
        )
        .fetch_all(&mut *connection)
        .await?
        .into_iter()
        .collect();
        if taken.len() == keyed.len() {
            return Ok((HashMap::new(), HashSet::new()));
        }
        let rows = sqlx::query!(
            "select n.at, i.job_id
               from unnest($1::text[], $2::text[]) with ordinality as n (tenant, key, at)
               join idempotency i on i.tenant = n.tenant and i.key = n.key",
            &tenants as &[&str],
            &keys as &[std::borrow::Cow<'_, str>],
        )
        .fetch_all(connection)
        .await?;
        let mut owners = HashMap::new();
        for row in rows {
            let index = row.at.and_then(|at| usize::try_from(at - 1).ok());
            if let Some(&(.., at)) = index.and_then(|index| keyed.get(index))
                && !taken.contains(&row.job_id)
            {
                owners.insert(at, row.job_id);
            }
        }
        let mut keyless = HashSet::new();
        for &(.., at) in &keyed {
            let id = self.head(at).id.0;
            if !taken.contains(&id) && !owners.contains_key(&at) {
                owners.insert(at, id);
                keyless.insert(at);
            }
        }
        Ok((owners, keyless))
    }

    /// Settles what is known already; returns the positions that move on from queued and those
    /// that are new.
    async fn meet_owners(
        &mut self,
        connection: &mut PgConnection,
        positions: &[usize],
        mut owners: HashMap<usize, Uuid>,
    ) -> Result<(Vec<usize>, Vec<usize>), BackendError> {
        // Without a key, only the id can be known.
        let keyless = positions.iter().filter(|&&at| self.head(at).key.is_none());
        let keyless: Vec<usize> = keyless.copied().collect();
        let mut ids: Vec<Uuid> = owners.values().copied().collect();
        ids.extend(keyless.iter().map(|&at| self.head(at).id.0));
        if ids.is_empty() {
            return Ok((Vec::new(), positions.to_vec()));
        }
        let rows: HashMap<Uuid, Row> = lock_rows(connection, &ids)
            .await?
            .into_iter()
            .map(|row| (row.id, row))
            .collect();
        for at in keyless {
            owners.insert(at, self.head(at).id.0);
        }
        let held = deferral::held_of(connection, rows.values()).await?;
        let (mut moving, mut fresh, mut orphans) = (Vec::new(), Vec::new(), Vec::new());
        let mut moved = HashSet::new();
        for &at in positions {
            let Some(owner) = owners.get(&at) else {
                fresh.push(at);
                continue;
            };
            let Some(row) = rows.get(owner) else {
                if self.head(at).key.is_some() {
                    orphans.push(at);
                }
                fresh.push(at);
                continue;
            };
            if moved.contains(&row.id) {
                self.deferred.push(at);
                continue;
            }
            self.outcomes[at] = match rules::meet(&self.admissions[at], row) {
                Meeting::Reused => Some(Admitted::KeyReused {
                    owner: JobId(row.id),
                }),
                Meeting::Waits => Some(Admitted::Waiting),
                Meeting::Known
                    if self.admissions[at].decision != AdmissionDecision::Queue
                        && held.contains(&row.id) =>
                {
                    Some(Admitted::Deferred)
                }
                Meeting::Known => Some(Admitted::Known(Box::new(row.clone().into_record()?))),
                Meeting::Moves => {
                    moving.push(at);
                    moved.insert(row.id);
                    None
                }
            };
        }
        self.adopt(connection, &orphans).await?;
        Ok((moving, fresh))
    }

    /// Takes over keys that no job owns, or one that is gone: its partition was dropped.
    async fn adopt(
        &self,
        connection: &mut PgConnection,
        orphans: &[usize],
    ) -> Result<(), BackendError> {
        for &at in orphans {
            let head = self.head(at);
            sqlx::query!(
                "insert into idempotency as i (tenant, key, job_id) values ($1, $2, $3)
                     on conflict (tenant, key) do update set job_id = excluded.job_id
                  where not exists (select from jobs j where j.id = i.job_id)",
                head.tenant.as_str(),
                &*encode(head.key.as_deref().unwrap_or_default()),
                head.id.0
            )
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }

    /// Gives back keys that were taken for ids which turned out to be known and to stay as they are.
    async fn disown(
        &self,
        connection: &mut PgConnection,
        positions: &[usize],
    ) -> Result<(), BackendError> {
        for &at in positions {
            let head = self.head(at);
            let stays = self.outcomes[at].is_some();
            if let (true, Some(key)) = (stays, head.key.as_deref()) {
                sqlx::query!(
                    "delete from idempotency where tenant = $1 and key = $2 and job_id = $3",
                    head.tenant.as_str(),
                    &*encode(key),
                    head.id.0
                )
                .execute(&mut *connection)
                .await?;
            }
        }
        Ok(())
    }

    /// Writes new jobs and moves queued ones; returns the new ones whose id was known.
    async fn write(
        &mut self,
        connection: &mut PgConnection,
        fresh: &[usize],
        moving: &[usize],
    ) -> Result<HashSet<usize>, BackendError> {
        let found = self.find_answers(connection, fresh, moving).await?;
        let (entries, won) = self.ask_cache(connection, fresh, moving, &found).await?;
        let new_job = |at: usize| {
            let admission = &self.admissions[at];
            let by_key = || match &admission.decision {
                AdmissionDecision::Route(route) => entries.get(&route.cache_key?),
                _ => None,
            };
            NewJob::of(admission, found.get(&at).or_else(by_key))
        };
        let jobs: Vec<NewJob<'_>> = fresh.iter().map(|&at| new_job(at)).collect();
        let mut inserted = insert_jobs(connection, &jobs, self.now).await?;
        let written = inserted.clone();
        let (mut clashes, mut spoiled) = (HashSet::new(), Vec::new());
        for (&at, job) in fresh.iter().zip(&jobs) {
            // Taken out, so that a repeat of the same id counts as known.
            if inserted.remove(&job.head.id.0) {
                self.outcomes[at] = Some(job.admitted(self.now));
            } else {
                clashes.insert(at);
                let id = job.head.id;
                let key = job.route().and_then(|route| route.cache_key);
                let is_leader = |key: &CacheKey| {
                    won.contains(key)
                        && matches!(entries.get(key), Some(Entry::Led(by)) if *by == id)
                };
                // A known job leads only what it led before: it may have ended long ago.
                if let Some(key) = key.filter(is_leader).filter(|_| !written.contains(&id.0)) {
                    spoiled.push((key, id.0));
                }
            }
        }
        cache::give_up(connection, &spoiled).await?;
        let moves: Vec<NewJob<'_>> = moving.iter().map(|&at| new_job(at)).collect();
        move_queued(connection, &moves, self.now).await?;
        for (&at, job) in moving.iter().zip(&moves) {
            self.outcomes[at] = Some(job.admitted(self.now));
        }
        Ok(clashes)
    }

    /// The answers that jobs are given at once because their questions have one: those of the very
    /// same request before those of one which asks the same.
    async fn find_answers(
        &self,
        connection: &mut PgConnection,
        fresh: &[usize],
        moving: &[usize],
    ) -> Result<HashMap<usize, Entry>, BackendError> {
        let mut near = Vec::new();
        for &at in fresh.iter().chain(moving) {
            if let AdmissionDecision::Route(route) = &self.admissions[at].decision
                && let (Some(nearest), Some(own)) = (route.hit(), route.cache_key)
            {
                near.push((at, own, nearest));
            }
        }
        let own: Vec<_> = near.iter().map(|(_, own, _)| *own).collect();
        let exact = cache::take(connection, &own, self.now).await?;
        let entries: Vec<_> = near
            .iter()
            .filter(|(_, own, _)| !exact.contains_key(own))
            .map(|(.., nearest)| nearest.entry)
            .collect();
        let like = cache::take(connection, &entries, self.now).await?;
        let mut found = HashMap::new();
        for (at, own, nearest) in near {
            let hit = match (exact.get(&own), like.get(&nearest.entry)) {
                (Some((answer, leader)), _) => Hit::exact(answer.clone(), *leader),
                (None, Some((answer, leader))) => Hit::semantic(answer.clone(), *leader, nearest),
                (None, None) => continue,
            };
            found.insert(at, Entry::Ready(hit));
        }
        Ok(found)
    }

    /// What the cache holds for the jobs that are routed and have no answer yet, and the keys whose
    /// lead was won for it.
    async fn ask_cache(
        &self,
        connection: &mut PgConnection,
        fresh: &[usize],
        moving: &[usize],
        found: &HashMap<usize, Entry>,
    ) -> Result<(HashMap<CacheKey, Entry>, HashSet<CacheKey>), BackendError> {
        let mut bids: HashMap<CacheKey, cache::Bid<'_>> = HashMap::new();
        // Of those who ask the same the first leads, whether it is new or moves.
        let mut positions: Vec<usize> = fresh.iter().chain(moving).copied().collect();
        positions.sort_unstable();
        for at in positions {
            let AdmissionDecision::Route(route) = &self.admissions[at].decision else {
                continue;
            };
            let Some(key) = route.cache_key.filter(|_| !found.contains_key(&at)) else {
                continue;
            };
            let head = self.head(at);
            bids.entry(key)
                .and_modify(|bid| bid.wanted += 1)
                .or_insert(cache::Bid {
                    key,
                    tenant: head.tenant.as_str(),
                    job: head.id,
                    wanted: 1,
                });
        }
        let mut bids: Vec<_> = bids.into_values().collect();
        bids.sort_unstable_by_key(|bid| bid.key.0);
        cache::settle_bids(connection, &bids, self.now, self.lease).await
    }
}
