"""Training on several devices: virtual ones of the CPU, and those of two processes."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from jaxlib import _jax
from torch import nn

import xrt
from tests.training.support import assert_same_weights, classes, mlp, trainer
from xrt.engines.xla import device as D
from xrt.errors import CheckpointWarning, InputError, OptionError

ROOT = Path(__file__).parents[2]
STEPS = 4


def adamw(module: nn.Module) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def sgd(module: nn.Module) -> Any:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


def conv() -> nn.Module:
    """A network with BatchNorm, whose sums are long enough to be taken in runs, and dropout."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def images(count: int, batch: int = 16) -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(batch, 3, 12, 12, generator=generator),
            torch.randint(0, 4, (batch,), generator=generator),
        )
        for _ in range(count)
    ]


CASES: dict[str, Any] = {
    "mlp": (mlp, adamw, lambda: classes(STEPS, 16), {}),
    "conv": (conv, sgd, lambda: images(STEPS), {}),
    "parts": (conv, sgd, lambda: images(STEPS), {"accumulate": 2}),
}


def make(case: str, devices: Any, **keywords: Any) -> xrt.Trainer:
    module, optimizer, batches, options = CASES[case]
    return trainer(module(), optimizer, batches()[0], devices=devices, options=options, **keywords)


@pytest.fixture(scope="module")
def on_one() -> dict[str, tuple[list[float], dict[str, Any]]]:
    """Losses and state dict of each case, on one device."""
    found = {}
    for case, (_, _, batches, _) in CASES.items():
        one = make(case, None)
        found[case] = one.fit(batches()), one.state_dict()
    return found


