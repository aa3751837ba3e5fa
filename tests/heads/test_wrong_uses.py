"""Wrong uses of heads: each gives the right number, or an error that says what to do."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch.nn.functional import normalize

import heads
from heads import FFC, IVF, Annoy, CosFace, Exact, FullFC, HashingForest, PartialFC, RowAdamW, RowOptimizer, RowSGD
from heads.core.row_state import RowState
from heads.fidelity import selection_fidelity
from tests.workers import rank_and_world

C, D, N = 40, 8, 12
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) * 3
CENTER_HEADS = {
    "full": lambda **options: FullFC(C, D, **options),
    "pfc": lambda **options: PartialFC(C, D, sample_rate=0.5, **options),
    "forest": lambda **options: HashingForest(
        C, D, num_active=0.5, index=Annoy(2), interval=1, build="blocking", **options
    ),
}


def ffc(**options) -> FFC:
    return FFC(C, D, queue_size=20, **options)


def loss_of(head, x=X, y=Y):
    """Return the loss of embeddings that require a gradient, and the embeddings."""
    x = x.clone().requires_grad_()
    return (head(x, y, normalize(x.detach() + 0.1), y) if isinstance(head, FFC) else head(x, y)), x


# --- gradients apply to the rows they were computed from only


@pytest.mark.parametrize("budget", [0, 512])
@pytest.mark.parametrize("name", CENTER_HEADS)
def test_a_step_without_zero_grad_is_refused(name, budget):
    head = CENTER_HEADS[name](logits_budget_mb=budget)
    optimizer = head.optimizer(lr=0.1, momentum=0.9)
    loss_of(head)[0].backward()
    optimizer.step()
    after = head.centers.rows.clone()
    with pytest.raises(RuntimeError, match=r"call zero_grad\(\) after each step\(\)"):
        optimizer.step()
    loss_of(head)[0].backward()
    with pytest.raises(RuntimeError, match=r"zero_grad"):
        optimizer.step()
    assert torch.equal(head.centers.rows, after) and head.step == 1
    optimizer.zero_grad()
    loss_of(head)[0].backward()
    optimizer.step()
    assert head.step == 2


def load(head):
    head.load_state_dict(copy.deepcopy(head.state_dict()))


def normalise_in_place(head):
    head.centers.rows.div_(head.centers.rows.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("change", [load, normalise_in_place])
@pytest.mark.parametrize("store", ["device", "host", "disk"])
def test_rows_that_change_between_backward_and_step_are_detected(change, store, tmp_path):
    head = FullFC(C, D, store=store, store_dir=tmp_path if store == "disk" else None)
    optimizer = head.optimizer(lr=0.1)
    loss_of(head)[0].backward()
    change(head)
    with pytest.raises(RuntimeError, match="load_state_dict"):
        optimizer.step()
    optimizer.zero_grad()
    loss = loss_of(head)[0]
    change(head)
    with pytest.raises(RuntimeError, match="class centers have changed"):
        loss.backward()


def test_zero_grad_of_the_head_drops_the_gradients_of_its_rows():
    head = FullFC(C, D)
    optimizer = head.optimizer(lr=0.1)
    before = head.centers.rows.clone()
    loss_of(head)[0].backward()
    head.zero_grad()
    optimizer.step()
    assert torch.equal(head.centers.rows, before)


# --- torch.amp.GradScaler


def scaled_training(
    scale: float, steps: int, overflow_at: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return rows, momentum and the head's step after each step in a worker; with a GradScaler unless scale is 0."""
    rank, world_size = rank_and_world()
    torch.manual_seed(0)
    backbone = torch.nn.Linear(D, D)
    head = PartialFC(C, D, sample_rate=0.5)
    optimizers = [torch.optim.SGD(backbone.parameters(), lr=0.1), head.optimizer(lr=0.1, momentum=0.9)]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=bool(scale), growth_interval=10**6)
    counts = []
    for step in range(steps):
        own = slice(rank * N // world_size, (rank + 1) * N // world_size)
        loss = head(backbone(X[own]), Y[own])
        if step == overflow_at and rank == world_size - 1:
            loss = loss * torch.tensor(1e38)  # on one process only
        scaler.scale(loss).backward()
        for parameter in backbone.parameters():
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)  # each optimizer decides for itself; this one must step
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()
        counts.append(head.step)
    return head.centers.rows.clone(), head.centers.state["momentum"].clone(), counts


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_grad_scaler_unscales_the_gradient_of_rows(world_size, workers):
    """Scaling by a power of two is exact: the rows equal those of a training without a scaler, bit for bit."""
    plain = workers(world_size).run(scaled_training, 0.0, 3)
    for (rows, momentum, _), scaled in zip(plain, workers(world_size).run(scaled_training, 2.0**16, 3), strict=True):
        assert torch.equal(scaled[0], rows) and torch.equal(scaled[1], momentum)


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_overflow_skips_the_rows_on_all_processes(world_size, workers):
    one = workers(world_size).run(scaled_training, 2.0**16, 1)
    for (rows, momentum, _), skipped in zip(one, workers(world_size).run(scaled_training, 2.0**16, 2, 1), strict=True):
        assert torch.equal(skipped[0], rows) and torch.equal(skipped[1], momentum) and skipped[2] == [1, 1]


