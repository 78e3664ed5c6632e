"""Small networks with every kind of head."""

from influence_ssl_jax.nets.heads import Classifier, Predictor, Projector, SelfSupervised
from influence_ssl_jax.nets.resnet import ResNet18


def simclr(width, hidden=7, output=5):
    return SelfSupervised(ResNet18(width), Projector(hidden, output, normalisation="none"))


def byol(width, hidden=7, output=5, predictor=6):
    return SelfSupervised(ResNet18(width), Projector(hidden, output), Predictor(predictor))


def barlow_twins(width, hidden=7, output=5):
    return SelfSupervised(ResNet18(width), Projector(hidden, output, hidden_layers=2))


def supervised(width, classes=10):
    return SelfSupervised(ResNet18(width), Classifier(classes))
