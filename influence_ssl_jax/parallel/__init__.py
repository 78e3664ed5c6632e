"""Many devices and many processes: the mesh, what is split over it, and how processes find each other and agree."""

from influence_ssl_jax.parallel.mesh import (
    AXIS,
    all_devices,
    devices,
    local_devices,
    over_examples,
    spread,
    sum_over_devices,
)
from influence_ssl_jax.parallel.messages import from_first
from influence_ssl_jax.parallel.placement import batches_of, everywhere, replicated, split
from influence_ssl_jax.parallel.processes import (
    Distributed,
    agreed,
    barrier,
    first_only,
    gathered,
    in_every,
    is_first,
    lost_partner,
    part_of,
    rank,
    smallest,
    start,
    summed,
)

__all__ = [
    "AXIS",
    "Distributed",
    "agreed",
    "all_devices",
    "barrier",
    "batches_of",
    "devices",
    "everywhere",
    "first_only",
    "from_first",
    "gathered",
    "in_every",
    "is_first",
    "local_devices",
    "lost_partner",
    "over_examples",
    "part_of",
    "rank",
    "replicated",
    "smallest",
    "split",
    "spread",
    "start",
    "sum_over_devices",
    "summed",
]
