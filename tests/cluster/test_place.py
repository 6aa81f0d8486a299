import pytest

from storydist.cluster.place import expand_nodes, place_of

STEP = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "2,1", "SLURMD_NODENAME": "n2", "SLURM_NTASKS": "3"}
RANKS = {"SLURM_PROCID": "2", "RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("names", "nodes"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n[01-03,7],m", ["n01", "n02", "n03", "n7", "m"]),
        ("a[1-2]b[1,3]", ["a1b1", "a1b3", "a2b1", "a2b3"]),
        ("gpu-a100[008-010]", ["gpu-a100008", "gpu-a100009", "gpu-a100010"]),
    ],
)
def test_nodes_are_expanded_as_scontrol_does(names, nodes):
    assert expand_nodes(names) == nodes


def test_a_rank_under_srun_knows_its_node_and_who_is_expected_where():
    place = place_of(STEP | RANKS | {"SLURM_CPUS_PER_TASK": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "15001"})
    assert (place.rank, place.world_size, place.node, place.first_of_node) == (2, 3, "n2", True)
    assert place.expected == {"n1": 2, "n2": 1} and place.master_node == "n1"
    assert (place.cores_granted, place.gpus_granted) == (4, None)


def test_the_tasks_of_the_step_count_and_not_those_of_the_job():
    step = {"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_TASKS_PER_NODE": "3"}
    assert place_of(STEP | RANKS | step).expected == {"n1": 3}


def test_where_slurm_and_the_launcher_do_not_agree_nobody_is_expected():
    assert place_of(STEP | RANKS | {"WORLD_SIZE": "6"}).expected == {}


def test_alone_it_is_one_rank():
    place = place_of({})
    assert (place.rank, place.world_size, place.local_world_size, place.expected) == (0, 1, 1, {})


def test_tasks_of_srun_without_ranks_are_a_mistake():
    with pytest.raises(ValueError, match="srun started 3 tasks, but RANK"):
        place_of(STEP | {"SLURM_PROCID": "1"})


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="MASTER_PORT=http in the environment is no number"):
        place_of({"MASTER_PORT": "http"})
