"""Command lines: the answers to wrong words, lines that pass, and the text of --help."""

import re
import runpy
import shlex
import sys

import pytest
from omegaconf import OmegaConf

from experiments.command_line import arguments, options
from experiments.command_line.config_files import COMMANDS, CONF, choices_of
from experiments.command_line.describe import description
from experiments.launching import start, sweep
from tests.experiments.commands import ROOT, config

# Words after `python -m experiments.run`, or after the named command, and a part of the answer.
MISTYPED = [
    # Options by their last part, or as other programs call them.
    ("lr=0.1", "lr is not an option; write optimizer.lr=0.1"),
    ("learning_rate=0.1", "write optimizer.lr=0.1"),
    ("epochs=3", "write trainer.max_epochs=3"),
    ("steps=100", "write trainer.max_steps=100"),
    ("max_steps=100", "write trainer.max_steps=100"),
    (
        "num_classes=1000",
        "the data decide how many classes there are; write data.num_classes=1000, which",
    ),
    ("weight_decay=1e-4", "write optimizer.backbone.weight_decay=1e-4 or optimizer.rows.weight_decay=1e-4"),
    ("wd=1e-4", "write optimizer.backbone.weight_decay=1e-4 or optimizer.rows.weight_decay=1e-4"),
    ("batch=64", "write batch_size=64"),
    ("gpus=2", "write trainer.devices=2"),
    ("trainer.gpus=2", "write trainer.devices=2"),
    ("trainer.strategy=ddp", "the number of processes decides how they share the work; write trainer.devices=2"),
    ("+trainer.strategy=ddp", "write trainer.devices=2"),
    ("amp=true", "write trainer.precision=16-mixed"),
    ("m=0.5", "write margin.m=0.5"),
    ("h=0.5", "write margin.h=0.5, which belongs to margin=adaface"),
    ("lambda_g=35", "write margin.penalty_weight=35, which belongs to margin=magface"),
    ("train_dir=photos", "train_dir is not an option; --help lists all options"),
    ("data_dir=photos", "write data.source=photos, which belongs to data=features, data=folder"),
    ("lfw.source=x", "write protocol.lfw.source=x, which belongs to protocol=lfw"),
    # Groups, and what is a choice of another one.
    ("model=resnet", "model is not an option; write backbone=resnet"),
    ("model=r50", "write backbone=NAME, one of hf, iresnet, mlp, mobilefacenet, none, resnet, timm, tiny, vit"),
    ("model=pfc", "write head=pfc"),
    ("loss=arcface", "write margin=arcface"),
    ("loss=uniface", "write objective=uniface"),
    ("margin=uniface", "margin=uniface must name a margin, and uniface is an objective; write objective=uniface"),
    ("objective=adaface", "objective=adaface must name an objective, and adaface is a margin; write margin=adaface"),
    ("margin=elastic", "margin=elastic is not available; did you mean 'elasticface'? choose one of adacos_fixed, "),
    ("head=arcface", "head=arcface must name a head, and arcface is a margin; write margin=arcface"),
    ("margin=pfc", "margin=pfc must name a margin, and pfc is a head; write head=pfc"),
    (
        "data=mnist",
        "data=mnist is not available; choose one of features, folder, glyphs, hanzi, list, lmdb, parquet, rec, sphere, "
        "wds",
    ),
    ("dataset=glyphs", "write data=glyphs"),
    ("head=", "head= is not available; choose one of ffc, forest"),
    ("trainer=gpu", "trainer=gpu cannot be set, because trainer holds several options: trainer.max_steps, "),
    ("checkpoint=outputs/x", "checkpoint holds several options: checkpoint.dir, "),
    ("checkpoint=outputs/x", "resume=RUN continues a training, and warm_start.checkpoint=RUN begins a new one"),
    ("logger.wandb=false", "logger.wandb holds several options: logger.wandb.mode, "),
    # Misspelt words.
    (
        "head=pcf",
        f"head=pcf is not available; did you mean 'pfc'? choose one of {', '.join(choices_of('head'))}",
    ),
    ("optimizer=adam", "did you mean 'adamw'?"),
    ("backbone=resnet50", "did you mean 'resnet'?"),
    ("sample_rte=0.1", "sample_rte is not an option; did you mean 'sample_rate'?"),
    ("max_step=5", "did you mean 'trainer.max_steps'?"),
    ("node=2", "node is not an option; --help lists all options"),  # and no word of logger.wandb.mode
    ("experiment=smok", "did you mean 'smoke'?"),
    # Values.
    ("optimizer.lr=-1", "optimizer.lr=-1 must be a learning rate of at least 0"),
    ("optimizer.rows.lr=-1", "optimizer.rows.lr=-1 must be a learning rate of at least 0, or null"),
    ("seed=-1", "seed=-1 must be a whole number from 0 to 2^32 - 1"),
    ("seed=4294967296", "seed=4294967296 must be a whole number from 0 to 2^32 - 1"),
    ("trainer.precision=16", "trainer.precision=16 must be one of 32-true, bf16-mixed, 16-mixed"),
    ("checkpoint.best=train/loss", "must be a metric of the evaluation, such as val/rank1"),
    ("logger.wandb.mode=on", "must be one of online, offline, disabled"),
    ("resume=/nowhere", "resume=/nowhere does not exist; give the folder of a run, or a checkpoint"),
    (
        "trainer.max_epochs=3 trainer.max_steps=9",
        "trainer.max_epochs=3 and trainer.max_steps=9 cannot be combined; give one of them",
    ),
    # How options are written.
    ("head=full,pfc", "has several values and needs a sweep; write python -m experiments.run -m head=full,pfc"),
    ("protocol=lfw,ijb", "-m protocol=lfw,ijb, or protocol=[lfw,ijb] for all of them together"),
    ("--batch_size 64", "--batch_size 64 must be written without dashes; write batch_size=64"),
    ("--batch-size=64", "write batch_size=64"),
    ("--lr 0.1", "--lr 0.1 must be written without dashes; lr is not an option; write optimizer.lr=0.1"),
    ("pfc", "pfc needs the name of its option; write head=pfc"),
    ("batch_size:64", "write batch_size=64"),
    ("batch_size = 64", "batch_size must be written NAME=VALUE, without spaces"),
    ("--shell-completion install=bash", "completion does not work with python -m; --help lists all options"),
    # Options that nothing reads, and options that cannot be removed.
    ("+foo=1", "foo is not an option"),
    ("++foo=1", "foo is not an option"),
    ("+optimizer.foo=1", "optimizer.foo is not an option"),
    ("+trainer.fast_dev_run=true", "trainer.fast_dev_run is not an option"),
    ("+trainer.profiler=smple", "trainer.profiler=smple must be one of simple, advanced, pytorch"),
    (
        "+optimizer.rows.lr=1",
        "+optimizer.rows.lr=1 cannot be added, because optimizer.rows.lr exists; write optimizer.rows.lr=1",
    ),
    ("head=ffc +optimizer.rows.lr=1", "optimizer.rows.lr is not an option of head=ffc, where optimizer.rows is null"),
    ("~trainer.precision", "~trainer.precision cannot be removed; write trainer.precision=null"),
    # Other commands.
    ("bench=topk", "bench is not an option of experiments.run; it belongs to python -m experiments.benchmark"),
    ("memory_gb=80", "it belongs to python -m experiments.plan"),
    ("evaluate: checkpoint=nowhere", "checkpoint=nowhere does not exist; give the folder of a run"),
    ("evaluate: head=pfc", "head is not an option of experiments.evaluate; it belongs to python -m experiments.run"),
    ("evaluate: protocol=lwf", "did you mean 'lfw'?"),
    ("evaluate: protcol=lfw", "did you mean 'protocol'?"),
    ("embed: resume=x", "it belongs to python -m experiments.run"),
    ("embed: devices=2", "write trainer.devices=2"),
    ("plan: objective=unifase", "objective=unifase is not available; did you mean 'uniface'?"),
    ("plan: head=pfc", "head is not an option; did you mean 'heads'?"),
    ("plan: sample_rate=0.1", "write options.sample_rate=0.1"),
    ("benchmark: num_classes=1000", "write bench.num_classes=1000"),
    # Options of other choices.
    ("head=full sample_rate=0.1", "sample_rate is not an option of head=full; it belongs to head=pfc"),
    ("head=ffc store=disk", "store is not an option of head=ffc; it belongs to head=forest and head=full"),
    ("head=ffc compute=bf16", "compute is not an option of head=ffc; it belongs to head=forest and head=full"),
    ("store=device store_dir=x", "store_dir is not an option of store=device; it belongs to store=disk"),
    ("head=forest sample_rate=0.1", "sample_rate is not an option of head=forest; it belongs to head=pfc"),
    ("head=pfc index=ivf", "index is not an option of head=pfc; it belongs to head=forest"),
    ("head=forest index=ivf num_trees=9", "num_trees is not an option of index=ivf; it belongs to index=annoy"),
    ("head=forest index=hnsw", "index=hnsw is not available; choose one of annoy, exact, ivf"),
    ("store=tape", "store=tape is not available; choose one of device, disk, host"),
    ("protocol=[lfw,ijc]", "protocol=ijc is not available; choose one of closed_set, identification, ijb, lfw"),
    (
        "protocol=ijb protocol.lfw.folds=5",
        "protocol.lfw.folds is not an option of protocol=ijb; it belongs to protocol=lfw",
    ),
    ("protocol.lfw.folds=5", "protocol.lfw.folds is not an option of this config; it belongs to protocol=lfw"),
    ("protocol=lfw protocol.lfw.fold=5", "protocol.lfw.fold is not an option; did you mean 'protocol.lfw.folds'?"),
    ("experiment=heads sample_rate=0.2", "sample_rate is not an option of head=full"),
    ("experiment=ms1mv3_r50 sample_rate=0.2", "sample_rate is not an option of head=full; it belongs to head=pfc"),
    ("experiment=queue_size sample_rate=0.2", "sample_rate is not an option of head=ffc; it belongs to head=pfc"),
    ("experiment=ffc_r50 store=disk", "store is not an option of head=ffc; it belongs to head=forest and head=full"),
    ("margin=arcface margin.m1=2", "margin.m1 is not an option of margin=arcface; it belongs to margin=combined"),
    ("margin=softmax margin.m=2", "margin.m is not an option of margin=softmax; it belongs to margin=adaface"),
    (
        "head=ffc optimizer.rows.momentum=7",
        "optimizer.rows.momentum is not an option of head=ffc, where optimizer.rows is null",
    ),
    # Options by the names of earlier versions.
    ("filter_below=1e-3 head=full", "filter_below was renamed; write min_probability=1e-3"),
    (
        "filter_below=1e-3",
        "filter_below was renamed to min_probability; min_probability is not an option of head=pfc; it",
    ),
    ("head.filter_below=0 head=full", "head.filter_below was renamed; write head.min_probability=0"),
    ("margin.filter_above=0.3", "margin.filter_above was renamed; write margin.max_negative_cosine=0.3"),
    (
        "filter_above=0.3",
        "filter_above was renamed to max_negative_cosine; max_negative_cosine is not an option; write",
    ),
    ("data=hanzi data.tail=1.0", "data.tail is not an option of data=hanzi; write noise.tail=1.0"),
    ("objective=val/rank1", "objective=val/rank1 is a metric, whose option was renamed; write sweep_metric=val/rank1"),
    ("head.objective=softmax", "head.objective is not an option; write objective=softmax"),
    ("benchmark: bench=filter_below", "bench=filter_below was renamed; write bench=min_probability"),
    # Values of another type.
    ("sample_rate=abc", "sample_rate=abc must be a number"),
    ("-m sample_rate=0.1,abc", "sample_rate=abc must be a number"),
    ("-m optimizer.lr=0.1,-1", "optimizer.lr=-1 must be a learning rate"),
    ("\"optimizer.lr='0.1'\"", "optimizer.lr='0.1' must be a learning rate"),
    ("head.log_q=no", "head.log_q=no must be true or false"),
    ("seed=true", "seed=true must be a whole number"),
    ("batch_size=1e300", "batch_size=1e+300 must be a whole number of at least 1"),
    (f"trainer.max_steps={2**63}", f"trainer.max_steps={2**63} must be a whole number of at least 1"),
    ("trainer.max_steps=1.5", "trainer.max_steps=1.5 must be a whole number of at least 1, or null"),
    ("trainer.sync_batchnorm=1", "trainer.sync_batchnorm=1 must be true or false"),
    ("fidelity.probes=[1]", "fidelity.probes=[1] must be a whole number"),
    ("data.augment=1", "data.augment=1 must be true or false"),
    ("head=forest num_active={0:100", "num_active={0:100 cannot be parsed"),
    ("sample_rate=0:0.1 sample_rate=100:1", "sample_rate=0:0.1 must be a number; a schedule needs braces and quotes: "),
    ("margin.m=0:0.1", "'margin.m={0:0.1,1000:1}'"),
    ("batch_size={0:1}", "batch_size={0: 1} must be a whole number"),
    ("head=ffc weights.by=inverse", "weights.by=inverse cannot be used with head=ffc, whose loss has no weights; use"),
    ("weights=inverse", "weights=inverse cannot be set, because weights holds several options: weights.by, "),
]
OTHERS = ("compare", "launch", "results", "train", "verify")  # commands without a config of their own
PRIMARY = {command.rpartition(".")[2]: primary for primary, command in COMMANDS.items()}


