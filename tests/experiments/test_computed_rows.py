"""Commands on a training whose class centers are computed: nothing of them is in its checkpoints."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors import safe_open

from experiments.checkpoints.checkpoint import write
from experiments.checkpoints.state import pack
from experiments.checkpoints.storage import Folder
from experiments.checkpoints.stored import Stored
from experiments.command_line.arguments import CONF
from experiments.export import export
from experiments.launching.processes import Processes
from experiments.models.trained import StoredCenters, Trained
from experiments.plan import lines
from experiments.train import train
from heads import Prototypes
from tests.conformance import rows_of
from tests.experiments.commands import config, stored_rows, summary
from tests.experiments.launching.test_processes import trained

C, D = 43, 16
WORDS = ("head=prototypes", "data=sphere", f"data.num_classes={C}", "data.num_heldout=4", "backbone=mlp")
WORDS += (f"embedding_size={D}", "batch_size=12", "evaluate.interval=null", "logger.wandb.mode=disabled")
WORDS += ("trainer.log_interval=1", "trainer.max_steps=6", "checkpoint.interval=3", "checkpoint.keep=9")
WORDS += ("objective=uniface", "sample_rate=0.5")
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    words = [*WORDS, "protocol=closed_set", "evaluate.train_records=20", "fidelity.interval=3"]
    assert train(config(*words), folder) == 0
    return folder


def state_of(folder):
    """Return the tensors of the newest checkpoint: weights, bias of all classes, and the state of their optimizers."""
    shared = Stored(str(folder / "checkpoints" / "step-00000006")).shared()
    return pack({name: shared[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")}, "state")


def test_the_training_is_measured_like_others(learned):
    results = summary(learned)
    assert results["memory/head_bytes"] == 0 and results["head/active_classes"] == round(C / 2)
    assert {"val/closed_set/top1", "train/exact_loss", "fidelity/mass"} <= results.keys()
    assert stored_rows(learned / "checkpoints" / "latest") == {}


@pytest.mark.parametrize("world_size", [1, 2])
def test_resumes_bit_for_bit(world_size, workers, tmp_path):
    def run(*more):
        assert workers(world_size).run(trained, [*WORDS, *more], tmp_path / "run") == [0] * world_size
        return state_of(tmp_path / "run")

    uninterrupted = run()
    (tmp_path / "run").rename(tmp_path / "first")
    resumed = run(f"resume={tmp_path / 'first' / 'checkpoints' / 'step-00000003'}")
    assert resumed.keys() == uninterrupted.keys() and len(resumed) > 10
    assert all(torch.equal(resumed[name], tensor) for name, tensor in uninterrupted.items())


def test_resumes_on_another_number_of_processes(workers, tmp_path):
    """The number of processes changes rounding only, as each step uses all classes."""
    words = [*WORDS, "sample_rate=1", "trainer.max_steps=6"]
    assert workers(1).run(trained, words, tmp_path / "one") == [0]
    words += [f"resume={tmp_path / 'one' / 'checkpoints' / 'step-00000003'}"]
    assert workers(2).run(trained, words, tmp_path / "two") == [0] * 2
    one, two = (bias_of(tmp_path / name / "checkpoints" / "latest") for name in ("one", "two"))
    start = bias_of(tmp_path / "one" / "checkpoints" / "step-00000003")
    assert two == pytest.approx(one, rel=1e-5) and abs(one - start) > 1e-3


def bias_of(checkpoint):
    return Trained(str(checkpoint.resolve())).shared_bias()


@pytest.mark.parametrize("words", [["kind=simplex", "data.num_classes=17"], ["kind=permutations"], ["seed=1"]])
def test_other_rows_are_no_continuation(words, learned, tmp_path):
    checkpoint = f"resume={learned / 'checkpoints' / 'step-00000003'}"
    with pytest.raises(ValueError, match=r"resume=.* was trained with .*(kind=random|seed=0)"):
        train(config(*WORDS, *words, checkpoint), tmp_path)


def test_a_checkpoint_gives_its_rows(learned, tmp_path):
    checkpoint = Trained(str(learned))
    rows = rows_of(Prototypes(C, D))
    assert (checkpoint.num_classes, checkpoint.width) == (C, D) and str(checkpoint).count(f"{C} class centers") == 1
    assert torch.equal(torch.cat([block for _, block in checkpoint.rows()]), rows)
    assert torch.equal(torch.cat([block for _, block in checkpoint.stored_rows(5, 9)]), rows[5:9])
    assert torch.equal(torch.cat([block for _, block in StoredCenters(checkpoint, ALONE).blocks()]), rows)
    target = tmp_path / "centers.safetensors"
    export(config(f"checkpoint={learned}", f"target={target}", "format=safetensors", name="export"), tmp_path)
    with safe_open(target, "pt") as file:
        assert set(file.keys()) == {"centers"} and torch.equal(file.get_tensor("centers"), rows)


def test_warm_start_from_and_into_computed_rows(learned, tmp_path, capfd):
    still = ["trainer.max_steps=1", "optimizer.lr=1e-12", "schedule.warmup=0", "optimizer.rows.weight_decay=0"]
    start = [f"warm_start.checkpoint={learned}", "warm_start.classes=id"]
    (tmp_path / "full").mkdir()
    assert train(config(*WORDS[1:-1], *still, *start, "head=full"), tmp_path / "full") == 0
    rows = stored_rows(tmp_path / "full" / "checkpoints" / "latest")["head.centers.rows"]
    assert torch.allclose(rows, rows_of(Prototypes(C, D)), atol=1e-9)
    assert f"the rows of {C} classes were loaded" in capfd.readouterr().out
    (tmp_path / "into").mkdir()
    into = [*WORDS, *still, f"warm_start.checkpoint={tmp_path / 'full'}", "warm_start.classes=id"]
    assert train(config(*into), tmp_path / "into") == 0
    assert "there are no class centers to load; the bias of all classes was loaded" in capfd.readouterr().out
    np.save(tmp_path / "rows.npy", np.ones((C, D), np.float32))
    with pytest.raises(ValueError, match="needs a head that stores one row a class, and Prototypes stores none"):
        train(config(*WORDS, f"warm_start.rows={tmp_path / 'rows.npy'}"), tmp_path / "file")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=features", "backbone=none"], "head=Prototypes stores no class centers, and the backbone has no"),
        (["kind=simplex"], r"num_classes=43 is too large for kind=simplex, which has 17 rows for embedding_size=16"),
        (["objective=bce"], "objective=BCE learns a bias for each class, and prototypes store nothing for a class"),
        (["margin=softmax", "objective=softmax"], "margin=Softmax has a bias for each class"),
    ],
)
def test_trainings_that_cannot_learn_are_refused(words, message, tmp_path):
    if "backbone=none" in words:
        np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((40, D)).astype(np.float32))
        np.save(tmp_path / "x.labels.npy", np.arange(40) % 4)
        words = [*words, f"data.source={tmp_path / 'x.npy'}", "~data.num_classes"]
    base = [word for word in WORDS if not (word.startswith("data") and "data=features" in words)]
    with pytest.raises(ValueError, match=message):
        train(config(*base, *(word for word in words if word != "~data.num_classes")), tmp_path)


@pytest.mark.parametrize("wrong", [{"kind": "cube"}, {"num_classes": -1}, {"embedding_size": "16"}, {"seed": None}, 7])
def test_a_wrong_description_is_refused(wrong, learned, tmp_path):
    stored = Stored(str((learned / "checkpoints" / "latest").resolve()))
    shared = stored.shared()
    formula = shared["state_dict"]["head.centers._extra_state"]
    assert formula == {"kind": "random", "num_classes": C, "embedding_size": D, "seed": 0}
    shared["state_dict"]["head.centers._extra_state"] = {**formula, **wrong} if isinstance(wrong, dict) else wrong
    write(shared, None, {}, Folder(tmp_path / "checkpoints"), "step-00000006", ALONE)
    with pytest.raises(ValueError, match="cannot be used: it has no valid description of its model"):
        Trained(str(tmp_path))


def plan(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return lines(compose("plan", ["heads=[prototypes]", *words]))


def test_plan_counts_no_memory_of_rows():
    (line,) = plan("options.sample_rate=1e-5", "num_classes=1e8", "objective=uniface")
    assert line["table_bytes"] == 0 and line["fits"] and line["objective"] == "UniFace"
    (line,) = plan("options.kind=simplex", "num_classes=500", "embedding_size=512")
    assert line["most_classes"] == 513
    with pytest.raises(ValueError, match="num_classes=100,000,000 is too large for kind=simplex"):
        plan("options.kind=simplex", "num_classes=1e8")
