import resource

from storydist.cluster import machine
from storydist.cluster.place import Place


def test_fewer_cores_than_ranks_are_a_warning_where_slurm_granted_none(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1})
    (found,) = machine.cores(Place(world_size=4, local_world_size=4))
    assert found.level == "warn" and found.what == "4 ranks share 2 core(s)"
    assert machine.cores(Place(local_world_size=2))[0].level == "ok"


def test_a_low_limit_of_open_files_is_told_with_the_command_that_raises_it():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        (found,) = machine.open_files(Place(world_size=2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.level == "warn" and "512 allowed" in found.what and "ulimit -n 1048" in found.remedy


def test_little_shared_memory_matters_only_with_gpus(monkeypatch):
    monkeypatch.setattr(machine, "SHARED_BYTES_PER_GPU", 1 << 60)
    assert machine.shared_memory(Place(), gpus=True)[0].level == "warn"
    assert machine.shared_memory(Place(), gpus=False)[0].level == "ok"
