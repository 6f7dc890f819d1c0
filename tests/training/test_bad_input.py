"""What cannot be trained is refused by an error that names it and the remedy."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import xrt
from tests.support import model
from tests.training.support import classes, mlp, trainer


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


def error(call, *arguments, **keywords):
    with pytest.raises(xrt.XrtError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


def refused(module=None, batch=None, **keywords):
    module = module or mlp()
    return error(trainer, module, sgd, classes(1)[0] if batch is None else batch, **keywords)


def test_unknown_names():
    assert refused(engine="tpu") == "Engine 'tpu' is unknown. Known engines: host, xla."
    assert "Precision 'int8'" in refused(precision="int8")
    assert "Loss 'hinge' is unknown. Known losses: cross_entropy, mse" in refused(loss="hinge")
    assert "of torch, which JAX cannot trace" in refused(loss=nn.CrossEntropyLoss())
    assert "loss must be" in refused(loss=3)


class Scored(nn.Module):
    """Words to classes, scored in one of the ways of torch, each of which refuses wrong labels."""

    def __init__(self, score):
        super().__init__()
        self.words, self.last, self.score = nn.Embedding(7, 5), nn.Linear(5, 4), score

    def forward(self, words, labels):
        return self.score(self.last(self.words(words)), labels)


SCORES = {
    "cross_entropy": nn.functional.cross_entropy,
    "gather": lambda x, y: -x.log_softmax(1).gather(1, y[:, None]).mean(),
    "index": lambda x, y: -x.log_softmax(1)[torch.arange(len(y)), y].mean(),
}


@pytest.mark.parametrize("engine", ["xla", "host"])
@pytest.mark.parametrize("score", SCORES)
def test_labels_and_words_that_do_not_exist(score, engine):
    module = Scored(SCORES[score])
    words, labels = torch.tensor([0, 6, 3]), torch.tensor([3, 0, 1])
    train = trainer(module, sgd, (words, labels), loss=None, engine=engine)
    want = module(words, labels).item()
    np.testing.assert_allclose(train.step((words, labels)), want, rtol=1e-5)
    before = {name: value.clone() for name, value in train.state_dict().items()}
    for batch in ((words, labels + 1), (words + 1, labels), (words, labels - 7)):
        assert "labels and indices out of range" in error(train.step, batch)
    for name, value in train.state_dict().items():
        assert torch.equal(value, before[name])
    assert np.isfinite(train.step((words, labels)))


def test_options_are_checked():
    for name, value in {"accumulate": 0, "nonfinite": "ignore", "clip_norm": -1}.items():
        assert f"TrainingOptions.{name} must be" in error(xrt.TrainingOptions, **{name: value})
    wrong = error(
        xrt.compile_training,
        mlp(),
        classes(1)[0],
        optimizer=None,
        options=xrt.CompileOptions(),
    )
    assert "xrt.TrainingOptions" in wrong


def test_losses_that_are_none():
    x, y = classes(1)[0]
    assert "returns no loss" in refused(batch=x, loss=None)
    assert "has shape [6, 4]" in refused(loss=lambda outputs, targets: outputs)
    assert "not a scalar" in refused(loss=lambda outputs, targets: None)
    assert "failed on outputs of the shapes [[6, 4]]" in refused(
        loss=lambda outputs, targets: outputs @ outputs
    )
    assert "logits of shape [6, 4] and classes of shape [5]" in refused(batch=(x, y[:5]))
    assert "targets of shape [6]" in refused(loss="mse", batch=(x, y))


def test_batches_that_do_not_fit():
    x, y = classes(1)[0]
    mine = trainer(mlp(), sgd, (x, y))
    for batch, words in (
        ((x[:5], y[:5]), "has shape [5, 8]"),
        ((x.double(), y), "has dtype float64"),
        ((x, y.int()), "The targets are"),
        ((x, y, y), "got 3 items"),
        (x, "a batch is (inputs, targets); got Tensor"),
        (((x, x), y), "cannot be called like this"),
    ):
        assert words in error(mine.step, batch)
    mine.step((x, y))
    assert mine.steps == 1
    assert "no batches" in error(mine.evaluate, [])
    assert "does not divide into 4 equal parts" in refused(options={"accumulate": 4})


def test_a_model_without_anything_to_train():
    module = mlp().requires_grad_(False)
    holder = torch.optim.SGD([nn.Parameter(torch.zeros(1, requires_grad=False), False)], lr=0.1)
    assert "nothing to train" in error(trainer, module, lambda _: holder, classes(1)[0])


def test_parameters_in_half_precision():
    assert "trains float32 parameters" in refused(mlp().half(), (classes(1)[0][0].half(), None))


class Grad(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        with torch.no_grad():
            shift = self.linear(x)
        return self.linear(x) - shift


def test_no_grad_inside_forward():
    assert "tensor.detach()" in refused(Grad())


class Chosen(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(x)[x[:, 0] > 0]


def test_a_shape_that_depends_on_data():
    words = refused(Chosen(), loss=lambda outputs, targets: outputs.sum())
    assert "shape" in words


def test_an_operator_that_xla_lacks_is_named():
    text = """g (float[2,3] x) => (float y) <float[3] w> {
        p = Mul (x, w)
        r = RegexFullMatch <pattern = "a"> (s)
        q = Cast <to = 1> (r)
        z = Sum (p, q)
        y = ReduceMean <keepdims = 0> (z)
    }"""
    text = text.replace("(float[2,3] x)", "(float[2,3] x, string[3] s)")
    proto = ir.to_proto(model(text, w=np.ones(3)))
    words = error(
        xrt.compile_training,
        proto,
        (np.ones((2, 3), np.float32), np.array(["a", "b", "c"], object)),
        optimizer=__import__("optax").sgd(0.1),
        options=xrt.TrainingOptions(trainable=("w",)),
    )
    assert "RegexFullMatch" in words
