"""What is typed is what is run."""

import dataclasses
from pathlib import Path

import pytest

from influence_ssl_jax import data, ihvp, losses
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.recipes import PERTURBATIONS
from influence_ssl_jax.cli.options import choices_of, parse
from influence_ssl_jax.configuration import describe, restore
from influence_ssl_jax.ihvp import BACKENDS, Damping
from influence_ssl_jax.runs.settings import Augmentation, PretrainRun, ScoreRun, views
from influence_ssl_jax.train.settings import RECIPES

REQUIRED = ["--encoder", "e", "--out", "o"]


def parsed(command, *arguments):
    return parse(command, arguments, "influence-ssl", "")


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_of_the_list_can_be_asked_for(backend):
    settings = parsed(ScoreRun, *REQUIRED, f"backend:{backend.__name__.lower()}")
    assert settings.backend == backend()


@pytest.mark.parametrize("backend", [each for each in BACKENDS if each is not ihvp.CG and each().definite])
def test_every_backend_can_precondition_conjugate_gradients(backend):
    name = backend.__name__.lower()
    settings = parsed(ScoreRun, *REQUIRED, "backend:cg", "--backend.preconditioner", name).backend
    assert settings == ihvp.CG(preconditioner=backend())
    assert restore(describe(settings), BACKENDS) == settings


def test_damping_is_given_in_its_ways():
    for typed, damping in (
        (("--damping.effective-dimension", "0.5"), Damping(effective_dimension=0.5)),
        (("--damping.relative-to", "nonzero", "--damping.relative", "0.2"), Damping(0.2, relative_to="nonzero")),
    ):
        assert parsed(ScoreRun, *REQUIRED, *typed, "backend:gram").scoring.damping == damping


@pytest.mark.parametrize("measurement", losses.MEASUREMENTS)
def test_every_measurement_of_the_list_can_be_asked_for(measurement):
    name = {"CosineDistance": "cosine-distance", "SquaredEuclid": "squared-euclid"}[measurement.__name__]
    assert parsed(
        ScoreRun, *REQUIRED, f"measurement:{name}", "--measurement.gradient", "clean"
    ).measurement == measurement("clean")


@pytest.mark.parametrize(("name", "choice"), choices_of(data.Source).items())
def test_every_source_of_the_list_can_be_asked_for(name, choice):
    without = (dataclasses.MISSING, dataclasses.MISSING)
    asked = [
        each.name for each in dataclasses.fields(choice.settings) if (each.default, each.default_factory) == without
    ]
    needed = [word for field in asked for word in (f"--source.{field}", "p")]
    for command, required in ((ScoreRun, REQUIRED), (PretrainRun, ["--out", "o"])):
        source = parsed(command, *required, f"source:{name}", *needed, "--source.only", "ids.csv").source
        assert type(source) is choice.settings
        assert source.only == "ids.csv"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_asked_for_and_changed(name):
    typed = ["--out", "o", f"training:{name.replace('_', '-')}"]
    assert parsed(PretrainRun, *typed).training == RECIPES[name]
    changed = parsed(PretrainRun, *typed, "--training.architecture.width", "16", "--training.seed", "42").training
    assert (changed.architecture.width, changed.seed, changed.loss) == (16, 42, RECIPES[name].loss)


def test_options_stand_in_any_order():
    first = parsed(ScoreRun, *REQUIRED, "--draws", "8", "source:tfds", "--source.name", "mnist", "backend:cg")
    second = parsed(ScoreRun, "backend:cg", "source:tfds", "--source.name", "mnist", "--draws", "8", *REQUIRED)
    assert first == second
    assert first.source == data.Tfds("mnist")
    assert first.backend == ihvp.CG()


def test_the_documented_examples_parse():
    for command in (ScoreRun, PretrainRun):
        shown = [line.strip() for line in command.__doc__.splitlines() if line.strip().startswith("influence-ssl ")]
        assert shown
        for line in shown:
            parsed(command, *line.split()[2:])


def test_defaults_are_the_studys():
    settings = parsed(ScoreRun, *REQUIRED)
    assert settings.perturbation == GaussianNoise(0.2)
    assert settings.scoring.damping == Damping(0.1)
    assert settings.curvature.kind == "ggn"


def test_a_perturbation_may_be_named():
    settings = parsed(ScoreRun, *REQUIRED, "perturbation:augmentation", "--perturbation.name", "flip_blur").perturbation
    assert views(settings) == PERTURBATIONS["flip_blur"]
    assert views(GaussianNoise(0.3)) == GaussianNoise(0.3)
    with pytest.raises(ValueError, match="There is no perturbation 'rain'; there are noise, crop"):
        Augmentation("rain")


def test_what_was_typed_survives_the_record():
    settings = parsed(
        ScoreRun, *REQUIRED, "source:folder", "--source.path", "faces", "backend:cg", "--backend.iterations", "9"
    )
    description = describe(settings)
    assert restore(description["source"], data.SOURCES) == settings.source
    assert restore(description["backend"], BACKENDS) == settings.backend
    assert Path(description["out"]) == settings.out
