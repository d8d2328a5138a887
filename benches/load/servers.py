"""A RabbitMQ and a Postgres of our own, in a folder of our own, on free ports; ended by their pids."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

START_S = 120
# What any installation that expects load sets; everything else is the server's default, fsync included.
POSTGRES_SETTINGS = ("max_connections=200", "shared_buffers=512MB", "max_wal_size=4GB")


class Failed(Exception):
    """A server did not start; the message says where its log lies."""


def free_port() -> int:
    """Below the ports that the system gives to clients: one of those might be taken by the time it is used."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def first_of(*paths: str) -> str:
    for path in paths:
        if path and os.access(path, os.X_OK):
            return path
    raise Failed(f"none of these can be run: {', '.join(filter(None, paths))}")


def tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"


def wait_for(what: str, is_there, process: subprocess.Popen | None, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not is_there():
        if (process and process.poll() is not None) or time.monotonic() > deadline:
            raise Failed(f"{what} did not start:\n{tail(log)}")
        time.sleep(0.3)


class Postgres:
    """Runs as the user postgres where we are root, since it refuses to run as that."""

    def __init__(self, work: Path, statements: bool = False):
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        which = Path(shutil.which("initdb") or "/none/initdb").parent
        self.bin = Path(first_of(*(str(folder / "initdb") for folder in (*reversed(folders), which)))).parent
        self.psql = first_of(str(self.bin / "psql"), shutil.which("psql") or "")
        self.port, self.home = free_port(), work / "postgres"
        self.data, self.log = self.home / "data", self.home / "log"
        self.home.mkdir()
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self.as_user:
            shutil.chown(self.home, "postgres")
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = f"-p {self.port} -k {self.home} -c listen_addresses=127.0.0.1 " + " ".join(
            f"-c {setting}" for setting in (*POSTGRES_SETTINGS, *(["shared_preload_libraries=pg_stat_statements"] if statements else []))
        )
        self._run("pg_ctl", "-D", self.data, "-w", "-t", "60", "-l", self.log, "-o", options, "start")
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres"
        self.is_counting = statements
        if statements:
            self.rows("create extension pg_stat_statements")

    def _run(self, command: str, *arguments) -> None:
        done = subprocess.run([*self.as_user, str(self.bin / command), *map(str, arguments)], cwd="/", text=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode:
            raise Failed(f"{command} of {self.bin} failed: {done.stderr.strip()}\n{tail(self.log)}")

    def rows(self, query: str) -> list[list[str]]:
        """Asks by psql: the standard library speaks no Postgres."""
        command = [self.psql, "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-XAtq", "-F", "\t", "-c", query]
        environment = {**os.environ, "PGOPTIONS": "-c search_path=promptyard,public", "PGAPPNAME": "load"}
        done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return [line.split("\t") for line in done.stdout.splitlines()]

    def statements(self, most: int = 15) -> list[dict]:
        """The statements that took longest in sum."""
        if not self.is_counting:
            return []
        rows = self.rows(
            "select calls, total_exec_time, rows, regexp_replace(query, '\\s+', ' ', 'g') from pg_stat_statements"
            f" where query !~ 'pg_database_size|pg_stat' order by total_exec_time desc limit {most}"
        )
        return [dict(calls=int(calls), ms=float(ms), rows=int(count), query=query[:160]) for calls, ms, count, query in rows]

    def number(self, query: str) -> int:
        return int(self.rows(query)[0][0] or 0)

    def pids(self) -> list[int]:
        """The server and every process of its own."""
        try:
            parent = int((self.data / "postmaster.pid").read_text().split()[0])
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except (OSError, IndexError):
            return []
        return [parent, *map(int, children)]

    def stop(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")


class RabbitMQ:
    """A node with an address book (epmd), a cookie and folders of its own; it tells its figures over HTTP."""

    def __init__(self, work: Path):
        # Debian's command in PATH changes to another user and its folders; the one behind it does not.
        server = first_of("/usr/lib/rabbitmq/bin/rabbitmq-server", shutil.which("rabbitmq-server") or "")
        self.home, self.port, self.figures_port, self.epmd_port = work / "rabbitmq", free_port(), free_port(), free_port()
        self.home.mkdir()
        (self.home / "enabled_plugins").write_text("[rabbitmq_prometheus].\n")
        (self.home / "rabbitmq.conf").write_text(f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {self.figures_port}\n")
        environment = {
            "PATH": "/usr/sbin:" + os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self.epmd_port), "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"promptyard-load-{os.getpid()}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()), "RABBITMQ_MNESIA_BASE": str(self.home / "data"),
            "RABBITMQ_LOG_BASE": str(self.home / "log"), "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"), "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.home / "none"),
            "RABBITMQ_PID_FILE": str(self.home / "pid"), "ERL_CRASH_DUMP": str(self.home / "crash"),
        }
        log = self.home / "out"
        with log.open("wb") as out:
            self.process = subprocess.Popen([server], env=environment, stdout=out, stderr=out, start_new_session=True)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/%2f"
        wait_for("RabbitMQ", lambda: self._answers() and self.figures() is not None, self.process, log)

    def _answers(self) -> bool:
        import pika

        try:
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (OSError, pika.exceptions.AMQPError):
            return False
        return True

    def figures(self) -> dict | None:
        """Connections, channels, and each queue's ready and unacknowledged messages."""
        families = "family=queue_coarse_metrics&family=connection_coarse_metrics&family=channel_metrics"
        try:
            url = f"http://127.0.0.1:{self.figures_port}/metrics/detailed?{families}"
            text = urllib.request.urlopen(url, timeout=10).read().decode()
        except OSError:
            return None
        queues, connections, channels = {}, set(), set()
        for line in text.splitlines():
            name, _, rest = line.partition("{")
            labels, _, value = rest.partition("} ")
            if name == "rabbitmq_detailed_queue_messages":
                queues[labels.rpartition('queue="')[2].rstrip('"')] = int(float(value))
            elif name.startswith("rabbitmq_detailed_connection_"):
                connections.add(labels)
            elif name.startswith("rabbitmq_detailed_channel_"):
                channels.add(labels)
        return dict(queues=queues, connections=len(connections), channels=len(channels))

    def pids(self) -> list[int]:
        """The virtual machine: the server command is a script around it."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = path.read_text().rpartition(")")
                if "(beam.smp" in words[0] and int(words[2].split()[3]) == self.process.pid:
                    found.append(int(path.parent.name))
            except (OSError, ValueError, IndexError):
                continue
        return found

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        # Only the address book at our own port.
        subprocess.run(["epmd", "-kill"], env={**os.environ, "ERL_EPMD_PORT": str(self.epmd_port)}, capture_output=True)
