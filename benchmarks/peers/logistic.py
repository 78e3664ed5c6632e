"""kronfluence (a drawn label an example) and LogIX's definition on the softmax regression of `benchmarks.fidelity`."""

import logging
import tempfile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task as KronfluenceTask

if TYPE_CHECKING:
    from benchmarks.fidelity_tasks import Task

Predictions = dict[str, tuple[np.ndarray, np.ndarray]]


class Regression(NamedTuple):
    """The regression in torch, in float64.

    Attributes:
        model: At the optimum.
        train: Images as rows, and labels.
        test: The same of other examples.
    """

    model: torch.nn.Linear
    train: torch.utils.data.TensorDataset
    test: torch.utils.data.TensorDataset


class CrossEntropy(KronfluenceTask):
    """The sum of the examples' losses, which is also what is measured."""

    def compute_train_loss(self, batch: list[torch.Tensor], model: torch.nn.Module, sample: bool = False):
        """Compute the loss, or with `sample` that of drawn labels.

        Labels are drawn by the model.
        """
        logits, labels = model(batch[0]), batch[1]
        if sample:
            labels = torch.distributions.Categorical(logits=logits.detach()).sample()
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: list[torch.Tensor], model: torch.nn.Module):
        """Compute the loss."""
        return self.compute_train_loss(batch, model)


def regression(given: "Task") -> Regression:
    """Return the task in torch."""
    dense = given.problem.params["Dense_0"]
    model = torch.nn.Linear(*np.shape(dense["kernel"]), dtype=torch.float64)
    state = {"weight": np.array(dense["kernel"]).T, "bias": np.array(dense["bias"])}
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})

    def data(images: np.ndarray, labels: np.ndarray) -> torch.utils.data.TensorDataset:
        rows = np.asarray(images).reshape(len(images), -1).copy()
        return torch.utils.data.TensorDataset(torch.tensor(rows), torch.tensor(np.asarray(labels).astype(np.int64)))

    train = given.problem.batches
    return Regression(model, data(train.image[0], train.label[0]), data(given.test.image, given.test.label))


def predictions(given: "Task", left_out: int) -> Predictions:
    """Predict the rises and the test losses of subsets, by method.

    Rises are those of the first examples, if they are left out. Losses are known up to a constant.
    """
    number, predicted = len(given.problem.batches.image[0]), {}
    with tempfile.TemporaryDirectory() as folder:
        forms = {**_kronfluence(given, folder), **_logix(given)}
    for name, (own, cross) in forms.items():
        predicted[name] = (own[:left_out] / number, -(given.subsets @ cross) / number)
    return predicted


def _kronfluence(given: "Task", folder: str) -> Predictions:
    """Compute self-influence and mean influence by kronfluence.

    The damping is the ridge, and kronfluence's default.
    """
    logging.getLogger("kronfluence").setLevel(logging.ERROR)
    torch.manual_seed(0)
    task, (model, train, test) = CrossEntropy(), regression(given)
    # in a container: a module is wrapped inside its parent
    analyzer = Analyzer(
        "fidelity",
        prepare_model(torch.nn.Sequential(model), task),
        task,
        cpu=True,
        disable_tqdm=True,
        output_dir=folder,
    )
    wide, predicted = torch.float64, {}
    for strategy, label in (("ekfac", "EK-FAC"), ("kfac", "K-FAC")):
        arguments = FactorArguments(
            strategy,
            activation_covariance_dtype=wide,
            gradient_covariance_dtype=wide,
            per_sample_gradient_dtype=wide,
            lambda_dtype=wide,
        )
        analyzer.fit_all_factors(strategy, train, per_device_batch_size=len(train), factor_args=arguments)
        for words, damping in (("", given.ridge), (", its default λ", 1e-8)):
            settings = ScoreArguments(
                damping_factor=damping, per_sample_gradient_dtype=wide, precondition_dtype=wide, score_dtype=wide
            )
            own = {"score_args": settings, "per_device_train_batch_size": len(train), "overwrite_output_dir": True}
            analyzer.compute_self_scores("own", strategy, train, **own)
            analyzer.compute_pairwise_scores("pairs", strategy, test, train, len(test), **own)
            pairs = analyzer.load_pairwise_scores("pairs")["all_modules"].numpy()
            selves = analyzer.load_self_scores("own")["all_modules"].numpy()
            predicted[f"kronfluence {label}{words}"] = (selves, pairs.mean(0))
    return predicted


def _logix(given: "Task") -> Predictions:
    """Compute influence by LogIX's definition, on gradients of the weights.

    Projections are uniform and of rank 10; λ is a tenth of the mean eigenvalue.
    """
    torch.manual_seed(0)
    model, train, test = regression(given)
    reads, writes = (torch.empty(10, size, dtype=torch.float64) for size in (model.in_features, model.out_features))
    for projection in (reads, writes):
        torch.nn.init.kaiming_uniform_(projection, a=5**0.5)

    def projected(data: torch.utils.data.TensorDataset) -> torch.Tensor:
        x, y = data.tensors
        errors = torch.softmax(model(x), 1) - torch.nn.functional.one_hot(y, model.out_features)
        return torch.einsum("nk,nl->nkl", x @ reads.T, errors @ writes.T).flatten(1).detach()

    rows, others = projected(train), projected(test)
    mean = rows.T @ rows / len(rows)
    inverse = torch.linalg.inv(mean + 0.1 * mean.trace() / len(mean) * torch.eye(len(mean), dtype=mean.dtype))
    own = ((rows @ inverse) * rows).sum(1)
    return {"LogIX's definition": (own.numpy(), (rows @ inverse @ others.mean(0)).numpy())}
