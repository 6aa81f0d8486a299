from dataclasses import replace

import pytest

from storydist.cluster.finding import FINE, NODES, SETTINGS, Verdict, fail, judge, ok, table, warn

TWO = ("n1", "n2")


def on(node, finding):
    return replace(finding, node=node)


def bad(check="GPU", **more):
    return fail(check, "is wrong", "mend it", **more)


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([on("n1", ok("GPU", "fine")), on("n2", warn("GPU", "so so", "look"))], Verdict(FINE)),
        ([on("n1", ok("GPU", "fine")), on("n2", bad())], Verdict(NODES, ("n2",))),
        ([on("n1", bad()), on("n2", bad())], Verdict(SETTINGS)),
        ([on("n1", bad(of_node=True)), on("n2", bad(of_node=True))], Verdict(NODES, TWO)),
        ([on("n2", bad()), on("n1", bad("shards")), on("n2", bad("shards"))], Verdict(SETTINGS)),
        ([on("n1", bad("lead time"))], Verdict(SETTINGS)),
        ([on("n2", bad()), on("n1", bad("cores"))], Verdict(NODES, TWO)),
        ([bad()], Verdict(SETTINGS)),
    ],
)
def test_a_node_is_blamed_where_others_pass_and_the_settings_where_none_does(findings, verdict):
    assert judge(findings, TWO) == verdict


def test_on_a_single_node_only_its_hardware_blames_it():
    assert judge([on("n1", bad())], ("n1",)) == Verdict(SETTINGS)
    assert judge([on("n1", bad(of_node=True))], ("n1",)) == Verdict(NODES, ("n1",))


def test_the_same_on_several_nodes_is_one_line_and_what_fails_stands_last():
    findings = [on("n1", bad()), on("n2", bad()), on("n1", ok("cores", "8")), on("n2", ok("cores", "9"))]
    lines = table(findings, TWO).splitlines()
    assert [line.split() for line in lines] == [
        ["ok", "cores", "all", "8"],
        ["FAIL", "GPU", "all", "is", "wrong"],
        ["->", "mend", "it"],
    ]


def test_long_lines_are_cut_and_no_word_is_lost():
    told = " ".join(f"word{number}" for number in range(60))
    lines = table([on("n2", fail("GPU", told, told))], TWO)
    assert all(len(line) <= 160 for line in lines.splitlines())
    assert lines.split()[3:63] == told.split() and "n2" in lines
