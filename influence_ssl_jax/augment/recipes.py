"""Name the views of published settings.

Examples:
    >>> import jax, jax.numpy as jnp
    >>> from influence_ssl_jax.augment.recipes import PERTURBATIONS, PRETRAINING
    >>> sorted(PERTURBATIONS)
    ['crop', 'flip_blur', 'flip_gray_blur', 'flip_jitter_blur', 'flip_jitter_gray', 'noise']
    >>> jax.eval_shape(PRETRAINING["simclr"], jax.random.key(0), jnp.zeros((16, 16, 3))).shape  # two views
    (2, 16, 16, 3)
"""

from influence_ssl_jax.augment.blur import GaussianBlur
from influence_ssl_jax.augment.colour import ColourJitter, Grayscale, Solarise
from influence_ssl_jax.augment.crop import HorizontalFlip, RandomResizedCrop, RandomShift
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.transform import AgainstClean, Augmented, Randomly, Sequential, Transform, Views

STRONG = ColourJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
WEAK = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
EVEN = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


def pretraining_transform(
    jitter: ColourJitter,
    blur: float,
    solarise: float,
    height: int | None = None,
    width: int | None = None,
    smallest: float = 0.08,
) -> Sequential:
    """Compose the augmentation of pretraining, in the order of solo-learn.

    The order is: crop, jitter (probability 0.8), grayscale (0.2), blur, solarisation, flip (0.5).

    Args:
        jitter: The colour jitter.
        blur: Probability of the blur.
        solarise: Probability of the solarisation.
        height: Height of the result in pixels; `None` keeps that of the image.
        width: Width of the result in pixels; `None` keeps that of the image.
        smallest: Smallest area of a crop, as a share of the image.

    Examples:
        >>> from influence_ssl_jax.augment.colour import ColourJitter
        >>> transform = pretraining_transform(ColourJitter(0.4, 0.4, 0.2, 0.1), blur=0.5, solarise=0.0)
        >>> len(transform.transforms)  # crop, jitter, grayscale, blur and flip
        5
    """
    return Sequential(
        (
            RandomResizedCrop(scale=(smallest, 1.0), height=height, width=width),
            Randomly(0.8, jitter),
            Randomly(0.2, Grayscale()),
            *([Randomly(blur, GaussianBlur())] if blur else []),
            *([Randomly(solarise, Solarise())] if solarise else []),
            Randomly(0.5, HorizontalFlip()),
        )
    )


def _against_clean(*transforms: Transform) -> AgainstClean:
    """Compose a perturbation whose parts are all applied.

    An image that stays as it is has no influence to measure.
    """
    return AgainstClean(Sequential(transforms))


_SYMMETRIC = pretraining_transform(STRONG, blur=0.5, solarise=0.0)
_TABLE_1 = pretraining_transform(STRONG, blur=0.2, solarise=0.2)
_ASYMMETRIC = Augmented(
    (pretraining_transform(WEAK, blur=0.0, solarise=0.0), pretraining_transform(WEAK, blur=0.0, solarise=0.2))
)
_EVEN = pretraining_transform(EVEN, blur=0.5, solarise=0.0)
_WIDE = pretraining_transform(WEAK, blur=0.0, solarise=0.1, smallest=0.2)

PRETRAINING: dict[str, Views] = {
    "table1": Augmented((_TABLE_1, _TABLE_1)),
    "simclr": Augmented((_SYMMETRIC, _SYMMETRIC)),
    "byol": _ASYMMETRIC,
    "barlow_twins": _ASYMMETRIC,
    "simsiam": Augmented((_EVEN, _EVEN)),
    "vicreg": Augmented((_WIDE, _WIDE)),
    "supervised": Augmented((Sequential((RandomShift(4), Randomly(0.5, HorizontalFlip()))),)),
}
"""Views that pretraining compares.

`table1` is that of arXiv 2412.17170, Table 1. The others are those of solo-learn's CIFAR checkpoints
(scripts/pretrain/cifar): symmetric for SimCLR and, with a weaker jitter, SimSiam; asymmetric for BYOL and Barlow Twins;
crops of at least a fifth of the image for VICReg. `supervised` is one view.
"""

PERTURBATIONS: dict[str, Views] = {
    "noise": GaussianNoise(0.2),
    "crop": _against_clean(RandomResizedCrop(scale=(0.08, 1.0))),
    "flip_blur": _against_clean(HorizontalFlip(), GaussianBlur()),
    "flip_jitter_blur": _against_clean(HorizontalFlip(), STRONG, GaussianBlur()),
    "flip_jitter_gray": _against_clean(HorizontalFlip(), STRONG, Grayscale()),
    "flip_gray_blur": _against_clean(HorizontalFlip(), Grayscale(), GaussianBlur()),
}
"""Perturbations that a score compares with the clean image.

They are those of arXiv 2412.17170, Table 4, with the strengths of its Table 1.
"""
