"""Do low scores find duplicates? Figures 4 and B.4, and what the published study had not: duplicates that people judged.

Published: of the 5 lowest scores of the class 'automobile' 5 are duplicates of one car (BYOL; of the 18 lowest all are of
two cars), 2 (SimCLR), 1 (Barlow Twins).

    python -m experiments.study.duplicates --data-dir DIR --truth DIR        (after experiments.study.exactly; five minutes)

Truth: a training image counts as a duplicate where it is part of a ciFAIR pair of the judgement in question, whose other
image, one of the test images, is among the scored ones too; all other images of the random sample count as none, though a
few have a duplicate that no list names. Test images are not ranked: the encoder was not trained on them. Classes differ in
duplicates and in scores (a fifth of the duplicates are frogs, which have low scores), so the AUROC is given within classes,
too. Beside the score stand the exact score, where `exactly` has found it, the alignment loss, the distance to the nearest
embedding, to the nearest image by pixels (16×16, Euclidean) and by perceptual hash (Hamming).

Found (SimCLR of 29 epochs): the score finds images of the same shot with an AUROC of 0.55, the exact one within classes with
0.54, the nearest embedding with 0.98; none of the lowest 5 automobiles has a copy.
"""

from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from experiments.study import results
from experiments.study.table import Study, Table, images_of
from influence_ssl_jax.evaluation.statistics import share

RANKINGS = {
    "score": "score",
    "exact score": "exact",
    "alignment loss": "alignment_loss",
    "pixel variance": "pixel_variance",
    "nearest embedding": "embedding_distance",
    "nearest pixels": "pixels_distance",
    "perceptual hash": "hash_distance",
}
"""What is ranked, and by which column, if there is one; low values should be duplicates."""
JUDGEMENTS = {"equal pixels": 0, "same shot": 1, "very similar": 2}
LOWEST = (5, 18)


def judged(table: Table, pairs: list[tuple[str, str, int]]) -> dict[str, np.ndarray]:
    """Return which rows have a duplicate among the rows, by judgement."""
    present, members = set(table["id"].tolist()), {}
    for name, level in JUDGEMENTS.items():
        known = {each for one, other, at in pairs if at == level and {one, other} <= present for each in (one, other)}
        members[name] = np.isin(table["id"], sorted(known))
    return members


def find_judged(table: Table, pairs: list[tuple[str, str, int]], resamples: int) -> dict[str, Any]:
    """Return how well every ranking finds the duplicates of every judgement among training images."""
    among = (table["sample"] | table["pairs"]) & ~np.char.startswith(table["id"].astype(str), "test")
    marked = {name: rows[among] for name, rows in judged(table, pairs).items()}
    among = table.of(among)
    none = ~np.any(list(marked.values()), axis=0)
    detections = {}
    for name, positive in marked.items():
        if positive.any():
            kept = none | positive  # duplicates of another judgement are neither found nor missed
            detections[name] = {
                title: results.detection(
                    -among[column][kept].astype(float), positive[kept], resamples, among["label"][kept]
                )
                for title, column in RANKINGS.items()
                if column in among.columns
            }
    return detections


def lowest_of_class(table: Table) -> dict[str, Any]:
    """Return how many of the lowest of the whole class look like copies, by the nearest image's pixels.

    A copy: the distance to the nearest scored image by pixels is at most the median of that of the judged duplicates of
    the same shot.
    """
    judged_near = table["pairs"] & (table["pixels_distance"] > 0)
    limit = float(np.median(table["pixels_distance"][judged_near]))
    rows = np.flatnonzero(table["class"])
    copies = table["pixels_distance"] <= limit
    counts: dict[str, Any] = {
        "images": len(rows),
        "images of the class": table.record["chosen"]["class"],
        "pixel distance of a copy": limit,
        "copies in the class": share(int(copies[rows].sum()), len(rows)),
    }
    for title, column in RANKINGS.items():
        if column not in table.columns:
            continue
        order = rows[np.argsort(table[column][rows], kind="stable")]
        counts[title] = {f"lowest {count}": int(copies[order[:count]].sum()) for count in LOWEST}
    return counts


def find(study: Study, resamples: int = 1000) -> tuple[dict[str, Any], Figure]:
    """Judge the rankings, and show the lowest of the class."""
    table = Table.load(study.kept)
    if (study.kept / "exact.parquet").exists():
        table = table.replace({"exact": pq.read_table(study.kept / "exact.parquet")["score"].to_numpy()})
    record = {
        "judged": find_judged(table, study.pairs(), resamples),
        "class": lowest_of_class(table),
    }
    pixels, rows, shown = images_of(study, table["id"]), np.flatnonzero(table["class"]), []
    for title in ("score", "nearest embedding", "nearest pixels"):
        order = rows[np.argsort(table[RANKINGS[title]][rows], kind="stable")][: LOWEST[-1]]
        words = [f"{table[RANKINGS[title]][row]:.3g}" for row in order]
        shown.append((f"class {study.whole_class}, lowest by {title}", pixels[order], words))
    return record, results.gallery(shown, LOWEST[-1])


if __name__ == "__main__":
    results.main("duplicates", find)
