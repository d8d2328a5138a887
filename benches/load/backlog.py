"""A flood of one tenant beside another's trickle."""

import argparse
import math
import multiprocessing
import time
from pathlib import Path

from fleet import Fleet
from report import MEGABYTE, latencies, note, plot, say, seconds, table
from servers import Postgres, RabbitMQ
from traffic import Flood, in_process, trickle

SAMPLE_S = 5
# How long the trickle goes on alone once the flood is done.
AFTER_S = 30
# Commits may come this much later than the time that their rows tell.
COMMIT_LAG_S = 3
QUEUES = ("jobs.in", "jobs.small", "jobs.large")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=20_000, help="of the flood [20000]")
    parser.add_argument("--tenants", type=int, default=1, help="that share the flood [1]")
    parser.add_argument("--cache", choices=["exact", "off"], default="exact", help="what the flood's prompts ask for [exact]")
    parser.add_argument("--routers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--engine", default="scripted:latency_ms=5")
    parser.add_argument("--slots", type=int, default=64, help="jobs that a worker runs at once, of each tier [64]")
    parser.add_argument("--set", action="append", default=[], help="a setting of every role, as promptyard takes it")
    parser.add_argument("--limit-s", type=float, default=7200, help="give up after so long [7200]")


def start(args: argparse.Namespace, fleet: Fleet) -> None:
    settings = [word for setting in args.set for word in ("--set", setting)]
    for number in range(args.routers):
        fleet.start(f"router-{number + 1}", "route", *settings)
    engines = ["--small", args.engine, "--large", args.engine]
    slots = ["--set", f"small.batch_max={args.slots}", "--set", f"large.batch_max={args.slots}"]
    for number in range(args.workers):
        fleet.start(f"worker-{number + 1}", "work", "--tier", "small,large", *engines, *slots, *settings)


class Watch:
    """Samples the fleet; counts finished jobs by steps, since counting all of a million each time would be a load of its own."""

    def __init__(self, fleet: Fleet, rabbit: RabbitMQ, postgres: Postgres, confirmed):
        self.fleet, self.rabbit, self.postgres, self.confirmed = fleet, rabbit, postgres, confirmed
        self.begun, self.finished, self.until, self.samples = time.time(), 0, 0.0, []

    def look(self) -> dict:
        self.fleet.check()
        now = time.time()
        until = now - COMMIT_LAG_S
        self.finished += self.postgres.number(
            f"select count(*) from jobs where finished_at > to_timestamp({self.until}) and finished_at <= to_timestamp({until})"
        )
        self.until = until
        size, deferred = self.postgres.rows(
            "select pg_database_size(current_database()), (select n_live_tup from pg_stat_user_tables where relname = 'deferred_jobs')"
        )[0]
        figures = self.rabbit.figures() or {"queues": {}}
        sample = {
            "at_s": now - self.begun, "sent": self.confirmed.value, "finished": self.finished,
            "database_bytes": int(size), "deferred_about": int(deferred or 0),
            "queues": {name: figures["queues"].get(name, 0) for name in QUEUES}, **self.fleet.look(),
        }
        self.samples.append(sample)
        return sample


def show(sample: dict, before: dict | None) -> None:
    passed = sample["at_s"] - before["at_s"] if before else sample["at_s"]
    rate = (sample["finished"] - (before["finished"] if before else 0)) / passed
    memory = sample["memory"]
    most = lambda role: max((of for name, of in memory.items() if name.startswith(role)), default=0) / MEGABYTE
    note(
        f"{sample['at_s']:6.0f} s  sent {sample['sent']:>8}  finished {sample['finished']:>8} ({rate:5.0f}/s)  deferred {sample['deferred_about']:>7}"
        f"  queues {'/'.join(str(n) for n in sample['queues'].values()):>16}  MB router {most('router'):.0f} worker {most('worker'):.0f}"
        f" rabbitmq {memory['rabbitmq'] / MEGABYTE:.0f} postgres {memory['postgres'] / MEGABYTE:.0f}  database {sample['database_bytes'] / MEGABYTE:.0f}"
    )


