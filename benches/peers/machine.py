"""What the machine gives, and whether it is left to us."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

# Above these shares of the machine, others' work is felt in the figures.
BUSY_SHARE_MAX = 0.05
LOAD_PER_CPU_MAX = 0.3


@dataclass(frozen=True)
class Machine:
    cpu: str
    cpus: int
    threads: int
    load_1min: float
    busy_share: float

    @classmethod
    def here(cls, threads: int | None) -> "Machine":
        cpus = os.cpu_count() or 1
        return cls(cpu_name(), cpus, threads or usable_cpus(), os.getloadavg()[0], others_share())

    @property
    def quiet(self) -> bool:
        return self.busy_share <= BUSY_SHARE_MAX and self.load_1min <= LOAD_PER_CPU_MAX * self.cpus

    def warnings(self) -> list[str]:
        state = f"load average {self.load_1min:.2f} on {self.cpus} CPUs, others use {self.busy_share:.0%} now"
        if self.quiet:
            return [f"the machine is quiet ({state})"]
        return [f"THE MACHINE IS NOT QUIET: {state}; ratios hold better than figures, and neither well"]

    def as_json(self) -> dict:
        return vars(self) | {"quiet": self.quiet, "system": platform.platform()}


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def usable_cpus() -> int:
    """CPUs that the process may use at once: its affinity, and the cgroup's quota rounded down, at least one."""
    cpus = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        share, period = quota.read_text().split()
        if share != "max":
            cpus = min(cpus, int(share) // int(period))
    return max(cpus, 1)


def others_share(seconds: float = 1.0) -> float:
    """Share of the machine's time in use while this process sleeps, other virtual machines' included."""

    def times() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    whole, idle = times()
    time.sleep(seconds)
    whole_then, idle_then = times()
    return 1 - (idle_then - idle) / max(whole_then - whole, 1)
