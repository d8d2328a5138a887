"""Mixed traffic at a steady share of what the workers can take, to see whether anything grows."""

import argparse
import datetime
import http.client
import itertools
import json
import math
import queue
import random
import threading
import time
from pathlib import Path

import pika

from backlog import QUEUES, wait_until_declared
from fleet import Fleet
from report import MEGABYTE, latencies, median, note, plot, say, seconds, table
from servers import Postgres, RabbitMQ, free_port
from traffic import EXCHANGE, KEY, properties

SAMPLE_S = 10
# Until caches, pools and windows have filled.
WARM_S = 60
# For retries after a minute, and what was asked for later.
DRAIN_S = 240
ROUTERS, WORKERS, PLACES = 2, 2, 8
# Longest prompt in words; more fail at once where the job may not escalate.
CONTEXT = 64
POISON = "BOOM"
# Milliseconds that an answer takes: least, and up to so many more; and what claiming and settling add.
LATENCY = {"small": (300, 300), "large": (400, 400)}
OVERHEAD_MS = 60
POISON_EVERY_S = 180
# Kinds of jobs, and how many of a hundred are of them.
KINDS = {"plain": 58, "repeat": 16, "wait": 6, "http": 6, "cancel": 4, "later": 4, "deadline": 4, "long": 2}
# What each kind may end as.
ENDS = {
    "plain": {"succeeded"}, "repeat": {"succeeded"}, "wait": {"succeeded"}, "http": {"succeeded"}, "later": {"succeeded"},
    "cancel": {"cancelled", "succeeded"}, "deadline": {"expired", "succeeded"}, "long": {"failed"}, "poison": {"failed"},
}
TENANTS = {"acme": 50, "bulk": 40, "free": 10}
LIMITS = {"acme": ("--weight", "3", "--running-max", "48"), "bulk": ("--tokens-per-minute", "90000")}
HTTP_THREADS = 24
# Calls that wait for a client; where the fleet is slow, more would only go on long after the end.
HTTP_WAITING_MAX = 100
# Growth from the first to the last tenth that counts as noise: a share, and an amount.
NOISE = {"memory": (0.10, 8 * MEGABYTE), "files": (0.10, 4), "connections": (0.10, 3), "channels": (0.10, 3), "sessions": (0.10, 4), "latency": (0.5, 0.3)}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--load", type=float, default=0.8, help="share of what the workers' slots can take [0.8]")
    parser.add_argument("--seed", type=int, default=1)


def capacity() -> float:
    """Jobs a second that the slots can compute, half of them on each tier."""
    per_tier = [WORKERS * PLACES / ((least + more / 2 + OVERHEAD_MS) / 1e3) for least, more in LATENCY.values()]
    return 2 * min(per_tier)