@pytest.mark.parametrize(("typed", "words"), MISTYPED)
def test_wrong_words_are_answered_by_right_ones(typed, words):
    command, _, line = typed.rpartition(": ")
    with pytest.raises(ValueError) as raised:
        arguments.check(shlex.split(line), PRIMARY[command or "run"])
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        "-m sample_rate=0.1,1 num_workers=${seed} head.log_q=true --config-dir=x",
        "head=forest num_active={0:100,5:200} embedding_size=1e2 data.cache_dir=2024",
        "sample_rate={0:0.1,2e3:1} margin.m={0:0.1,5:0.4} margin.max_negative_cosine={0:null,5:0.7} weights.by=inverse",
        "--cfg job head=full seed=3",
        "-m head=glob(f*) seed=range(0,3)",
        "-m margin.m=interval(0,1) hydra/sweeper=optuna",
        "optimizer.rows.lr=0.01 optimizer.backbone.lr=0 optimizer.lr=1e-3",
        "backbone._target_=mine.Net +backbone.depth=3 +backbone.more.x=1 ~optimizer.backbone.nesterov",
        "+trainer.profiler=simple +trainer.detect_anomaly=true ++seed=3",
        "optimizer.rows=null checkpoint.dir=null resume=auto",
        "data=folder data.augment=false data.source=x",
        "protocol=[lfw,ijb] protocol.ijb.pairs=x protocol.lfw.folds=5",
        "evaluate: protocol=[lfw,ijb] protocol.ijb.pairs=x checkpoint=s3://bucket/run",
        "-m hydra/launcher=slurm resume=/of/the/cluster",
    ],
)
def test_valid_lines_pass(line):
    command, _, words = line.rpartition(": ")
    arguments.check(shlex.split(words), PRIMARY[command or "run"])


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("source=../photos/人", "'source=\"../photos/人\"'"), ("source=a(b", "'source=\"a(b\"'")],
)
def test_unreadable_text_is_answered_with_quotes(word, quoted):
    with pytest.raises(ValueError, match=re.escape(f"quote it: {quoted}")):
        arguments.check([word], "embed")
    arguments.check([quoted.strip("'")], "embed")


