"""Stores of checkpoints: a folder, fsspec's memory, and a server that speaks S3."""

import os
import threading
import uuid
from collections.abc import Iterator

import pytest
import torch
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from experiments.checkpoints import blocks, files
from experiments.checkpoints.attempts import CheckpointError
from experiments.checkpoints.checkpoint import write
from experiments.checkpoints.finding import find
from experiments.checkpoints.storage import COMPLETE, CheckpointStore, Folder, Remote, open_store
from experiments.checkpoints.stored import Stored
from experiments.launching.processes import Processes
from experiments.train import train
from experiments.verify import verify
from tests.experiments.commands import SMOKE, call, config, metrics, summary

ONE = Processes(0, 1, torch.device("cpu"))


class Server:
    """moto's S3 on loopback. The next `refuse` PUTs get status 503; `put` lists the paths that were put, in order."""

    def __init__(self) -> None:
        self.refuse, self.put = 0, []
        self.s3 = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def _answer(self, environ, start_response):
        if environ["REQUEST_METHOD"] == "PUT":
            if self.refuse:
                self.refuse -= 1
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("503 Slow Down", [("Content-Length", "0")])
                return [b""]
            self.put.append(environ["PATH_INFO"].split("/", 2)[-1])
        return self.s3(environ, start_response)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    server = Server()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # so that our own attempts are what is tested
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield server
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.close()


@pytest.fixture(params=["folder", "memory", "s3"])
def where(request, tmp_path) -> CheckpointStore:
    if request.param == "folder":
        return open_store(tmp_path / "checkpoints")
    if request.param == "memory":
        return open_store(f"memory://{uuid.uuid4()}/checkpoints")
    request.getfixturevalue("s3")
    return bucket()


def bucket() -> Remote:
    found = open_store(f"s3://headcount-{uuid.uuid4()}/run/checkpoints")
    assert isinstance(found, Remote)
    found.files.mkdir(found.path.split("/")[0])
    return found


STATE = {
    "step": 3,
    "state_dict": {},
    "weights": [torch.arange(5.0), torch.tensor(2, dtype=torch.int64), torch.empty(0)],
}


def state(seed: int) -> dict[str, torch.Tensor]:
    return {"head.centers.rows": torch.randn(1000, 16, generator=torch.Generator().manual_seed(seed))}


def test_a_written_checkpoint_is_read_back(where):
    for step in (5, 40):
        write(STATE, {"mine": step}, state(step), where, f"step-{step:08d}", ONE)
    assert where.complete() == ["step-00000005", "step-00000040"] and where.resolve_alias("latest") == "step-00000040"
    rows = {name: torch.zeros_like(tensor) for name, tensor in state(5).items()}
    stored = Stored(f"{where}/step-00000005")
    stored.fill(rows, ONE)
    shared = stored.shared()
    assert shared["step"] == 3 and stored.local(ONE) == {"mine": 5}
    assert all(torch.equal(a, b) for a, b in zip(shared["weights"], STATE["weights"], strict=True))
    assert torch.equal(rows["head.centers.rows"], state(5)["head.centers.rows"])
    assert verify(f"{where}/latest")
    some = Stored(f"{where}/step-00000040").read_rows("head.centers.rows", 123, 456)
    assert torch.equal(some, state(40)["head.centers.rows"][123:456])


def test_a_removed_checkpoint_is_not_listed(where):
    for step in (1, 2):
        write(STATE, None, state(step), where, f"step-{step:08d}", ONE)
    where.set_alias("best", "step-00000001")
    assert where.resolve_alias("best") == "step-00000001"
    where.remove("step-00000001")
    assert where.complete() == ["step-00000002"] and where.resolve_alias("best") is None
    assert where.sizes("step-00000001").get(COMPLETE, -1) == -1


def test_an_incomplete_checkpoint_is_never_listed_and_is_removed(where, monkeypatch):
    write(STATE, None, state(1), where, "step-00000001", ONE)
    seen = []

    def fail(*arguments, **named):
        seen.append(where.complete())  # all data is written, and the last file is not
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(where), "retry_seconds", ())
    monkeypatch.setattr(files.Writer, "finish", fail)
    with pytest.raises(CheckpointError, match=r"step-00000002 could not be written \(.*No space left on device"):
        write(STATE, None, state(2), where, "step-00000002", ONE)
    monkeypatch.undo()
    assert seen == [["step-00000001"]] and where.complete() == ["step-00000001"]
    assert where.resolve_alias("latest") == "step-00000001"
    write(STATE, None, state(3), where, "step-00000003", ONE)
    assert where.sizes("step-00000002").get("process-0.bin", -1) == -1


