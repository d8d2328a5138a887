//! Faults at random, drawn from a seed, while jobs flow: the fleet on a RabbitMQ and a Postgres of its
//! own, each behind proxies, and the embedded mode killed at random instants. When all is mended, every
//! job has ended once, with the answer that it gets without faults. docs/reliability.md tells how to
//! run it for longer. Sleeps are the traffic's and the faults' own time.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod book;
mod chaos_fleet;
mod check;
mod embedded;
mod producer;
mod role;
mod schedule;
mod servers;
mod storm;
#[expect(dead_code, reason = "other test binaries use the rest")]
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use chaos_fleet::{ChaosFleet, Terms};
use check::Findings;
use storm::Storm;

/// Faults of a run that nobody asked to be longer.
const FAULTS: usize = 25;
/// The seed where none is given: nearly every kind is among its first faults.
const SEED: u64 = 386;

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}: expected a whole number, found {text:?}")),
    )
}

/// Every confirmed job ends once, with the right answer, despite kills, stalls and cuts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_lose_no_job_and_change_no_answer() {
    let faults = setting("PROMPTYARD_CHAOS_FAULTS").map_or(FAULTS, |count| count as usize);
    let seed = setting("PROMPTYARD_CHAOS_SEED").unwrap_or(SEED);
    // A prompt that always fails rests 11 s between three attempts, and two minutes between five.
    let is_long = faults > 100;
    let terms = Terms {
        attempts_max: if is_long { 5 } else { 3 },
        fail_percent: u32::from(is_long),
        jobs_per_s: 30.0,
    };
    eprintln!("chaos: seed {seed}, {faults} faults, {terms:?}");
    let mut storm = Storm::new(ChaosFleet::start(terms, seed).await, seed);
    storm
        .calm(Duration::from_secs(if is_long { 20 } else { 5 }))
        .await;
    let warm = storm.fleet.resident_bytes();
    let begun = std::time::Instant::now();
    storm.strike(faults).await;
    let raged = begun.elapsed();
    storm.mend().await;

    let mut findings = Findings::default();
    let pool = storm.fleet.pool();
    match check::quiet(&storm.fleet, &pool).await {
        Ok(span) => eprintln!("quiet {:.1} s after the mending", span.as_secs_f64()),
        Err(missing) => findings.add("no quiet", missing),
    }
    check::database(&storm.fleet, &pool, &mut findings).await;
    check::memory(&storm.fleet, &warm, &mut findings);
    summary(&storm, &pool, raged).await;
    check::stop(&mut storm.fleet, &mut findings).await;
    check::logs(&storm.fleet, &mut findings);
    for finding in std::mem::take(&mut storm.findings) {
        findings.add("during the storm", finding);
    }
    for producer in std::mem::take(&mut storm.fleet.producers) {
        producer.stop().await;
    }
    for fault in std::mem::take(&mut storm.fleet.book.lock().unwrap().faults) {
        findings.add("what a producer saw", fault);
    }
    if !findings.is_empty() {
        storm.fleet.folder.disable_cleanup(true);
        panic!(
            "seed {seed}, logs in {}: {findings:#?}",
            storm.fleet.folder.path().display()
        );
    }
}

/// What happened, in figures.
async fn summary(storm: &Storm, pool: &sqlx::PgPool, raged: Duration) {
    for (kind, count) in &storm.counts {
        eprintln!("{count:5}  {}", kind.words());
    }
    {
        let book = storm.fleet.book.lock().unwrap();
        let replies: usize = book.replies.values().map(|reply| reply.times).sum();
        let repeats: usize = book.asked.values().map(|asked| asked.repeats).sum();
        eprintln!(
            "{} faults in {:.0} s; {} jobs asked, {repeats} messages repeated, {} confirms that never came, {replies} replies for {} jobs",
            storm.counts.values().sum::<usize>(),
            raged.as_secs_f64(),
            book.asked.len(),
            book.unconfirmed,
            book.replies.len(),
        );
    }
    for (why, count) in &storm.vain_starts {
        eprintln!("{count:5}  starts in vain: {why}");
    }
    for query in [
        "select 'jobs ' || state || coalesce(' ' || source, ''), count(*) from jobs group by 1 order by 1",
        "select 'attempts ' || outcome, count(*) from attempts group by 1 order by 1",
        "select 'attempts of a job: ' || attempts, count(*) from jobs group by 1 order by 1",
    ] {
        let rows: Vec<(String, i64)> = sqlx::query_as(query).fetch_all(pool).await.unwrap();
        for (what, count) in rows {
            eprintln!("{count:7}  {what}");
        }
    }
}