def read_trickle(file: Path, begun: float, flood_end: float) -> dict:
    """Latencies of the trickle's jobs by when they were sent."""
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    jobs = [(float(at) - begun, float(latency), status) for at, latency, status in lines]
    answered = [(at, latency) for at, latency, _ in jobs if not math.isnan(latency)]
    during = [latency for at, latency in answered if at < flood_end - begun]
    after = [latency for at, latency in answered if at >= flood_end - begun]
    return dict(
        sent=len(jobs), unanswered=len(jobs) - len(answered), not_200=sum(status != "200" for *_, status in jobs),
        during=latencies(during), after=latencies(after), points=answered,
    )


def check(postgres: Postgres, rabbit: RabbitMQ, jobs: int, trickled: int) -> dict:
    """What must hold once all is done: by name, what was found, what was expected."""
    number = postgres.number
    figures = (rabbit.figures() or {"queues": {}})["queues"]
    found = {
        "jobs in the database": (number("select count(*) from jobs"), jobs + trickled),
        "of them with a key of their own": (number("select count(distinct (tenant, key)) from jobs"), jobs + trickled),
        "of them not ended": (number("select count(*) from jobs where finished_at is null"), 0),
        "of them succeeded": (number("select count(*) from jobs where state = 'succeeded'"), jobs + trickled),
        "attempts not ended": (number("select count(*) from attempts where outcome = 'running'"), 0),
        "messages in queues": (sum(figures.get(queue, 0) for queue in QUEUES), 0),
        "jobs deferred": (number("select count(*) from deferred_jobs where released_at is null"), 0),
        "dead letters": (number("select count(*) from dead_letters"), 0),
    }
    return {name: dict(found=of, expected=expected) for name, (of, expected) in found.items()}


def run(args: argparse.Namespace, fleet: Fleet, rabbit: RabbitMQ, postgres: Postgres) -> dict:
    start(args, fleet)
    context = multiprocessing.get_context("fork")
    confirmed, refused, stop = context.Value("l", 0), context.Value("l", 0), context.Event()
    wait_until_declared(rabbit, fleet)
    tenants = ["flood"] if args.tenants == 1 else [f"flood-{number + 1}" for number in range(args.tenants)]
    watch = Watch(fleet, rabbit, postgres, confirmed)
    file = fleet.work / "trickle.tsv"
    trickling = in_process(trickle, rabbit.url, 1.0, file, stop)
    flooding = in_process(Flood, rabbit.url, tenants, args.jobs, args.cache, confirmed, refused)
    before, flood_end, all_sent = None, None, None
    try:
        while flood_end is None or time.time() < flood_end + AFTER_S:
            time.sleep(SAMPLE_S)
            sample = watch.look()
            show(sample, before)
            before = sample
            if all_sent is None and sample["sent"] >= args.jobs:
                all_sent = sample["at_s"]
            if flooding.exitcode:
                raise RuntimeError("the flood's producer ended early")
            if flood_end is None and sample["finished"] >= args.jobs:
                # The trickle's jobs are among the finished ones, so this only says that it may be over.
                last = postgres.rows("select count(*), extract(epoch from max(finished_at)) from jobs where tenant like 'flood%' and finished_at is not null")[0]
                flood_end = float(last[1]) if int(last[0]) >= args.jobs else None
            if sample["at_s"] > args.limit_s:
                note("the time is over; what is there is told")
                break
    finally:
        stop.set()
        trickling.join(150)
        flooding.terminate()
    trickled = read_trickle(file, watch.begun, flood_end or time.time())
    time.sleep(2 * SAMPLE_S)  # RabbitMQ renews its figures every five seconds.
    last = watch.look()
    span = (flood_end or time.time()) - watch.begun
    return dict(
        seconds=span, is_done=flood_end is not None, sent_after_s=all_sent, refused=refused.value,
        jobs_per_second=args.jobs / span if flood_end else last["finished"] / span,
        cpu_ms_per_job={name: 1e3 * of / max(1, last["finished"]) for name, of in last["cpu"].items()},
        trickle=trickled, samples=watch.samples, checks=check(postgres, rabbit, args.jobs, trickled["sent"]),
        extra_attempts=postgres.number("select count(*) from attempts where attempt > 1"),
        states=dict(postgres.rows("select state, count(*) from jobs group by state")),
        tiers=dict(postgres.rows("select coalesce(tier, 'none'), count(*) from jobs group by tier")),
        released_left=postgres.number("select count(*) from deferred_jobs"),
        warnings=fleet.warnings(),
    )


