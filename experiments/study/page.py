"""Write docs/results/study.md from the results.

    python -m experiments.study.page

A verdict follows from one encoder's results by the rule that its function states. A question without results says what it
needs.
"""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jinja2

from experiments.study import results
from experiments.study.between import ENCODERS
from experiments.study.faces import CLASSIFIERS
from experiments.study.perturbations import PUBLISHED as CORRELATIONS
from experiments.study.removal import HIGHEST, LOWEST
from experiments.study.retraining import EXACT, SCORES
from experiments.study.table import EXPERIMENTS

PAGE = EXPERIMENTS.parent / "docs" / "results" / "study.md"
RESULTS = EXPERIMENTS / "results" / "study"
TITLES = {name: method for method, name in ENCODERS.items()}
"""The encoders of the page, in order; those without results have no column."""
FACES = "byol_torch_w8_fairface"
"""The encoder of faces, in a column of its own."""
SEEN = {
    "simclr_torch_w16_cifar10": (
        "the lowest scores are textured frogs and toads that fill the frame, images that already look noisy; the lowest "
        "automobiles are contrasty cars, police cars among them, none twice. The highest are single subjects "
        "before a smooth green, blue or dark ground. Score and alignment loss disagree most about small aeroplanes, ships "
        "and birds before sky or sea, whose loss is high and whose score is low."
    ),
    "byol_torch_w16_cifar10": (
        "the highest scores are aeroplanes, birds and single animals before a plain sky, blue or white; the lowest are "
        "frogs and toads on leaves and stones that fill the frame, and a few faces of cats. The lowest automobiles are "
        "contrasty cars in bright colours, none twice; those of the nearest embedding come in pairs."
    ),
    "barlow_twins_torch_w16_cifar10": (
        "the highest scores are small aeroplanes and birds before a smooth sky; the lowest are frogs and toads on grass, "
        "leaves and stones, and faces of cats that fill the frame. The lowest automobiles are contrasty cars, none twice."
    ),
}
"""What a reader of the pictures saw, by encoder."""
HOLDS, WEAKLY, NOT = "holds", "holds weakly", "does not hold"
NOTICEABLE = 0.6
"""An AUROC that is below this by its interval finds nothing that a user would notice."""
UNDECIDED, OPEN, NOT_RUN = "not decidable at this scale", "asked here alone", "not run yet"

