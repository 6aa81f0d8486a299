import json
import stat

import pytest

from storydist.cluster.lead import Measured, lead_time, measure


@pytest.fixture
def run(tmp_path):
    """A run that saved twice, at 2 samples a second."""
    (tmp_path / "train.log").write_text(
        "2026-11-01 00:00:00 step 5 saved in 20.000 s; the loop waited 1.000 s, 0.000 s of it for the one before\n"
        "2026-11-01 00:01:00 step 9 saved in 30.500 s; the loop waited 1.500 s, 0.000 s of it for the one before\n"
        "2026-11-01 00:02:00 step 9/10 loss 1\n"
    )
    lines = [{"step": 1, "kind": "train", "samples_per_s": 4.0}, {"step": 2, "kind": "train", "samples_per_s": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "ki')
    return tmp_path


def test_the_slowest_step_and_save_are_measured(run, tmp_path):
    assert measure(run, global_batch=16) == Measured(step_s=8.0, save_s=32.0)
    assert measure(tmp_path / "no run", 16) is None


def test_a_step_two_saves_and_slurms_minute_are_needed(run):
    (short,) = lead_time(run, 16, 131, None)
    assert short.level == "FAIL" and "needed are 132" in short.what
    assert lead_time(run, 16, 132, None)[0].level == "ok"


def test_before_anything_is_measured_only_slurms_minute_counts(tmp_path):
    assert lead_time(tmp_path, 16, 60, None)[0].level == "FAIL"
    assert lead_time(tmp_path, 16, 61, None)[0].level == "ok"


def test_the_lead_is_that_of_the_jobs_own_script(tmp_path, monkeypatch):
    program = tmp_path / "scontrol"
    program.write_text(
        "#!/bin/sh\n[ \"$*\" = 'write batch_script 17 -' ] && printf '%s\\n' '#!/bin/sh' \"$SCRIPT\" true\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("SCRIPT", "#SBATCH --signal=B:USR1@240")
    (found,) = lead_time(tmp_path / "run", 16, None, "17")
    assert found.level == "ok" and found.what.startswith("240 s")
    monkeypatch.setenv("SCRIPT", "#SBATCH --requeue")
    assert lead_time(tmp_path / "run", 16, None, "17")[0].level == "warn"


def test_without_a_job_nothing_is_asked(tmp_path):
    assert lead_time(tmp_path, 16, None, None)[0].what == "no Slurm job"
