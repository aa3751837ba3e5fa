"""The colours and markers of the page."""

import re

import numpy as np
import pytest

from experiments.comparing.page import PARTS

SCRIPT = (PARTS / "selection.js").read_text()
# Vision without one kind of cones: Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of
# Color Vision Deficiency", 2009, at severity 1, in linear RGB.
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
LEAST_DISTANCE = 0.1  # in Oklab, where about 0.02 is just noticeable
LEAST_CONTRAST = 3.0  # to the background, as WCAG 2.1 requires of graphics
BACKGROUNDS = {"LIGHT": "#ffffff", "DARK": "#15181c"}


def linear(colours: list[str]) -> np.ndarray:
    """Return colours in linear RGB, (n, 3)."""
    rgb = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def palette(scheme: str) -> np.ndarray:
    """Return the colours of a scheme in linear RGB, (9, 3)."""
    found = re.search(rf"const {scheme} = \[(.*?)\]", SCRIPT)
    assert found is not None
    return linear(re.findall(r"#\w{6}", found[1]))


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Return Oklab of linear RGB (Ottosson, "A perceptual color space for image processing", 2020)."""
    to_lms = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
    to_lab = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
    return np.cbrt(np.clip(rgb, 0, 1) @ np.transpose(to_lms)) @ np.transpose(to_lab)


@pytest.mark.parametrize("scheme", BACKGROUNDS)
def test_nine_colours_differ_for_all_kinds_of_vision(scheme):
    rgb = palette(scheme)
    assert len(rgb) == 9 and "const LIMIT = 9;" in SCRIPT
    for name, matrix in VISIONS.items():
        colours = oklab(rgb @ np.transpose(matrix))
        distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)[np.triu_indices(9, 1)]
        assert distances.min() >= LEAST_DISTANCE, (name, distances.min())


@pytest.mark.parametrize("scheme", BACKGROUNDS)
def test_colours_contrast_with_the_background(scheme):
    background = BACKGROUNDS[scheme]
    assert f"--back: {background.replace('#ffffff', '#fff')};" in (PARTS / "page.css").read_text()
    luminance, behind = (rgb @ [0.2126, 0.7152, 0.0722] + 0.05 for rgb in (palette(scheme), linear([background])))
    assert (np.maximum(luminance, behind) / np.minimum(luminance, behind)).min() >= LEAST_CONTRAST
