"""Where this process runs: which rank it is, on which node, and what Slurm granted, from the launcher's variables."""

import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_HOSTS = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")  # a comma between brackets parts no names
_RANGE = re.compile(r"(?P<before>[^\[]*)\[(?P<ranges>[^\]]*)\](?P<after>.*)")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


@dataclass(frozen=True)
class Place:
    """`expected`: {node: ranks that Slurm starts there}, in Slurm's order; {} where that is not known."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node: str = "localhost"
    master_address: str = "127.0.0.1"
    master_port: int = 0
    agent_store: bool = False  # torchrun itself listens at the port
    use_cpu: bool = False  # ACCELERATE_USE_CPU
    job_id: str | None = None  # of Slurm
    cores_granted: int | None = None  # to each rank, by Slurm
    gpus_granted: int | None = None  # on this node, by Slurm
    scratch: str = "/tmp"
    expected: Mapping[str, int] = field(default_factory=dict)

    @property
    def first_of_node(self) -> bool:
        """Whether this rank speaks for its node."""
        return self.local_rank == 0

    @property
    def master_node(self) -> str:
        """The node of rank 0, as well as it is known."""
        return next(iter(self.expected), self.master_address)


def place_of(environment: Mapping[str, str]) -> Place:
    """The place that srun (with RANK and its kin set), torchrun, Accelerate or nobody gave this process.

    Raises ValueError when a variable is not a number, or Slurm started several tasks and RANK was not set.
    """

    def number(name: str, default: int | None) -> int | None:
        text = environment.get(name, "")
        if text and not text.isdecimal():
            raise ValueError(f"{name}={text} in the environment is no number")
        return int(text) if text else default

    world_size = number("WORLD_SIZE", 1) or 1
    num_tasks = number("SLURM_NTASKS", 1) or 1
    if "SLURM_PROCID" in environment and "RANK" not in environment and num_tasks > 1:
        raise ValueError(
            f"srun started {num_tasks} tasks, but RANK, LOCAL_RANK and WORLD_SIZE are not set; take them from "
            "SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS, as slurm/ranks.sh does"
        )
    return Place(
        rank=number("RANK", 0) or 0,
        local_rank=number("LOCAL_RANK", 0) or 0,
        world_size=world_size,
        local_world_size=number("LOCAL_WORLD_SIZE", None) or world_size,
        node=environment.get("SLURMD_NODENAME") or socket.gethostname(),
        master_address=environment.get("MASTER_ADDR", "127.0.0.1"),
        master_port=number("MASTER_PORT", 0) or 0,
        agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        use_cpu=environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"),
        job_id=environment.get("SLURM_JOB_ID"),
        cores_granted=number("SLURM_CPUS_PER_TASK", None),
        gpus_granted=number("SLURM_GPUS_ON_NODE", None),
        scratch=environment.get("TMPDIR") or "/tmp",
        expected=_expected(environment, world_size),
    )


def _expected(environment: Mapping[str, str], world_size: int) -> dict[str, int]:
    """{node: ranks} of the step; {} unless it names as many ranks as there are."""
    nodes = expand_nodes(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", ""))
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    counts = [int(count) for count, times in _TASKS.findall(tasks) for _ in range(int(times or 1))]
    if len(nodes) != len(counts) or sum(counts) != world_size:
        return {}
    return dict(zip(nodes, counts, strict=True))


def expand_nodes(names: str) -> list[str]:
    """The nodes of one of Slurm's lists: "n[01-03,7],m" is n01, n02, n03, n7, m."""
    return [node for part in _HOSTS.findall(names) for node in _expanded(part)]


def _expanded(name: str) -> Iterator[str]:
    found = _RANGE.fullmatch(name)
    if not found:
        yield name
        return
    for piece in found["ranges"].split(","):
        first, _, last = piece.partition("-")
        for number in range(int(first), int(last or first) + 1):
            for rest in _expanded(found["after"]):
                yield f"{found['before']}{number:0{len(first)}d}{rest}"