def test_saves_are_retried_after_transient_errors(s3, monkeypatch):
    monkeypatch.setattr(Remote, "retry_seconds", (0.01, 0.01, 0.01))
    where = bucket()
    for refused in (1, 2, 3):
        s3.refuse = refused
        write(STATE, None, state(refused), where, f"step-{refused:08d}", ONE)
        assert s3.refuse == 0 and len(where.complete()) == refused
        rows = {"head.centers.rows": torch.zeros(1000, 16)}
        Stored(f"{where}/step-{refused:08d}").fill(rows, ONE)
        assert torch.equal(rows["head.centers.rows"], state(refused)["head.centers.rows"])


def test_permanent_errors_are_reported(s3, monkeypatch):
    monkeypatch.setattr(Remote, "retry_seconds", (0.01,))
    where = bucket()
    write(STATE, None, state(1), where, "step-00000001", ONE)
    s3.refuse = 10**6
    with pytest.raises(CheckpointError, match=r"checkpoint\.dir=s3://.*: step-00000002 could not be written"):
        write(STATE, None, state(2), where, "step-00000002", ONE)
    s3.refuse = 0
    assert where.complete() == ["step-00000001"] and where.resolve_alias("latest") == "step-00000001"


def test_the_manifest_is_written_last(s3):
    where = bucket()
    s3.put.clear()
    write(STATE, None, state(1), where, "step-00000001", ONE)
    names = [path.rpartition("/")[2] for path in s3.put]
    assert names.index("process-0.bin") < names.index(COMPLETE) < names.index("latest")


def test_a_run_keeps_its_checkpoints_in_a_bucket_and_resumes_from_it(s3, tmp_path):
    words = ["head=pfc", "trainer.devices=2", *SMOKE, "logger.wandb.mode=disabled", "evaluate.interval=null"]
    where = bucket()
    call("experiments.run", *words, f"checkpoint.dir={where}", f"hydra.run.dir={tmp_path / 'a'}")
    assert where.complete() == ["step-00000010", "step-00000020"] and not (tmp_path / "a" / "checkpoints").exists()
    where.remove("step-00000020")
    with pytest.raises(
        ValueError, match=f"has a config.yaml that names {where} for its checkpoints, and paths in files are not fol"
    ):
        find(str(tmp_path / "a"), tmp_path, None)
    again = [f"resume={where}", f"hydra.run.dir={tmp_path / 'b'}"]
    call("experiments.run", *words, *again)
    whole, resumed = (metrics(tmp_path / name, "train/loss") for name in "ab")
    assert resumed == {step: loss for step, loss in whole.items() if step > 10}
    assert summary(tmp_path / "b")["steps"] == 20


def test_a_training_may_live_in_memory(tmp_path):
    url = f"memory://{uuid.uuid4()}"
    words = [*SMOKE, "logger.wandb.mode=disabled", f"checkpoint.dir={url}", "checkpoint.keep=1"]
    assert train(config(*words), tmp_path) == 0
    assert open_store(url).complete() == ["step-00000020"]


@pytest.mark.parametrize(
    ("url", "words"),
    [("nosuch://x", "nosuch"), ("gs://bucket/x", "gs://bucket/x cannot be opened: .*gcsfs")],
    ids=["unknown", "gs"],
)
def test_urls_that_cannot_be_opened_are_refused(url, words):
    with pytest.raises(ValueError, match=words):
        open_store(url)


def test_other_files_of_a_folder_stay_unchanged(tmp_path):
    for name in ("step-one", "notes", "step-00000007", ".step-00000008.partial"):
        (tmp_path / name).mkdir()
    write(STATE, None, state(1), Folder(tmp_path), "step-00000009", ONE)
    assert {path.name for path in tmp_path.iterdir()} == {"step-one", "notes", "step-00000009", "latest"}


def test_checkpoints_of_version_0_1_stay_and_are_not_mixed_with_others(tmp_path):
    old = tmp_path / "checkpoints" / "step-00000007"
    old.mkdir(parents=True)
    (old / ".metadata").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=r"already holds step-00000007 of another training"):
        train(config(*SMOKE, "logger.wandb.mode=disabled"), tmp_path)
    with pytest.raises(ValueError, match=r"resume=.*step-00000007 cannot be used: it was written by version 0\.1"):
        train(config(*SMOKE, "resume=auto", "logger.wandb.mode=disabled"), tmp_path)
    write(STATE, None, state(1), Folder(old.parent), "step-00000009", ONE)
    assert (old / ".metadata").exists() and Folder(old.parent).complete() == ["step-00000007", "step-00000009"]


def test_large_tensors_are_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 16 * 4 * 300)
    write(STATE, None, state(1), Folder(tmp_path), "step-00000001", ONE)
    stored = Stored(str(tmp_path / "step-00000001"))
    assert [chunk.sizes[0] for chunk in stored.tensors["head.centers.rows"].chunks] == [300, 300, 300, 100]
    for start, stop in ((0, 1000), (299, 301), (950, 1000), (600, 600)):
        rows = stored.read_rows("head.centers.rows", start, stop)
        assert torch.equal(rows, state(1)["head.centers.rows"][start:stop])