def test_unscaling_before_the_step_and_accumulating():
    rows = []
    for scale in (1.0, 2.0**10):
        head = FullFC(C, D)
        optimizer = head.optimizer(lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for _ in range(2):
            scaler.scale(loss_of(head)[0] / 2).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        rows.append(head.centers.rows)
    assert torch.equal(*rows)


def test_a_grad_scaler_counts_the_steps_of_ffc():
    head = ffc()
    optimizer, scaler = head.optimizer(lr=0.1), torch.amp.GradScaler("cpu")
    for step in range(1, 3):
        loss, x = loss_of(head)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert head.step == step and x.grad.any()


@pytest.mark.parametrize("exponent", [110, 116, 120, 127])
def test_no_scale_puts_inf_or_nan_into_rows(exponent):
    """The gradient of rows is larger than that of embeddings, by one over the norm of a row, and overflows first."""
    head = FullFC(C, D)
    optimizer, scaler = head.optimizer(lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**exponent)
    before = head.centers.rows.clone()
    scaler.scale(loss_of(head)[0]).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(head.centers.rows, before) and scaler.get_scale() == 2.0 ** (exponent - 1)


@pytest.mark.parametrize(
    "drop",
    [lambda o: torch.optim.Optimizer.zero_grad(o), lambda o: setattr(o.param_groups[0]["params"][0], "grad", None)],
)
def test_removing_the_gradient_of_the_proxy_drops_that_of_the_rows(drop):
    head = FullFC(C, D)
    optimizer = head.optimizer(lr=0.1)
    before = head.centers.rows.clone()
    loss_of(head)[0].backward()
    drop(optimizer)
    optimizer.step()
    assert torch.equal(head.centers.rows, before)
    optimizer.zero_grad()
    rows = []
    for dropped in (False, True):
        head = FullFC(C, D)
        optimizer = head.optimizer(lr=0.1)
        if dropped:
            loss_of(head, X.flip(1))[0].backward()
            drop(optimizer)
        loss_of(head)[0].backward()
        optimizer.step()
        rows.append(head.centers.rows)
    assert torch.equal(*rows)


@pytest.mark.parametrize("budget", [0, 512])
def test_a_step_inside_autocast(budget):
    rows = []
    for enabled in (False, True):
        head = FullFC(C, D, logits_budget_mb=budget)
        optimizer = head.optimizer(lr=0.1)
        loss_of(head)[0].backward()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            optimizer.step()
        rows.append(head.centers.rows)
    assert torch.equal(*rows)


def test_an_optimizer_that_was_replaced_refuses_to_step():
    head = FullFC(C, D)
    replaced, current = head.optimizer(lr=0.1, momentum=0.9), head.optimizer(lr=0.1, momentum=0.9)
    loss_of(head)[0].backward()
    with pytest.raises(RuntimeError, match="another optimizer has been made for this head"):
        replaced.step()
    current.step()
    for use in (copy.deepcopy, pickle.dumps):
        with pytest.raises(ValueError, match="cannot be copied or pickled; copy the head"):
            use(current)
    with pytest.raises(ValueError, match="has one group"):
        current.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    with pytest.raises(ValueError, match="state_dict is not the state of a RowSGD"):
        current.load_state_dict(
            torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9).state_dict() | {"param_groups": []}
        )


