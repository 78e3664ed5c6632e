"""How precisely an accelerator multiplies float32 numbers: chosen once, before JAX is imported."""

import os
from collections.abc import MutableMapping

VARIABLE = "JAX_DEFAULT_MATMUL_PRECISION"


def keep_float32(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let float32 mean float32 on an accelerator too; a choice that `JAX_DEFAULT_MATMUL_PRECISION` holds is left.

    Without it GPUs round the factors of products and convolutions to 10 bits (TF32), TPUs to 7 (`jax.lax.Precision`): far
    more than a certificate allows for, or a solve to 1e-5. On a CPU it changes no bit. `--precision bfloat16` is where
    speed is asked for.
    """
    environment.setdefault(VARIABLE, "highest")
