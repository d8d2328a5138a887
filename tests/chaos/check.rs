//! What must hold once all is mended and quiet.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use promptyard::broker::Broker;
use serde_json::Value;
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::{
    book::{Name, Reply, content, undisturbed},
    chaos_fleet::ChaosFleet,
    support::poll::{PATIENCE, poll},
};

/// Most that a role's resident memory may have grown since it was warm.
const GROWTH_MAX_BYTES: u64 = 64 << 20;
/// How long nothing may come nearer to its end: longer than any rest between attempts.
const STALLED: Duration = Duration::from_secs(120);
/// Most faults of one kind that are told in full.
const TOLD_MAX: usize = 8;

/// A job as the database has it.
#[derive(Debug, sqlx::FromRow)]
struct Row {
    id: uuid::Uuid,
    tenant: String,
    key: Option<String>,
    state: String,
    reason_code: Option<String>,
    source: Option<String>,
    attempts: i32,
    text: Option<String>,
    attempts_kept: i64,
    attempts_succeeded: i64,
    attempts_running: i64,
    letters: i64,
}

const ROWS: &str = "select j.id, j.tenant, j.key, j.state, j.reason_code, j.source, j.attempts, a.text,
        t.kept as attempts_kept, t.succeeded as attempts_succeeded, t.running as attempts_running,
        (select count(*) from dead_letters d where d.job_id = j.id) as letters
   from jobs j left join answers a on a.job_id = j.id
   cross join lateral (select count(*) as kept, count(*) filter (where outcome = 'succeeded') as succeeded,
        count(*) filter (where outcome = 'running') as running from attempts where job_id = j.id) t";

