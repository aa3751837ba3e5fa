"""The name of a run's head: what the user typed (`pfc` of `head=pfc`), which experiments.run records in config.yaml."""

from hydra.conf import HydraConf
from omegaconf import DictConfig, open_dict


def head_name(config: DictConfig) -> str:
    """Return the recorded name, or else the name of the head's class."""
    name = config.get("head_name") or config.head._target_.rpartition(".")[2]
    return str(name)


def record_head_name(config: DictConfig, settings: HydraConf) -> None:
    """Write Hydra's choice of the group `head` into the config, or the class name if the class itself was given."""
    by_class = any(word.lstrip("+").startswith("head._target_=") for word in settings.overrides.task)
    with open_dict(config):
        config.head_name = None if by_class else settings.runtime.choices.get("head")
        config.head_name = head_name(config)
