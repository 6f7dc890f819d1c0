"""Training that stops and goes on comes out as training that does not stop, to the bit."""

import json
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as S
from torch.optim.swa_utils import SWALR

from tests.training.support import classes, mlp, trainer
from xrt.errors import (
    CheckpointWarning,
    InputError,
    OptionError,
    ProgramFileError,
    ProgramNotFoundError,
    ProgramWriteError,
)


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def scheduled(module):
    return torch.optim.lr_scheduler.StepLR(adamw(module), step_size=2, gamma=0.5)


def momentum(module):
    return torch.optim.SGD(module.parameters(), lr=1e-2, momentum=0.9)


def stepping(make, **settings):
    """Makes a scheduler of SGD, whose rates show every step of it."""

    def of(module):
        optimizer = torch.optim.SGD(module.parameters(), **{"lr": 1e-2, **settings})
        return make(optimizer)

    return of


def warm_up_then_milestones(optimizer):
    first = S.LinearLR(optimizer, total_iters=2)
    return S.SequentialLR(optimizer, [first, S.MultiStepLR(optimizer, [1, 3])], milestones=[2])


SCHEDULES = {
    "MultiStepLR": stepping(lambda o: S.MultiStepLR(o, [2, 4, 4, 5])),
    "OneCycleLR": stepping(lambda o: S.OneCycleLR(o, 0.1, total_steps=9, cycle_momentum=False)),
    "LambdaLR": stepping(lambda o: S.LambdaLR(o, lambda step: 1 / (1 + step))),
    "SequentialLR": stepping(warm_up_then_milestones),
    "SWALR": stepping(lambda o: SWALR(o, swa_lr=0.1, anneal_epochs=5)),
    "a tensor's rate": stepping(lambda o: S.ExponentialLR(o, 0.5), lr=torch.tensor(0.125)),
}


QUICK = ("SequentialLR", "OneCycleLR")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SCHEDULES]
)
def test_a_schedule_goes_on(tmp_path, name):
    def rates(made, batches):
        return [made.step(batch) and made.metrics.learning_rates for batch in batches]

    batches = classes(8)
    whole, first, second = (trainer(mlp(), SCHEDULES[name], batches[0]) for _ in range(3))
    wanted = rates(whole, batches)
    assert len(set(wanted)) > 2
    assert rates(first, batches[:3]) == wanted[:3]
    second.load(first.save(tmp_path / "run.xrt"))
    assert rates(second, batches[3:]) == wanted[3:]
    assert same(second, whole)


def network():
    """With dropout and running statistics: what random numbers and state are needed for."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.25), nn.Linear(16, 4)
    ).train()


def same(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("make", [adamw, scheduled, momentum])
def test_going_on_is_to_the_bit(tmp_path, make):
    batches = classes(7)
    whole = trainer(network(), make, batches[0])
    losses = whole.fit(batches)
    first = trainer(network(), make, batches[0])
    assert first.fit(batches[:3]) == losses[:3]
    path = first.save(tmp_path / "run.xrt")
    second = trainer(network(), make, batches[0])
    second.step(batches[5])  # its own state goes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load(path)
    assert second.steps == 3
    assert second.fit(batches[3:]) == losses[3:]
    assert same(second, whole)
    assert second.metrics.learning_rates == whole.metrics.learning_rates


def test_another_process_goes_on(tmp_path):
    batches = classes(4)
    whole = trainer(network(), adamw, batches[0])
    losses = whole.fit(batches)
    first = trainer(network(), adamw, batches[0])
    first.fit(batches[:2])
    path = first.save(tmp_path / "run.xrt")
    code = """if True:
        import json, sys
        from tests.training.support import classes, trainer
        from tests.training.test_checkpoint import adamw, network
        batches = classes(4)
        made = trainer(network(), adamw, batches[0])
        made.load(sys.argv[1])
        print(json.dumps(made.fit(batches[2:])))"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == losses[2:]


def test_the_last_few_are_kept_and_the_newest_is_found(tmp_path):
    batches = classes(5)
    made = trainer(mlp(), adamw, batches[0])
    for batch in batches:
        made.step(batch)
        made.save(tmp_path / "run", keep=2)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["notes.txt", "step-00000004.xrt", "step-00000005.xrt"]
    other = trainer(mlp(), adamw, batches[0])
    other.load(tmp_path / "run")
    assert other.steps == 5
    assert same(other, made)


def test_a_damaged_newest_gives_way_to_an_older_one(tmp_path):
    batches = classes(2)
    made = trainer(mlp(), adamw, batches[0])
    for batch in batches:
        made.step(batch)
        made.save(tmp_path, keep=3)
    newest = tmp_path / "step-00000002.xrt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(CheckpointWarning, match="step-00000002.xrt is damaged.* an older one"):
        made.load(tmp_path)
    assert made.steps == 1