/// Findings that are alike are told a few times and counted.
#[derive(Debug, Default)]
pub struct Findings(BTreeMap<&'static str, (usize, Vec<String>)>);

impl Findings {
    pub fn add(&mut self, what: &'static str, which: String) {
        let (count, told) = self.0.entry(what).or_default();
        *count += 1;
        if told.len() < TOLD_MAX {
            told.push(which);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Waits until every job has ended, every reply has come and every queue is empty; says what is
/// missing when nothing comes nearer to that for a while.
pub async fn quiet(fleet: &ChaosFleet, pool: &PgPool) -> Result<Duration, String> {
    let begun = Instant::now();
    let config = fleet.broker_config();
    let broker = Broker::connect(&config, Path::new("unused")).await.unwrap();
    let (mut least, mut nearer_at) = (usize::MAX, Instant::now());
    let missing = loop {
        let (open, known): (i64, i64) = sqlx::query_as(
            "select count(*) filter (where finished_at is null), count(*) from jobs",
        )
        .fetch_one(pool)
        .await
        .unwrap();
        let depths = broker.depths().await.unwrap();
        let full: Vec<_> = depths.iter().filter(|depth| depth.ready > 0).collect();
        let (unconfirmed, owed, asked) = {
            let book = fleet.book.lock().unwrap();
            let unconfirmed = book
                .asked
                .values()
                .filter(|asked| !asked.is_confirmed)
                .count();
            (unconfirmed, book.replies_owed(), book.asked.len() as i64)
        };
        let backlog: usize = fleet.producers.iter().map(|one| one.backlog()).sum();
        if open == 0 && full.is_empty() && unconfirmed + owed + backlog == 0 && known >= asked {
            break None;
        }
        let left = open as usize + unconfirmed + owed + backlog;
        if left < least {
            (least, nearer_at) = (left, Instant::now());
        }
        if nearer_at.elapsed() > STALLED {
            break Some(format!(
                "{open} jobs open, {known} of {asked} known, {unconfirmed} unconfirmed, {backlog} to publish, {owed} replies owed, queues {full:?}"
            ));
        }
        sleep(Duration::from_millis(300)).await;
    };
    broker.close().await;
    missing.map_or_else(|| Ok(begun.elapsed()), Err)
}

/// Holds the database and the replies against what was asked.
pub async fn database(fleet: &ChaosFleet, pool: &PgPool, findings: &mut Findings) {
    let rows: Vec<Row> = sqlx::query_as(ROWS).fetch_all(pool).await.unwrap();
    let book = fleet.book.lock().unwrap().asked.clone();
    let replies = fleet.book.lock().unwrap().replies.clone();
    let script = fleet.script().replace("latency_ms=20,jitter_ms=400,", "");
    let mut seen: BTreeSet<Name> = BTreeSet::new();
    let mut answers: BTreeMap<&str, Option<String>> = BTreeMap::new();
    for row in &rows {
        let name = (row.tenant.clone(), row.key.clone().unwrap_or_default());
        let Some(asked) = book.get(&name) else {
            findings.add("a row that nobody asked for", format!("{row:?}"));
            continue;
        };
        if !seen.insert(name.clone()) {
            findings.add("a second row of a key", format!("{row:?}"));
        }
        if !answers.contains_key(asked.prompt.as_str()) {
            answers.insert(&asked.prompt, undisturbed(&script, asked).await);
        }
        let expected = &answers[asked.prompt.as_str()];
        let is_right = match (row.state.as_str(), expected) {
            ("succeeded", Some(text)) => row.text.as_ref() == Some(text) && row.letters == 0,
            ("failed", None) => row.text.is_none() && row.letters == 1,
            _ => false,
        };
        if !is_right {
            let trace = attempts(pool, row.id).await;
            let what = format!("{row:?}, expected {expected:?}, attempts {trace:?}");
            findings.add("a row that is not as without faults", what);
        }
        let succeeded = i64::from(row.source.as_deref() == Some("computed"));
        if row.attempts_running != 0
            || i64::from(row.attempts) != row.attempts_kept
            || row.attempts_succeeded != succeeded
        {
            let trace = attempts(pool, row.id).await;
            findings.add("attempts that do not add up", format!("{row:?}, {trace:?}"));
        }
        match replies.get(&name) {
            Some(reply) if !tells(reply, row) => {
                findings.add("a reply unlike its row", format!("{reply:?}, {row:?}"));
            }
            None if asked.wants_reply => findings.add("no reply", format!("{row:?}")),
            _ => {}
        }
    }
    for (name, _) in book
        .iter()
        .filter(|(name, asked)| asked.is_confirmed && !seen.contains(name))
    {
        findings.add("a confirmed job without a row", format!("{name:?}"));
    }
}

async fn attempts(pool: &PgPool, job: uuid::Uuid) -> Vec<String> {
    let told = sqlx::query_scalar(
        "select concat_ws(' ', attempt, tier, worker, outcome, claimed_at, finished_at, reason_code)
           from attempts where job_id = $1 order by attempt",
    );
    told.bind(job).fetch_all(pool).await.unwrap()
}

/// True when a reply says what the row does.
fn tells(reply: &Reply, row: &Row) -> bool {
    let line = &reply.line;
    let code = line["error"]["code"].as_str();
    reply.state == row.state
        && line["id"] == Value::String(row.id.to_string())
        && content(line).and_then(Value::as_str) == row.text.as_deref()
        && code == row.reason_code.as_deref()
}

/// Resident memory beside what it was when the fleet was warm.
pub fn memory(fleet: &ChaosFleet, warm: &[Option<u64>], findings: &mut Findings) {
    for ((role, warm), now) in fleet.roles.iter().zip(warm).zip(fleet.resident_bytes()) {
        let (Some(warm), Some(now)) = (*warm, now) else {
            findings.add("a role that is not there", role.name.to_owned());
            continue;
        };
        eprintln!(
            "resident memory of {}: {:.1} MB when warm, {:.1} MB now",
            role.name,
            warm as f64 / 1e6,
            now as f64 / 1e6
        );
        if now > warm + GROWTH_MAX_BYTES {
            findings.add(
                "memory that grew",
                format!("{}: {warm} to {now}", role.name),
            );
        }
    }
}

/// Stops the roles; nothing may be left in a queue, what was delivered to them included.
pub async fn stop(fleet: &mut ChaosFleet, findings: &mut Findings) {
    fleet.roles.iter().for_each(|role| role.signal("TERM"));
    for role in &mut fleet.roles {
        let status = poll(PATIENCE, async || role.ended()).await;
        if !status.is_some_and(|status| status.success()) {
            findings.add(
                "a role that did not stop in order",
                format!("{}: {status:?}", role.name),
            );
        }
    }
    let config = fleet.broker_config();
    let broker = Broker::connect(&config, Path::new("unused")).await.unwrap();
    for depth in broker.depths().await.unwrap() {
        if depth.ready > 0 {
            findings.add("a queue that is not empty", format!("{depth:?}"));
        }
    }
    broker.close().await;
}

/// Panics, in any process that there was.
pub fn logs(fleet: &ChaosFleet, findings: &mut Findings) {
    for entry in std::fs::read_dir(fleet.folder.path()).unwrap().flatten() {
        let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
        // After a process's last word the AMQP client's thread may find that its runtime is gone.
        let own = log.split("\nerror: ").next().unwrap_or_default();
        if let Some(line) = own.lines().find(|line| line.contains("panicked")) {
            findings.add("a panic", format!("{:?}: {line}", entry.file_name()));
        }
    }
}