class Traffic:
    """Sends until told to stop, and keeps account of what was accepted, answered and refused."""

    def __init__(self, args: argparse.Namespace, amqp_url: str, http_port: int):
        self.random, self.amqp_url, self.http_port = random.Random(args.seed), amqp_url, http_port
        computed = (100 - KINDS["repeat"] - KINDS["long"]) / 100
        self.rate = args.load * capacity() / computed
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.accepted: dict[str, int] = dict.fromkeys([*KINDS, "poison"], 0)
        self.awaited: dict[str, float] = {}
        self.latencies: list[tuple[float, float]] = []
        self.errors: dict[str, int] = {}
        self.calls: queue.Queue = queue.Queue(HTTP_WAITING_MAX)
        # Calls that were not made since all clients were waiting for answers.
        self.skipped = 0
        self.numbers = itertools.count()
        self.threads = [threading.Thread(target=self._guard, args=(work,), daemon=True)
                        for work in (self.publish, self.listen, *[self.call] * HTTP_THREADS)]
        self.replies, self.ready = "", threading.Event()

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def _guard(self, work) -> None:
        try:
            work()
        except Exception as error:  # A producer that ends early is told, and makes the run fail.
            self.count(f"{work.__name__} ended: {error!r}")

    def count(self, error: str) -> None:
        with self.lock:
            self.errors[error] = self.errors.get(error, 0) + 1

    def accept(self, kind: str) -> None:
        with self.lock:
            self.accepted[kind] += 1

    def job(self, kind: str) -> tuple[str, dict]:
        """A key and a body."""
        choice, number = self.random, next(self.numbers)
        tenant = choice.choices(list(TENANTS), TENANTS.values())[0]
        extension = {"tenant": tenant, "escalate": False}
        body = {"model": choice.choice(("small", "large")), "max_tokens": 32, "promptyard": extension}
        text = f"job {number} asks how far {choice.randrange(10**9)} wagons go"
        if kind == "repeat":
            # Some of the same for a while, then others.
            text = f"what everybody asks: number {choice.randrange(40)} of hour {int(time.time() // 600)}"
            body["model"] = "small"
        elif kind == "long":
            text += " word" * CONTEXT
        elif kind == "poison":
            text += " " + POISON
        elif kind == "deadline":
            extension["deadline_ms"] = choice.choice((150, 400, 800, 3000, 20_000))
        elif kind == "later":
            start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=choice.uniform(5, 60))
            extension["not_before"] = start.isoformat()
        body["prompt" if kind not in ("wait",) else "messages"] = text if kind != "wait" else [{"role": "user", "content": text}]
        return f"{kind}-{number}", body

    def publish(self) -> None:
        """Sends over AMQP what goes there, and hands the rest to those who speak HTTP; Poisson arrivals in waves."""
        self.ready.wait(30)
        connection = pika.BlockingConnection(pika.URLParameters(self.amqp_url))
        channel = connection.channel()
        channel.confirm_delivery()
        begun = due = time.time()
        poison = begun + POISON_EVERY_S / 2
        while not self.stop.is_set():
            wait = due - time.time()
            if wait > 0:
                connection.process_data_events(time_limit=0)
                time.sleep(min(wait, 0.2))
                continue
            kind = self.random.choices(list(KINDS), KINDS.values())[0]
            if time.time() > poison:
                kind, poison = "poison", poison + POISON_EVERY_S
            key, body = self.job(kind)
            if kind in ("wait", "http", "cancel"):
                try:
                    self.calls.put_nowait((kind, key, body))
                except queue.Full:
                    self.skipped += 1
            else:
                with self.lock:
                    self.awaited[key] = time.time()
                channel.basic_publish(EXCHANGE, KEY, json.dumps(body).encode(), properties(key, self.replies), mandatory=True)
                self.accept(kind)
            wave = 1 + 0.25 * math.sin(2 * math.pi * (time.time() - begun) / 120)
            due += self.random.expovariate(self.rate * wave)
        connection.close()

    def listen(self) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(self.amqp_url))
        channel = connection.channel()
        self.replies = channel.queue_declare("", exclusive=True).method.queue
        self.ready.set()
        for _, reply, _ in channel.consume(self.replies, auto_ack=True, inactivity_timeout=0.5):
            if reply is not None:
                now = time.time()
                with self.lock:
                    sent = self.awaited.pop(reply.correlation_id, None)
                    if sent is not None and reply.correlation_id.startswith("plain"):
                        self.latencies.append((now, now - sent))
            elif self.stop.is_set() and (not self.awaited or time.time() > self.stopped_at + DRAIN_S):
                break
        connection.close()

    def call(self) -> None:
        """One client of the HTTP interface, with a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=320)
        while not self.stop.is_set():
            try:
                kind, key, body = self.calls.get(timeout=0.5)
            except queue.Empty:
                continue
            if kind == "wait":
                status, _ = self.request(connection, "/v1/chat/completions", body, key)
            else:
                status, answer = self.request(connection, "/v1/jobs", body, key)
            if status not in (200, 202):
                self.count(f"{kind}: HTTP {status}")
                continue
            self.accept(kind)
            if kind == "cancel":
                time.sleep(self.random.choice((0, 0.3, 1, 2)))
                status, _ = self.request(connection, f"/v1/jobs/{answer['id']}/cancel", {}, None)
                # 409: it had ended.
                if status not in (200, 409):
                    self.count(f"cancelling: HTTP {status}")

    def request(self, connection, path: str, body: dict, key: str | None) -> tuple[int, dict]:
        headers = {"content-type": "application/json"} | ({"idempotency-key": key} if key else {})
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        except (OSError, http.client.HTTPException) as error:
            self.count(f"HTTP: {error!r}")
            connection.close()
            return 0, {}

    def end(self) -> None:
        self.stopped_at = time.time()
        self.stop.set()


class Watch:
    def __init__(self, fleet: Fleet, rabbit: RabbitMQ, postgres: Postgres, traffic: Traffic):
        self.fleet, self.rabbit, self.postgres, self.traffic = fleet, rabbit, postgres, traffic
        self.begun, self.samples = time.time(), []

    def look(self) -> dict:
        self.fleet.check()
        now = time.time()
        sessions, size, deferred, finished = map(int, self.postgres.rows(
            "select (select count(*) from pg_stat_activity where backend_type = 'client backend' and application_name <> 'load'),"
            " pg_database_size(current_database()), (select count(*) from deferred_jobs where released_at is null),"
            f" (select count(*) from jobs where finished_at > to_timestamp({now - 60}))"
        )[0])
        figures = self.rabbit.figures() or {"queues": {}, "connections": 0, "channels": 0}
        recent = [latency for at, latency in self.traffic.latencies[-20_000:] if at > now - 60]
        sample = {
            "at_s": now - self.begun, "accepted": sum(self.traffic.accepted.values()), "finished_last_minute": finished,
            "database_bytes": size, "deferred": deferred, "sessions": sessions, "connections": figures["connections"], "channels": figures["channels"],
            "queues": {name: figures["queues"].get(name, 0) for name in QUEUES}, "latency": latencies(recent), **self.fleet.look(),
        }
        self.samples.append(sample)
        return sample


def show(sample: dict) -> None:
    memory = " ".join(f"{name} {of / MEGABYTE:.0f}" for name, of in sample["memory"].items())
    note(
        f"{sample['at_s']:6.0f} s  accepted {sample['accepted']:>7}  ended in the last minute {sample['finished_last_minute']:>5}  deferred {sample['deferred']:>4}"
        f"  queues {'/'.join(str(n) for n in sample['queues'].values()):>10}  p50 {seconds(sample['latency']['p50'])} p99 {seconds(sample['latency']['p99'])}"
        f"  sessions {sample['sessions']}  connections {sample['connections']} channels {sample['channels']}  files {sum(sample['files'].values())}  MB {memory}"
    )


def start(fleet: Fleet) -> int:
    for tenant, terms in LIMITS.items():
        fleet.promptyard("tenant", "set", tenant, *terms, "--store", fleet.postgres.url)
    for number in range(ROUTERS):
        fleet.start(f"router-{number + 1}", "route")
    engine = {tier: f"scripted:model={tier},latency_ms={least},jitter_ms={more},context={CONTEXT},poison={POISON}" for tier, (least, more) in LATENCY.items()}
    for number in range(WORKERS):
        fleet.start(f"worker-{number + 1}", "work", "--tier", "small,large", "--small", engine["small"], "--large", engine["large"],
                    "--set", f"small.batch_max={PLACES}", "--set", f"large.batch_max={PLACES}")
    port = free_port()
    fleet.start("api", "serve", "--listen", f"127.0.0.1:{port}")
    return port


def run(args: argparse.Namespace, fleet: Fleet, rabbit: RabbitMQ, postgres: Postgres) -> dict:
    port = start(fleet)
    wait_until_declared(rabbit, fleet)
    time.sleep(3)
    traffic = Traffic(args, rabbit.url, port)
    watch = Watch(fleet, rabbit, postgres, traffic)
    note(f"{traffic.rate:.1f} jobs/s, {args.load:.0%} of the slots' capacity of {capacity():.1f} computed jobs/s")
    traffic.start()
    end = time.time() + 60 * args.minutes
    while time.time() < end:
        time.sleep(SAMPLE_S)
        sample = watch.look()
        if len(watch.samples) % 6 == 1:
            show(sample)
    steady = [sample for sample in watch.samples if sample["at_s"] >= WARM_S] or watch.samples
    traffic.end()
    deadline = time.time() + DRAIN_S
    while time.time() < deadline and (postgres.number("select count(*) from jobs where finished_at is null") or traffic.awaited):
        time.sleep(2)
    time.sleep(2 * 5)  # RabbitMQ renews its figures every five seconds.
    show(watch.look())
    busy = float(postgres.rows("select coalesce(sum(extract(epoch from finished_at - started_at)), 0) from attempts where started_at is not null")[0][0])
    return dict(
        rate=traffic.rate, capacity=capacity(), accepted=traffic.accepted, errors=traffic.errors, skipped=traffic.skipped, unanswered=len(traffic.awaited),
        slots_busy=busy / (steady[-1]["at_s"] * 2 * WORKERS * PLACES), latency=latencies([latency for _, latency in traffic.latencies]),
        growth=growth(steady), checks=check(postgres, rabbit, traffic), samples=watch.samples, warnings=fleet.warnings(),
        attempts=dict(postgres.rows("select outcome, count(*) from attempts group by outcome")),
        sources=dict(postgres.rows("select coalesce(source, 'none'), count(*) from jobs group by source")),
    )


def growth(steady: list[dict]) -> list[dict]:
    """What there was in the first tenth and in the last, and whether that is more than noise."""
    tenth = max(1, len(steady) // 10)
    first, last = steady[:tenth], steady[-tenth:]
    ways = [(f"{what} of {name}", what, lambda sample, what=what, name=name: sample[what][name]) for what in ("memory", "files") for name in steady[0][what]]
    ways += [(f"{what}", what, lambda sample, what=what: sample[what]) for what in ("sessions", "connections", "channels")]
    ways += [(f"latency {share}", "latency", lambda sample, share=share: sample["latency"][share]) for share in ("p50", "p99")]
    found = []
    for name, what, of in ways:
        before, after = median([of(sample) for sample in first]), median([of(sample) for sample in last])
        share, amount = NOISE[what]
        # Segments, processes and pages come and go in the servers; they are told, not judged.
        is_ours = not name.endswith((" rabbitmq", " postgres"))
        found.append(dict(name=name, what=what, first=before, last=after, is_judged=is_ours, grew=is_ours and after > before * (1 + share) + amount))
    return found


def check(postgres: Postgres, rabbit: RabbitMQ, traffic: Traffic) -> dict:
    number = postgres.number
    figures = (rabbit.figures() or {"queues": {}})["queues"]
    accepted = sum(traffic.accepted.values())
    found = {
        "jobs in the database": (number("select count(*) from jobs"), accepted),
        "of them with a key of their own": (number("select count(distinct (tenant, key)) from jobs"), accepted),
        "of them not ended": (number("select count(*) from jobs where finished_at is null"), 0),
        "attempts not ended": (number("select count(*) from attempts where outcome = 'running'"), 0),
        "begun before their time": (number("select count(*) from jobs where started_at < not_before"), 0),
        "messages in queues": (sum(figures.get(queue, 0) for queue in QUEUES), 0),
        "jobs deferred": (number("select count(*) from deferred_jobs where released_at is null"), 0),
        "replies missing": (len(traffic.awaited), 0),
        "producer errors": (sum(traffic.errors.values()), 0),
    }
    states = postgres.rows("select split_part(key, '-', 1), state, count(*) from jobs group by 1, 2 order by 1, 2")
    for kind, state, count in states:
        is_right = state in ENDS.get(kind, set())
        found[f"{kind}: {state}"] = (int(count), int(count) if is_right else 0)
    return {name: dict(found=of, expected=expected) for name, (of, expected) in found.items()}


def amount(what: str, value: float) -> str:
    return {"memory": f"{value / MEGABYTE:.1f} MB", "latency": seconds(value)}.get(what, f"{value:.0f}")


def tell(args: argparse.Namespace, results: dict) -> bool:
    accepted = sum(results["accepted"].values())
    say(f"{args.minutes:g} minutes, {accepted} jobs accepted ({accepted / args.minutes / 60:.1f}/s), slots busy {results['slots_busy']:.0%}")
    latency = results["latency"]
    say(f"plain jobs over AMQP: {latency['jobs']} answers, p50 {seconds(latency['p50'])}, p99 {seconds(latency['p99'])}, longest {seconds(latency['max'])}")
    say(f"attempts {results['attempts']}; answers {results['sources']}; producer errors {results['errors']}; HTTP calls left out {results['skipped']}")
    say(f"warnings in the logs: {results['warnings']}\n")
    rows = [["median of", "first tenth", "last tenth", "change", ""]]
    holds = True
    for of in results["growth"]:
        change = (of["last"] / of["first"] - 1) if of["first"] else 0
        rows.append([of["name"], amount(of["what"], of["first"]), amount(of["what"], of["last"]), f"{change:+.1%}",
                     "GREW" if of["grew"] else "" if of["is_judged"] else "not judged"])
        holds &= not of["grew"]
    table(rows)
    say()
    rows = [["check", "found", "expected", ""]]
    for name, of in results["checks"].items():
        is_right = of["found"] == of["expected"]
        holds &= is_right
        rows.append([name, str(of["found"]), str(of["expected"]), "" if is_right else "WRONG"])
    table(rows)
    return holds


def draw(path: Path, args: argparse.Namespace, results: dict) -> None:
    samples = results["samples"]
    line = lambda of: [(sample["at_s"], of(sample)) for sample in samples]
    by_part = lambda what, scale: {name: line(lambda sample, name=name: sample[what][name] / scale) for name in samples[0][what]}
    memory = by_part("memory", MEGABYTE)
    plot(path, f"{args.minutes:g} minutes of mixed traffic", [
        ("jobs that ended within a minute", {"jobs": line(lambda sample: sample["finished_last_minute"])}),
        ("memory of each role, MB", {name: of for name, of in memory.items() if name not in ("rabbitmq", "postgres")}),
        ("servers and database, MB", {**{name: memory[name] for name in ("rabbitmq", "postgres")}, "database": line(lambda sample: sample["database_bytes"] / MEGABYTE)}),
        ("open files", by_part("files", 1)),
        ("connections", {name: line(lambda sample, name=name: sample[name]) for name in ("sessions", "connections", "channels")}),
        ("jobs waiting", {**{queue: line(lambda sample, queue=queue: sample["queues"][queue]) for queue in QUEUES}, "deferred": line(lambda sample: sample["deferred"])}),
        ("plain jobs over AMQP, seconds", {share: line(lambda sample, share=share: sample["latency"][share]) for share in ("p50", "p99")}),
    ])
