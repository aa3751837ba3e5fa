"""The workspace of Weights & Biases: its panels, and the request that creates it."""

import json

import pytest
import wandb_workspaces.workspaces.internal as internal
from wandb_workspaces.workspaces import Workspace

from experiments import dashboard
from experiments.comparing.figures import FIGURES, TIME
from tests.experiments.commands import config


@pytest.fixture
def sent(monkeypatch) -> list[internal.View]:
    """Return a list that collects the views sent to the server."""
    views: list[internal.View] = []

    def take(view: internal.View) -> dict:
        views.append(view)
        return {"upsertView": {"view": {"name": "nw-made-v", "id": "1"}}}

    monkeypatch.setattr(internal, "upsert_view2", take)
    monkeypatch.setattr(Workspace, "url", "https://wandb.example/me/headcount")
    return views


def options(*words: str):
    return config("project=faces", *words, name="dashboard")


def test_a_dry_run_prints_all_panels_and_sends_nothing(sent, tmp_path, capsys):
    dashboard.dashboard(options("dry_run=true"), tmp_path)
    printed = capsys.readouterr().out
    assert sent == [] and "Nothing was created" in printed and "project faces" in printed
    for figure in FIGURES:
        assert figure is TIME or figure.name in printed


def test_the_created_panels_are_those_of_a_dry_run(sent, tmp_path, capsys):
    dashboard.dashboard(options("entity=me", "study=heads", "name=Mine"), tmp_path)
    printed = capsys.readouterr().out
    assert "Created: https://wandb.example/me/headcount" in printed
    (view,) = sent
    assert (view.entity, view.project, view.display_name) == ("me", "faces", "Mine")
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    sections = spec["section"]["panelBankConfig"]["sections"]
    panels = {panel["config"].get("chartTitle"): panel for section in sections for panel in section["panels"]}
    assert all(title in printed for title in panels if title)
    curve = panels["rank-1"]["config"]
    assert curve["metrics"] == ["val/rank1"] and curve["xAxis"] == "train/images"
    assert curve["groupBy"] == "head_name.value" and curve["groupArea"] == "stddev"
    assert panels["rank-1 against memory"]["config"]["xAxis"] == "summary:memory/head_bytes"
    assert "heads" in json.dumps(spec["section"]["runSets"][0]["filters"])


def test_a_missing_login_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ValueError, match="entity=null needs a login"):
        dashboard.dashboard(options(), tmp_path)


def test_a_refusing_server_is_reported(sent, tmp_path, monkeypatch):
    def refuse(view: internal.View) -> None:
        raise RuntimeError("permission denied")

    monkeypatch.setattr(internal, "upsert_view2", refuse)
    with pytest.raises(ValueError, match=r"the workspace of project=faces could not be saved \(permission denied\)"):
        dashboard.dashboard(options("entity=me"), tmp_path)