@pytest.mark.parametrize(
    ("line", "added"),
    [
        ("trainer.max_epochs=3", ["trainer.max_steps=null"]),
        ("-m trainer.max_epochs=1,3 head=full", ["trainer.max_steps=null"]),
        ("experiment=ms1mv3_r50 trainer.max_steps=2", ["trainer.max_epochs=null"]),
        ("trainer.max_epochs=3 trainer.max_steps=null", []),
        ("trainer.max_epochs=null", []),
        ("head=full", []),
    ],
)
def test_command_line_sets_steps_or_epochs(line, added):
    assert arguments.completed(line.split()) == [*line.split(), *added]


def test_flags_may_stand_anywhere():
    """Hydra accepts overrides only as one block, after its flags."""
    words = ["head=full,pfc", "-m", "seed=0,1", "--cfg", "job", "trainer.max_epochs=1"]
    overrides = ["head=full,pfc", "seed=0,1", "trainer.max_epochs=1", "trainer.max_steps=null"]
    assert arguments.completed(words) == ["-m", "--cfg", "job", *overrides]


def test_a_sweep_composes_each_choice_once(monkeypatch):
    """A sweep composes each choice instead of every combination, and still finds a wrong one."""
    composed = []
    compose = arguments.compose
    monkeypatch.setattr(arguments, "compose", lambda *words: composed.append(words) or compose(*words))
    words = ["-m", "head=full,pfc,forest,ffc", "margin=cosface,arcface,sv", "optimizer=sgd,adamw"]
    arguments.check(words)
    assert len(composed) == 1 + 3 + 2 + 1
    for option, lacking in (("sample_rate=0.1", "head=full"), ("margin.t=1", "margin=cosface")):
        with pytest.raises(ValueError, match=f"is not an option of .*{lacking}"):
            arguments.check([*words, option])
    with pytest.raises(ValueError, match=r"where optimizer\.rows is null"):
        arguments.check([*words, "optimizer.rows.weight_decay=0"])


