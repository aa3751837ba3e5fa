"""Reports on a program that a signal ended."""

import signal

import pytest

from experiments.launching.exit_reason import ended, how_to_resume
from tests.experiments.commands import config


@pytest.mark.parametrize(
    ("number", "words", "message"),
    [
        (
            signal.SIGBUS,
            ["data=lmdb", "data.source=a.lmdb"],
            "(SIGBUS), perhaps because data.source=a.lmdb is",
        ),
        (signal.SIGSEGV, ["data=lmdb", "data.source=[a,b]"], "because data.source=a or data.source=b is damaged"),
        (signal.SIGBUS, [], "signal 7 (SIGBUS)"),  # nothing was read
        (signal.SIGKILL, ["data=lmdb", "data.source=a.lmdb"], "signal 9 (SIGKILL), perhaps because memory ran out"),
    ],
)
def test_the_message_names_the_signal_and_the_data(number, words, message):
    assert message in ended(number, config(*words))


def test_the_source_of_other_commands_is_named():
    message = ended(signal.SIGBUS, config("checkpoint=x", "source=faces.lmdb", "target=x.npy", name="embed"))
    assert "perhaps because source=faces.lmdb is damaged" in message


def test_only_existing_checkpoints_are_resumed(tmp_path):
    options = config()
    assert "it cannot be resumed, because it has not written a checkpoint" in how_to_resume(options, tmp_path)
    (tmp_path / "checkpoints" / "step-00000010").mkdir(parents=True)
    assert "it cannot be resumed, because it has not written a checkpoint" in how_to_resume(
        options, tmp_path
    )  # half a checkpoint
    (tmp_path / "checkpoints" / "step-00000010" / "manifest.json").touch()
    assert how_to_resume(options, tmp_path).startswith(f"resume={tmp_path} continues")
    options.checkpoint.dir = str(tmp_path / "elsewhere")
    assert "it cannot be resumed, because it has not written a checkpoint" in how_to_resume(options, tmp_path)