Record: TypeAlias = dict[str, Any]
Interval: TypeAlias = list[float]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What an encoder's results say to a question.

    Attributes:
        text: The numbers, as Markdown.
        verdict: On the published claim.
    """

    text: str
    verdict: str


@dataclasses.dataclass(frozen=True)
class Question:
    """A row of the table.

    Attributes:
        figure: Figure, table or section of the published study.
        asked: The question.
        published: What was found there.
        result: The name of the file of results, and of the experiment; None where there is none yet.
        judge: From that record to the finding.
        of_all: Whether `whole` asks it of all images too; then the verdict is on these.
        needs: What it takes to answer it, where it is not answered.
        answered_by: The encoders of CIFAR-10, the many small encoders, or the encoder of faces.
    """

    figure: str
    asked: str
    published: str
    result: str | None = None
    judge: Callable[[Record], Finding] | None = None
    of_all: bool = False
    needs: str = ""
    answered_by: Literal["encoders", "small", "faces"] = "encoders"


def number(value: float | None) -> str:
    """Return a number with two or three digits."""
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def interval(value: Interval) -> str:
    """Return an estimate with its interval."""
    return f"{number(value[0])} [{number(value[1])}, {number(value[2])}]"


def percent(value: Interval) -> str:
    """Return a share with its interval, in per cent."""
    return f"{100 * value[0]:.1f} % [{100 * value[1]:.1f}, {100 * value[2]:.1f}]"


def points(value: Interval) -> str:
    """Return a difference of shares with its interval, in points of per cent."""
    return f"{100 * value[0]:+.1f} [{100 * value[1]:+.1f}, {100 * value[2]:+.1f}]"


def thousands(value: int) -> str:
    """Return a whole number with commas."""
    return f"{value:,}"


def scale_of(record: Record) -> str:
    """Return at which scale small encoders were trained."""
    of = record["scale"]
    size = f"{of['pixels']}×{of['pixels']} pixels"
    return f"Width {of['width']}, {size}, {of['train']:,} training images, {of['epochs']} epochs"


def beyond_chance(part: Record) -> Interval:
    """Return the share of neighbours of the same class, from 0 for that of chance to 1."""
    chance = part["purity by chance"]
    return [(value - chance) / (1 - chance) for value in part["purity"]]


def separation(record: Record) -> Finding:
    """Judge Figure 3 by two measures of separation by class: silhouette, and neighbours of the same class beyond chance.

    An end is as published (the lowest above random images, the highest below) where one measure says so by intervals that do
    not meet and none says the opposite. It is contradicted where a measure says the opposite and none does so. It holds
    where both ends are as published, and not where either is contradicted; weakly where one is as published.
    """
    size, by_part = next((size, by_part) for size, by_part in record.items() if " of " in size)
    measures = [{name: each["silhouette"] for name, each in by_part.items()}]
    measures.append({name: beyond_chance(each) for name, each in by_part.items()})
    ends = []
    for end, sign in {"lowest": 1, "highest": -1}.items():
        more = [each[end][1] > each["random"][2] for each in measures]
        less = [each[end][2] < each["random"][1] for each in measures]
        published, opposite = (any(more), any(less))[::sign]
        ends.append(HOLDS if published and not opposite else NOT if opposite and not published else UNDECIDED)
    parts = []
    for name, each in by_part.items():
        label, count = max(each["classes"].items(), key=lambda pair: pair[1])
        parts.append(
            f"{name}: silhouette by class {interval(each['silhouette'])}, same class among the 10 nearest beyond chance "
            f"{interval(beyond_chance(each))} (plain {number(each['purity'][0])}, chance "
            f"{number(each['purity by chance'])}), most frequent class {label} ({count})"
        )
    verdict = NOT if NOT in ends else HOLDS if ends == [HOLDS, HOLDS] else WEAKLY if HOLDS in ends else UNDECIDED
    lowest, highest = ends
    return Finding(
        f"{size}. {'; '.join(parts)}. The two halves of the claim: lowest {lowest}, highest {highest}.", verdict
    )


def duplicates(record: Record) -> Finding:
    """Judge Figure 4 by the exact score, where it is known, and within classes, which differ in scores and in duplicates.

    It does not hold where the AUROC of low scores is at chance by its interval, among all images or within classes, or below
    0.6 within classes: that finds nothing. It holds weakly where the nearest embedding is more precise.
    """
    judged = record["judged"]["same shot"]
    title = "exact score" if "exact score" in judged else "score"
    score, rival = judged[title], judged["nearest embedding"]
    within = score["auroc within classes"]
    nothing = score["auroc"][1] <= 0.5 or within[1] <= 0.5 or within[2] < NOTICEABLE
    better = rival["average_precision"][1] > score["average_precision"][2]
    text = (
        f"{score['positives']:,} duplicates by 'same shot' among {score['images']:,}: AUROC of a low {title} "
        f"{interval(score['auroc'])}, within classes {interval(within)}, of the nearest embedding "
        f"{interval(rival['auroc'])}; average precision {number(score['average_precision'][0])} and "
        f"{number(rival['average_precision'][0])}."
    )
    return Finding(text, NOT if nothing else WEAKLY if better else HOLDS)


def copies(record: Record) -> Finding:
    """Judge Figure 4 on equal images: an AUROC above chance with every method; only weakly with some.

    It holds weakly, too, where the nearest embedding is more precise with every method.
    """
    parts, above, better = [], [], []
    for method, each in record["found"].items():
        score, rival = each["score"], each["distance to the nearest embedding"]
        above.append(score["auroc"][1] > 0.5)
        better.append(rival["average_precision"][1] > score["average_precision"][2])
        accuracy = 100 * statistics.fmean(record["accuracy"][method]["knn"])
        parts.append(
            f"{method} ({accuracy:.0f} %): AUROC of low scores {interval(score['auroc'])}, of the alignment loss "
            f"{interval(each['alignment loss']['auroc'])}, of the nearest embedding {interval(rival['auroc'])}; "
            f"{score['recall'] * score['positives']:.0f} of the lowest {score['positives']} scores are copies"
        )
    verdict = NOT if not any(above) else HOLDS if all(above) and not all(better) else WEAKLY
    of = next(iter(record["found"].values()))["score"]
    text = (
        f"{scale_of(record)}; {of['positives']} copies among {of['images']:,} images (accuracy of 20 neighbours in "
        f"brackets). {'. '.join(parts)}."
    )
    return Finding(text, verdict)


def lowest_of_class(record: Record) -> Finding:
    """Judge the lowest 5 and 18 of the class: copies by pixels, against their share; where the whole class is scored."""
    in_class = record["class"]
    counts, base = in_class["score"], in_class["copies in the class"]
    rivals = ", ".join(f"{name} {in_class[name]['lowest 18']}" for name in ("alignment loss", "nearest embedding"))
    verdict = HOLDS if counts["lowest 5"] >= 2 and counts["lowest 18"] / 18 > base[2] else NOT
    verdict = verdict if in_class["images"] == in_class["images of the class"] else UNDECIDED
    text = (
        f"{in_class['images']:,} of the {in_class['images of the class']:,} of the class are scored. By pixels, "
        f"{counts['lowest 5']} of the lowest 5 and {counts['lowest 18']} of the lowest 18 have a copy; of all "
        f"{percent(base)}. Of the lowest 18 by {rivals}."
    )
    return Finding(text, verdict)


def borders(record: Record) -> Finding:
    """Judge Figure 5: white, and black, more frequent among the highest than in all, by intervals that do not meet."""
    base, high, low = (
        record["base"],
        record["ends"]["score, highest 400 images"],
        record["ends"]["score, lowest 400 images"],
    )
    more = [high[kind][1] > base[kind][2] for kind in ("white", "black")]
    less = [high[kind][2] < base[kind][1] or low[kind][1] > base[kind][2] for kind in ("white", "black")]
    parts = [
        f"{title}: highest {percent(high[kind])}, lowest {percent(low[kind])}, all {percent(base[kind])}"
        for title, kind in {"white": "white", "black": "black", "uniform, of any colour": "uniform"}.items()
    ]
    verdict = HOLDS if all(more) else WEAKLY if any(more) else NOT if any(less) else UNDECIDED
    spread = interval(record["spearman"]["border_spread"])
    text = (
        f"Of {record['images']:,} images, 400 at each end. {'; '.join(parts)}. Without a threshold: Spearman of the score "
        f"with the spread of the border {spread}."
    )
    return Finding(text, verdict)


def distribution(record: Record) -> Finding:
    """Judge B.1 by the published pair of the same method; the unit is free, so the spread alone is asked for.

    It holds weakly where a customary base (2, e, 10) is within a tenth of the one that fits, or the spread over the mean
    within a tenth of the published one.
    """
    estimates, fit = record["found"], record["fits"][record["method"]]
    base, ratio = fit["base of the logarithm that fits"], estimates["standard deviation over mean"][0]
    customary = any(abs(base / each - 1) < 0.1 for each in (2, 2.71828, 10))
    linear = abs(ratio / fit["published standard deviation over mean"] - 1) < 0.1
    mean, spread = fit["published"]
    text = (
        f"ln(score): {interval(estimates['mean of ln'])}, standard deviation "
        f"{interval(estimates['standard deviation of ln'])}. Published {number(mean)} and {number(spread)}, which fit "
        f"logarithms to base {number(base)} in a unit of {number(fit['unit of the score with that base'])}; as it is, the "
        f"score has a standard deviation of {number(ratio)} of its mean, published "
        f"{number(fit['published standard deviation over mean'])}."
    )
    return Finding(text, WEAKLY if customary or linear else NOT)


def perturbations(record: Record) -> Finding:
    """Judge Table 4: every Pearson within 0.05; weakly where noise and crop come before all others, as published."""
    estimates = record["found"]
    near = all(abs(estimates[name]["pearson"][0] - value) < 0.05 for name, value in CORRELATIONS.items())
    first = min(estimates[name]["spearman"][0] for name in ("noise", "crop"))
    rest = max(estimates[name]["spearman"][0] for name in CORRELATIONS if name not in ("noise", "crop"))
    parts = [
        f"{name.replace('_', ', ')} {interval(estimates[name]['spearman'])} (at most "
        f"{number(estimates[name]['ceiling'][0])}), Pearson {number(estimates[name]['pearson'][0])}"
        for name in CORRELATIONS
    ]
    text = (
        f"Spearman, {record['images']} images: {'; '.join(parts)}. Where the draws leave little (at most), a low "
        "correlation says more about the draws than about the perturbation."
    )
    return Finding(text, HOLDS if near else WEAKLY if first > rest else NOT)


def strengths(record: Record) -> Finding:
    """Judge B.3: all correlations above 0.9 by their intervals; weakly where they are once divided by their ceilings."""
    estimates = {name: each for name, each in record["found"].items() if "spearman" in each}
    above = all(each["spearman"][1] > 0.9 for each in estimates.values())
    corrected = all(each["spearman over ceiling"][0] > 0.9 for each in estimates.values())
    medians = [each["median score"] for each in record["found"].values()]
    rising = all(a < b for a, b in itertools.pairwise(medians))
    parts = [
        f"σ {name}: {interval(each['spearman'])} (at most {number(each['ceiling'][0])})"
        for name, each in estimates.items()
    ]
    moves = "moves to the right with σ" if rising else "does not move to the right throughout"
    text = f"Spearman with σ 0.2, {record['images']} images: {'; '.join(parts)}. The median {moves}."
    return Finding(text, (HOLDS if above else WEAKLY if corrected else NOT) if rising else NOT)


def deviation(record: Record) -> Finding:
    """Judge Proposition 2: that the deviation is the draws' alone, against the share of the variance between images."""
    estimates = record["found"]
    between = estimates["share of the variance between images"]
    two, many = estimates["reliability of 2 draws"], estimates["draws for a reliability of 0.99"]
    text = (
        f"{percent(between)} of the variance of single draws is between images; a score of two draws has a reliability of "
        f"{number(two[0])}, and {number(many[0])} draws give 0.99."
    )
    return Finding(text, NOT if between[1] > 0.05 else HOLDS)


