"""How long requests queue under different ways to balance them: a simulation, in virtual time.

Servers with continuous batching: each decodes up to `SLOTS` rows at once, and requests wait in
line for theirs. Lengths are skewed (most answers are short, some very long), some requests are beam
searches of several rows, and what a request asks for is more than what it gets. The gateway's own
policies, leases and corrections run here unchanged.

    .venv/bin/python -m benchmarks.gateway.balancing
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import operator
import random
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from client.health.load import Lease
from client.health.replica import Replica, ReplicaState
from client.routing.policies import POLICIES, Policy
from utils.commands import with_interpreter

SLOTS = 8
TOKENS_PER_SECOND = 20.0
"""Of each slot."""


@dataclass(eq=False)
class Job:
    """One request: `asked` is its `max_new_tokens`, `tokens` what it will really generate."""

    arrives: float
    asked: int
    tokens: int
    rows: int
    starts: float = 0.0
    lease: Lease | None = None


@dataclass(eq=False)
class Server:
    """A server as the balancer sees it (`replica`) and as it is."""

    replica: Replica
    running: set[Job] = field(default_factory=set)
    waiting: deque[Job] = field(default_factory=deque)

    def pending_tokens(self, now: float) -> int:
        """What it reports: the work it still expects, from what was asked."""
        done = sum(int((now - job.starts) * TOKENS_PER_SECOND) * job.rows for job in self.running)
        return max(0, sum(job.asked * job.rows for job in (*self.running, *self.waiting)) - done)

    def has_room(self, job: Job) -> bool:
        return sum(job.rows for job in self.running) + job.rows <= SLOTS


def traffic(requests: int, servers: int, utilisation: float, seed: int) -> list[Job]:
    """Poisson arrivals; lengths log-normal (median 40, mean 123), cut at 2,048; a sixth has 4 rows."""
    dice = random.Random(seed)
    jobs, now = [], 0.0
    lengths = [min(2048, max(1, round(dice.lognormvariate(3.7, 1.5)))) for _ in range(requests)]
    asked = [min(4096, round(tokens * dice.uniform(1.0, 3.0))) for tokens in lengths]
    rows = [dice.choice((1, 1, 1, 1, 1, 4)) for _ in lengths]
    work = statistics.mean(map(operator.mul, lengths, rows))
    rate = utilisation * servers * SLOTS * TOKENS_PER_SECOND / work
    for tokens, limit, width in zip(lengths, asked, rows, strict=True):
        now += dice.expovariate(rate)
        jobs.append(Job(now, limit, tokens, width))
    return jobs


def simulate(policy: Policy, jobs: Sequence[Job], count: int) -> list[float]:
    """Seconds that each of `jobs` waited for a slot on the one of `count` servers it was given."""
    servers = {server.replica: server for server in map(Server, map(_replica, range(count)))}
    candidates = list(servers)
    turns = itertools.count()
    serial = itertools.count()
    ends: list[tuple[float, int, Server, Job]] = []

    def start(server: Server, job: Job, now: float) -> None:
        job.starts = now
        server.running.add(job)
        heapq.heappush(ends, (now + job.tokens / TOKENS_PER_SECOND, next(serial), server, job))

    def end_until(now: float) -> None:
        while ends and ends[0][0] <= now:
            at, _, server, job = heapq.heappop(ends)
            server.running.discard(job)
            if job.lease is not None:
                job.lease.__exit__(None, None, None)
            server.replica.load.report_tokens(server.pending_tokens(at), at)
            while server.waiting and server.has_room(server.waiting[0]):
                start(server, server.waiting.popleft(), at)

    for job in jobs:
        end_until(job.arrives)
        server = servers[policy(candidates, job.arrives, next(turns))]
        job.lease = server.replica.load.lease(job.asked * job.rows, job.rows, lambda: None).__enter__()
        if not server.waiting and server.has_room(job):
            start(server, job, job.arrives)
        else:
            server.waiting.append(job)
    end_until(float("inf"))
    return [job.starts - job.arrives for job in jobs]


def _replica(number: int) -> Replica:
    replica = Replica("continuous_batching", f"http://{number}", "config", 0.0, ReplicaState.READY)
    replica.load.slots = SLOTS
    return replica


def compare(
    requests: int = 20_000,
    servers: int = 4,
    utilisation: float = 0.8,
    seed: int = 0,
    policies: Sequence[str] = tuple(POLICIES),
) -> dict[str, tuple[float, float]]:
    """Mean and 99th percentile of the waiting time in seconds, by policy, under the same traffic."""
    results = {}
    for name in policies:
        waits = sorted(simulate(POLICIES[name], traffic(requests, servers, utilisation, seed), servers))
        results[name] = statistics.mean(waits), waits[int(0.99 * len(waits))]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--policies", nargs="+", choices=tuple(POLICIES), default=tuple(POLICIES))
    arguments = parser.parse_args()
    print(f"{'utilisation':<12} {'policy':<22} {'mean wait s':>12} {'p99 wait s':>12}")
    for utilisation in (0.6, 0.7, 0.8):
        results = compare(arguments.requests, arguments.servers, utilisation, policies=arguments.policies)
        for name, (mean, p99) in results.items():
            print(f"{utilisation:<12} {name:<22} {mean:>12.2f} {p99:>12.2f}")


if __name__ == "__main__":
    main()
