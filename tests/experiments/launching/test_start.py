"""Processes that import modules once, and run programs themselves or in forks."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from experiments.launching import start
from tests.experiments.commands import ROOT, call, processes_of

MB = 2**20
PEAK = 400 * MB  # that importing `costs` takes for a moment
KEPT = 100 * MB
PROGRAMS = {
    "costs": f"""
        kept = bytearray(b"1") * {KEPT}
        bytearray(b"1") * {PEAK}
    """,
    "reports": """
        import gc, json, os, resource, sys, time
        from pathlib import Path

        def main():
            path, size, ending = sys.argv[1:]
            bytearray(b"1") * int(size)
            Path(f"{path}.part").write_text(json.dumps({
                "process": os.getpid(), "parent": os.getppid(), "folder": os.getcwd(), "collects": gc.isenabled(),
                "variable": os.environ.get("EXTRA"), "modules": sorted({"costs", "wave"} & {*sys.modules}),
                "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            }))
            os.rename(f"{path}.part", path)
            if ending == "kill":
                os.kill(os.getppid(), 9)
                time.sleep(60)
            if ending.startswith("-"):
                os.kill(os.getpid(), -int(ending))
            sys.exit(int(ending))
    """,
    "sleeps": """
        import os, sys, time
        from pathlib import Path

        def main():
            path = sys.argv[1]
            Path(f"{path}.part").write_text("{}")
            os.rename(f"{path}.part", path)  # the sender of the signal waits for a whole report
            time.sleep(60)
    """,
}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Yield a function that runs `reports` and returns its exit status and its report."""
    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(start, "MODULES", ("costs",))

    def run(ending=0, size=0, follow=True, program="reports", **variables):
        words = [program, str(tmp_path / "report"), str(size), str(ending)]
        status = start.run_preloaded(words, variables, ["wave"], others_follow=follow)
        return status, json.loads((tmp_path / "report").read_text())

    yield run
    start.end_preloaded()


def test_forks_report_their_statuses_and_share_the_imports(run, tmp_path, monkeypatch):
    statuses, reports = zip(*(run(ending, EXTRA=str(ending)) for ending in (0, 3, -9, 0)), strict=True)
    assert statuses == (0, 3, -9, 0)
    assert len({report["process"] for report in reports}) == 4 and len({report["parent"] for report in reports}) == 1
    assert [report["variable"] for report in reports] == ["0", "3", "-9", "0"] and "EXTRA" not in os.environ
    assert all(report["collects"] and report["modules"] == ["costs", "wave"] for report in reports)
    monkeypatch.chdir(tmp_path)
    assert run()[1]["folder"] == str(tmp_path) != reports[0]["folder"]


def test_the_peak_of_memory_of_a_fork_is_its_own(run):
    """Modules of the parent count, but neither what the parent freed nor what another fork used."""
    base = run()[1]["peak"]
    assert KEPT < base < PEAK
    assert run(size=2 * KEPT)[1]["peak"] > base + 1.9 * KEPT
    assert abs(run()[1]["peak"] - base) < 0.1 * KEPT


def test_the_last_program_runs_in_the_process_itself(run):
    assert run(follow=False)[1]["parent"] == os.getpid()
    assert run(-9, follow=False)[0] == -9 and run(4, follow=False)[0] == 4


def test_other_variables_need_a_new_process(run, monkeypatch):
    before = run()[1]["parent"]
    assert run()[1]["parent"] == before
    monkeypatch.setenv("MKL_DEBUG", "1")  # libraries read their variables when they are imported
    assert run()[1]["parent"] != before


@pytest.mark.parametrize("follow", [True, False])
def test_signals_reach_the_program(run, tmp_path, follow):
    sender = subprocess.Popen([
        sys.executable, "-c",
        f"import os, time, pathlib\nwhile not pathlib.Path('{tmp_path}/report').exists(): time.sleep(0.02)\n"
        f"os.kill({os.getpid()}, {signal.SIGTERM:d})",
    ])  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    assert run(program="sleeps", follow=follow)[0] == -signal.SIGTERM
    assert sender.wait() == 0 and signal.getsignal(signal.SIGTERM) == before


def test_a_dead_process_is_replaced(run):
    status, report = run("kill")
    assert status == -signal.SIGKILL and run()[0] == 0
    deadline = time.monotonic() + 20
    while Path("/proc", str(report["process"])).exists():  # the fork of the dead process
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("word", ["--help", "--cfg", "hydra/launcher=slurm"])
def test_nothing_is_imported_for_commands_that_train_nothing_here(monkeypatch, word):
    monkeypatch.setattr(start, "Preloaded", pytest.fail)
    start.preload(["-m", word])


def test_a_refused_command_leaves_no_process(tmp_path):
    word = f"hydra.run.dir={tmp_path}"
    call("experiments.run", "head=pfcc", word, status=1)
    assert not processes_of(word)


def test_imports_start_no_thread_and_use_no_gpu():
    """A fork has only one of the threads, and cannot use a GPU that its parent has initialized."""
    script = """
        import os, sys, torch
        calls = []
        for name in ("init", "_lazy_init", "is_available", "device_count"):
            setattr(torch.cuda, name, lambda *_, name=name: calls.append(name) or 0)
        from experiments.imports import import_all
        import_all(["experiments.train", "wandb"])
        assert not calls, calls
        if os.fork():  # OpenBLAS ends its threads at a fork, and starts them again when it needs them
            assert len(os.listdir("/proc/self/task")) == 1
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, env=environment, check=True)
