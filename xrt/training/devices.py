"""The devices that a user names for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from xrt.engines.xla import device as D
from xrt.errors import OptionError


def resolve_devices(devices: int | Sequence[Any] | None) -> list[jax.Device]:
    """The devices to train on, those of a process next to each other.

    Args:
        devices: How many, over all processes of `jax.distributed`, or the JAX devices themselves.
            None and 1 stand for the XLA engine's own device. As many as asked for are there on the
            CPU, where a process shares its cores out among virtual devices.

    Raises:
        OptionError: If there are no such devices.
    """
    if devices is None:
        return [D.device()]
    if isinstance(devices, int) and not isinstance(devices, bool):
        return _so_many(devices)
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return _checked(list(devices))
    raise OptionError(
        f"devices must be a number, or a list of JAX devices such as jax.devices(); got {devices!r}"
    )


def _so_many(count: int) -> list[jax.Device]:
    if count < 1:
        raise OptionError(f"devices must be at least 1; got {count}.")
    own = D.device()
    if count == 1:
        return [own]
    processes = jax.process_count()
    if processes == 1 and own.platform == "cpu":
        return D.virtual_devices(count)
    known = jax.devices()
    if count > len(known):
        raise OptionError(
            f"devices={count}, but JAX sees {_described(known)}. {_more(own.platform, processes)}"
        )
    if count % processes:
        raise OptionError(
            f"devices={count} does not divide among the {processes} processes of jax.distributed; "
            "each takes as many."
        )
    if processes == 1:
        return known[:count]
    mine = [[d for d in known if d.process_index == p] for p in range(processes)]
    return _checked([device for each in mine for device in each[: count // processes]])


def _more(platform: str, processes: int) -> str:
    if platform != "cpu":
        return "Pass at most so many, or start the process where it sees more."
    each = " in each process" if processes > 1 else ""
    return (
        f"Call jax.config.update('jax_num_cpu_devices', N){each} before JAX starts for N virtual "
        "devices."
    )


def _checked(devices: list[Any]) -> list[jax.Device]:
    """`devices`, sorted by process.

    Raises:
        OptionError: If something is no device, is named twice or of another platform, or the
            processes hold different numbers of them.
    """
    strange = [each for each in devices if not isinstance(each, jax.Device)]
    if strange or not devices:
        raise OptionError(
            "devices must be a number, or a list of JAX devices such as jax.devices(); got "
            + (f"{strange[0]!r} in the list." if strange else "an empty list.")
        )
    twice = [device for device, count in Counter(devices).items() if count > 1]
    if twice:
        raise OptionError(f"devices names {twice[0]} twice; name each once.")
    platform = D.device().platform
    other = [each for each in devices if each.platform != platform]
    if other:
        raise OptionError(
            f"devices names {other[0]}, but xrt's XLA engine works on the platform {platform!r}. "
            f"Set JAX_PLATFORMS={other[0].platform} before JAX starts to train there."
        )
    if len({each.client for each in devices}) > 1:
        raise OptionError("devices names devices of several JAX clients; take all from one.")
    shares = Counter(each.process_index for each in devices)
    client = devices[0].client
    if sorted(shares) not in ([client.process_index()], list(range(jax.process_count()))):
        raise OptionError(
            f"devices names devices of the processes {sorted(shares)} of jax.distributed. Name "
            "those of all its processes, as jax.devices() does, or this process's alone, as "
            "jax.local_devices() does."
        )
    if len(set(shares.values())) > 1:
        raise OptionError(
            f"devices names {dict(sorted(shares.items()))} devices of the processes by number; "
            "each process takes the same number."
        )
    return sorted(devices, key=lambda device: device.process_index)


def _described(devices: Sequence[jax.Device]) -> str:
    kind = devices[0].platform
    return f"{len(devices)} {kind} device{'s' if len(devices) > 1 else ''}"
