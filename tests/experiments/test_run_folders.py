"""Folders that cannot be used or are damaged: one message before a run starts."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments import launch
from experiments.checkpoints.finding import find
from experiments.run import check_folders


@pytest.mark.parametrize("option", ["hydra.run.dir", "hydra.sweep.dir"])
@pytest.mark.parametrize("below", ["", "/sub/deeper"])
def test_a_folder_that_cannot_be_created(option, below, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=f"error: {option}=.*/file is not a writable folder; choose another folder"):
        check_folders(["head=pfc", f"{option}={tmp_path}/file{below}"])
    check_folders(["head=pfc", f"{option}={tmp_path}/new/folder", f"{option}=outputs/${{now:%Y}}"])


def test_resume_auto_refuses_a_checkpoint_without_its_manifest(tmp_path):
    saves = tmp_path / "checkpoints"
    (saves / "step-00000020").mkdir(parents=True)
    (saves / "latest").symlink_to("step-00000020")
    with pytest.raises(
        ValueError, match=r"resume=auto cannot be used: .*step-00000020 is damaged, it has no manifest.json; remove it"
    ):
        find("auto", tmp_path, None)
    (saves / "step-00000020").rmdir()  # as the message says
    assert find("auto", tmp_path, None) is None


def test_a_launch_leaves_no_folder_of_logs(tmp_path, monkeypatch):
    seen = []

    def elastic_launch(settings, program):
        seen.append(Path(settings.logs_specs.root_log_dir))
        assert seen[0].is_dir()
        return lambda *words: None

    monkeypatch.setattr(launch, "elastic_launch", elastic_launch)
    trainer = {"devices": 2, "num_nodes": 1, "rendezvous": None, "accelerator": "cpu"}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml({"trainer": trainer, "batch_size": 4}))
    assert launch.launch(tmp_path) == 0
    assert not seen[0].exists()
