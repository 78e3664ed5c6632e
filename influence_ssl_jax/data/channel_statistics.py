"""Know the channel statistics of data sets by name."""

import re
from typing import TypeAlias

from influence_ssl_jax.data.source import Source
from influence_ssl_jax.data.tfds import Tfds

Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of pixels in [0, 1]."""

STATISTICS: dict[str, Statistics] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""The statistics of each data set, as solo-learn has them (solo/data/pretrain_dataloader.py)."""


def name_known(source: Source) -> str | None:
    """Return the name of a source's entry in `STATISTICS`, or None.

    Only a data set of tensorflow-datasets says which one it is.

    Examples:
        >>> from influence_ssl_jax import Digits, Tfds
        >>> from influence_ssl_jax.data.channel_statistics import name_known
        >>> name_known(Tfds("cifar100:3.0.2")), name_known(Digits())
        ('cifar100', None)
    """
    name = re.split("[:/]", source.name)[0] if isinstance(source, Tfds) else ""
    return {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet2012": "imagenet"}.get(name)
