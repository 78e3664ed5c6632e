"""Where do the highest and the lowest scores sit among the embeddings? Figure 3.

Published (t-SNE): the 1,000 highest lie in intermingled clusters, the 1,000 lowest in clear, separated ones.

    python -m experiments.study.separation --data-dir DIR --truth DIR        (after experiments.study.table; 2 minutes)

A picture by t-SNE measures nothing. So two numbers are reported for the highest, the lowest and a random part of the
random sample, within the part and by class: the share of the 10 nearest embeddings that are of the same class, with
that of chance (the sum of the squared shares of the classes), and the silhouette (cosine distance, from −1 to 1).

Found (SimCLR of 29 epochs): the highest 1,000 are a little less separated by class than random ones (silhouette -0.014 and
0.013), the lowest no more (0.020); a third of the lowest are frogs.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.study import results
from experiments.study.table import Study, Table, embed_images, unit_rows
from influence_ssl_jax.evaluation.statistics import bootstrap
from influence_ssl_jax.runs.prepare import load_encoder

NEIGHBOURS = 10
SIZES = (1000, 200)


def purity(units: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share of the nearest embeddings that are of the same class, of every image."""
    similarity = units @ units.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argpartition(-similarity, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return (labels[nearest] == labels[:, None]).mean(axis=1)


def mean(values: np.ndarray) -> float:
    """Return the mean, as a statistic to be bootstrapped."""
    return float(values.mean())


def parts(table: Table, size: int) -> dict[str, np.ndarray]:
    """Return the rows of the highest, the lowest, and random ones."""
    order = table.ranking()
    random = np.random.default_rng(0).choice(len(order), size, replace=False)
    return {"highest": order[:size], "lowest": order[::-1][:size], "random": order[random]}


def measure(table: Table, units: np.ndarray, size: int) -> dict[str, Any]:
    """Return purity and silhouette of every part."""
    from sklearn.metrics import silhouette_samples

    separations = {}
    for name, rows in parts(table, size).items():
        labels = table["label"][rows]
        shares = np.unique(labels, return_counts=True)[1] / size
        separations[name] = {
            "purity": bootstrap(mean, purity(units[rows], labels)),
            "purity by chance": float(np.sum(shares**2)),
            "silhouette": bootstrap(mean, silhouette_samples(units[rows], labels, metric="cosine")),
            "classes": {str(label): int(np.sum(labels == label)) for label in np.unique(table["label"])},
        }
    return separations


def embed_sample(study: Study, ids: np.ndarray) -> Float[np.ndarray, "rows width"]:
    """Compute the embeddings of images, of length 1; a zero one stays."""
    opened = study.source_of_scored().open()
    chosen = np.flatnonzero(np.isin(list(opened.ids()), ids))
    return unit_rows(embed_images(load_encoder(study.encoder), opened, chosen))


def find(study: Study) -> tuple[dict[str, Any], Figure]:
    """Measure the parts, and draw them."""
    from sklearn.manifold import TSNE

    table = Table.load(study.kept).sample()
    units = embed_sample(study, table["id"])
    fitting = [size for size in SIZES if 2 * size <= len(units)] or [len(units) // 2]
    record = {f"{size} of {len(units)}": measure(table, units, size) for size in fitting}
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, 3), parts(table, fitting[0]).items(), strict=True):
        perplexity = min(30, (len(rows) - 1) / 3)
        places = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0).fit_transform(units[rows])
        axes.scatter(*places.T, c=table["label"][rows], cmap="tab10", s=3)
        axes.set(title=f"{name} {len(rows)}", xticks=[], yticks=[])
    return record, figure


if __name__ == "__main__":
    results.main("separation", find)