def test_hydra_composes_each_word_of_a_sweep_once(monkeypatch):
    """Hydra composes before the first run starts. The check of the words composes every run."""
    composed = []

    class Sweeper:
        def validate_batch_is_legal(self, batch):
            composed.extend(batch)

    monkeypatch.setattr(sweep.basic_sweeper, "BasicSweeper", Sweeper)
    monkeypatch.setattr(sweep, "folder", None)
    sweep.Remember().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": "x"}}}))
    runs = [[f"head={head}", f"margin={margin}", f"seed={seed}"] for head in "ab" for margin in "xyz" for seed in "01"]
    Sweeper().validate_batch_is_legal(runs)
    assert len(composed) == 1 + 1 + 2 + 1
    assert {word for words in composed for word in words} == {word for words in runs for word in words}


@pytest.mark.parametrize("primary", COMMANDS)
def test_help_lists_every_option_of_a_command(primary):
    """Every option has its comment, and the help has an example of the command."""
    shown = description([], primary)
    assert f"example: python -m {COMMANDS[primary]} " in shown
    text = (CONF / f"{primary}.yaml").read_text().partition("\nhydra:")[0]
    for name, comment in re.findall(r"^(\w+): \S+ # (.*)$", text, re.MULTILINE):
        assert re.search(rf"^  {name}=.*{re.escape(comment)}$", shown, re.MULTILINE)


