"""`python -m experiments.dashboard project=NAME`: create a Weights & Biases workspace that compares heads.

It shows the figures of `experiments.compare`, which all heads log by the same names: curves with the deviation over
seeds, costs, quality against cost, options against both, and the options in which runs differ.
"""

if __name__ == "__main__":
    if not __package__:
        raise SystemExit("error: write python -m experiments.dashboard")
    from .command_line.arguments import check_or_exit

    check_or_exit("dashboard")


from pathlib import Path
from typing import Any

import wandb
from omegaconf import DictConfig
from rich.tree import Tree

from .cli import command, needed
from .comparing.figures import FIGURES, TIME, Figure
from .tables import console

IMAGES = "train/images"  # of batches of other sizes too, as on the page of `experiments.compare`
HEAD = "head_name"  # runs are grouped by it
OPTIONS = ("sample_rate", "queue_size", "num_active")


def dashboard(config: DictConfig, folder: Path) -> None:
    """Print the panels of the workspace, and create it unless `dry_run` is true."""
    needed(config, "project")
    created = workspace(config.project, config.entity or "", config.name, config.study)
    console().print(panel_tree(created))
    if config.dry_run:
        print("Nothing was created: dry_run=true")
        return
    if not created.entity:
        created.entity = _default_entity()
    try:
        created.save()
    except Exception as error:  # the library has many types of errors
        raise ValueError(f"the workspace of project={config.project} could not be saved ({error})") from error
    print(f"Created: {created.url}")


def workspace(project: str, entity: str, name: str, study: str | None) -> Any:
    """Return the workspace, which is not saved yet.

    Args:
        project: project whose runs are shown.
        entity: user or team; empty for the default one.
        name: name of the workspace.
        study: group of runs to show; None for all.

    Raises:
        ValueError: its library is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as spaces
    except ImportError as error:
        raise ValueError(f"experiments.dashboard needs its library ({error}); pip install -e '.[dashboard]'") from error

    return spaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            spaces.Section(name=title, panels=content, is_open=True) for title, content in _sections(panels).items()
        ],
        settings=spaces.WorkspaceSettings(x_axis=IMAGES, max_runs=100),
        runset_settings=spaces.RunsetSettings(
            groupby=[spaces.Config(HEAD)], filters=spaces.And(spaces.Metric("Group") == study) if study else []
        ),
    )


def _sections(panels: Any) -> dict[str, list[Any]]:
    """Return the panels of each section, built by the library's module `panels`."""
    quality, cost, fidelity = (
        [figure for figure in FIGURES if figure.kind == kind] for kind in ("quality", "cost", "fidelity")
    )
    cost.remove(TIME)  # computed by a comparison, not logged

    by_head: dict[str, Any] = {"groupby": panels.Config(HEAD), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}

    def curve(figure: Figure) -> Any:
        return panels.LinePlot(title=figure.title, x=IMAGES, y=[figure.name], **by_head)

    def bar(figure: Figure) -> Any:
        return panels.BarPlot(title=figure.title, metrics=[figure.name], **by_head)

    def against(x: str, y: str, title: str) -> Any:
        return panels.ScatterPlot(title=title, x=panels.SummaryMetric(x), y=panels.SummaryMetric(y))

    costs = (("train/seconds", "time"), ("memory/head_bytes", "memory"), ("head/step_ms", "head time"))
    columns = [
        *(panels.ParallelCoordinatesPlotColumn(panels.Config(name), name) for name in OPTIONS),
        *(panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric(x), title) for x, title in costs),
        panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric("val/rank1"), "rank-1"),
    ]
    return {
        "Quality against cost": [against(x, "val/rank1", f"rank-1 against {title}") for x, title in costs],
        "Quality": [curve(figure) for figure in quality],
        "Cost": [bar(figure) for figure in cost],
        "Fidelity": [curve(figure) for figure in fidelity],
        "Options": [panels.ParallelCoordinatesPlot(title="options, cost and rank-1", columns=columns)],
        "Runs": [panels.RunComparer(diff_only="split")],
    }


def panel_tree(created: Any) -> Tree:
    """Return sections and panels as a tree."""
    project = "/".join(filter(None, (created.entity, created.project)))
    tree = Tree(f"{created.name}: project {project}, runs grouped by head")
    for section in created.sections:
        branch = tree.add(section.name)
        for panel in section.panels:
            parts = [getattr(panel, "title", None), f"{type(panel).__name__}", ", ".join(_metrics(panel))]
            branch.add(": ".join(filter(None, parts)))
    return tree


def _metrics(panel: Any) -> list[str]:
    """Return the names of the metrics that a panel shows."""
    metrics = [
        *(getattr(panel, "metrics", None) or []),
        *(column.metric for column in getattr(panel, "columns", None) or []),
    ]
    for axis in (getattr(panel, "y", None) or [], getattr(panel, "x", None)):
        metrics += axis if isinstance(axis, list) else [axis]
    return [str(getattr(metric, "name", metric)) for metric in metrics if metric is not None]


def _default_entity() -> str:
    """Return the entity of the user who is logged in."""
    try:
        entity = wandb.Api().default_entity
    except Exception as error:
        raise ValueError(f"entity=null needs a login ({error}); run wandb login, or set WANDB_API_KEY") from error
    return str(entity)


if __name__ == "__main__":
    command("dashboard", dashboard)
