"""Compile options of XLA that xrt sets by itself."""

from __future__ import annotations

from xrt.engines.xla.compiler_flags import keep_barriers


def test_passes_that_the_user_disables_stay_disabled() -> None:
    given = {"xla_disable_hlo_passes": "a,b", "c": 1}
    found = keep_barriers(given)
    assert found == {"xla_disable_hlo_passes": "a,b,cse_barrier_expander", "c": 1}
    assert keep_barriers(found) == found
    assert given == {"xla_disable_hlo_passes": "a,b", "c": 1}
