"""Every operator of ONNX has a lowering, a definition that is inlined, or a reason."""

import onnx
import onnx_ir as ir
import pytest

from xrt.engines.xla import lowering
from xrt.engines.xla import ops as _ops  # noqa: F401  (registers the lowerings)
from xrt.engines.xla.refusals import REASONS
from xrt.passes.inline_functions import is_function

DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")
OPERATORS = sorted(
    (schema.domain, schema.name)
    for schema in onnx.defs.get_all_schemas()
    if schema.domain in DOMAINS and not schema.deprecated
)
# xrt::Gradient takes its place on import: see passes.OutlineGradientPass.
REPLACED = {("ai.onnx.preview.training", "Gradient")}


def reason(domain, name):
    return REASONS.get(f"{domain}::{name}" if domain else name)


@pytest.mark.parametrize(("domain", "name"), OPERATORS)
def test_no_operator_is_left_out_without_a_reason(domain, name):
    if (domain, name) in REPLACED:
        return
    lowered = (domain, name) in lowering.lowered_ops()
    inlined = is_function(ir.Node(domain, name, []))
    assert lowered or inlined or reason(domain, name)
    assert not (lowered and reason(domain, name)), "it is lowered after all"


def test_a_refusal_tells_the_reason():
    answer = lowering.supports_node(ir.Node("", "NonZero", [ir.val("x")]))
    assert not answer
    assert answer.reason == "NonZero: " + REASONS["NonZero"]
    answer = lowering.supports_node(ir.Node("my.own", "Thing", [ir.val("x")]))
    assert answer.reason == "XLA has no lowering for my.own::Thing"
