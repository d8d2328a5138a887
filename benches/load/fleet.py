"""The roles as processes, and what the operating system says of them."""

import os
import signal
import subprocess
import time
from pathlib import Path

from servers import Failed, Postgres, RabbitMQ, tail

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def memory_bytes(pids: list[int], shared: bool = False) -> int:
    """Resident memory; with `shared`, what several processes share counts once."""
    total = 0
    for pid in pids:
        path, name = (f"/proc/{pid}/smaps_rollup", "Pss:") if shared else (f"/proc/{pid}/status", "VmRSS:")
        try:
            with open(path) as file:
                total += next((int(line.split()[1]) * 1024 for line in file if line.startswith(name)), 0)
        except OSError:
            continue
    return total


def open_files(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        try:
            total += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
    return total


def cpu_seconds(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return total / CLOCK_TICKS


class Fleet:
    """Roles over one broker and one job database."""

    def __init__(self, binary: Path, work: Path, rabbit: RabbitMQ, postgres: Postgres):
        self.binary, self.work, self.rabbit, self.postgres = binary, work, rabbit, postgres
        self.roles: dict[str, subprocess.Popen] = {}
        self.promptyard("migrate", "--store", postgres.url)

    def promptyard(self, *arguments: str) -> str:
        done = subprocess.run([str(self.binary), *arguments], text=True, capture_output=True, timeout=120)
        if done.returncode:
            raise Failed(f"promptyard {arguments[0]}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def start(self, name: str, role: str, *arguments: str) -> None:
        log = (self.work / f"{name}.log").open("wb")
        command = [str(self.binary), role, "--broker", self.rabbit.url, "--store", self.postgres.url, "--metrics-listen", "", *arguments]
        self.roles[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def check(self) -> None:
        for name, process in self.roles.items():
            if process.poll() is not None:
                raise Failed(f"{name} ended with {process.returncode}:\n{tail(self.work / f'{name}.log')}")

    def pids(self) -> dict[str, list[int]]:
        return {
            **{name: [process.pid] for name, process in self.roles.items()},
            "rabbitmq": self.rabbit.pids(),
            "postgres": self.postgres.pids(),
        }

    def look(self) -> dict:
        """Memory, open files and CPU time of every part."""
        pids = self.pids()
        return {
            "memory": {name: memory_bytes(of, shared=name == "postgres") for name, of in pids.items()},
            "files": {name: open_files(of) for name, of in pids.items()},
            "cpu": {name: cpu_seconds(of) for name, of in pids.items()},
        }

    def warnings(self) -> dict[str, int]:
        """Lines of each role's log that warn, or tell an error."""
        found = {}
        for name in self.roles:
            text = (self.work / f"{name}.log").read_text(errors="replace")
            found[name] = sum(" WARN " in line or " ERROR " in line for line in text.splitlines())
        return found

    def stop(self) -> None:
        for process in self.roles.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 40
        for process in self.roles.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
