"""Random views of an image: perturbations that scores compare and augmentations that pretraining compares."""
