"""How much a report shows."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much a report shows.

    Attributes:
        images: Most, and least, influential images shown.
        tail: Share of the examples that counts as most, and as least, influential in tables.
        resamples: Bootstrap draws behind an interval.
    """

    images: int = 24
    tail: float = 0.05
    resamples: int = 200

    def __post_init__(self) -> None:
        """Refuse what cannot be shown."""
        if self.images < 1 or not 0 < self.tail <= 0.5 or self.resamples < 1:
            raise ValueError(
                f"images and resamples are at least 1 and tail is above 0 and at most 0.5, got {self.images}, "
                f"{self.resamples} and {self.tail}."
            )
