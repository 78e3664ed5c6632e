"""How many bits the 16-bit images of a data set really use."""

import numpy as np

from influence_ssl_jax.data.source import Example, OpenSource, read_all
from influence_ssl_jax.data.transform import ToInput

LOOKED_AT = 16
"""Images, from the first on, that are looked at."""


def depth_notes(source: OpenSource, transform: ToInput) -> tuple[str, ...]:
    """Say if the first images have a 16-bit type and hold values of fewer bits, which would be read as nearly black."""
    read = read_all(source, range(min(LOOKED_AT, len(source))))
    deep = [each.image for each in read if isinstance(each, Example) and each.image.dtype == np.uint16]
    highest = max((int(image.max()) for image in deep), default=0)
    held = next((bits for bits in (8, 10, 12, 14) if highest < 2**bits), 16)
    if not deep or not highest or held >= transform.bits:
        return ()
    return (
        f"the first {len(deep)} images of 16 bits hold no value above {highest}: read as {transform.bits} bits they "
        f"are nearly black. If they are images of {held} bits, pretrain with --input.bits {held}",
    )