def assert_as_on_one(
    trained: xrt.Trainer, losses: list[float], want: tuple[list[float], dict[str, Any]]
) -> None:
    np.testing.assert_allclose(losses, want[0], rtol=1e-5)
    for name, array in trained.state_dict().items():
        np.testing.assert_allclose(array, want[1][name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_devices_agree(case: str, count: int, on_one: dict[str, Any]) -> None:
    several = make(case, count)
    losses = several.fit(CASES[case][2]())
    assert_as_on_one(several, losses, on_one[case])
    weights = several.weights().values()
    assert all(len(array.devices()) == count and array.is_fully_replicated for array in weights)
    text = several._step._compiled.as_text()
    assert "all-reduce(" in text
    assert "all-gather(" not in text, "an activation, or a weight, goes between devices"


def test_operators_one_by_one_agree(on_one: dict[str, Any]) -> None:
    several = make("mlp", 2, engine="host")
    assert_as_on_one(several, several.fit(classes(STEPS, 16)), on_one["mlp"])


def test_a_list_of_devices(on_one: dict[str, Any]) -> None:
    devices = D.virtual_devices(4)[2:]
    several = make("mlp", devices)
    assert_as_on_one(several, several.fit(classes(STEPS, 16)), on_one["mlp"])
    assert several.weights()[next(iter(several.weights()))].devices() == set(devices)


@pytest.mark.slow
def test_evaluation_and_weights() -> None:
    batches = images(2)
    one, several = (trainer(conv(), sgd, batches[0], devices=n) for n in (1, 4))
    assert several.evaluate(batches) == pytest.approx(one.evaluate(batches), rel=1e-6)
    one.step(batches[0])
    several.load_state_dict(one.state_dict())
    assert several.evaluate(batches) == pytest.approx(one.evaluate(batches), rel=1e-6)


@pytest.mark.slow
def test_checkpoints_move_between_devices(tmp_path: Path) -> None:
    batches = images(6)
    four, again, two = (trainer(conv(), sgd, batches[0], devices=n) for n in (4, 4, 2))
    four.fit(batches[:3])
    path = four.save(tmp_path / "four.xrt")
    losses = four.fit(batches[3:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load(path)
    assert again.fit(batches[3:]) == losses
    with pytest.warns(CheckpointWarning, match="devices was 4, is 2"):
        two.load(path)
    np.testing.assert_allclose(two.fit(batches[3:]), losses, rtol=1e-5)


def by_shards(module: nn.Module, batches: list[Any], count: int, parts: int) -> list[float]:
    """What torch makes of `module`, in place, where every device normalizes its own share."""
    optimizer = sgd(module)
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        copies, total = [], 0.0
        for x, y in zip(inputs.chunk(count), targets.chunk(count), strict=True):
            mine = copy.deepcopy(module)
            for part, wanted in zip(x.chunk(parts), y.chunk(parts), strict=True):
                loss = nn.functional.cross_entropy(mine(part), wanted) / parts
                loss.backward()
                total += loss.item() / count
            copies.append(mine)
        everywhere = zip(*(each.parameters() for each in copies), strict=True)
        for parameter, mine in zip(module.parameters(), everywhere, strict=True):
            parameter.grad = torch.stack([each.grad for each in mine]).mean(0)
        states = zip(*(each.buffers() for each in copies), strict=True)
        for buffer, mine in zip(module.buffers(), states, strict=True):
            value = torch.stack(mine)
            buffer.copy_(value.mean(0) if value.is_floating_point() else value[0])
        optimizer.step()
        losses.append(total)
    return losses


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batch_norm_of_each_device(accumulate: int) -> None:
    module, batches = conv(), images(STEPS)
    module[3].p = 0.0
    options = {"batch_norm": "device", "accumulate": accumulate}
    several = trainer(module, sgd, batches[0], devices=4, options=options)
    losses = several.fit(batches)
    np.testing.assert_allclose(losses, by_shards(module, batches, 4, accumulate), rtol=1e-5)
    assert_same_weights(module, several)


class Masked(nn.Module):
    """Weights behind a dropout: the gradient of their sum shows what was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x * self.weight).sum()


def test_devices_drop_different_numbers() -> None:
    several = trainer(
        Masked(),
        lambda module: torch.optim.SGD(module.parameters(), lr=1.0),
        torch.ones(2, 64),
        devices=2,
        options={"batch_norm": "device"},
        loss=None,
    )
    several.step(torch.ones(2, 64))
    change = -several.state_dict()["weight"]
    # The mean over two devices of 0 (dropped) or 2.
    assert set(change.tolist()) == {0.0, 1.0, 2.0}


@pytest.mark.parametrize("batch_norm", ["synchronized", "device"])
def test_all_devices_skip_what_one_cannot_take(batch_norm: str) -> None:
    (inputs, targets), (good, same) = classes(2, 8)
    options = {"batch_norm": batch_norm, "nonfinite": "skip"}
    several = trainer(mlp(), adamw, (inputs, targets), devices=4, options=options)
    before = several.state_dict()
    inputs[7] = float("inf")
    assert not np.isfinite(several.step((inputs, targets)))
    assert several.metrics.skipped
    for name, array in several.state_dict().items():
        assert torch.equal(array, before[name]), name
    assert np.isfinite(several.step((good, same)))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 1e-3), ("bf16", 1e-2)])
def test_half_precision_agrees(precision: str, tolerance: float) -> None:
    batches = classes(STEPS, 16)
    one, several = (
        trainer(mlp(), adamw, batches[0], devices=n, precision=precision) for n in (1, 4)
    )
    np.testing.assert_allclose(several.fit(batches), one.fit(batches), rtol=tolerance)
    assert "all-gather" not in several._step._compiled.as_text()


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (0, "at least 1; got 0"),
        (True, "a number, or a list of JAX devices .* got True"),
        ("4", "a number, or a list of JAX devices .* got '4'"),
        (2.5, "got 2.5"),
        ([], "an empty list"),
        (["cpu"], "got 'cpu' in the list"),
        (lambda: [D.virtual_devices(2)[0]] * 2, "twice"),
        (lambda: [D.virtual_devices(2)[0], D.virtual_devices(3)[1]], "several JAX clients"),
    ],
)
def test_unknown_devices(devices: Any, message: str) -> None:
    devices = devices() if callable(devices) else devices
    with pytest.raises(OptionError, match=message):
        trainer(mlp(), adamw, classes(1, 8)[0], devices=devices)


@pytest.mark.parametrize(
    ("batch", "options", "text"),
    [(6, {}, "6 does not divide into 4"), (12, {"accumulate": 2}, "12 does not divide into 8")],
)
def test_batches_that_do_not_divide(batch: int, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        trainer(mlp(), adamw, classes(1, batch)[0], devices=4, options=options)


def test_single_operators_have_no_shares() -> None:
    options = {"batch_norm": "device"}
    with pytest.raises(OptionError, match="'host' does not train with batch_norm='device'"):
        trainer(mlp(), adamw, classes(1, 8)[0], devices=2, engine="host", options=options)


_PROCESS = """
import json, sys
import jax
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
import torch, xrt
from tests.training.support import classes, mlp, trainer
from tests.training.test_devices import adamw
batches = [tuple(each[8 * rank : 8 * rank + 8] for each in batch) for batch in classes(6, 16)]
module = mlp()
if rank:
    torch.nn.init.ones_(module[0].weight)  # the first process has the say
found = {}
several = trainer(module, adamw, batches[0], devices=4)
found["losses"] = several.fit(batches[:4])
found["evaluated"] = several.evaluate(batches[:2])
found["file"] = several.save(folder, keep=1).name
after = several.fit(batches[4:])
several.load(folder)
found["same"] = several.fit(batches[4:]) == after
try:
    several.save(folder + "/nowhere/file.xrt")
except Exception as error:
    found["unwritten"] = type(error).__name__
try:
    trainer(module, adamw, batches[0], devices=jax.devices(), options={"seed": rank})
except Exception as error:
    found["different"] = f"{type(error).__name__}: {error}"
try:
    trainer(module, adamw, batches[0], devices=3)
except Exception as error:
    found["three"] = f"{type(error).__name__}: {error}"
try:
    trainer(module, adamw, batches[0], devices=jax.devices()[2 - 2 * rank : 4 - 2 * rank])
except Exception as error:
    found["foreign"] = f"{type(error).__name__}: {error}"
print("FOUND", json.dumps(found), flush=True)
"""


@pytest.mark.skipif(
    not hasattr(_jax, "make_gloo_tcp_collectives"),
    reason="this jaxlib has no Gloo, by which processes on CPUs add up their gradients",
)
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(rank), str(port), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    try:
        printed = [each.communicate(timeout=500)[0] for each in running]
    finally:
        for each in running:
            each.kill()
    assert [each.returncode for each in running] == [0, 0], "\n".join(printed)
    found = [
        json.loads(line.removeprefix("FOUND "))
        for text in printed
        for line in text.splitlines()
        if line.startswith("FOUND ")
    ]
    one = trainer(mlp(), adamw, classes(1, 16)[0])
    losses = one.fit(classes(4, 16))
    for each in found:
        np.testing.assert_allclose(each["losses"], losses, rtol=1e-5)
        assert each["evaluated"] == pytest.approx(one.evaluate(classes(2, 16)), rel=1e-5)
        assert each["file"] == "step-00000004.xrt"
        assert each["same"]
        assert "TrainingError: The processes train different models" in each["different"]
        assert "OptionError: devices names devices of the processes" in each["foreign"]
        assert "OptionError: devices=3 does not divide among the 2 processes" in each["three"]
    assert [each["unwritten"] for each in found] == ["ProgramWriteError", "TrainingError"]
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000004.xrt"]
    assert jax.process_count() == 1