def choices(record: Record) -> Finding:
    """Report which choices change the ranking."""
    estimates = record["found"]
    parts = [f"{name} {interval(each['spearman'])}" for name, each in estimates.items() if name != record["standard"]]
    common = record["common noise"]["spearman"]
    return Finding(
        f"Spearman with the standard, {record['images']} images: {'; '.join(parts)}; noise common to all images "
        f"{interval(common)}.",
        OPEN,
    )


def beyond_loss(record: Record) -> Finding:
    """Report what the score shares with simpler numbers."""
    ranks = record["spearman"]
    parts = [f"{name.replace('_', ' ')} {interval(value)}" for name, value in ranks.items()]
    return Finding(
        f"Spearman with {'; '.join(parts)}. The alignment loss explains "
        f"{percent(record['explained by the alignment loss'])} of the variance of the ranks, all four "
        f"{percent(record['explained by all rivals'])}; "
        f"{100 * record['reliability of the score']:.1f} % of the score's variance is reproducible.",
        OPEN,
    )


def stability(record: Record) -> Finding:
    """Judge Figure 2 by every method's mean correlation over pairs of seeds, with intervals over images.

    It holds where Spearman and Pearson are above 0.7, and weakly where Spearman is above 0.5 or, divided by the ceiling of
    the draws, above 0.7. It does not where one method's Spearman is below 0.5.
    """
    estimates = {method: each["score"] for method, each in record["found"].items()}
    high = all(each[kind][1] > 0.7 for each in estimates.values() for kind in ("spearman", "pearson"))
    weakly = all(
        each["spearman"][1] > 0.5 or (each["spearman over ceiling"][1] or 0.0) > 0.7 for each in estimates.values()
    )
    low = any(each["spearman"][2] < 0.5 for each in estimates.values())
    parts = []
    for method, each in estimates.items():
        loss, norm = (
            number(record["found"][method][rival]["spearman"][0]) for rival in ("alignment loss", "gradient norm")
        )
        parts.append(
            f"{method}: Spearman {interval(each['spearman'])} (at most {number(each['ceiling'][0])}; of that "
            f"{interval(each['spearman over ceiling'])}), Pearson {interval(each['pearson'])}; Spearman of the alignment "
            f"loss {loss}, of the gradient norm {norm}"
        )
    seeds = len(record["scale"]["seeds"])
    text = f"{scale_of(record)}; {record['images']:,} images, {seeds} seeds. {'. '.join(parts)}."
    return Finding(text, HOLDS if high else WEAKLY if weakly else NOT if low else UNDECIDED)