def test_a_copy_of_a_head_gets_the_row_state_as_its_optimizer_says():
    head = FullFC(C, D)
    optimizer = head.optimizer(lr=0.1, momentum=0.9)
    loss_of(head)[0].backward()
    optimizer.step()
    optimizer.zero_grad()
    copied = copy.deepcopy(head)
    other = copied.optimizer(lr=0.1, momentum=0.9)
    copied.load_state_dict(head.state_dict())
    for each, rule in ((head, optimizer), (copied, other)):
        loss_of(each)[0].backward()
        rule.step()
    assert torch.equal(head.centers.rows, copied.centers.rows)
    assert head.centers.state["momentum"].any() and torch.equal(*(h.centers.state["momentum"] for h in (head, copied)))


def test_options_can_be_read_and_not_assigned():
    head = PartialFC(C, D, sample_rate=0.5)
    assert (head.sample_rate, head.store, head.seed) == (0.5, "device", 0)
    with pytest.raises(AttributeError, match="sample_rate is an option of PartialFC and cannot be assigned; pass"):
        head.sample_rate = 0.1
    head.margin = CosFace(16, 0.1)
    assert head.margin.s == 16


def test_a_state_dict_that_is_refused_changes_nothing():
    head, other = PartialFC(C, D, sample_rate=0.5), PartialFC(C + 2, D)
    head.optimizer(lr=0.1)
    other.step = 500
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(RuntimeError, match="this process holds"):
        head.load_state_dict(other.state_dict())
    adam = PartialFC(C, D)
    adam.optimizer(lr=0.1, rule=RowAdamW)
    with pytest.raises(RuntimeError, match=r"row state .*exp_avg"):
        head.load_state_dict(adam.state_dict())
    after = head.state_dict()
    assert head.step == 0 and after.keys() == before.keys()
    assert torch.equal(after["centers.rows"], before["centers.rows"])


def test_features_of_a_frozen_backbone_in_inference_mode():
    with torch.inference_mode():
        features = X * 2
    head = FullFC(C, D)
    optimizer = head.optimizer(lr=0.1)
    head(features, Y).backward()
    optimizer.step()


def test_a_pool_is_loaded_without_unpickling_objects():
    head = ffc()
    loss_of(head)[0].backward()
    file = io.BytesIO()
    torch.save(head.full_state_dict(), file)
    file.seek(0)
    other = ffc()
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.queue, head.queue) and torch.equal(loss_of(other)[0], loss_of(head)[0])


def made_before_the_group() -> list[str]:
    """Return in a worker the errors of heads made before the process group."""
    messages = []
    for head in (PartialFC(C, D), ffc()):
        head.process_group = None  # the state of a head made before init_process_group
        try:
            loss_of(head)
        except RuntimeError as error:
            messages.append(str(error))
    return messages


def test_a_head_made_before_the_process_group_is_refused(workers):
    for messages in workers(2).run(made_before_the_group):
        assert len(messages) == 2 and all("made before torch.distributed" in message for message in messages)


# --- a head whose optimizer never steps


@pytest.mark.parametrize("name", CENTER_HEADS)
def test_a_head_without_steps_is_reported_once_and_keeps_few_gradients(name):
    head = CENTER_HEADS[name]()
    with pytest.warns(UserWarning, match=r"make one with head.optimizer\(lr\)") as caught:
        for _ in range(30):
            loss_of(head)[0].backward()
    assert len(caught) == 1 and caught[0].filename == __file__
    assert len(head.pending.entries) <= 8
    optimizer = head.optimizer(lr=0.1)
    with pytest.raises(RuntimeError, match="were dropped before this optimizer was made"):
        optimizer.step()
    optimizer.zero_grad()
    loss_of(head)[0].backward()
    optimizer.step()


