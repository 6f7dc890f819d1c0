"""The pattern of scaled dot-product attention: what is read off the nodes, before any change."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from xrt.graph import constant, is_standard, static_shape
from xrt.passes.rewrite import (
    only_user,
    operand_and_constant,
    producer,
    rank,
    scalar,
    sole_producer,
)


class RefusalError(Exception):
    """Why nodes that look like attention are not fused."""


_NO_PRODUCT = "the scores are not a product of two matrices, scaled and masked"


def require(condition: bool, reason: str) -> None:
    """Raise RefusalError with `reason` unless `condition` holds."""
    if not condition:
        raise RefusalError(reason)


def _present(*values: ir.Value | None) -> list[ir.Value]:
    """Inputs that their operator demands."""
    return [value for value in values if value is not None]


@dataclass(frozen=True)
class Mask:
    """A term of the scores, or a condition on them where it is boolean.

    Attributes:
        value: The mask.
        unfolded: Where the scores are reshaped for the mask to be added: that shape [b, w, h, q, k]
            of scores [b*w, h, q, k]. (Swin transformers mask windows.)
    """

    value: ir.Value
    unfolded: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the mask against the scores, if it is static."""
        shape = static_shape(self.value)
        if shape is None or self.unfolded is None:
            return shape
        aligned = (1,) * (5 - len(shape)) + shape
        return (self.unfolded[0] * self.unfolded[1], *aligned[2:])


@dataclass(frozen=True)
class Attention:
    """softmax(query @ key^T * scale + sum(masks)) @ value, as matched.

    K is `key` itself, or its transpose by `key_axes` where these are given.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    scale: float
    masks: tuple[Mask, ...]
    key_axes: tuple[int, ...] | None = None


def softmax_before(product: ir.Node) -> ir.Node | None:
    """The Softmax whose result is the left factor of a MatMul, through a guard against NaN."""
    if not is_standard(product, "MatMul"):
        return None
    probabilities = product.inputs[0]
    guard = producer(probabilities, "Where")
    if guard is not None:
        test, otherwise = producer(guard.inputs[0], "IsNaN"), guard.inputs[2]
        if test is None or test.inputs[0] is not otherwise or scalar(guard.inputs[1]) != 0.0:
            return None
        probabilities = otherwise
    return producer(probabilities, "Softmax")


def match(product: ir.Node, softmax: ir.Node) -> Attention:
    """Take the parts of an attention from its last product upwards."""
    probabilities = softmax.outputs[0]
    users = {use.node for use in probabilities.uses()}
    expected: set[ir.Node | None] = {product}
    if (guard := producer(product.inputs[0], "Where")) is not None:
        expected = {guard, producer(guard.inputs[0], "IsNaN")}
        require(only_user(guard.outputs[0]) is product, "the probabilities are used elsewhere")
    require(
        users == expected and not probabilities.is_graph_output(),
        "the probabilities are used elsewhere",
    )
    axis, dims = softmax.attributes.get_int("axis", -1), rank(softmax.inputs[0])
    require(dims is not None and axis in (-1, dims - 1), "the softmax is not over the keys")
    scores, scale, masks = _scores(softmax)
    left, right, value = _present(*scores.inputs, product.inputs[1])
    query, query_scale = _unscaled(left)
    transposed, key_scale = _unscaled(right)
    scale *= query_scale * key_scale
    return _key(Attention(query, transposed, value, scale, tuple(masks)))


def _scores(softmax: ir.Node) -> tuple[ir.Node, float, list[Mask]]:
    """The product of Q and K^T, the scale on it, and the masks added to it."""
    masks: list[Mask] = []
    scale, user, (current,) = 1.0, softmax, _present(softmax.inputs[0])
    while True:
        node = producer(current, "MatMul", "Add", "Where", "Mul", "Div", "Reshape")
        if node is None:
            raise RefusalError(_NO_PRODUCT)
        require(only_user(current) is user, "the scores are used elsewhere")
        if node.op_type == "MatMul":
            return node, scale, masks
        if node.op_type in ("Mul", "Div"):
            scaling = _scaling(current)
            if scaling is None:
                raise RefusalError("the scores are scaled by no constant number")
            current, scale = scaling[0], scale * scaling[1]
        else:
            require(scale == 1.0, "the mask is scaled together with the scores")
            node, current, mask = _MASKS[node.op_type](node)
            masks.append(mask)
        user = node


def _added(add: ir.Node) -> tuple[ir.Node, ir.Value, Mask]:
    """An Add as (the node that uses the scores, the scores, the mask)."""
    left, right = _present(*add.inputs)
    # The term of the full shape holds the product; a bias may come out of a product of its own.
    full = static_shape(add.outputs[0])
    reaches = [_leads_to_product(value) and static_shape(value) == full for value in (left, right)]
    require(any(reaches), _NO_PRODUCT)
    require(not all(reaches), "both terms of the scores are products")
    scores, mask = (left, right) if reaches[0] else (right, left)
    return add, scores, Mask(mask)


def _added_unfolded(fold: ir.Node) -> tuple[ir.Node, ir.Value, Mask]:
    """Reshape(Reshape(scores: [b*w, h, q, k]) + mask: [b, w, h, q, k]) as `_added`."""
    add = sole_producer(fold.inputs[0], fold, "Add")
    require(add is not None, _NO_PRODUCT)
    assert add is not None
    _, unfolded, mask = _added(add)
    unfold = sole_producer(unfolded, add, "Reshape")
    scores = None if unfold is None else unfold.inputs[0]
    before, between = static_shape(scores), static_shape(unfolded)
    if unfold is None or scores is None or before is None or between is None:
        raise RefusalError(_NO_PRODUCT)
    folds = len(between) == 5 and before == (between[0] * between[1], *between[2:])
    require(folds and before == static_shape(fold.outputs[0]), _NO_PRODUCT)
    return unfold, scores, Mask(mask.value, between)


def _leads_to_product(value: ir.Value | None) -> bool:
    """Whether `value` is a product, scaled and masked (by at most a few nodes)."""
    pending, seen = [value], 0
    while pending and seen < 32:
        node = producer(pending.pop(), "MatMul", "Add", "Where", "Mul", "Div", "Reshape")
        if node is not None:
            if node.op_type == "MatMul":
                return True
            pending.extend(node.inputs[:1] if node.op_type == "Reshape" else node.inputs)
        seen += 1
    return False


def _filled(where: ir.Node) -> tuple[ir.Node, ir.Value, Mask]:
    """Where(allowed, scores, -inf) as `_added`, with the boolean mask `allowed`."""
    allowed, scores, fill = _present(*where.inputs)
    number = scalar(fill)
    if number is None:
        raise RefusalError("the scores are replaced by no constant number where masked")
    require(_forbids(number, allowed), f"the scores are {number:g}, not -inf, where masked")
    return where, scores, Mask(allowed)


_MASKS = {"Add": _added, "Where": _filled, "Reshape": _added_unfolded}


def _forbids(number: float, allowed: ir.Value) -> bool:
    """Whether `number` as a score gives probability zero wherever `allowed` is false.

    A finite number does not in a row without an allowed key, which then is uniform.
    """
    if number == -np.inf:
        return True
    array = constant(allowed)
    return number <= -1e30 and array is not None and bool(array.any(axis=-1).all())


def _scaling(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(x, s) of x * s, s * x or x / (1/s) with a constant number s that keeps the rank."""
    node = producer(value, "Mul", "Div")
    if node is None or (operands := operand_and_constant(node)) is None:
        return None
    source, number = operands[0], scalar(operands[1])
    if number is None or number == 0.0 or rank(source) != rank(value):
        return None
    if node.op_type == "Mul":
        return source, number
    return (source, 1.0 / number) if source is node.inputs[0] else None


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """(x, s) where `value` is x times the constant number s; s is 1 where x is `value`."""
    factor = 1.0
    while (found := _scaling(value)) is not None:
        value, number = found
        factor *= number
    return value, factor


