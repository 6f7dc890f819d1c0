"""The seventeen networks of the published tables against PyTorch; most of them `slow`."""

from __future__ import annotations

import pytest

import xrt
from benchmarks import models

torch = pytest.importorskip("torch")

QUICK = {"alexnet", "resnet50", "bert"}


def leaves(tree):
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in models.names()
    ],
)
def test_one_cluster_that_agrees_with_torch(name, tmp_path):
    module, inputs = models.load(name)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    program = xrt.compile(module, inputs, options=xrt.CompileOptions(cache_dir=tmp_path))
    with torch.no_grad():
        want, got = module(*args, **kwargs), program(*args, **kwargs)
    assert type(got) is type(want)
    for mine, theirs in zip(leaves(got), leaves(want), strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert len(program.clusters) == 1, program.explain().reasons()
    assert not program.explain().reasons()


@pytest.mark.slow
def test_the_host_alone_runs_resnet50():
    module, inputs = models.load("resnet50")
    program = xrt.compile(module, inputs, engine="host")
    with torch.no_grad():
        want, got = module(*inputs), program(*inputs)
    assert not program.clusters
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
