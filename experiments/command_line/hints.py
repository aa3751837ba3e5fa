"""What a wrong word on a command line may have meant: found in conf/, and in the habits of other programs.

Nothing is guessed without a reason: a suggestion that is wrong is worse than none.
"""

import difflib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import safe_load

CONF = Path(__file__).resolve().parents[2] / "conf"
# Commands by their primary config.
COMMANDS = {
    "config": "experiments.run",
    **{
        name: f"experiments.{name}"
        for name in ("evaluate", "embed", "export", "cluster", "benchmark", "plan", "pretrained")
    },
    "dashboard": "experiments.dashboard",
    "convert": "data.convert",
}
NO_OPTIONS = ("experiment", "hydra")  # groups whose files set options of other groups
CUTOFF = 0.8  # of difflib's ratio: glyph and glyphs have 0.91, memory and memory_gb 0.80, node and mode 0.75
SHOWN = 3

# What options are called elsewhere, and here; with a value where that is another too.
HABITS = {
    name: here
    for names, here in (
        ("epochs num_epochs n_epochs max_epoch", "trainer.max_epochs"),
        ("steps num_steps iters iterations max_iter max_iters", "trainer.max_steps"),
        ("learning_rate base_lr", "optimizer.lr"),
        ("wd", "weight_decay"),
        ("bs batch batchsize", "batch_size"),
        ("gpus num_gpus ngpus n_gpu nproc nproc_per_node world_size", "trainer.devices"),
        ("strategy ddp fsdp", "trainer.devices=2"),
        ("nodes nnodes", "trainer.num_nodes"),
        ("device", "trainer.accelerator"),
        ("cuda gpu", "trainer.accelerator=gpu"),
        ("amp fp16 half mixed_precision", "trainer.precision=16-mixed"),
        ("bf16", "trainer.precision=bf16-mixed"),
        ("grad_clip clip_grad clip max_norm", "trainer.gradient_clip_val"),
        ("grad_accum accumulation gradient_accumulation_steps", "trainer.accumulate_grad_batches"),
        ("workers worker", "num_workers"),
        ("model arch architecture network net encoder", "backbone"),
        ("loss criterion loss_fn", "margin"),
        ("dataset datasets", "data"),
        ("data_dir data_path data_root dataset_path train_data", "data.source"),
        ("image_size img_size input_size", "data.size"),
        ("scheduler lr_scheduler", "schedule"),
        ("optim opt", "optimizer"),
        ("embedding_dim emb_size emb_dim feat_dim dim", "embedding_size"),
        ("random_seed", "seed"),
        ("output output_dir out out_dir save_dir work_dir log_dir", "hydra.run.dir"),
        ("ckpt ckpt_path resume_from resume_from_checkpoint checkpoint_path", "resume"),
        ("pretrained finetune load_from weights", "warm_start.checkpoint"),
        ("eval_interval val_interval val_check_interval", "evaluate.interval"),
        ("save_interval", "checkpoint.interval"),
        ("wandb use_wandb", "logger.wandb.mode=online"),
    )
    for name in names.split()
}
REASONS = {
    "strategy": "the number of processes decides how they share the work",
    "num_classes": "the data decide how many classes there are",
    "checkpoint": "resume=RUN goes on with a training, and warm_start.checkpoint=RUN begins a new one from it",
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean X? " for a name that is nearly a known one, or nothing."""
    close = closest(name, known)
    return f"did you mean {close!r}? " if close else ""


def closest(name: str, known: Iterable[str]) -> str | None:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=CUTOFF)
    turned = [each for each in names if sorted(each) == sorted(name)]  # pcf -> pfc
    return next(iter(close or turned), None)


