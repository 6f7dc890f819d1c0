import numpy as np
import onnx_ir as ir
import pytest

from tests.support import assert_close, model, ops, run_reference
from xrt.errors import InputError, VerificationError, XrtError
from xrt.passes import PREPARE, SPECIALIZE, BindShapesPass, VerifyPass, run, verify

NETWORK = """
<ir_version: 10, opset_import: ["": 18, "local": 1]>
net (float[batch,3,8,8] image) => (float[batch,c] logits)
  <float[4,3,3,3] w, float[4] g, float[4] b, float[4] m, float[4] v, float[4,5] head>
{
  p = Constant <value = int64[8] {0,0,1,1,0,0,1,1}> ()
  padded = Pad (image, p)
  c = Conv (padded, w)
  n = BatchNormalization (c, g, b, m, v)
  r = local.act (n)
  d = Dropout (r)
  s = Shape (d)
  i = Constant <value_int = 0> ()
  batch_size = Gather (s, i)
  ax = Constant <value_ints = [0]> ()
  u = Unsqueeze (batch_size, ax)
  k = Constant <value = int64[2] {4,-1}> ()
  t = Concat <axis = 0> (u, k)
  flat = Reshape (d, t)
  mean = ReduceMean <keepdims = 0> (flat, last)
  last = Constant <value_ints = [2]> ()
  logits = MatMul (mean, head)
}
<domain: "local", opset_import: ["": 18]>
act (x) => (y) { z = Relu (x) y = Identity (z) }
""".replace(
    "mean = ReduceMean <keepdims = 0> (flat, last)\n  last = Constant <value_ints = [2]> ()",
    "last = Constant <value_ints = [2]> ()\n  mean = ReduceMean <keepdims = 0> (flat, last)",
)


def network():
    rng = np.random.default_rng(0)
    return model(
        NETWORK,
        w=rng.normal(size=(4, 3, 3, 3)),
        g=rng.uniform(1, 2, 4),
        b=rng.normal(size=4),
        m=rng.normal(size=4),
        v=rng.uniform(1, 2, 4),
        head=rng.normal(size=(4, 5)),
    )


def test_a_network_from_end_to_end():
    image = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    want = run_reference(network(), [image])
    prepared = network()
    run(PREPARE, prepared, verifying=True)
    assert not prepared.functions
    assert prepared.opset_imports[""] == 28
    assert_close(run_reference(prepared, [image]), want)
    assert ops(prepared)[:2] == ["Conv", "Relu"]
    specialized = prepared.clone()
    run((BindShapesPass({"image": image.shape}), *SPECIALIZE), specialized, verifying=True)
    assert ops(specialized) == ["Conv", "Relu", "Reshape", "ReduceMean", "MatMul"]
    assert list(specialized.graph.outputs[0].shape) == [2, 5]
    assert_close(run_reference(specialized, [image]), want)
    # The prepared model still serves another signature.
    other = prepared.clone()
    run((BindShapesPass({"image": (1, 3, 8, 8)}), *SPECIALIZE), other, verifying=True)
    assert_close(run_reference(other, [image[:1]]), [want[0][:1]])


def test_a_second_run_changes_nothing():
    prepared = network()
    run(PREPARE, prepared)
    for factory in PREPARE:
        assert not factory()(prepared).modified, factory


def test_the_evaluator_is_passed_on():
    calls = []

    def evaluate(node, inputs):
        calls.append(node.op_type)
        return [np.array([9.0, 9.0], np.float32)]

    made = model(
        "g (float[2] x) => (float[2] y) <float[2] a = {1,2}> { b = Exp (a) y = Add (x, b) }"
    )
    run(SPECIALIZE, made, evaluate=evaluate)
    assert calls == ["Exp"]


def test_errors_of_xrt_come_as_they_are():
    with pytest.raises(InputError, match="'x' has 3 at dimension 0") as caught:
        run([BindShapesPass({"x": (3,)})], model("g (float[2] x) => (float[2] y) { y = Relu (x) }"))
    assert caught.value.__notes__ == ["In the pass BindShapesPass."]


class _Fails(ir.passes.InPlacePass):
    def call(self, model):
        raise RuntimeError("oh no")


class _Breaks(ir.passes.InPlacePass):
    def call(self, model):
        model.graph.node(0).replace_input_with(0, ir.val("stray"))
        return ir.passes.PassResult(model, modified=True)


def test_other_errors_name_the_pass():
    made = model("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    with pytest.raises(XrtError, match="The pass _Fails failed: RuntimeError: oh no"):
        run([VerifyPass, _Fails], made)
    with pytest.raises(XrtError, match="The pass Sequential failed"):
        run([lambda: ir.passes.Sequential(_Fails())], made)


def test_verifying_names_the_pass_that_broke_the_graph():
    with pytest.raises(VerificationError, match="stray") as caught:
        run(
            [VerifyPass, _Breaks],
            model("g (float[2] x) => (float[2] y) { y = Relu (x) }"),
            verifying=True,
        )
    assert caught.value.__notes__ == ["In the pass _Breaks."]


def test_the_verifier_accepts_what_pipelines_make_of_control_flow():
    made = model(
        """
        g (bool c, float[n,2] x) => (float[n,2] y, float[a] z) <bool t = {1}, int64 trips = {3}> {
          s = Shape <start = 1> (x)
          y = If (c) <
            then_branch = th () => (float[n,2] p) {
              p = If (t) <then_branch = i () => (float[n,2] q)
                  { e = Expand (one, s) q = Mul (x, e) },
                          else_branch = j () => (float[n,2] r) { r = Neg (x) }>
            },
            else_branch = el () => (float[n,2] u) {
              u = Loop (trips, t, x) <body = b (int64 k, bool d, float[n,2] v) => (bool f,
                  float[n,2] w) {
                f = Identity (d) e = Expand (one, s) w = Add (v, e) }>
            }>
          z = ReduceSum <keepdims = 0> (y, axis)
        }""".replace("int64 trips", "float[1] one = {1}, int64[1] axis = {0}, int64 trips")
    )
    x = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    wants = [run_reference(made, [np.array(flag), x]) for flag in (True, False)]
    run(PREPARE, made, verifying=True)
    run((BindShapesPass({"x": (3, 2)}), *SPECIALIZE), made, verifying=True)
    for flag, want in zip((True, False), wants, strict=True):
        assert_close(run_reference(made, [np.array(flag), x]), want)
    branch = made.graph.node(0).attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Mul"]
    verify(made)
