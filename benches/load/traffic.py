"""Producers: a flood as fast as it is confirmed, and a trickle that measures what a job of its own takes.

Each runs in a process of its own, so that one's work does not count as the other's waiting.
"""

import json
import multiprocessing
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pika

EXCHANGE, KEY = "promptyard", "jobs.in"
# Messages whose confirmation is awaited at once.
UNCONFIRMED_MAX = 2000
PROMPTS = (
    "What is the capital of country {n}?",
    "Say hello to customer {n}.",
    "If {n} pens cost 4.50 and every third one is free, how much do {n} pens and 7 pencils at 0.35 cost? Explain each step.",
    "Is ticket {n} about billing or about delivery?",
    "Prove that {n} squared plus {n} is even, and name the theorem that you use.",
)
# Small prompts score alike, so the producers say the tier themselves, in turn.
MODELS = ("small", "large")


def body(n: int, tenant: str, cache: str = "exact") -> bytes:
    text = f"[{tenant}] " + PROMPTS[n % len(PROMPTS)].format(n=n)
    return json.dumps(
        {"prompt": text, "model": MODELS[n % len(MODELS)], "max_tokens": 16, "promptyard": {"tenant": tenant, "cache": cache}}
    ).encode()


def properties(key: str, reply_to: str | None = None) -> pika.BasicProperties:
    return pika.BasicProperties(
        content_type="application/json", delivery_mode=2, message_id=key, reply_to=reply_to, correlation_id=key,
        timestamp=int(time.time()),
    )


class Flood:
    """Publishes `jobs` messages; what the broker refuses because a queue is full is sent again."""

    def __init__(self, url: str, tenants: list[str], jobs: int, cache: str, confirmed: Synchronized, refused: Synchronized):
        self.tenants, self.jobs, self.cache = tenants, jobs, cache
        self.confirmed, self.refused = confirmed, refused
        self.next, self.tag, self.in_flight, self.again = 0, 0, {}, []
        self.connection = pika.SelectConnection(pika.URLParameters(url), on_open_callback=lambda c: c.channel(on_open_callback=self.open))
        self.connection.ioloop.start()

    def open(self, channel) -> None:
        self.channel = channel
        channel.confirm_delivery(self.heard, callback=lambda _: self.publish())

    def heard(self, frame) -> None:
        method = frame.method
        tags = [tag for tag in self.in_flight if tag <= method.delivery_tag] if method.multiple else [method.delivery_tag]
        numbers = [self.in_flight.pop(tag) for tag in tags if tag in self.in_flight]
        if isinstance(method, pika.spec.Basic.Ack):
            self.confirmed.value += len(numbers)
            self.publish()
        else:
            self.refused.value += len(numbers)
            self.again += numbers
            self.connection.ioloop.call_later(0.2, self.publish)
        if self.confirmed.value >= self.jobs:
            self.connection.ioloop.stop()

    def publish(self) -> None:
        while len(self.in_flight) < UNCONFIRMED_MAX and (self.again or self.next < self.jobs):
            if self.again:
                number = self.again.pop()
            else:
                number, self.next = self.next, self.next + 1
            tenant = self.tenants[number % len(self.tenants)]
            self.tag += 1
            self.in_flight[self.tag] = number
            self.channel.basic_publish(EXCHANGE, KEY, body(number, tenant, self.cache), properties(f"{tenant}-{number}"))


def trickle(url: str, every_s: float, file: Path, stop) -> None:
    """One job every so often until told to stop; writes when each was sent and when its answer came."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    replies = channel.queue_declare("", exclusive=True).method.queue
    sent: dict[str, float] = {}
    with file.open("w", buffering=1) as out:

        def answered(_channel, _method, reply, answer) -> None:
            begun = sent.pop(reply.correlation_id, None)
            if begun is not None:
                status = json.loads(answer)["response"]["status_code"]
                out.write(f"{begun}\t{time.time() - begun}\t{status}\n")

        channel.basic_consume(replies, answered, auto_ack=True)
        number, due, give_up = 0, time.time(), None
        while give_up is None or (sent and time.time() < give_up):
            if stop.is_set() and give_up is None:
                give_up = time.time() + 120
            if give_up is None and time.time() >= due:
                key = f"trickle-{number}"
                sent[key] = time.time()
                channel.basic_publish(EXCHANGE, KEY, body(number, "trickle"), properties(key, replies))
                number, due = number + 1, due + every_s
            connection.process_data_events(time_limit=max(0.0, min(due - time.time(), 0.2)))
        for begun in sent.values():
            out.write(f"{begun}\tnan\t0\n")
    connection.close()


def in_process(function, *arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments, daemon=True)
    process.start()
    return process