def of_no_option(key: str, value: str | None, config: DictConfig, chosen: list[str], primary: str) -> str:
    """Return the sentence for an option that the config does not have.

    Args:
        key: the option, without a leading + or ~.
        value: what it was given; None where it is not known.
        config: composed from the choices on the command line.
        chosen: these choices, `group=name`.
    """
    parent, _, last = key.rpartition(".")
    if parent and has(config, parent) and OmegaConf.select(config, parent) is None:
        return f"{key}: no option of {' '.join(chosen) or 'this config'}, where {parent} is null"
    if owners := _owners(key, chosen, primary):
        return belongs(key, owners, chosen, primary)
    here = _all_keys(config)
    word = last.lower().replace("-", "_")
    meant, reason = word, ""
    if primary == "config":
        meant, reason = HABITS.get(word, word), f"{REASONS[word]}; " if word in REASONS else ""
    meant, equals, other = meant.partition("=")
    value = other if equals else value
    no_option = f"{key}: no such option; {reason}"
    if meant in groups_of(primary):
        return f"{no_option}write {_chosen(meant, value, primary)}"
    if meant in here or meant.startswith("hydra."):
        return f"{no_option}write {_assigned(meant, value)}"
    for known in (here, [name for options in _options_by_choice(primary).values() for name in options]):
        if same := _ending_with(key, known) or _ending_with(meant, known):
            names = " or ".join(_assigned(name, value) for name in same)
            owners = [] if known is here or len(same) > 1 else _owners(same[0], chosen, primary)
            return f"{no_option}write {names}{f', which belongs to {_listed(owners)}' if owners else ''}"
    close = did_you_mean(key, here) or _same_last_part(last, here)
    others = [each for each in _commands_with(key) if each != COMMANDS[primary]]
    if others and not close:
        return f"{key}: no option of {COMMANDS[primary]}; it belongs to python -m {_listed(others)}"
    return f"{no_option}{close}--help lists all options"


def of_no_choice(group: str, name: str, primary: str) -> str:
    """Return the sentence for a choice that a group does not have."""
    available = choices_of(group)
    others = [other for other in groups_of(primary) if other != group and name in choices_of(other)]
    if others:
        a = "an" if others[0][0] in "aeiou" else "a"
        return f"{group}={name}: {name} is {a} {others[0]}; write {others[0]}={name}"
    if len(available) == 1:  # of no use but to hold options
        (only,) = available
        return of_several(group, name, OmegaConf.create(_loaded(CONF / group / f"{only}.yaml")))
    return f"{group}={name}: {did_you_mean(name, available)}choose one of {', '.join(available)}"


def of_several(key: str, value: object, node: DictConfig) -> str:
    """Return the sentence for a value given to what holds options of its own."""
    names = [f"{key}.{name}" for name in map(str, node) if not name.startswith("_")]
    reason = f"; {REASONS[key]}" if key in REASONS else ""
    return f"{key}={value}: stands for several options, {', '.join(names)}{reason}"


def of_a_bare_word(word: str, primary: str) -> str:
    """Return the sentence for a word that is no NAME=VALUE."""
    name, colon, value = word.lstrip("-").partition(":")
    groups = [group for group in groups_of(primary) if name in choices_of(group)]
    if groups and not colon:
        return f"{word}: write {groups[0]}={name}"
    if value:
        return f"{word}: write {name}={value}"
    return f"{word}: options are written NAME=VALUE, without spaces; --help lists them"


def belongs(key: str, owners: Iterable[str], chosen: list[str], primary: str) -> str:
    groups = {owner.split("=")[0] for owner in owners}
    here = ", ".join(choice for choice in with_defaults(chosen, primary) if choice.split("=")[0] in groups)
    return f"{key}: no option of {here or 'this config'}; it belongs to {' and '.join(sorted(set(owners)))}"


def has(config: Any, key: str) -> bool:
    *parents, last = key.split(".")
    node = OmegaConf.select(config, ".".join(parents)) if parents else config
    return isinstance(node, DictConfig) and last in node


