from storydist.cluster.alike import compare


def facts(**values: str) -> dict[str, dict[str, str]]:
    return {"libraries": {"python": "3.12.1", "torch": "2.14", **values}}


def test_what_most_nodes_have_is_right_and_the_others_are_named_with_what_differs():
    (found,) = compare({"n1": facts(torch="2.11"), "n2": facts(), "n3": facts()}, ["libraries"])
    assert (found.level, found.node) == ("FAIL", "n1")
    assert found.what == "torch '2.11', elsewhere '2.14'" and "one environment" in found.remedy


def test_of_two_nodes_that_of_rank_0_is_right():
    (found,) = compare({"n1": facts(), "n2": facts(numpy="2.0")}, ["libraries"])
    assert found.node == "n2" and found.what == "numpy '2.0', elsewhere 'missing'"


def test_what_a_node_lacks_differs_too():
    (found,) = compare({"n1": facts(numpy="2.0"), "n2": facts()}, ["libraries"])
    assert found.node == "n2" and found.what == "numpy 'missing', elsewhere '2.0'"


def test_many_differences_are_counted():
    many = {f"package{number}": "1" for number in range(9)}
    (found,) = compare({"n1": facts(), "n2": facts(**many)}, ["libraries"])
    assert found.what.count("elsewhere") == 4 and found.what.endswith("; and 5 more")


def test_the_same_everywhere_is_told_once():
    (found,) = compare({"n1": facts(), "n2": facts()}, ["libraries", "index"])
    assert found.level == "ok" and found.what == "the same on 2 node(s): python 3.12.1, torch 2.14"
