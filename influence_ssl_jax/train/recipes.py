"""The published training runs, by name."""

import dataclasses

from influence_ssl_jax.losses import BYOL, BarlowTwins, SimCLR, Supervised
from influence_ssl_jax.train.optimisers import Lars, Sgd
from influence_ssl_jax.train.settings import Architecture, Pretrain

_SIMCLR = Pretrain(
    "simclr",
    SimCLR(0.2),
    Architecture(hidden=2048, output=256, normalisation="none"),
    Lars(0.4, weight_decay=1e-4),
    precision="bfloat16",
)
_BYOL = Pretrain(
    "byol",
    BYOL(),
    Architecture(hidden=4096, output=256, predictor_hidden=4096),
    Lars(1.0, weight_decay=1e-5),
    precision="bfloat16",
)
_BARLOW_TWINS = Pretrain(
    "barlow_twins",
    BarlowTwins(off_diagonal=0.0051, scale=0.1),
    Architecture(hidden=2048, output=2048, hidden_layers=2),
    Lars(0.3, weight_decay=1e-4),
    precision="bfloat16",
)
_REMOVAL = {"epochs": 250, "batch_size": 512}

RECIPES: dict[str, Pretrain] = {
    "solo_learn_simclr": _SIMCLR,
    "solo_learn_byol": _BYOL,
    "solo_learn_barlow_twins": _BARLOW_TWINS,
    "table2_simclr": dataclasses.replace(_SIMCLR, views="table1"),
    "table2_byol": dataclasses.replace(_BYOL, views="table1"),
    "table2_barlow_twins": dataclasses.replace(_BARLOW_TWINS, views="table1"),
    "table3_simclr": dataclasses.replace(_SIMCLR, views="table1", **_REMOVAL),
    "table3_byol": dataclasses.replace(
        _BYOL,
        views="table1",
        architecture=Architecture(hidden=2048, output=256, predictor_hidden=2048),
        optimiser=Lars(0.35, weight_decay=1e-5),
        **_REMOVAL,
    ),
    "table3_barlow_twins": dataclasses.replace(
        _BARLOW_TWINS,
        views="table1",
        architecture=Architecture(hidden=2048, output=512, hidden_layers=2),
        optimiser=Lars(0.35, weight_decay=1e-4),
        **_REMOVAL,
    ),
    "supervised": Pretrain(
        "supervised", Supervised(), Architecture(output=10), Sgd(0.1, warmup_epochs=5), epochs=200, batch_size=128
    ),
}
"""`table2_*`: the checkpoints that arXiv 2412.17170 scores, as its Tables 1 and 2 describe them; `solo_learn_*`: as
solo-learn really made those checkpoints (scripts/pretrain/cifar), with other views; `table3_*`: its removal runs, to be
run with seeds 0, 42 and 123. Mixed 16-bit precision is bfloat16 here. Learning rates are as printed, not rescaled by
the batch size. Table 3 prints a temperature for Barlow Twins, 0.1, which has none: taken as the scale of its loss."""


def tiny(loss: SimCLR | BYOL | BarlowTwins | Supervised) -> Pretrain:
    """A run of seconds on images of 8×8 pixels: every part at work, nothing learned well."""
    views = {BYOL: "byol", BarlowTwins: "barlow_twins", Supervised: "supervised"}.get(type(loss), "simclr")
    return Pretrain(
        views,
        loss,
        Architecture(width=4, hidden=16, output=10, predictor_hidden=16),
        Lars(0.3, warmup_epochs=0),
        epochs=2,
        batch_size=32,
    )