def trajectory(record: Record) -> Finding:
    """Report where planted images stand and what scores go along with, after few epochs and at the end."""
    parts = []
    for method, each in record["found"].items():
        first, *_, last = [one for one in each["snapshots"] if one["epochs"]]
        ends = ", ".join(
            f"{kind} {number(first['auroc'][kind]['score'][0])} → {interval(last['auroc'][kind]['score'])}"
            for kind in last["auroc"]
        )
        parts.append(
            f"{method}: accuracy of 20 neighbours {number(first['accuracy']['knn'])} → {number(last['accuracy']['knn'])}; "
            f"AUROC of planted {ends}; Spearman with the alignment loss "
            f"{number(first['found']['alignment loss'][0])} → {interval(last['found']['alignment loss'])}, between the two "
            f"scores {interval(first['found']['the last'])} (at most {number(first['at most']['the last'])}); settled "
            f"from {each['settled']} epochs on"
        )
    epochs = [one["epochs"] for one in next(iter(record["found"].values()))["snapshots"] if one["epochs"]]
    text = f"{scale_of(record)}; after {epochs[0]} and {epochs[-1]}. {'. '.join(parts)}."
    return Finding(text, OPEN)


def removal(record: Record) -> Finding:
    """Judge Figure 6 by differences of accuracy to nothing removed, within a seed, with intervals over seeds.

    It holds where a self-supervised encoder improves without the highest at one share and degrades without the lowest at
    every share, and a supervised one degrades without either at every share. It does not where the self-supervised one
    degrades without the highest at every share. Else it holds weakly where at the largest share the self-supervised one is
    better without the highest than without the lowest.
    """
    ours = [method for method in record["found"] if method != "supervised"]
    changes = {
        method: [each["less nothing removed"] for each in accuracies["shares"].values()]
        for method, accuracies in record["found"].items()
    }
    largest = {method: list(accuracies["shares"].values())[-1] for method, accuracies in record["found"].items()}
    improves = all(any(each[HIGHEST][1] > 0 for each in changes[method]) for method in ours)
    degrades = all(each[LOWEST][2] < 0 for method in ours for each in changes[method])
    supervised_degrades = all(each[end][2] < 0 for each in changes.get("supervised", []) for end in (HIGHEST, LOWEST))
    contradicted = all(each[HIGHEST][2] < 0 for method in ours for each in changes[method])
    ordered = all(largest[method]["without the highest less without the lowest"][1] > 0 for method in ours)
    parts = []
    for method, accuracies in record["found"].items():
        words = [
            f"{100 * float(share):.0f} % removed: "
            + ", ".join(f"{ranking} {points(value)}" for ranking, value in each["less nothing removed"].items())
            for share, each in accuracies["shares"].items()
        ]
        parts.append(
            f"{method}, {percent(accuracies['nothing removed'])} ({accuracies['probe']}), change in points: "
            f"{'; '.join(words)}"
        )
    verdict = (
        HOLDS
        if improves and degrades and supervised_degrades
        else NOT
        if contradicted
        else WEAKLY
        if ordered
        else UNDECIDED
    )
    return Finding(f"{scale_of(record)}; {len(record['seeds'])} seeds. {'. '.join(parts)}.", verdict)


def backgrounds(record: Record) -> Finding:
    """Judge Figures 5 and B.5 by the share of white and black borders among the highest tenth over that in all.

    A method has the trend where the ratio is above 1 by its interval, and none where it is below 1.5. It holds where every
    self-supervised method has the trend and the supervised one none. It holds weakly where SimCLR has it, as published, and
    more of it than the supervised one, by intervals that do not meet. Else it does not where no self-supervised method can
    have it, or where the supervised one has it by more than 1.5. Without such borders nothing is decided.
    """
    ratios = {method: each["score"]["highest over all"] for method, each in record["found"].items()}
    theirs, ours = ratios["supervised"], [each for method, each in ratios.items() if method != "supervised"]
    parts = []
    for method, each in record["found"].items():
        found = each["score"]
        accuracy = 100 * statistics.fmean(record["accuracy"][method]["knn"])
        parts.append(
            f"{method} ({accuracy:.0f} %): highest tenth {percent(found['highest'])}, "
            f"{interval(found['highest over all'])} times that in all, lowest tenth {percent(found['lowest'])}; Spearman of "
            f"the score with the spread of the border {interval(found['spearman with the spread'])}"
        )
    text = (
        f"{scale_of(record)}; {record['images']:,} images, {len(record['scale']['seeds'])} seeds (accuracy of 20 neighbours "
        f"in brackets); white or black borders: {record['white or black']} images. {'. '.join(parts)}."
    )
    if not record["white or black"]:
        return Finding(text, UNDECIDED)
    if all(each[1] > 1 for each in ours) and theirs[2] < NOTEWORTHY:
        return Finding(text, HOLDS)
    if ratios["SimCLR"][1] > max(1.0, theirs[2]):
        return Finding(text, WEAKLY)
    contradicted = all(each[2] < NOTEWORTHY for each in ours) or theirs[1] > NOTEWORTHY
    return Finding(text, NOT if contradicted else UNDECIDED)


def exactly(record: Record) -> Finding:
    """Report what exact scores share with the approximated ones, and with simpler numbers."""
    near, error = record["with the approximated score"], record["median standard error over the score"]
    ends = [100 * near[f"overlap of the {end} twentieth"] for end in ("highest", "lowest")]
    ranks = [f"{name.replace('_', ' ')} {interval(value)}" for name, value in record["spearman"].items()]
    found = [f"{name} {interval(each['auroc'])}" for name, each in record["duplicates"].items()]
    sentences = [
        f"`Gram` over {record['rows']} images, {record['images']:,} of the sample.",
        f"Spearman with the table's score {interval(near['spearman'])}; the same are {ends[0]:.0f} % of the highest "
        f"twentieth and {ends[1]:.0f} % of the lowest.",
        f"Of a score, its bound has a width of {record['width of the bounds over the score']['median']:.1e}, in the median; "
        f"standard errors: draws {100 * error['draws']:.0f} %, curvature set {100 * error['curvature set']:.0f} %.",
        f"Spearman with {'; '.join(ranks)}.",
        f"The alignment loss explains {percent(record['explained by the alignment loss'])} of the variance of the ranks, "
        f"all four {percent(record['explained by all rivals'])}, and {100 * record['reliability of the score']:.1f} % is "
        "reproducible.",
        f"AUROC of low scores for judged duplicates: {'; '.join(found)}.",
    ]
    return Finding(" ".join(sentences), OPEN)


