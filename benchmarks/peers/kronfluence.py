"""kronfluence 1.0.1: EK-FAC and K-FAC of the convolutions, by its public `Analyzer`."""

import logging
from pathlib import Path

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task

from benchmarks.peers.resnet import DEVICE, Residuals, ResNet18


class CosineDistance(Task):
    """Sum over examples of `½‖r‖²`, which is also what is measured."""

    def compute_train_loss(self, batch: list[torch.Tensor], model: torch.nn.Module, sample: bool = False):
        """Compute the loss, or with `sample` one with a random gradient.

        Its gradient with respect to r is then a draw from N(0, I).
        """
        residuals = model(batch[0])
        if sample:
            return (residuals * torch.randn_like(residuals)).sum()
        return residuals.square().sum() / 2

    def compute_measurement(self, batch: list[torch.Tensor], model: torch.nn.Module):
        """Compute the loss."""
        return self.compute_train_loss(batch, model)


class Kronfluence:
    """A network whose two views are two calls, so that an example's gradient is the sum of both.

    Args:
        network: The ResNet-18; it is wrapped in place.
        pairs: Both views of every example, [examples, 2, channels, height, width].
        batch: Examples at a time.
        folder: Where it writes factors and scores.
        strategy: `ekfac` or `kfac`.
    """

    def __init__(self, network: ResNet18, pairs: torch.Tensor, batch: int, folder: Path, strategy: str) -> None:
        logging.getLogger("kronfluence").setLevel(logging.ERROR)
        task = CosineDistance()
        model = prepare_model(Residuals(network, calls=2), task)
        self.analyzer = Analyzer(
            "shared", model, task, cpu=DEVICE.type == "cpu", disable_tqdm=True, output_dir=str(folder)
        )
        self.data, self.batch, self.strategy = torch.utils.data.TensorDataset(pairs), batch, strategy
        self.dtype = pairs.dtype

    def fit(self) -> None:
        """Fit covariances, eigendecompositions and corrected eigenvalues.

        They are those of the examples' own gradients; only EK-FAC has corrected eigenvalues.
        """
        self.analyzer.fit_all_factors(
            "factors",
            self.data,
            per_device_batch_size=self.batch,
            factor_args=FactorArguments(
                self.strategy,
                use_empirical_fisher=True,
                has_shared_parameters=True,
                activation_covariance_dtype=self.dtype,
                gradient_covariance_dtype=self.dtype,
                per_sample_gradient_dtype=self.dtype,
                lambda_dtype=self.dtype,
            ),
            overwrite_output_dir=True,
        )

    def scores(self, damping: float | None = None) -> np.ndarray:
        """Compute the self-influence of every example.

        If the damping is None, it is a tenth of each module's mean eigenvalue.
        """
        self.analyzer.compute_self_scores(
            "scores",
            "factors",
            self.data,
            per_device_train_batch_size=self.batch,
            score_args=ScoreArguments(
                damping_factor=damping,
                per_sample_gradient_dtype=self.dtype,
                precondition_dtype=self.dtype,
                score_dtype=self.dtype,
            ),
            overwrite_output_dir=True,
        )
        return self.analyzer.load_self_scores("scores")["all_modules"].numpy()

    def factors(self) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
        """Return the sums A and S of every module, with their counts.

        The counts are the numbers of rows in each sum.
        """
        matrices = self.analyzer.load_covariance_matrices("factors")
        return {
            name.removeprefix("network."): (
                matrix.numpy(),
                matrices["gradient_covariance"][name].numpy(),
                int(matrices["num_activation_covariance_processed"][name]),
            )
            for name, matrix in matrices["activation_covariance"].items()
        }

    def corrected_eigenvalues(self) -> dict[str, np.ndarray]:
        """Return the corrected eigenvalues Λ [outputs, inputs] of every module.

        Λ is the mean over examples of squared gradients in the eigenbasis.
        """
        matrices = self.analyzer.load_lambda_matrices("factors")
        return {
            name.removeprefix("network."): (matrix / matrices["num_lambda_processed"][name]).numpy()
            for name, matrix in matrices["lambda_matrix"].items()
        }