def wait_until_declared(rabbit: RabbitMQ, fleet: Fleet) -> None:
    deadline = time.monotonic() + 60
    while not all(queue in (rabbit.figures() or {"queues": {}})["queues"] for queue in QUEUES):
        fleet.check()
        if time.monotonic() > deadline:
            raise RuntimeError("the routers have not declared their queues after a minute")
        time.sleep(0.5)


def tell(args: argparse.Namespace, results: dict) -> bool:
    samples, trickled = results["samples"], results["trickle"]
    say(f"{args.jobs} jobs of {args.tenants} tenant(s) in {results['seconds']:.0f} s: {results['jobs_per_second']:.0f} jobs/s"
        + ("" if results["is_done"] else " (NOT DONE)"))
    say(f"all sent after {results['sent_after_s'] or math.nan:.0f} s; {results['refused']} times refused because a queue was full; tiers {results['tiers']}")
    say()
    rows = [["part", "MB at start", "at half", "at end", "most", "ms CPU a job"]]
    names = list(samples[0]["memory"])
    for name in names:
        line = [sample["memory"][name] / MEGABYTE for sample in samples]
        rows.append([name, *(f"{mb:.0f}" for mb in (line[0], line[len(line) // 2], line[-1], max(line))), f"{results['cpu_ms_per_job'][name]:.2f}"])
    line = [sample["database_bytes"] / MEGABYTE for sample in samples]
    rows.append(["database on disk", *(f"{mb:.0f}" for mb in (line[0], line[len(line) // 2], line[-1], max(line))), ""])
    table(rows)
    most = {queue: max(sample["queues"][queue] for sample in samples) for queue in QUEUES}
    say(f"\nmost in the queues: {most}; most deferred: about {max(sample['deferred_about'] for sample in samples)}; rows left in deferred_jobs: {results['released_left']}")
    rows = [["trickle, one job a second", "jobs", "p50", "p99", "longest"]]
    for name in ("during", "after"):
        of = trickled[name]
        rows.append([f"{name} the flood", str(of["jobs"]), seconds(of["p50"]), seconds(of["p99"]), seconds(of["max"])])
    table(rows)
    say(f"unanswered {trickled['unanswered']}, answered with another status than 200: {trickled['not_200']}; attempts beyond a job's first: {results['extra_attempts']}")
    say(f"warnings in the logs: {results['warnings']}\n")
    rows = [["check", "found", "expected", ""]]
    holds = results["is_done"]
    for name, of in results["checks"].items():
        is_right = of["found"] == of["expected"]
        holds &= is_right
        rows.append([name, str(of["found"]), str(of["expected"]), "" if is_right else "WRONG"])
    table(rows)
    return holds and trickled["unanswered"] == 0


def draw(path: Path, args: argparse.Namespace, results: dict) -> None:
    samples = results["samples"]
    line = lambda of: [(sample["at_s"], of(sample)) for sample in samples]
    rates = [(b["at_s"], (b["finished"] - a["finished"]) / (b["at_s"] - a["at_s"])) for a, b in zip(samples, samples[1:])]
    memory = {name: line(lambda sample, name=name: sample["memory"][name] / MEGABYTE) for name in samples[0]["memory"]}
    ours = {name: of for name, of in memory.items() if name not in ("rabbitmq", "postgres")}
    servers = {name: memory[name] for name in ("rabbitmq", "postgres")}
    servers["database on disk"] = line(lambda sample: sample["database_bytes"] / MEGABYTE)
    waiting = {queue: line(lambda sample, queue=queue: sample["queues"][queue]) for queue in QUEUES}
    waiting["deferred (about)"] = line(lambda sample: sample["deferred_about"])
    plot(path, f"{args.jobs} jobs of one tenant beside a trickle of another", [
        ("finished jobs a second", {"finished": rates}),
        ("jobs waiting", waiting),
        ("memory of each role, MB", ours),
        ("servers and database, MB", servers),
        ("trickle: seconds from submission to answer", {"trickle": [tuple(point) for point in results["trickle"]["points"]]}),
    ])