def outputs(record: Record) -> Finding:
    """Report how alike the four ways rank."""
    parts = []
    for method, estimates in record["found"].items():
        pairs = ", ".join(
            f"{name} {interval(each)}"
            for name, each in estimates["pairs"].items()
            if name.startswith(record["standard"])
        )
        parts.append(f"{method}: {pairs}")
    return Finding(
        f"{scale_of(record)}; {record['images']} images, the same noise. Spearman, {'. '.join(parts)}.", OPEN
    )


def predicts(estimates: Record) -> str:
    """Judge whether the exact score predicts the effect of retraining.

    Undecidable where the effect itself has a reliability below 0.2. It does not predict where the interval of its Spearman
    correlation reaches zero. It holds where that is above zero and above that of every rival by the interval of the
    difference, and weakly where a rival predicts as well.
    """
    if estimates["reliability"] < 0.2:
        return UNDECIDED
    if estimates["spearman"][EXACT][1] <= 0:
        return NOT
    better = all(each[1] > 0 for each in estimates["spearman of the exact score less that of"].values())
    return HOLDS if better else WEAKLY


def best_rival(ranks: Record) -> str:
    """Return the rival whose ranks are most like the effect's, with its correlation."""
    best = max((name for name in ranks if name not in SCORES), key=lambda name: ranks[name][0])
    return f"Best rival: {best} {interval(ranks[best])}."


def retraining(record: Record) -> Finding:
    """Judge whether the exact score predicts the effect on the loss under the views of training, by `predicts`."""
    estimates = record["found"]["views of training"]
    ranks, noise = estimates["spearman"], record["found"]["noise"]
    scores = "; ".join(f"{name} {interval(ranks[name])}" for name in SCORES)
    text = (
        f"{scale_of(record)}; {record['images']:,} images, {record['encoders']} encoders of halves. Being left out "
        f"raises an image's loss by {interval(estimates['mean effect'])}. Reliability of the effect "
        f"{number(estimates['reliability'])}, so at most {number(estimates['ceiling'])}. Spearman with the effect: "
        f"{scores}. {best_rival(ranks)} On the loss under noise (at most {number(noise['ceiling'])}): {EXACT} "
        f"{interval(noise['spearman'][EXACT])}."
    )
    return Finding(text, predicts(estimates))


def memorised(record: Record) -> Finding:
    """Judge whether the exact score, default damping, predicts the effect where images are memorised, by `predicts`."""
    estimates, of = record["found"]["noise"], record["scale"]
    ranks, losses = estimates["spearman"], estimates["alignment loss"]
    curved = {
        name: max(each["spearman"].items(), key=lambda pair: pair[1][0]) for name, each in record["dampings"].items()
    }
    best = "; ".join(f"curvature of the {name} {interval(value)} ({label})" for name, (label, value) in curved.items())
    text = (
        f"Perceptrons of {of['hidden']} hidden units and {of['features']} outputs, {of['pixels']}×{of['pixels']} pixels, "
        f"{of['train']:,} training images, {of['steps']:,} steps; {record['encoders']} encoders of halves. Alignment loss "
        f"{number(losses['trained on'])} of images trained on, {number(losses['left out'])} left out. Reliability of the "
        f"effect {number(estimates['reliability'])}, so at most {number(estimates['ceiling'])}. Spearman with the effect: "
        f"{EXACT} {interval(ranks[EXACT])}. {best_rival(ranks)} Highest over all dampings: {best}."
    )
    return Finding(text, predicts(estimates))


def scored_faces(record: Record) -> str:
    """Return how many faces are scored, and of how many where that is not all."""
    some = "" if record["images"] == record["of"] else f" of {record['of']:,}, scored so far"
    return f"{record['images']:,} faces{some}"


def learned(record: Record) -> bool:
    """Return whether an encoder of faces tells any attribute better than before training, by intervals that do not meet.

    Either classifier counts: neighbours, or a linear probe.
    """
    told = [accuracy[classifier] for accuracy in record["accuracy"].values() for classifier in CLASSIFIERS]
    return any(each["encoder"][1] > each["untrained"][2] for each in told)


def decided(text: str, verdict: str, record: Record) -> Finding:
    """Return the finding; where the encoder has not learned enough, that it decides nothing, and what it would say."""
    if learned(record):
        return Finding(text, verdict)
    why = "The encoder tells no attribute better than before training, by intervals that do not meet: this decides nothing"
    return Finding(f"{text} {why}. By the numbers alone the rule would say: {verdict}.", UNDECIDED)


