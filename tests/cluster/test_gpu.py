"""What is judged of GPUs, without one; the last test asks a real one."""

import pytest
import torch

from storydist.cluster import gpu
from storydist.cluster.place import Place

CPU = torch.device("cpu")


def test_a_device_that_counts_wrong_is_its_nodes_fault(monkeypatch):
    assert gpu.counts_right(CPU)[0].level == "ok"
    right = torch.matmul

    def wrong_once(a, b):
        product = right(a, b)
        product[5, 7] += 1
        return product

    monkeypatch.setattr(gpu.torch, "matmul", wrong_once)
    (found,) = gpu.counts_right(CPU)
    assert found.level == "FAIL" and found.of_node and "1 of 1048576 elements" in found.what


def test_gpus_that_slurm_granted_and_torch_does_not_see_fail(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.gpu(Place(gpus_granted=4), "auto")[0].level == "FAIL"
    assert gpu.gpu(Place(), "auto")[0].level == "ok"
    assert gpu.gpu(Place(gpus_granted=4), "cpu")[0].level == "ok"
    assert gpu.gpu(Place(gpus_granted=4, use_cpu=True), "auto")[0].level == "ok"


def test_ranks_that_would_share_a_gpu_are_named():
    nodes = ("n1", "n1", "n2", "n2")
    assert gpu.shared({0: "A", 1: "B", 2: "A", 3: None}, nodes) == []
    (found,) = gpu.shared({0: "A", 1: "B", 2: "C", 3: "C"}, nodes)
    assert found.node == "n2" and "ranks 2, 3 would use one GPU (C)" in found.what


@pytest.mark.parametrize(
    ("errors", "level"),
    [("0, No", None), ("[N/A], [N/A]", None), ("2, No", "FAIL"), ("0, Yes", "warn"), ("", None)],
)
def test_memory_errors_of_the_own_gpu_count(errors, level):
    told = f"GPU-other, 7, Yes\nGPU-1234, {errors}\n"
    assert [found.level for found in gpu.memory_errors(told, "1234")] == ([level] if level else [])


@pytest.mark.gpu
def test_a_real_gpu_is_healthy():
    found = gpu.gpu(Place(), "auto")
    assert found[0].level == "ok" and "counts right" in found[0].what
    assert gpu.uuid_of(gpu.wanted_device(Place(), "auto"))