def test_damage_and_foreign_files_are_named(tmp_path):
    batch = classes(1)[0]
    made = trainer(mlp(), adamw, batch)
    path = made.save(tmp_path / "run.xrt")
    before = made.state_dict()
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1  # in the weights
    (tmp_path / "flipped.xrt").write_bytes(content)
    (tmp_path / "text.xrt").write_text("hello")
    for name, message in [
        ("flipped.xrt", "is damaged: the content of 'weights-0.bin' does not fit"),
        ("text.xrt", r"is no checkpoint: it is no zip file\. Trainer\.load reads"),
    ]:
        with pytest.raises(ProgramFileError, match=message):
            made.load(tmp_path / name)
    for missing in ("none.xrt", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ProgramNotFoundError, match=r"no checkpoint|no file"):
            made.load(tmp_path / missing)
    assert all(torch.equal(before[n], array) for n, array in made.state_dict().items())


def test_a_program_is_no_checkpoint(tmp_path):
    batch = classes(1)[0]
    made = trainer(mlp(), adamw, batch)
    program = made.program((batch[0],), engine="host")
    program.save(tmp_path / "program.xrt")
    with pytest.raises(ProgramFileError, match="is no checkpoint"):
        made.load(tmp_path / "program.xrt")


def test_another_model_or_optimizer_is_refused(tmp_path):
    batch = classes(1)[0]
    path = trainer(mlp(), adamw, batch).save(tmp_path / "run.xrt")
    for other, make in ((network(), adamw), (mlp(), momentum)):
        made = trainer(other, make, batch)
        with pytest.raises(InputError, match=r"checkpoint of another model, optimizer .* differ"):
            made.load(path)


OTHERS = {
    "optimizer": (lambda m: torch.optim.Adam(m.parameters()), "optimizer: AdamW there and Adam"),
    "no schedule": (adamw, "scheduler: StepLR there and none here"),
    "schedule": (
        lambda m: S.ExponentialLR(adamw(m), 0.5),
        "scheduler: StepLR there and ExponentialLR here",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_optimizer_or_schedule_is_refused(tmp_path, name):
    make, message = OTHERS[name]
    batches = classes(2)
    path = trainer(mlp(), adamw if name == "optimizer" else scheduled, batches[0]).save(
        tmp_path / "run.xrt"
    )
    made = trainer(mlp(), make, batches[0])
    made.step(batches[0])
    before = made.state_dict()
    with pytest.raises(InputError, match=message):
        made.load(path)
    assert made.steps == 1
    assert all(torch.equal(before[n], array) for n, array in made.state_dict().items())


def test_groups_that_a_schedule_does_not_know_are_refused(tmp_path):
    def groups(module):
        weights = list(module.parameters())
        optimizer = torch.optim.AdamW([{"params": weights[:2]}, {"params": weights[2:]}], lr=1e-2)
        return S.StepLR(optimizer, 2)

    batch = classes(1)[0]
    path = trainer(mlp(), scheduled, batch).save(tmp_path / "run.xrt")
    with pytest.raises(InputError, match="StepLR there and StepLR over 2 groups here"):
        trainer(mlp(), groups, batch).load(path)


def test_other_settings_are_said(tmp_path):
    def other(module):
        return torch.optim.AdamW(module.parameters(), lr=0.5, betas=(0.5, 0.6), weight_decay=0.01)

    batch = classes(1)[0]
    path = trainer(mlp(), adamw, batch).save(tmp_path / "run.xrt")
    made = trainer(mlp(), other, batch, options={"clip_norm": 1.0}, engine="host")
    with pytest.warns(CheckpointWarning) as caught:
        made.load(path)
    assert str(caught[0].message).endswith(
        "not to the bit: clip_norm was None, is 1.0, engine was xla, is host, "
        "betas was [0.9, 0.999], is [0.5, 0.6], lr was 0.01, is 0.5."
    )
    made.step(batch)
    assert made.metrics.learning_rates == (0.5,)


def test_another_seed_is_said(tmp_path):
    batch = classes(1)[0]
    path = trainer(network(), adamw, batch).save(tmp_path / "run.xrt")
    made = trainer(network(), adamw, batch, options={"seed": 7})
    with pytest.warns(CheckpointWarning, match="not to the bit: seed was 0, is 7"):
        made.load(path)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    batch = classes(1)[0]
    made = trainer(mlp(), adamw, batch)
    path = made.save(tmp_path / "run.xrt")
    content = path.read_bytes()
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ProgramWriteError, match="The checkpoint could not be written to"):
        made.save(blocker / "run.xrt")
    with pytest.raises(ProgramWriteError):
        made.save(tmp_path)  # a folder
    assert path.read_bytes() == content
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "run.xrt"]


@pytest.mark.parametrize("keep", [0, -1, True, 1.5])
def test_keep_is_checked(tmp_path, keep):
    made = trainer(mlp(), adamw, classes(1)[0])
    with pytest.raises(OptionError, match="keep must be a whole number"):
        made.save(tmp_path, keep=keep)


def test_what_is_loaded_does_not_hang_on_the_file(tmp_path):
    batches = classes(2)
    made = trainer(mlp(), adamw, batches[0])
    made.step(batches[0])
    folder = tmp_path / "run"
    made.save(folder, keep=1)
    made.load(folder)
    before = made.state_dict()
    shutil.rmtree(folder)
    made.step(batches[1])
    assert not all(torch.equal(before[n], array) for n, array in made.state_dict().items())
    assert re.match("<xrt.Trainer", repr(made))
    assert np.isfinite(made.metrics.loss)
