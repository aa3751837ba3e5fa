"""TensorBoard, MLflow and trackio get the metrics of metrics.csv, also after a resume, and never stop a training."""

import sys
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.train import train
from experiments.training import trackers
from tests.experiments.commands import SMOKE, config, metrics

SHORT = (*SMOKE, "logger.wandb.mode=disabled", "trainer.log_interval=2", "checkpoint.interval=4")


def run(folder, *words):
    folder.mkdir(exist_ok=True)
    assert train(config(*SHORT, *words), folder) == 0


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow with SQLAlchemy 2.1
def test_tensorboard_and_mlflow_have_the_metrics_of_the_run(tmp_path):
    words = ["logger.tensorboard=true", f"logger.mlflow=sqlite:///{tmp_path}/mlflow.db", "logger.wandb.project=p"]
    words.append("logger.wandb.name=n")
    run(tmp_path / "a", *words, "trainer.max_steps=6", "schedule=polynomial")
    run(tmp_path / "a", *words, "trainer.max_steps=10", "resume=auto")
    expected = metrics(tmp_path / "a", "train/loss")
    assert list(expected) == [2, 4, 6, 8, 10]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert (found.info.run_name, found.info.status) == ("n", "FINISHED")
    history = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "train/loss")}
    assert history == pytest.approx(expected)
    assert found.data.params["head.sample_rate"] == "0.1"
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    assert {event.step: event.value for event in events.Scalars("train/loss")} == pytest.approx(expected)


class Run:
    """A double of a run of trackio, whose log fails from a step on."""

    name = "n"

    def __init__(self, fails_at):
        self.logged, self.fails_at, self.finished = {}, fails_at, 0

    def log(self, metrics, step):
        if step >= self.fails_at:
            raise OSError("no space")
        self.logged.setdefault(step, {}).update(metrics)

    def finish(self):
        self.finished += 1


@pytest.fixture
def trackio(monkeypatch):
    """A double of the library, which wants an older Pillow than the other tests."""
    double = SimpleNamespace(runs=[], options=[], fails_at=1000)

    def init(**options):
        double.options.append(options)
        double.runs.append(Run(double.fails_at))
        return double.runs[-1]

    double.init = init
    monkeypatch.setitem(sys.modules, "trackio", double)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    return double


def test_trackio_continues_its_run(tmp_path, trackio):
    run(tmp_path / "a", "logger.trackio=true", "trainer.max_steps=4")
    run(tmp_path / "a", "logger.trackio=true", "trainer.max_steps=6", "resume=auto")
    first, second = trackio.options
    assert first["project"] == "headcount" and first["config"]["head.sample_rate"] == 0.1 and "resume" not in first
    assert (second["name"], second["resume"]) == (first["name"], "must")
    logged = {step: values for part in trackio.runs for step, values in part.logged.items()}
    expected = metrics(tmp_path / "a", "train/loss")
    assert {step: values["train/loss"] for step, values in logged.items() if "train/loss" in values} == expected
    assert [part.finished for part in trackio.runs] == [1, 1]


def test_a_tracker_that_fails_does_not_stop_the_training(tmp_path, trackio, capsys):
    trackio.fails_at = 3
    run(tmp_path / "a", "logger.trackio=true", "trainer.max_steps=6")
    assert capsys.readouterr().out.count("warning: trackio stopped logging (OSError('no space'))") == 1
    assert list(metrics(tmp_path / "a", "train/loss")) == [2, 4, 6]


def test_trackers_that_cannot_start_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"logger\.mlflow=nope://x cannot start"):
        run(tmp_path / "a", "logger.mlflow=nope://x")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"logger\.trackio=True needs its library; pip install trackio"):
        run(tmp_path / "b", "logger.trackio=true")
