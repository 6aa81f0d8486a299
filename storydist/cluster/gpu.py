"""This node's GPUs: there, one for each rank, and counting right."""

import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping

import torch

from storydist.cluster.finding import Finding, fail, ok, warn
from storydist.cluster.place import Place

CHECK = "GPU"
SIDE = 1024  # of the matrices
FREE_SHARE = 0.9  # of the memory: less means that somebody else is on it
ASKED_S = 10
# Errors that no correction mended, since the driver was loaded; and rows that wait for a reset to be replaced.
QUERY = ("uuid", "ecc.errors.uncorrected.volatile.total", "retired_pages.pending")


def wanted_device(place: Place, device: str) -> torch.device:
    """The one that training takes on this rank; `device` is train.device."""
    if device == "cpu" or place.use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", place.local_rank % torch.cuda.device_count())  # as Accelerate does


def gpu(place: Place, device: str) -> list[Finding]:
    """This rank's GPU. Nothing is asked of it where training takes the CPU."""
    if device == "cpu" or place.use_cpu:
        return [ok(CHECK, "training takes the CPU")]
    if not torch.cuda.is_available():
        if place.gpus_granted:
            told = f"Slurm granted {place.gpus_granted}, torch {torch.__version__} sees none"
            remedy = "nvidia-smi there; a container needs --nv; torch has to be built with CUDA; or train.device=cpu"
            return [fail(CHECK, told, remedy, of_node=torch.version.cuda is not None)]
        return [ok(CHECK, "none is visible: training takes the CPU")]
    count = torch.cuda.device_count()
    if place.gpus_granted and count < place.gpus_granted and count < place.local_world_size:
        told = f"{count} visible of {place.gpus_granted} that Slurm granted"
        return [fail(CHECK, told, "nvidia-smi there; one may have fallen off the bus", of_node=True)]
    own = wanted_device(place, device)
    return [*counts_right(own), *_free_memory(own), *_errors(own)]


def uuid_of(device: torch.device) -> str | None:
    """Names a GPU among all; None for the CPU."""
    return None if device.type == "cpu" else str(torch.cuda.get_device_properties(device).uuid)


def shared(uuids: Mapping[int, str | None], nodes: tuple[str, ...]) -> list[Finding]:
    """GPUs that several ranks would take. `uuids`: by rank; `nodes`: of each rank."""
    users = defaultdict(list)
    for rank, uuid in uuids.items():
        if uuid is not None:
            users[nodes[rank], uuid].append(rank)
    remedy = "start as many ranks as GPUs: --ntasks-per-node and --gpus-per-node alike, and check --gpu-bind"
    return [
        fail(CHECK, f"ranks {', '.join(map(str, ranks))} would use one GPU ({uuid})", remedy, node=node)
        for (node, uuid), ranks in users.items()
        if len(ranks) > 1
    ]


def counts_right(device: torch.device) -> list[Finding]:
    """Multiplies matrices of small whole numbers, whose product is exact in every precision, in any order."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 4, (SIDE, SIDE), generator=generator).float() for _ in range(2))
    wrong = int((torch.matmul(a.to(device), b.to(device)).cpu() != a @ b).sum())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    if wrong:
        told = f"{name} {device}: {wrong} of {SIDE * SIDE} elements of a product are wrong"
        return [fail(CHECK, told, "take the node out of use and have the GPU tested (dcgmi diag -r 3)", of_node=True)]
    return [ok(CHECK, f"{name}, {torch.cuda.device_count()} visible, counts right")]


def _free_memory(device: torch.device) -> list[Finding]:
    free, total = torch.cuda.mem_get_info(device)
    if free >= FREE_SHARE * total:
        return []
    told = f"{device}: {free / 1e9:.3g} of {total / 1e9:.3g} GB free"
    return [warn(CHECK, told, "another process is on it: nvidia-smi there; leftovers of a former job may be ended")]


def _errors(device: torch.device) -> list[Finding]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ASKED_S, check=False)
    if done.returncode:
        told = f"nvidia-smi fails: {(done.stdout + done.stderr).strip()}"
        return [warn(CHECK, told, "the driver may be in trouble: dmesg there")]
    return memory_errors(done.stdout, str(torch.cuda.get_device_properties(device).uuid))


def memory_errors(told: str, uuid: str) -> list[Finding]:
    """What nvidia-smi says (QUERY as CSV) of one GPU; "[N/A]" where it has no such memory."""
    for line in told.splitlines():
        name, uncorrected, pending = [part.strip() for part in (*line.split(","), "", "")[:3]]
        if uuid not in name:
            continue
        if uncorrected.isdecimal() and int(uncorrected):
            what = f"{name}: {uncorrected} uncorrected memory error(s)"
            return [fail(CHECK, what, "take the node out of use; the GPU has to be reset or changed", of_node=True)]
        if pending.lower() == "yes":
            return [warn(CHECK, f"{name}: memory pages wait to be retired", "have the GPU reset when it is idle")]
    return []