def light(record: Record) -> Finding:
    """Judge Figure 7 by the share of the darkest tenth of all faces among the highest; pose is not judged.

    Nothing is decided by an encoder that tells race, gender and age no better than before training.
    It holds where that share is above a tenth by its interval among the highest of either size, and above that among as many
    lowest. It does not where it is below a tenth among the highest of the largest size, or above that among the highest in
    the lowest of the smallest size, by intervals that do not meet. It holds weakly where it is above a tenth at one size, or
    where the tenth of least contrast is.
    """
    shares, (small, *_, large) = record["light"], record["sizes"]
    dark, dim = "darkest tenth", "tenth of least contrast"
    high, low = shares[f"highest scores {small}"], shares[f"lowest scores {small}"]
    wide = shares[f"highest scores {large}"]
    more = min(high[dark][1], wide[dark][1]) > 0.1 and high[dark][1] > low[dark][2]
    less = wide[dark][2] < 0.1 or low[dark][1] > high[dark][2]
    partly = any(each[kind][1] > 0.1 for each in (high, wide) for kind in (dark, dim))
    parts = [f"highest {size} {percent(shares[f'highest scores {size}'][dark])}" for size in record["sizes"]]
    ranks = record["spearman"]
    text = (
        f"Of {scored_faces(record)}, share of the darkest tenth: {', '.join(parts)}, lowest {small} "
        f"{percent(low[dark])}; of the tenth of least contrast: highest {small} {percent(high[dim])}, lowest {small} "
        f"{percent(low[dim])}. Spearman of the score with brightness {interval(ranks['brightness'])}, with contrast "
        f"{interval(ranks['contrast'])}. Poses have no label in FairFace, so side poses are not judged; Spearman of the "
        f"score with the asymmetry of the image {interval(ranks['asymmetry'])}, which light and background change too."
    )
    verdict = HOLDS if more else NOT if less else WEAKLY if partly else UNDECIDED
    return decided(text, verdict, record)


MORE, FEWER = ("Black", "Middle Eastern"), ("East Asian", "Southeast Asian")
"""Groups that are published as over- and under-represented among the highest faces."""
NOTEWORTHY = 1.5
"""An over-representation that is smaller than this factor by its interval counts as none."""


def groups(record: Record) -> Finding:
    """Judge Figure 8 by the shares of four groups among the highest faces, against their shares in all.

    Nothing is decided by an encoder that tells race, gender and age no better than before training.
    It holds where, among the highest of the smallest size, Black and Middle Eastern are each above their share in all by
    the interval and above chance at the same brightness, and East and Southeast Asian each below their share in all. It does
    not where, at either size, one of the first is below its share or one of the others above it by the interval, or where
    both of the first are below 1.5 times their share by it among the highest of the largest size. It holds weakly where one
    of the first is above its share by the interval at either size.
    """
    small, *_, large = record["sizes"]
    races = record["groups"]["race"]

    def highest(race: str, size: int) -> Record:
        return races[race][f"highest scores {size}"]

    def above(race: str, size: int) -> bool:
        return highest(race, size)["share"][1] > races[race]["all"]

    def below(race: str, size: int) -> bool:
        return highest(race, size)["share"][2] < races[race]["all"]

    beyond = all(highest(race, small)["share"][0] > highest(race, small)["at the same brightness"][2] for race in MORE)
    clear = all(above(race, small) for race in MORE) and beyond and all(below(race, small) for race in FEWER)
    sizes = (small, large)
    reversed_ = any(below(race, size) for race in MORE for size in sizes)
    reversed_ |= any(above(race, size) for race in FEWER for size in sizes)
    none = all(highest(race, large)["share"][2] < NOTEWORTHY * races[race]["all"] for race in MORE)
    partly = any(above(race, size) for race in MORE for size in sizes)
    parts = [
        f"{race} {percent(highest(race, small)['share'])} and {percent(highest(race, large)['share'])} (all "
        f"{100 * races[race]['all']:.1f} %, at the same brightness "
        f"{100 * highest(race, small)['at the same brightness'][0]:.1f} and "
        f"{100 * highest(race, large)['at the same brightness'][0]:.1f} %)"
        for race in (*MORE, *FEWER)
    ]
    text = f"Of {scored_faces(record)}, the highest {small} and {large}: {'; '.join(parts)}."
    verdict = HOLDS if clear else NOT if reversed_ or none else WEAKLY if partly else UNDECIDED
    return decided(text, verdict, record)