def _key(found: Attention) -> Attention:
    """Find K where the key of `found` is K^T so far."""
    transposed = found.key
    dims = rank(transposed) or 0
    require(dims in (3, 4), "the factors are not of rank 3 or 4")
    swap = (*range(dims - 2), dims - 1, dims - 2)
    transpose = producer(transposed, "Transpose")
    if transpose is not None and (perm := transpose.attributes.get_ints("perm")) is not None:
        axes: tuple[int, ...] = tuple(int(perm[axis]) for axis in swap)
        source = transpose.inputs[0]
    else:
        axes, source = swap, transposed
    inner = _through_reshapes(transposed)
    if inner is not None:
        axes, source = tuple(range(dims)), inner
    assert source is not None
    key, factor = _unscaled(source)
    kept = None if axes == tuple(range(dims)) else axes
    return replace(found, key=key, key_axes=kept, scale=found.scale * factor)


def _through_reshapes(value: ir.Value) -> ir.Value | None:
    """K of Reshape(Transpose(Reshape(K: [b, h, n, d]: [b*h, n, d])): [b*h, d, n]): [b, h, d, n]."""
    unfold = producer(value, "Reshape")
    transpose = producer(unfold.inputs[0], "Transpose") if unfold is not None else None
    fold = producer(transpose.inputs[0], "Reshape") if transpose is not None else None
    if transpose is None or fold is None:
        return None
    source, folded = static_shape(fold.inputs[0]), static_shape(fold.outputs[0])
    result = static_shape(value)
    if source is None or folded is None or result is None or len(source) != 4:
        return None
    swapped = (*source[:2], source[3], source[2])
    perm = list(transpose.attributes.get_ints("perm") or ())
    matches = perm == [0, 2, 1] and folded[1:] == source[2:] and result == swapped
    return fold.inputs[0] if matches else None
