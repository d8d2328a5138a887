#!/usr/bin/env python3
"""Sends prompts to promptyard over RabbitMQ and prints the answers as JSON lines (needs pika 1.3.2).

    python producer.py "What is the capital of France?" "And of Peru?"
    python producer.py --file prompts.jsonl > answers.jsonl

A line of the file is an OpenAI batch line, a chat-completions body, {"prompt": ...} or plain text.
Exit codes: 0 all answered with status 200; 1 some prompts were refused or failed; 2 usage error; 3 the broker is not
available; 4 some answers did not arrive in time.
"""

import argparse
import json
import sys
import time
import uuid

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError


def amqp_url(text):
    if not text.startswith(("amqp://", "amqps://")):
        raise ValueError(text)
    return pika.URLParameters(text)


def read_bodies(arguments):
    """Yields one JSON body for each prompt; a JSON object is sent unchanged."""
    lines = list(arguments.prompts)
    if arguments.file:
        with sys.stdin if arguments.file == "-" else open(arguments.file, encoding="utf-8") as file:
            lines += file
    for line in filter(None, map(str.strip, lines)):
        yield line if line.startswith("{") else json.dumps({"prompt": line}, ensure_ascii=False)


def publish(channel, exchange, reply_queue, body, key):
    """Publishes one body. Returns None once RabbitMQ has confirmed it, otherwise the reason why not."""
    properties = pika.BasicProperties(
        content_type="application/json",
        delivery_mode=pika.DeliveryMode.Persistent,
        message_id=key,  # the idempotency key: one job, however often it is sent
        reply_to=reply_queue,
        correlation_id=key,  # returned with the answer
        timestamp=int(time.time()),
    )
    try:
        channel.basic_publish(exchange, "jobs.in", body.encode(), properties, mandatory=True)
    except NackError:
        return "refused: the queue is full, try again later"
    except UnroutableError:
        return f"unroutable: no queue takes jobs.in of exchange {exchange!r}, has promptyard been started?"
    return None


def collect(channel, reply_queue, waiting, timeout_s):
    """Prints answers until all have arrived or the time is over; returns how many did not succeed."""
    failed, deadline = 0, time.monotonic() + timeout_s
    for _, properties, body in channel.consume(reply_queue, auto_ack=True, inactivity_timeout=0.2):
        if properties and properties.correlation_id in waiting:
            waiting.remove(properties.correlation_id)
            answer = json.loads(body)  # an OpenAI batch output line
            failed += answer["response"]["status_code"] != 200
            print(json.dumps(answer, ensure_ascii=False), flush=True)
        if not waiting or time.monotonic() >= deadline:
            return failed


def produce(arguments, bodies):
    arguments.url.blocked_connection_timeout = arguments.timeout  # a memory alarm blocks publishers
    connection = pika.BlockingConnection(arguments.url)
    channel = connection.channel()
    channel.confirm_delivery()  # basic_publish then waits for the broker's confirm
    reply_queue = channel.queue_declare("", exclusive=True).method.queue
    waiting, refused = set(), 0
    for number, body in enumerate(bodies, 1):
        key = f"{arguments.key}-{number}" if arguments.key else str(uuid.uuid4())
        error = publish(channel, arguments.prefix + "promptyard", reply_queue, body, key)
        if error is None:
            waiting.add(key)
        else:
            refused += 1
            print(f"producer: prompt {number} {error}", file=sys.stderr)
    failed = collect(channel, reply_queue, waiting, arguments.timeout) if waiting else 0
    connection.close()
    if waiting:
        print(f"producer: {len(waiting)} answers missing after {arguments.timeout:g} s", file=sys.stderr)
        return 4
    return 1 if refused or failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", help="prompts, or bodies in JSON")
    parser.add_argument("--file", help="one prompt a line; - is standard input")
    parser.add_argument("--url", type=amqp_url, default="amqp://guest:guest@127.0.0.1:5672/%2f")
    parser.add_argument("--prefix", "--queue-prefix", default="", help="the fleet's broker.prefix")
    parser.add_argument("--key", help="idempotency keys become KEY-1, KEY-2, ...; random if not given")
    parser.add_argument("--timeout", type=float, default=300, help="seconds to wait for the answers")
    arguments = parser.parse_args()
    try:
        bodies = list(read_bodies(arguments))
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"cannot read {arguments.file}: {error}")
    if not bodies:
        parser.error("no prompts: give them as arguments or with --file")
    try:
        return produce(arguments, bodies)
    except ChannelClosedByBroker as error:
        print(f"producer: {error.reply_text}; has promptyard been started?", file=sys.stderr)
        return 3
    except (AMQPError, OSError) as error:
        print(f"producer: the broker cannot be reached: {error!r}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