def test_an_optimizer_without_steps_is_reported_and_then_refused(monkeypatch):
    monkeypatch.setattr("heads.rows.pending.MOST", 300)
    head = FullFC(C, D)
    head.optimizer(lr=0.1)
    with pytest.warns(UserWarning, match=r"call its step\(\)"):
        for _ in range(300):
            loss_of(head)[0].backward()
    with pytest.raises(RuntimeError, match="since the row optimizer last stepped"):
        loss_of(head)[0].backward()


def test_a_momentum_copy_that_is_never_updated_is_reported():
    backbone = torch.nn.Linear(D, D)
    head = ffc()
    head.prepare(backbone)
    batch = {"identity": (X[:8], Y[:4].repeat(2)), "instance": (X[8:], Y[8:])}
    with pytest.warns(UserWarning, match="FFC has seen 9 training batches since"):
        for _ in range(10):
            head.training_loss(backbone, batch)


# --- inference mode, no_grad, second derivatives


@pytest.mark.parametrize("name", [*CENTER_HEADS, "ffc"])
def test_an_evaluation_in_inference_mode_changes_nothing(name):
    results = []
    for evaluated in (False, True):
        head = {**CENTER_HEADS, "ffc": ffc}[name]()
        optimizer = head.optimizer(lr=0.1)
        for _ in range(3):
            if evaluated:
                with torch.inference_mode():
                    head.eval()
                    loss_of_eval = loss_of_plain(head)
                    head.train()
                assert torch.isfinite(loss_of_eval)
            loss, x = loss_of(head)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append((loss.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def loss_of_plain(head):
    return head(X, Y, normalize(X), Y) if isinstance(head, FFC) else head(X, Y)


@pytest.mark.parametrize("store", ["device", "host"])
def test_a_head_made_in_inference_mode_can_be_trained(store):
    with torch.inference_mode():
        head = FullFC(C, D, store=store)
        optimizer = head.optimizer(lr=0.1, momentum=0.9)
    loss_of(head)[0].backward()
    optimizer.step()
    assert head.step == 1


def test_fidelity_in_inference_mode():
    head = CENTER_HEADS["pfc"]()
    expected = selection_fidelity(head, X, Y)
    with torch.inference_mode():
        assert selection_fidelity(head, X, Y) == expected


@pytest.mark.parametrize("name", ["pfc", "forest"])
def test_a_training_forward_under_no_grad_changes_nothing(name):
    losses = []
    for evaluated in (False, True):
        head = CENTER_HEADS[name]()
        optimizer = head.optimizer(lr=0.1)
        for _ in range(3):
            if evaluated:
                with torch.no_grad():
                    head(X, Y)
            loss, _ = loss_of(head)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    assert torch.equal(torch.stack(losses[:3]), torch.stack(losses[3:]))


def test_ffc_computes_no_gradient_without_need(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr("heads.objectives.softmax.MarginSoftmax.backward", refuse)
    with torch.no_grad():
        assert torch.isfinite(loss_of_plain(ffc()))


@pytest.mark.parametrize("name", [*CENTER_HEADS, "ffc"])
def test_a_second_derivative_is_refused(name):
    loss, x = loss_of({**CENTER_HEADS, "ffc": ffc}[name]())
    with pytest.raises(RuntimeError, match="create_graph=True must not reach it"):
        torch.autograd.grad(loss, x, create_graph=True)


# --- copies, pickles, torch.compile


def train(head, optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss, _ = loss_of(head)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def copied(head):
    return copy.deepcopy(head)


def pickled(head):
    return pickle.loads(pickle.dumps(head))


def saved_whole(head):
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copied, pickled, saved_whole])
@pytest.mark.parametrize("index", [None, Annoy(3), Exact(), IVF(2)], ids=["none", "annoy", "exact", "ivf"])
def test_copies_train_like_the_original(index, again):
    """A copy has the rows and the index, and no optimizer; a new one starts with row state of zero."""
    options = {"index": index, "num_active": 0.5, "interval": 2, "build": "blocking"} if index else {"sample_rate": 0.5}
    head = (HashingForest if index else PartialFC)(C, D, **options)
    optimizer = head.optimizer(lr=0.1, momentum=0, weight_decay=0)
    train(head, optimizer, 3)
    loss_of(head)[0].backward()  # a copy has no gradient, as copies of parameters
    head.micro_batch = 0
    other = again(head)
    optimizer.zero_grad()
    assert not other.has_optimizer and not other.pending.entries
    if index:
        assert torch.equal(other.index_refresh.current.query(X, 4), head.index_refresh.current.query(X, 4))
    before = head.centers.rows.clone()
    losses = train(other, other.optimizer(lr=0.1, momentum=0, weight_decay=0), 3)
    assert torch.equal(head.centers.rows, before), "the copy shares rows"
    assert train(head, optimizer, 3) == losses


def test_a_copy_made_during_an_index_build():
    head = HashingForest(C, D, num_active=0.5, index=Annoy(2), interval=1, build="background")
    optimizer = head.optimizer(lr=0.1)
    train(head, optimizer, 1)
    other = copy.deepcopy(head)
    assert not other.index_refresh.running
    train(other, other.optimizer(lr=0.1), 3)
    for forest in (head, other):
        forest.index_refresh.wait()


def test_rows_on_disk_are_not_copied(tmp_path):
    head = FullFC(C, D, store="disk", store_dir=tmp_path)
    with pytest.raises(ValueError, match=r"store='disk'.*cannot be copied or pickled.*state_dict"):
        copy.deepcopy(head)


def copy_and_foreign_file(path: str) -> list[str]:
    """Copy a head in a worker, load the state dict that one process saved alone, and return the error."""
    rank, _ = rank_and_world()
    head = PartialFC(C, D, seed=rank + 1)
    head.optimizer(lr=0.1, momentum=0.9)
    train(head, head.optimizer(lr=0.1, momentum=0.9), 1)
    other = copy.deepcopy(head)
    assert other.process_group is head.process_group
    assert train(other, other.optimizer(lr=0.1, momentum=0.9), 1) == train(
        head, head.optimizer(lr=0.1, momentum=0.9), 1
    )
    whole = head.full_state_dict()
    assert whole["centers.rows"].shape == (C, D) and whole["centers.momentum"].shape == (C, D)
    shard = head.centers.shard
    assert torch.equal(whole["centers.rows"][shard.start : shard.stop], head.centers.rows)
    if rank == 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(head.state_dict(), f"{path}/half.pt")
        torch.save(whole, f"{path}/whole.pt")
    torch.distributed.barrier()
    again = PartialFC(C, D)
    again.optimizer(lr=0.1, momentum=0.9)
    again.load_state_dict(torch.load(f"{path}/whole.pt"))
    assert torch.equal(again.centers.rows, head.centers.rows)
    before = again.centers.rows.clone()
    try:
        again.load_state_dict(torch.load(f"{path}/half.pt", weights_only=False))
    except RuntimeError as error:
        assert torch.equal(again.centers.rows, before)
        return [str(error)]
    return []


def test_a_state_dict_of_one_process_is_refused_by_another(workers, tmp_path):
    """The shards of processes 0 and 1 have the same shape, so that only a check tells them apart."""
    of_rank_0, of_rank_1 = workers(2).run(copy_and_foreign_file, str(tmp_path))
    assert of_rank_0 == []
    (message,) = of_rank_1
    for words in (f"holds only rows 0 to 19 of [{C}, {D}]", "torch.distributed.checkpoint", "full_state_dict()"):
        assert words in message
    alone = PartialFC(C, D)
    alone.optimizer(lr=0.1, momentum=0.9)
    with pytest.raises(RuntimeError, match=r"rows 0 to 19 .*process 0 of 1"):
        alone.load_state_dict(torch.load(tmp_path / "half.pt", weights_only=False))
    alone.load_state_dict(torch.load(tmp_path / "whole.pt"))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # from torch, at any graph break
@pytest.mark.parametrize("name", [*CENTER_HEADS, "ffc"])
def test_heads_inside_torch_compile(name):
    """The backbone may be compiled together with the head; the head then runs uncompiled."""
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        backbone, head = torch.nn.Linear(D, D), {**CENTER_HEADS, "ffc": ffc}[name]()
        optimizer = head.optimizer(lr=0.1)

        def step(x, backbone=backbone, head=head):
            gallery = (normalize(x), Y) if isinstance(head, FFC) else ()
            return head(backbone(x), Y, *gallery)

        run = torch.compile(step, backend="eager") if compiled else step
        for _ in range(2):
            loss = run(X)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses[:2]), torch.stack(losses[2:]))


