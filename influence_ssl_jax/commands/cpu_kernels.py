"""Which kernels XLA makes of a CPU's convolutions: chosen once, before JAX starts to compute."""

import importlib.metadata
import os

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
UNDERSTOOD_BY = ("0.10.2",)
"""Versions of jaxlib that are known to have the flag; any other aborts the process on a flag that it does not know."""


def keep_convolutions_whole() -> bool:
    """Ask XLA not to fuse convolutions into YNNPACK calls; true where the choice is made.

    Measured with ResNet-18 on two cores (`benchmarks/convolutions.py`): a gradient in 0.71 of the time, a forward pass in
    0.77, because both cores are kept busy.

    Read by XLA when the first computation compiles, so it is called at the start of a program, and by the compiler for
    CPUs alone: accelerators do not see it. A choice that `XLA_FLAGS` already holds is left as it is.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG in flags or importlib.metadata.version("jaxlib") not in UNDERSTOOD_BY:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()
    return True
