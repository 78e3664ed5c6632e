"""List the backends that approximate `(C + λI)⁻¹`.

The command line, comparisons and the contract tests read the list `BACKENDS`.
"""

from influence_ssl_jax.ihvp.arnoldi import Arnoldi
from influence_ssl_jax.ihvp.backend import Backend, Damping, Form, Grid, Interval, Resolved
from influence_ssl_jax.ihvp.cg import CG
from influence_ssl_jax.ihvp.deflated import Deflated
from influence_ssl_jax.ihvp.diagonal import Diagonal, Identity
from influence_ssl_jax.ihvp.ekfac import EKFAC, KFAC
from influence_ssl_jax.ihvp.exact import Exact
from influence_ssl_jax.ihvp.gram import Gram
from influence_ssl_jax.ihvp.iterations import ASTRA, LiSSA
from influence_ssl_jax.ihvp.logra import LoGra
from influence_ssl_jax.ihvp.nystrom import Nystrom

BACKENDS: tuple[type[Backend], ...] = (
    Identity,
    Diagonal,
    KFAC,
    EKFAC,
    LoGra,
    Arnoldi,
    Nystrom,
    Deflated,
    CG,
    ASTRA,
    LiSSA,
    Gram,
    Exact,
)
"""Every backend, in the order of cost."""

__all__ = [
    "ASTRA",
    "BACKENDS",
    "CG",
    "EKFAC",
    "KFAC",
    "Arnoldi",
    "Backend",
    "Damping",
    "Deflated",
    "Diagonal",
    "Exact",
    "Form",
    "Gram",
    "Grid",
    "Identity",
    "Interval",
    "LiSSA",
    "LoGra",
    "Nystrom",
    "Resolved",
]
