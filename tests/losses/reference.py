"""The losses once more, as plain loops over float64 numpy arrays, written from the papers' formulas."""

import math

import numpy as np


def norm(v):
    return math.sqrt(sum(float(x) ** 2 for x in v))


def cosine(u, v):
    return sum(float(a) * float(b) for a, b in zip(u, v, strict=True)) / (norm(u) * norm(v))


def ntxent(first, second, temperature):
    """arXiv 2002.05709, Algorithm 1: views 2k−1 and 2k are a pair; here view k and view b + k."""
    views, batch = [*first, *second], len(first)
    total = 0.0
    for i in range(2 * batch):
        positive = (i + batch) % (2 * batch)
        denominator = sum(math.exp(cosine(views[i], views[k]) / temperature) for k in range(2 * batch) if k != i)
        total += -math.log(math.exp(cosine(views[i], views[positive]) / temperature) / denominator)
    return total / (2 * batch)


def byol(online, target):
    """solo-learn: the sum over both crossings of the batch mean of 2 − 2 cos."""
    batch = len(online[0])
    return sum(sum(2 - 2 * cosine(online[v][b], target[1 - v][b]) for b in range(batch)) / batch for v in range(2))


def correlations(first, second):
    """arXiv 2103.03230, equation (2), on features centred over the batch."""
    batch, width = first.shape
    centred = [
        [[view[b][i] - sum(view[k][i] for k in range(batch)) / batch for i in range(width)] for b in range(batch)]
        for view in (first, second)
    ]
    result = np.zeros((width, width))
    for i in range(width):
        for j in range(width):
            a = [row[i] for row in centred[0]]
            c = [row[j] for row in centred[1]]
            result[i, j] = sum(x * y for x, y in zip(a, c, strict=True)) / (norm(a) * norm(c))
    return result


def barlow_twins(first, second, off_diagonal, scale):
    """arXiv 2103.03230, equation (1)."""
    matrix, total = correlations(first, second), 0.0
    for i in range(len(matrix)):
        for j in range(len(matrix)):
            total += (1 - matrix[i, i]) ** 2 if i == j else off_diagonal * matrix[i, j] ** 2
    return scale * total


def simsiam(predictions, projections):
    """solo-learn: the mean of both crossings of minus the batch mean of cos."""
    batch = len(predictions[0])
    return sum(
        -sum(cosine(predictions[v][b], projections[1 - v][b]) for b in range(batch)) / batch / 2 for v in range(2)
    )


def covariances(view):
    """The unbiased covariance matrix of features over the batch."""
    batch, width = view.shape
    means = [sum(view[b][i] for b in range(batch)) / batch for i in range(width)]
    return np.array(
        [
            [
                sum((view[b][i] - means[i]) * (view[b][j] - means[j]) for b in range(batch)) / (batch - 1)
                for j in range(width)
            ]
            for i in range(width)
        ]
    )


def vicreg(first, second, invariance, variance, covariance, margin, epsilon):
    """solo-learn: `F.mse_loss`, then `F.relu(γ − std)` and squared covariances, both summed over the views."""
    batch, width = first.shape
    total = invariance * sum(norm(u - v) ** 2 for u, v in zip(first, second, strict=True)) / (batch * width)
    for view in (first, second):
        matrix = covariances(view)
        for i in range(width):
            total += variance * max(0.0, margin - math.sqrt(matrix[i, i] + epsilon)) / width
            total += covariance * sum(matrix[i, j] ** 2 for j in range(width) if j != i) / width
    return total


def cross_entropy(logits, labels):
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        total += math.log(sum(math.exp(x) for x in row)) - row[label]
    return total / len(logits)


def cosine_distance(clean, perturbed):
    return sum(1 - cosine(u, v) for u, v in zip(clean, perturbed, strict=True)) / len(clean)


def squared_euclid(clean, perturbed):
    return sum(norm(u - v) ** 2 for u, v in zip(clean, perturbed, strict=True)) / len(clean)
