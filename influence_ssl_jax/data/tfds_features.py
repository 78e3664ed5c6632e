"""The features of a tensorflow-datasets data set: which is the image, which the class, which are attributes."""

from typing import Any

import numpy as np
import pyarrow as pa

from influence_ssl_jax.errors import DataError


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with paths `outer/inner`."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        is_group = isinstance(value, dict) or type(value).__name__ == "FeaturesDict"
        leaves.update(flat(value, f"{prefix}{name}/") if is_group else {f"{prefix}{name}": value})
    return leaves


def nested(path: str, leaf: Any) -> dict[str, Any]:
    """A path `outer/inner` as nested dicts around `leaf`."""
    for name in reversed(path.split("/")):
        leaf = {name: leaf}
    return leaf


def known(what: str, name: str, features: dict[str, Any]) -> str:
    """`name`, where there is such a feature."""
    if name not in features:
        raise DataError(f"There is no {what} feature {name!r}; the data set has {', '.join(features)}.")
    return name


def image_feature(features: dict[str, Any], wanted: str | None) -> str:
    """The image feature: the one that is wanted, or that is called `image`, or the only one."""
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    name = known("image", wanted, features) if wanted else "image" if "image" in images else next(iter(images), None)
    if name is None or (name != "image" and wanted is None and len(images) > 1):
        found = f"several: {', '.join(images)}; name one with image=…" if images else "none, so it is no image data set"
        raise DataError(f"One image feature is needed, found {found}.")
    if name not in images or np.issubdtype(features[name].np_dtype, np.floating):
        raise DataError(
            f"Feature {name!r} is no picture of 8 or 16 bits, but {features[name]}; name another with image=…."
        )
    return name


def first_class(features: dict[str, Any]) -> str | None:
    """The class feature: the one that is called `label`, or the first, or None."""
    classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    return "label" if "label" in classes else next(iter(classes), None)


def is_scalar(feature: Any) -> bool:
    """Whether a feature is one number or truth value."""
    return feature.shape == () and any(np.issubdtype(feature.np_dtype, kind) for kind in (np.number, np.bool_))


def column(feature: Any, values: list[Any]) -> pa.Array:
    """One value per example, None where there is none; classes by name."""
    names = dict(enumerate(getattr(feature, "names", None) or ()))
    if any(name != str(number) for number, name in names.items()):  # classes without names are named by their number
        return pa.array([None if value is None else names.get(int(value)) for value in values], pa.string())
    return pa.array(values, pa.from_numpy_dtype(feature.np_dtype))


def text(value: Any) -> str:
    """A name as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