QUESTIONS = (
    Question(
        "Fig. 2", "Are scores stable between independent runs?", "consistently high correlation", "stability", stability,
        needs="three encoders of one method and data set that differ in the seed alone", answered_by="small",
    ),
    Question(
        "Fig. 2", "And on CIFAR-100?", "consistently high correlation", "stability_cifar100", stability,
        needs="three encoders of one method and data set that differ in the seed alone", answered_by="small",
    ),
    Question(
        "Fig. 3", "Where do the highest and lowest sit among the embeddings?", "highest intermingled, lowest in clusters",
        "separation", separation, of_all=True,
    ),
    Question(
        "Fig. 4", "Do low scores find duplicates?", "yes, by eye", "duplicates", duplicates, of_all=True,
    ),
    Question(
        "Fig. 4", "And images that are equal in every pixel (CIFAR-100)?", "yes, by eye", "copies_cifar100", copies,
        needs="encoders that are trained on images and their copies", answered_by="small",
    ),
    Question(
        "Fig. 4, B.4", "Are the lowest 5 and 18 automobiles duplicates?",
        "of the lowest 5: BYOL 5, SimCLR 2, Barlow Twins 1; BYOL's lowest 18 all", "duplicates", lowest_of_class,
        of_all=True, needs="every automobile scored",
    ),
    Question(
        "Fig. 5, B.5", "Do the highest have uniform white or black backgrounds?", "yes (CIFAR-100)", "borders", borders,
        of_all=True,
    ),
    Question(
        "Fig. 5", "Less so for a supervised encoder?", "no such trend (CIFAR-100)", "backgrounds", backgrounds,
        needs="supervised encoders beside those of other seeds", answered_by="small",
    ),
    Question(
        "Fig. 5, B.5", "And both on CIFAR-100?", "self-supervised yes, supervised no", "backgrounds_cifar100", backgrounds,
        needs="supervised encoders beside those of other seeds", answered_by="small",
    ),
    Question(
        "Fig. 6", "What does removal do?",
        "SSL improves without the highest and degrades without the lowest; supervised degrades without either",
        "removal", removal, needs="retraining without shares of the images, by four rankings, three seeds each",
        answered_by="small",
    ),
    Question(
        "Fig. 7", "Are the highest faces in poor light, from the side?", "side poses and poor light, by eye", "faces", light,
        needs="a BYOL encoder of FairFace", answered_by="faces",
    ),
    Question(
        "Fig. 8", "Which groups are frequent among the highest faces?",
        "Black and Middle Eastern over-represented, then White; East and Southeast Asian under-represented", "faces", groups,
        needs="a BYOL encoder of FairFace", answered_by="faces",
    ),
    Question(
        "B.1", "How are scores distributed?",
        "mean and standard deviation, unit not stated: SimCLR 8.13, 1.27; BYOL 8.47, 1.03; Barlow Twins 8.71, .85",
        "distribution", distribution,
    ),
    Question(
        "B.2, Table 4", "Does the perturbation matter?",
        ", ".join(f"{name.replace('_', ', ')} {value}" for name, value in CORRELATIONS.items()),
        "perturbations", perturbations,
    ),
    Question(
        "B.3, Fig. 10, 11", "Does the strength of the noise matter?", "the distribution moves to the right, all above 0.9",
        "strengths", strengths,
    ),
    Question(
        "Prop. 2", "Is the deviation from the mean that of the draws?", "yes, as stated", "deviation", deviation,
    ),
    Question("–", "Do the choices that were left open change the ranking?", "–", "choices", choices),
    Question("–", "Does a score say more than the alignment loss?", "–", "beyond_loss", beyond_loss),
    Question("–", "And an exact score?", "–", "exactly", exactly, needs="every image of the table scored by `Gram`"),
    Question(
        "–", "Encoder or projector output, curvature of the pretraining loss?", "–", "outputs", outputs,
        needs="a fit of its own for each, of the encoder with its projector", answered_by="small",
    ),
    Question(
        "–", "What does a score mean as training proceeds?", "–", "trajectory", trajectory,
        needs="snapshots of one training of each method", answered_by="small",
    ),
    Question(
        "–", "Does a score predict what retraining without the image does?", "–", "retraining", retraining,
        needs="64 or more encoders of random halves of the images", answered_by="small",
    ),
    Question(
        "–", "And where networks memorise their images?", "–", "memorised", memorised,
        needs="64 or more perceptrons of random halves of the images", answered_by="small",
    ),
    Question(
        "–", "Does an image's influence on another predict retraining (LDS)?", "–",
        needs="the influence of one image on another, which no command gives yet", answered_by="small",
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Column:
    """An encoder with its results.

    Attributes:
        name: Its folder.
        title: What it is called.
        epochs: How long it was trained.
        record: How its table was made.
        answers: Its results by name.
    """

    name: str
    title: str
    epochs: int
    record: Record
    answers: dict[str, Record]

    @classmethod
    def load(cls, name: str, folder: Path) -> "Column":
        """Read the epochs of an encoder and all of its results."""
        described = json.loads((EXPERIMENTS / "encoders" / name / "encoder.json").read_text(encoding="utf-8"))
        epochs = described["history"]["history"][-1]["epoch"]
        answers = {path.stem: results.read(folder, path.stem) for path in sorted(folder.glob("*.json"))}
        return cls(name, TITLES[name], epochs, answers.pop("table"), answers)

    @property
    def scored(self) -> str:
        """How many images of which kind are scored, and of how many."""
        images, chosen = self.record["images"], self.record["chosen"]
        whole = "Scored are" if images["all"] == chosen["all"] else "So far scored are"
        return (
            f"{whole} {images['all']:,} of {chosen['all']:,} chosen images: {images['sample']:,} of {chosen['sample']:,} "
            f"drawn at random from the training images, {images['class']:,} of all {chosen['class']:,} training images of "
            f"the class 'automobile', and {images['pairs']:,} of {chosen['pairs']:,} that are part of a pair which people "
            "judged to be duplicates (ciFAIR)."
        )

    @property
    def seen(self) -> str:
        """What the pictures show."""
        return SEEN.get(self.name, "")

    def finding(self, question: Question) -> Finding | None:
        """Return what its results say to a question; what is missing where they say nothing; None if others answer it."""
        return answer_of(question, self.answers) if question.answered_by == "encoders" else None


@dataclasses.dataclass(frozen=True)
class SmallEncoders:
    """The many small encoders, as a further column.

    Attributes:
        answers: Their results by name.
    """

    answers: dict[str, Record]
    title: str = "small encoders"

    @classmethod
    def load(cls, folder: Path) -> "SmallEncoders":
        """Read their results."""
        names = [question.result for question in QUESTIONS if question.result and question.answered_by == "small"]
        return cls({name: results.read(folder, name) for name in names if (folder / f"{name}.json").exists()})

    def finding(self, question: Question) -> Finding | None:
        """Return what their results say to a question; None if the encoder of a column answers it."""
        return answer_of(question, self.answers) if question.answered_by == "small" else None


@dataclasses.dataclass(frozen=True)
class FaceEncoder:
    """The encoder of faces, as a further column.

    Attributes:
        name: Its folder.
        epochs: How long it was trained; 0 where there is none yet.
        answers: Its results by name.
    """

    name: str
    epochs: int
    answers: dict[str, Record]
    title: str = "BYOL, faces"

    @classmethod
    def load(cls, folder: Path, name: str = FACES) -> "FaceEncoder":
        """Read its history and its results."""
        if not (folder / name / "faces.json").exists():
            return cls(name, 0, {})
        described = json.loads((EXPERIMENTS / "encoders" / name / "encoder.json").read_text(encoding="utf-8"))
        answers = {"faces": results.read(folder / name, "faces")}
        return cls(name, described["history"]["history"][-1]["epoch"], answers)

    def finding(self, question: Question) -> Finding | None:
        """Return what its results say to a question; None if other encoders answer it."""
        return answer_of(question, self.answers) if question.answered_by == "faces" else None


def answer_of(question: Question, answers: dict[str, Record]) -> Finding:
    """Return what results say to a question, those of all images first; what is missing where they say nothing."""
    answer = None if question.result is None else answers.get(question.result)
    if answer is None or question.judge is None:
        return Finding(f"Needs {question.needs or 'this experiment, on this encoder'}.", NOT_RUN)
    finding, whole = question.judge(answer), answers.get("whole") if question.of_all else None
    if whole is None:
        return finding
    of_all = question.judge(whole)
    text = f"Exact scores of all: {of_all.text} Approximated ones of the sample ({finding.verdict}): {finding.text}"
    return Finding(text, of_all.verdict)


def columns(folder: Path = RESULTS) -> list[Column]:
    """Return the encoders that have a table of scores."""
    return [Column.load(name, folder / name) for name in TITLES if (folder / name / "table.json").exists()]


def practice(answered: list[Column], early: Record, between: Record, training: Record | None) -> list[str]:
    """Return what results come to for a user, a sentence each; none before all of the first encoder's are there.

    They are those of the first encoder, but for the last sentence.
    """
    needed = {question.result for question in QUESTIONS if question.result and question.answered_by == "encoders"}
    if not answered or not needed <= answered[0].answers.keys():
        return []
    answers = answered[0].answers
    judged, kinds = answers["duplicates"]["judged"]["same shot"], answers["perturbations"]["found"]
    choices_, strengths_ = answers["choices"]["found"], answers["strengths"]["found"]
    settled = max((name for name in kinds if name != "noise"), key=lambda name: kinds[name]["ceiling"][0] or 0.0)
    unsettled = [kinds[name]["ceiling"][0] or 0.0 for name in kinds if name not in ("noise", settled)]
    dampings = min(estimate["spearman"][0] for name, estimate in choices_.items() if name.startswith("GGN"))
    reliable, losses = (
        answers["deviation"]["found"],
        [each["spearman"]["alignment_loss"][0] for each in early["found"].values()],
    )
    by_encoder = ", ".join(
        f"{interval(column.answers['exactly']['spearman']['alignment_loss'])} ({column.title})"
        for column in answered
        if "exactly" in column.answers
    )
    alike = {
        ranking: [each[0] for each in between["spearman"][ranking].values()] for ranking in ("score", "alignment_loss")
    }
    agreement = (
        f" The scores of the three encoders correlate by {number(min(alike['score']))} to {number(max(alike['score']))}, "
        f"their alignment losses by {number(min(alike['alignment_loss']))} to {number(max(alike['alignment_loss']))}."
    )
    within = ""
    if training:
        before = {method: each["snapshots"][-2] for method, each in training["found"].items()}
        epochs = next(iter(before.values()))["epochs"]
        shares = ", ".join(
            f"{interval(each['found']['the last'])} of {number(each['at most']['the last'])} ({method})"
            for method, each in before.items()
        )
        within = (
            f" Within one training of small encoders, scores after {epochs} of {training['scale']['epochs']} epochs have "
            f"a rank correlation with the last ones, under other noise, of {shares} that the draws leave."
        )
    return [
        "Do not look for duplicates among low scores: the distance to the nearest embedding finds judged duplicates with an "
        f"AUROC of {number(judged['nearest embedding']['auroc'][0])}, the score with {number(judged['score']['auroc'][0])}.",
        "State the perturbation with every score, its strength and its draws included: scores by "
        f"{settled.replace('_', ', ')} have a Spearman correlation of {interval(kinds[settled]['spearman'])} with those by "
        f"noise, of at most {number(kinds[settled]['ceiling'][0])}; two draws of the other crops and flips leave at most "
        f"{number(max(unsettled))}, so they rank hardly anything; noise of σ 0.1 agrees with noise of σ 0.2 by "
        f"{number(strengths_['0.1']['spearman'][0])}.",
        f"The damping matters little (at least {number(dampings)} over four decades), and the kind of curvature some "
        f"(empirical Fisher {number(choices_['empirical Fisher, λ 0.1']['spearman'][0])}); but leaving it out gives another "
        f"ranking ({number(choices_['squared norm of the gradient']['spearman'][0])}).",
        f"Two draws of noise give a reliability of {number(reliable['reliability of 2 draws'][0])}, and "
        f"{number(reliable['draws for a reliability of 0.99'][0])} draws one of 0.99: differences of rank within that "
        "spread mean nothing.",
        "What a score means depends on the encoder, its method and how long it was trained: the exact score's Spearman "
        f"correlation with the alignment loss is {by_encoder}, and, by an approximation, {number(min(losses))} to "
        f"{number(max(losses))} after three to five epochs."
        f"{agreement}{within} So look at both ends of the ranking of your own encoder before you act on it.",
    ]


def page(folder: Path = RESULTS) -> str:
    """Return the text of the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.ChainableUndefined, trim_blocks=True
    )
    environment.filters |= {
        each.__name__: each for each in (number, interval, percent, points, scale_of, thousands, scored_faces)
    }
    answered, early, between = columns(folder), results.read(folder, "early"), results.read(folder, "between")
    small, faces = SmallEncoders.load(folder), FaceEncoder.load(folder)
    return environment.get_template("page.md.jinja").render(
        columns=answered,
        small=small,
        faces=faces,
        asked=[*answered, small, faces],
        questions=QUESTIONS,
        practice=practice(answered, early, between, small.answers.get("trajectory")),
        early=early,
        between=between,
        classifiers=CLASSIFIERS,
    )


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