# --- options of optimizers and heads


def test_momentum_set_later_is_used():
    """Momentum acts as in torch, also if a scheduler such as OneCycleLR sets it or switches it off."""
    ours = FullFC(C, D, dtype="fp64")
    optimizer = ours.optimizer(lr=0.1, momentum=0, weight_decay=0)
    parameter = torch.nn.Parameter(ours.centers.rows.clone())
    theirs = torch.optim.SGD([parameter], lr=0.1)
    for momentum in (0.0, 0.9, 0.9, 0.0, 0.5):
        for rule in (optimizer, theirs):
            rule.param_groups[0]["momentum"] = momentum
        loss_of(ours)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        cos = normalize(X.double()) @ normalize(parameter).T
        margin = 0.4 * torch.nn.functional.one_hot(Y, C).double()
        torch.nn.functional.cross_entropy(64 * (cos - margin), Y).backward()
        theirs.step()
        theirs.zero_grad()
    torch.testing.assert_close(ours.centers.rows, parameter.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["gradient", "unit", "cosines", "x"])
def test_row_state_of_any_name_trains_the_right_rows(name):
    class Named(RowOptimizer):
        def row_state(self, width):
            return {name: RowState(width)}

        def update(self, rows, gradient, state, group):
            direction = gradient.add_to(state[name], beta=0.9)
            rows.add_(direction, alpha=-group["lr"])

    expected = PartialFC(C, D, sample_rate=0.5)
    train(expected, expected.optimizer(lr=0.1, momentum=0.9, weight_decay=0), 3)
    head = PartialFC(C, D, sample_rate=0.5)
    train(head, Named(head, {"lr": 0.1}), 3)
    assert torch.equal(head.centers.rows, expected.centers.rows)