def choices_of(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def groups_of(primary: str) -> list[str]:
    """Return the groups that a command chooses from: those of its primary config, and those that these bring in."""
    groups = list(chosen_in(primary))
    for group in groups:  # grows
        text = "".join(path.read_text() for path in (CONF / group).glob("*.yaml"))
        groups += [each for each in re.findall(r"^ +- /(\w+):", text, re.MULTILINE) if each not in groups]
    return groups


def users_of(group: str) -> list[str]:
    """Return the choices that bring in a group which is not of the primary config, through others or not."""
    users = []
    for path in sorted(CONF.glob("*/*.yaml")):
        defaults = _loaded(path).get("defaults") or []
        if any(isinstance(default, dict) and f"/{group}" in default for default in defaults):
            users += users_of(path.parent.name) or [f"{path.parent.name}={path.stem}"]
    return users


def own_options(primary: str) -> set[str]:
    """Return the keys of a primary config that are options, though groups of others may be called the same."""
    return {str(key) for key in _loaded(CONF / f"{primary}.yaml")} - set(chosen_in(primary))


def chosen_in(primary: str) -> dict[str, Any]:
    """Return the groups of a primary config, and what it chooses of each."""
    defaults = _loaded(CONF / f"{primary}.yaml").get("defaults") or []
    return {
        str(group): choice
        for each in defaults
        if isinstance(each, dict)
        for group, choice in each.items()
        if not str(group).startswith("override ")
    }


def with_defaults(chosen: list[str], primary: str) -> list[str]:
    """Return the choice of every group that has one, as given or by default."""
    found = dict(choice.split("=", 1) for choice in chosen)
    for group, choice in chosen_in(primary).items():
        if choice != []:
            found.setdefault(group, str(choice))
    return [f"{group}={choice}" for group, choice in found.items()]


@cache
def _loaded(path: Path) -> dict[str, Any]:
    found = safe_load(path.read_text())
    return found if isinstance(found, dict) else {}


@cache
def _options_by_choice(primary: str) -> dict[str, list[str]]:
    """Return the options that each choice of the command's groups defines, by `group=name`."""
    found = {}
    for group in groups_of(primary):
        if group in NO_OPTIONS:
            continue
        for path in sorted((CONF / group).glob("*.yaml")):
            package = re.search(r"^# @package (\S+)", path.read_text())
            prefix = package[1] if package else group
            found[f"{group}={path.stem}"] = _flat(_loaded(path), "" if prefix == "_global_" else f"{prefix}.")
    return found


def _flat(node: dict[str, Any], prefix: str) -> list[str]:
    keys = []
    for name, child in node.items():
        if prefix or name not in ("defaults", "hydra"):
            keys += [f"{prefix}{name}", *(_flat(child, f"{prefix}{name}.") if isinstance(child, dict) else [])]
    return keys


def _owners(key: str, chosen: list[str], primary: str) -> list[str]:
    """Return the choices, other than those of the command line, that have the option."""
    owners = []
    for choice, options in _options_by_choice(primary).items():
        if key in options:
            users = users_of(choice.split("=")[0])
            brought_in = set(users) & set(with_defaults(chosen, primary))
            owners += users if users and not brought_in else [choice]
    return owners


def _commands_with(key: str) -> list[str]:
    """Return the commands that have the option."""
    return [
        command
        for primary, command in COMMANDS.items()
        if key in own_options(primary)
        or key in groups_of(primary)
        or any(key in options for options in _options_by_choice(primary).values())
    ]


def _ending_with(end: str, known: Iterable[str]) -> list[str]:
    """Return the options of fewest parts that end so; what `head.` repeats is left out."""
    names = sorted({name for name in known if f".{name}".endswith(f".{end}")})
    names = [name for name in names if not name.startswith("head.")] or names
    least = min((name.count(".") for name in names), default=0)
    return [name for name in names if name.count(".") == least][:SHOWN]


def _assigned(name: str, value: str | None) -> str:
    return f"{name}={'VALUE' if value is None else value}"


def _chosen(group: str, value: str | None, primary: str) -> str:
    """Return `group=value`, or what the value is a choice of."""
    for each in (group, *groups_of(primary)):
        if value in choices_of(each):
            return f"{each}={value}"
    return f"{group}=NAME, one of {', '.join(choices_of(group))}"


def _same_last_part(last: str, here: list[str]) -> str:
    close = closest(last, [name.rpartition(".")[2] for name in here])
    return f"did you mean {' or '.join(map(repr, _ending_with(close, here)))}? " if close else ""


def _listed(names: list[str]) -> str:
    several = sorted(set(names))
    return " or ".join(several) if len(several) <= SHOWN else f"{', '.join(several[:SHOWN])} and others"


def _all_keys(node: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for name in node:
        keys.append(prefix + str(name))
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            keys += _all_keys(child, prefix + str(name) + ".")
    return keys