def test_help_lists_the_options_of_chosen_groups():
    shown = description(["head=forest", "index=ivf"], "config")
    assert re.search(r"^  num_active=0.1 +number of classes in a step", shown, re.MULTILINE)
    assert re.search(r"^  nprobe=16 +lists that a query", shown, re.MULTILINE) and "num_trees" not in shown
    others = ", ".join(name for name in choices_of("head") if name != "forest")
    assert f"head=forest  (or {others})" in shown and "min_probability=" not in shown
    assert re.search(r"^  optimizer.rows.lr=null .*null: optimizer\.lr", shown, re.MULTILINE)
    assert "build=blocking" in description(["head=forest_blocking"], "config")


@pytest.mark.parametrize(
    "command",
    [*COMMANDS.values(), *(f"experiments.{name}" for name in OTHERS), "data.sets.hanzi", "data.sets.portraits"],
)
def test_a_command_run_as_a_file_is_refused(command):
    with pytest.raises(SystemExit, match=f"error: write python -m {command}"):
        path = ROOT / command.replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("command", [name for name in COMMANDS.values() if name.startswith("experiments.")])
def test_wrong_words_are_refused_before_torch_is_imported(command, monkeypatch):
    """The check alone runs: the modules that a command needs cannot be imported."""
    monkeypatch.setattr(sys, "argv", [command, "nonsense=1"])
    monkeypatch.setattr(start, "preload", lambda words: None)  # in another process
    for name in [*sys.modules, "torch", "lightning", "matplotlib"]:
        if name.partition(".")[0] in ("torch", "lightning", "matplotlib", "numpy"):
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, command, raising=False)
    with pytest.raises(SystemExit, match="error: nonsense is not an option"):
        runpy.run_module(command, run_name="__main__", alter_sys=False)


def test_configs_are_checked_like_command_lines(tmp_path):
    """A config may come from an experiment or a file."""
    found = config("trainer.max_steps=1e2", "head=ffc")
    options.check(found)
    assert found.trainer.max_steps == 100 and isinstance(found.trainer.max_steps, int)
    for words, sentence in (
        (["trainer.max_epochs=1"], "trainer.max_steps=3200 and trainer.max_epochs=1 cannot be combined; give one"),
        (["schedule.power=-1"], "schedule.power=-1 must be at least 0"),
        (["trainer.max_steps=null"], "give one and set the other to null"),
        (["optimizer.backbone.lr=nan"], "optimizer.backbone.lr=nan must be a learning rate"),
        ([f"warm_start.checkpoint={tmp_path / 'nothing'}"], "nothing does not exist"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            options.check(config(*words))


def commands_of_the_documentation() -> list[tuple[str, str]]:
    """Return (primary config, words) of the commands in the README and docs/."""
    found = set()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for name, words in re.findall(r"python -m experiments\.(\w+)([^`\n]*)", path.read_text().replace("\\\n", " ")):
            line = re.split(r" +#| > |$", words)[0].strip()
            if name in PRIMARY and not re.search(r"\.\.\.|NAME|--help|head=band|=siglip", line):  # examples of new ones
                found.add((PRIMARY[name], line))
    return sorted(found)


def test_commands_of_the_documentation_pass(monkeypatch):
    """Commands are checked except for their paths."""
    monkeypatch.setattr(options, "PATHS", {})
    commands = commands_of_the_documentation()
    assert len(commands) > 40
    for primary, line in commands:
        arguments.check(shlex.split(line.replace("$host", "host").replace("$SLURM_JOB_ID", "1")), primary)