def test_row_state_named_rows_is_refused():
    class Named(RowOptimizer):
        def row_state(self, width):
            return {"rows": RowState(width)}

    with pytest.raises(ValueError, match="must not name its state 'rows'"):
        Named(FullFC(C, D), {"lr": 0.1})


def test_an_empty_pool_and_an_empty_gallery():
    head = ffc()
    x = X.clone().requires_grad_()
    loss = head(x, Y, X[:0], Y[:0])
    loss.backward()
    assert loss.item() == 0 and not x.grad.any()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: PartialFC(C, D, margn=CosFace()), TypeError, r"PartialFC\(\).*'margn'.*did you mean 'margin'"),
        (
            lambda: FullFC(C, D, sample_rate=0.1),
            TypeError,
            r"FullFC\(\).*'sample_rate'.*its options are .*min_probability",
        ),
        (lambda: HashingForest(C, D, num_actve=4), TypeError, r"HashingForest\(\).*did you mean 'num_active'"),
        (lambda: FullFC(C, D, margin="cosface"), ValueError, r"margin='cosface' must be a margin object"),
        (lambda: FFC(C, D, margin=CosFace), ValueError, "must be a margin object"),
        (lambda: FullFC(2000.5, D), ValueError, "num_classes=2000.5 must be a whole number"),
        (lambda: FullFC("7", D), ValueError, "num_classes='7' must be a whole number"),
        (lambda: FullFC(True, D), ValueError, "num_classes=True must be a whole number"),
        (lambda: FullFC(C, D, seed="a"), ValueError, "seed='a' must be a whole number"),
        (lambda: FFC(C, 8.5), ValueError, "embedding_size=8.5 must be a whole number"),
        (lambda: PartialFC(C, D, sample_rate="0.1"), ValueError, "sample_rate='0.1' must be a number"),
        (lambda: HashingForest(C, D, index="annoy"), ValueError, "index='annoy' must be an index object"),
        (lambda: CosFace(s="64"), ValueError, "margin s='64' must be a number"),
        (lambda: FullFC(C, D).optimizer(lr="0.1"), ValueError, "lr='0.1' must be a number"),
        (lambda: FullFC(C, D).optimizer(lr=0.1, momentm=0.9), TypeError, "momentm"),
        (lambda: ffc().optimizer(lr=0.1, momentm=0.9), TypeError, "momentm"),
        (lambda: FullFC(C, D).topk(X, 2.5), ValueError, "k=2.5 must be a whole number"),
        (lambda: FullFC(C, D)(X.numpy(), Y), ValueError, "embeddings must be a tensor .* not ndarray"),
        (lambda: FullFC(C, D)(X, Y.tolist()), ValueError, "labels must be a tensor .* not list"),
        (lambda: FullFC(C, D)(X, Y, torch.ones(N, requires_grad=True)), ValueError, "weight requires a gradient"),
        (lambda: FullFC(C, D)(X.to("meta"), Y), ValueError, "embeddings on device meta .* head's device, cpu"),
        (lambda: FullFC(C, D).topk(X.to("meta"), 1), ValueError, "embeddings on device meta .* head's device, cpu"),
        (lambda: ffc()(X.to("meta"), Y, X, Y), ValueError, "embeddings on device meta .* head's device, cpu"),
    ],
)
def test_wrong_options_and_input_are_refused_with_a_remedy(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_whole_numbers_of_other_types_are_accepted():
    assert FullFC(2000.0, D).centers.shard.num_classes == 2000
    assert FullFC(torch.tensor(7), D).centers.shard.num_classes == 7


def one_bad_process(kind: str) -> list[str]:
    """Pass unusable input once in the last process of the workers; then all processes continue to train."""
    rank, world_size = rank_and_world()
    head, pool = PartialFC(C, D, sample_rate=0.5), ffc()
    bad = rank == world_size - 1
    x = X.double().long() if bad and kind == "dtype" else X[:, :5] if bad and kind == "shape" else X
    y = Y[:3] if bad and kind == "labels" else Y
    messages = []
    for call in (
        lambda: head(x, y),
        lambda: head.topk(x if kind != "labels" else X[:, :5] if bad else X, 2),
        lambda: pool(x, y, X, Y),
        lambda: selection_fidelity(head, x, y),
    ):
        try:
            call()
            messages.append("no error")
        except ValueError as error:
            messages.append(str(error))
    losses = train(head, head.optimizer(lr=0.1), 2)
    assert losses[0] == losses[0] and head.step == 2
    return [*messages, losses[-1].hex()]


@pytest.mark.parametrize("kind", ["dtype", "shape", "labels"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_bad_input_of_one_process_raises_on_all(kind, world_size, workers):
    *of_others, of_last = workers(world_size).run(one_bad_process, kind)
    for messages in of_others:
        assert all(f"process {world_size - 1} cannot use its input" in words for words in messages[:-1])
        assert messages[-1] == of_last[-1], "the processes no longer agree"
    assert all("must be" in words for words in of_last[:-1])


def test_exports_of_the_package():
    assert heads.fidelity.selection_fidelity is selection_fidelity
    assert {"Annoy", "Exact", "IVF", "fidelity", "RowSGD", "RowAdamW"} <= set(heads.__all__)
    assert all(hasattr(heads, name) for name in heads.__all__)
    assert RowSGD and RowAdamW and heads.__version__.count(".") == 2
