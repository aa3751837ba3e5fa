"""Runs from Python: words, results, refusals, notebooks."""

import json
import re
import sys
from pathlib import Path

import pytest

from experiments import api
from experiments.api import Run, compare, run
from tests.experiments.commands import metrics, summary
from tests.experiments.made_runs import made_run

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def started(monkeypatch):
    """The words of the runs that are started, without their processes. They end with status 0, and no output."""
    words = []
    monkeypatch.setattr(api, "_start", lambda given: words.append(given) or (0, []))
    return words


def test_options_become_words(started, tmp_path):
    made_run(tmp_path / "a")
    options = {"data.source": tmp_path / "it's", "trainer": {"max_steps": 3, "max_epochs": None}, "head": "pfc"}
    run("seed=1", folder=tmp_path / "a", num_active={0: 300, 10: 236}, **options, protocol=["lfw"], nesterov=True)
    assert started[0] == [
        *("-m", "experiments.run", "seed=1", "num_active={0:300,10:236}", rf"data.source='{tmp_path}/it\'s'"),
        *("trainer.max_steps=3", "trainer.max_epochs=null", "head=pfc", "protocol=[lfw]", "nesterov=true"),
        f"hydra.run.dir={tmp_path / 'a'}",
    ]
    with pytest.raises(ValueError, match=r"run\(\) trains one head"):
        run("-m", head="pfc,full")


def test_a_run_and_its_comparison(tmp_path, capsys):
    done = run(
        "experiment=smoke", head="pfc", folder=tmp_path / "a", trainer={"max_steps": 4, "log_interval": 2},
        **{"logger.wandb.mode": "disabled"},
    )  # fmt: skip
    assert "step 4/4  loss" in capsys.readouterr().out
    assert done.summary == summary(tmp_path / "a") and done["steps"] == 4 and done["head"] == "pfc"
    assert done.curve("train/loss") == metrics(tmp_path / "a", "train/loss") and list(done.curve("train/loss")) == [
        2,
        4,
    ]
    assert "val/rank1" in done._repr_html_() and repr(done) == f"Run('{tmp_path / 'a'}')"
    page = compare([done, tmp_path / "a"])
    assert "1 runs at 256 images" in capsys.readouterr().out
    assert page._repr_html_().startswith("<iframe srcdoc=")
    page.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page.html
    with pytest.raises(KeyError, match=r"nope is not in summary\.json of .*; it has status, head, "):
        done["nope"]
    with pytest.raises(KeyError, match=r"nope is not in metrics\.csv of .*; it has train/loss, "):
        done.curve("nope")


def test_the_example_of_the_readme(monkeypatch, tmp_path, capsys):
    """Its runs are made, each in its folder, instead of trained."""

    def start(words):
        options = dict(word.split("=", 1) for word in words[2:])
        made_run(Path(options["hydra.run.dir"]), options["head"], seed=int(options["seed"]))
        return 0, []

    monkeypatch.setattr(api, "_start", start)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(from experiments\.api.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "4 runs at 1,000 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "kind", "words"),
    [
        (["error: head=pfk is not available"], ValueError, "^head=pfk is not available"),
        (["step 1/2  loss", "killed"], RuntimeError, "the training ended with status 1:\nstep 1/2  loss\nkilled"),
    ],
)
def test_failures_are_raised(output, kind, words, monkeypatch, tmp_path):
    monkeypatch.setattr(api, "_start", lambda given: (1, output))
    with pytest.raises(kind, match=words):
        run(folder=tmp_path / "a")


def test_folders_without_a_run(tmp_path):
    with pytest.raises(ValueError, match="is not the folder of a run that has ended"):
        Run(tmp_path)
    with pytest.raises(ValueError, match="there is no run under"):
        compare([tmp_path])


def test_output_of_a_process_and_an_interrupt(monkeypatch, capsys):
    """A bar in a notebook shows the lines of steps only. An interrupt waits for the end of the process."""
    program = "import sys\nprint('starting')\nprint('step 5/20  loss 1.000')\nsys.exit(3)"
    assert api._start(["-c", program]) == (3, ["starting", "step 5/20  loss 1.000"])
    assert capsys.readouterr().out == "starting\nstep 5/20  loss 1.000\n"

    def interrupt(self, line):
        if line == "ready":
            raise KeyboardInterrupt

    monkeypatch.setattr(api.Bar, "show", interrupt)
    ends = "import signal, sys, time\nsignal.signal(signal.SIGINT, lambda *a: sys.exit(print('saved')))\n"
    with pytest.raises(KeyboardInterrupt):
        api._start(["-c", f"{ends}print('ready', flush=True)\ntime.sleep(600)"])


def test_colours_of_a_notebook_are_not_passed_on(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    program = "import json, os; print(json.dumps(sorted(os.environ)))"
    _, output = api._start(["-c", program])
    assert "FORCE_COLOR" not in json.loads(output[0]) and "PYTHONPATH" in json.loads(output[0])


def test_the_bar_of_a_notebook(monkeypatch):
    shown = []
    handle = type("Handle", (), {"update": lambda self, html: shown.append(html.data)})()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr("IPython.display.display", lambda first, display_id: handle)
    bar = api.Bar()
    bar.show("a line")
    bar.show("step 1500/3000  loss 1.2 <b>")
    bar.end()
    assert shown == [
        '<progress value="1500" max="3000" aria-label="steps of the training"></progress> '
        "1,500 of 3,000 steps, loss 1.2 &lt;b&gt;",
        "",
    ]
