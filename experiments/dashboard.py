"""`python -m experiments.dashboard project=NAME`: a workspace of Weights & Biases that compares the heads of a project.

The same figures as `experiments.compare`, which all heads log by the same names: curves with the spread over seeds,
costs, quality against cost, options against both, and what differs between runs.
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
from .comparing.comparison import FIGURES, TIME, Figure
from .tables import console

STEP = "trainer/global_step"
HEAD = "head_name"  # runs are grouped by it
OPTIONS = ("sample_rate", "queue_size", "num_active")


def dashboard(config: DictConfig, folder: Path) -> None:
    """Creates it, or prints it."""
    needed(config, "project")
    made = workspace(config.project, config.entity or "", config.name, config.study)
    console().print(shown(made))
    if config.dry_run:
        print("Nothing was created: dry_run=true")
        return
    if not made.entity:
        made.entity = _own_entity()
    try:
        made.save()
    except Exception as error:  # of the server, the network, or the library's own
        raise ValueError(f"project={config.project}: the workspace could not be saved ({error})") from error
    print(f"Created: {made.url}")


def workspace(project: str, entity: str, name: str, study: str | None) -> Any:
    """The workspace, not saved yet. Raises ValueError where its library is missing."""
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as spaces
    except ImportError as error:
        raise ValueError(f"experiments.dashboard: {error}; pip install -e '.[dashboard]'") from error

    quality, cost, fidelity = (
        [each for each in FIGURES if each.kind == kind] for kind in ("quality", "cost", "fidelity")
    )
    cost.remove(TIME)  # of a comparison

    by_head: dict[str, Any] = {"groupby": panels.Config(HEAD), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}

    def curve(figure: Figure) -> Any:
        return panels.LinePlot(title=figure.title, x=STEP, y=[figure.name], **by_head)

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
    sections = {
        "Quality against cost": [against(x, "val/rank1", f"rank-1 against {title}") for x, title in costs],
        "Quality": [curve(figure) for figure in quality],
        "Cost": [bar(figure) for figure in cost],
        "Fidelity": [curve(figure) for figure in fidelity],
        "Options": [panels.ParallelCoordinatesPlot(title="options, cost and rank-1", columns=columns)],
        "Runs": [panels.RunComparer(diff_only="split")],
    }
    return spaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[spaces.Section(name=title, panels=each, is_open=True) for title, each in sections.items()],
        settings=spaces.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=spaces.RunsetSettings(
            groupby=[spaces.Config(HEAD)], filters=spaces.And(spaces.Metric("Group") == study) if study else []
        ),
    )


def shown(made: Any) -> Tree:
    """Sections and panels, as a tree."""
    tree = Tree(f"{made.name}: project {'/'.join(filter(None, (made.entity, made.project)))}, runs grouped by head")
    for section in made.sections:
        branch = tree.add(section.name)
        for panel in section.panels:
            told = [getattr(panel, "title", None), f"{type(panel).__name__}", ", ".join(_metrics(panel))]
            branch.add(": ".join(filter(None, told)))
    return tree


def _metrics(panel: Any) -> list[str]:
    """The names that a panel shows."""
    of_lines = [
        *(getattr(panel, "metrics", None) or []),
        *(each.metric for each in getattr(panel, "columns", None) or []),
    ]
    axes = [getattr(panel, "y", None) or [], getattr(panel, "x", None)]
    flat = [each for axis in axes for each in (axis if isinstance(axis, list) else [axis]) if each is not None]
    return [str(getattr(each, "name", each)) for each in (*of_lines, *flat)]


def _own_entity() -> str:
    try:
        entity = wandb.Api().default_entity
    except Exception as error:
        raise ValueError(f"entity=null: no one is logged in ({error}); wandb login, or WANDB_API_KEY") from error
    return str(entity)


if __name__ == "__main__":
    command("dashboard", dashboard)
