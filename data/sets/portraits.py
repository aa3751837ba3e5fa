"""`python -m data.sets.portraits TARGET`: a folder of drawn faces, TARGET/PERSON/NUMBER.jpg, to try a training on.

A person is a set of proportions and colours. An image varies pose, expression, light, background, occlusion, blur and
the quality of the JPEG. Nothing is downloaded, and the faces are of nobody. The numbers of images have a long tail.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m data.sets.portraits")


import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ..screen import bars, console

SIDE = 112
SCALE = 2  # images are drawn at twice their size
HAIR = ((30, 22, 18), (60, 40, 25), (110, 75, 40), (170, 130, 70), (120, 120, 120), (140, 50, 25))
IRIS = ((60, 40, 20), (40, 70, 110), (60, 100, 60), (90, 90, 95))
STYLES = 5
Place = Callable[..., tuple[float, float]]  # pixels of a point of the face: right, down, and towards the viewer
Numbers = NDArray[np.float64]


class Person:
    """The proportions and colours of a face, in shares of the side of an image."""

    def __init__(self, random: Generator):
        tone = random.uniform(0.25, 1.0)
        self.skin = np.array([235, 195, 165]) * tone + random.normal(0, 6, 3)
        self.hair = np.array(HAIR[random.integers(len(HAIR))]) + random.normal(0, 8, 3)
        self.iris = np.array(IRIS[random.integers(len(IRIS))]) + random.normal(0, 8, 3)
        self.lip = self.skin * [0.85, 0.6, 0.6] + random.normal(0, 6, 3)
        self.style = int(random.integers(STYLES))
        self.beard = float(random.choice([0, 0, 0, 0.4, 0.8]))
        self.width, self.height = random.normal(0.30, 0.022), random.normal(0.39, 0.022)
        self.jaw = random.uniform(0.55, 1.0)  # width of the chin, relative to the face
        self.eye_gap, self.eye_height = random.normal(0.125, 0.013), random.normal(-0.05, 0.015)
        self.eye_width, self.eye_open = random.normal(0.052, 0.006), random.normal(0.024, 0.004)
        self.slant = random.normal(0, 0.010)
        self.brow_rise, self.brow_width = random.normal(0.060, 0.008), random.uniform(0.008, 0.024)
        self.brow_slant = random.normal(0, 0.014)
        self.nose_length, self.nose_width = random.normal(0.130, 0.016), random.normal(0.044, 0.009)
        self.mouth_height, self.mouth_width = random.normal(0.185, 0.014), random.normal(0.085, 0.012)
        self.lips = random.uniform(0.012, 0.030)
        self.hairline = random.normal(-0.24, 0.025)
        self.ear = random.uniform(0.03, 0.07)
        self.marks = random.uniform([-0.2, -0.1], [0.2, 0.25], (int(random.integers(0, 4)), 2))

    def image(self, random: Generator) -> Image.Image:
        """Draw the person once more, in another pose and light."""
        side = SIDE * SCALE
        canvas = background(random, side)
        draw = ImageDraw.Draw(canvas)
        yaw, pitch = random.normal(0, 0.30), random.normal(0, 0.20)

        def at(x: float, y: float, depth: float = 1.0) -> tuple[float, float]:
            """Return pixels of a point of the face; what lies nearer to the viewer moves more when the head turns."""
            turned = x * (1 - 0.25 * yaw**2) + 0.12 * yaw * depth * (1 - 2 * x * x)
            return (0.5 + turned) * side, (0.5 + y + 0.10 * pitch * depth) * side

        self._head(draw, at, side)
        self._eyes(draw, at, random, side)
        self._lower(draw, at, random)
        self._occlusion(draw, at, random, side)
        return photographed(canvas, random)

    def _head(self, draw: ImageDraw.ImageDraw, at: Place, side: int) -> None:
        skin, hair = colour(self.skin), colour(self.hair)
        if self.style in (1, 3):  # long hair behind the face
            draw.polygon(
                [at(x * self.width * 1.25, y, 0.0) for x, y in ((-1, -0.2), (-1.1, 0.5), (1.1, 0.5), (1, -0.2))], hair
            )
        draw.ellipse(
            [*at(-self.width * 1.12, -self.height * 1.10, 0.2), *at(self.width * 1.12, 0.1, 0.2)],
            hair if self.style else skin,
        )
        for sign in (-1, 1):
            x, y = at(sign * self.width, 0.0, 0.0)
            draw.ellipse(
                [x - self.ear * side / 2, y - self.ear * side, x + self.ear * side / 2, y + self.ear * side],
                colour(self.skin * 0.9),
            )
        draw.polygon(self._outline(at, np.linspace(0, 2 * np.pi, 60)), skin)
        if self.beard:
            lower = self._outline(at, np.linspace(0.1, np.pi - 0.1, 40))
            draw.polygon(lower, colour(self.skin * (1 - self.beard) + self.hair * self.beard))
        if self.style:  # hair over the forehead
            drop = (0.0, 0.0, 0.05, 0.02, 0.09)[self.style]
            top = [
                at(self.width * 1.03 * np.cos(a), -self.height * 1.03 * np.sin(a), 0.5)
                for a in np.linspace(0.45, np.pi - 0.45, 30)
            ]
            draw.polygon(
                [
                    *top,
                    at(-self.width * 0.6, self.hairline + drop, 0.8),
                    at(0.0, self.hairline, 0.9),
                    at(self.width * 0.7, self.hairline + drop / 2, 0.8),
                ],
                hair,
            )
        for x, y in self.marks:
            px, py = at(x, y, 0.8)
            draw.ellipse([px - 2, py - 2, px + 2, py + 2], colour(self.skin * 0.5))

    def _outline(self, at: Place, angles: Numbers) -> list[tuple[float, float]]:
        """Return the pixels of the face's outline, which narrows towards the chin; a quarter turn is the chin."""
        x, y = np.cos(angles), np.sin(angles)
        taper = 1 - (1 - self.jaw) * np.maximum(0.0, y) ** 1.5
        return [at(*point, 0.5) for point in zip(self.width * x * taper, self.height * y, strict=True)]

    def _eyes(self, draw: ImageDraw.ImageDraw, at: Place, random: Generator, side: int) -> None:
        opened = self.eye_open * random.uniform(0.5, 1.3)
        gaze = random.normal(0, 0.008)
        raised = random.normal(0, 0.008)
        for sign in (-1, 1):
            x, y = sign * self.eye_gap, self.eye_height
            corners = [
                (x - sign * self.eye_width, y + self.slant),
                (x, y - opened),
                (x + sign * self.eye_width, y - self.slant),
                (x, y + opened),
            ]
            draw.polygon([at(*corner, 0.9) for corner in corners], (235, 235, 230))
            px, py = at(x + gaze, y, 0.9)
            radius = 0.9 * opened * side
            draw.ellipse([px - radius, py - radius, px + radius, py + radius], colour(self.iris))
            draw.ellipse([px - radius / 2, py - radius / 2, px + radius / 2, py + radius / 2], (15, 12, 12))
            brow = y - self.brow_rise - raised
            ends = [
                at(x - sign * self.eye_width * 1.2, brow + self.brow_slant, 0.9),
                at(x + sign * self.eye_width * 1.3, brow - self.brow_slant, 0.9),
            ]
            draw.line(ends, colour(self.hair * 0.8), width=max(2, round(self.brow_width * side)))

    def _lower(self, draw: ImageDraw.ImageDraw, at: Place, random: Generator) -> None:
        tip = self.eye_height + self.nose_length
        shadow = colour(self.skin * 0.78)
        draw.line(
            [at(-0.012, self.eye_height + 0.02, 1.1), at(-self.nose_width, tip, 1.35), at(self.nose_width, tip, 1.35)],
            shadow,
            width=3,
        )
        smile, opening = random.normal(0.004, 0.012), max(0.0, random.normal(0, 0.018))
        y, half = self.mouth_height, self.mouth_width * random.normal(1, 0.08)
        mouth = [
            at(-half, y - smile, 0.9),
            at(0, y - self.lips, 1.05),
            at(half, y - smile, 0.9),
            at(0, y + self.lips + opening + smile, 1.0),
        ]
        draw.polygon(mouth, colour(self.lip))
        if opening > 0.01:
            draw.polygon([at(-half * 0.6, y, 0.9), at(half * 0.6, y, 0.9), at(0, y + opening, 1.0)], (70, 25, 25))

    def _occlusion(self, draw: ImageDraw.ImageDraw, at: Place, random: Generator, side: int) -> None:
        if random.random() < 0.15:  # glasses
            shade = tuple(int(each) for each in random.integers(0, 90, 3))
            radius = 0.075 * side
            for sign in (-1, 1):
                px, py = at(sign * self.eye_gap, self.eye_height, 1.1)
                draw.ellipse([px - radius, py - radius, px + radius, py + radius], outline=shade, width=4)
            draw.line([at(-0.05, self.eye_height, 1.2), at(0.05, self.eye_height, 1.2)], shade, width=4)
        if random.random() < 0.12:  # a hat, or a hand before the mouth
            shade = tuple(int(each) for each in random.integers(20, 230, 3))
            top = random.random() < 0.6
            low, high = (-0.5, -0.22) if top else (0.16, 0.40)
            draw.polygon([at(-0.36, low), at(0.36, low), at(0.34, high), at(-0.34, high)], shade)


def background(random: Generator, side: int) -> Image.Image:
    """Return a smooth background with a random gradient."""
    corners = random.integers(20, 235, (2, 2, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize((side, side), Image.Resampling.BICUBIC)


def photographed(canvas: Image.Image, random: Generator) -> Image.Image:
    """Return the drawing as a photo: turned, cropped, lit, blurred and noisy, SIDE x SIDE."""
    side = canvas.width
    grow = random.normal(1.0, 0.06)
    shift = random.normal(0, 0.025, 2) * side
    roll = random.normal(0, 8)
    canvas = canvas.rotate(roll, Image.Resampling.BILINEAR, translate=tuple(shift))
    edge = side * (1 - 1 / grow) / 2
    photo = canvas.resize(
        (SIDE, SIDE),
        Image.Resampling.BILINEAR,
        box=(max(0, edge), max(0, edge), min(side, side - edge), min(side, side - edge)),
    )
    if random.random() < 0.4:
        photo = photo.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.6)))
    pixels = np.asarray(photo, dtype=np.float32)
    angle, strength = random.uniform(0, 2 * np.pi), abs(random.normal(0, 0.35))
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    light = 1 + strength * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None])
    cast = random.normal(1, 0.07, 3).astype(np.float32)
    pixels = (pixels - 128) * random.uniform(0.7, 1.2) + 128
    pixels = pixels * light[:, :, None] * cast * random.uniform(0.7, 1.25)
    pixels += random.normal(0, random.uniform(1, 9), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def colour(values: Numbers) -> tuple[int, ...]:
    """Return RGB of whole numbers from 0 to 255."""
    return tuple(int(each) for each in np.clip(values, 0, 255))


def counts(num_people: int, fewest: int, most: int, random: Generator) -> NDArray[np.int64]:
    """Return the number of images of each person: a long tail between the fewest and the most."""
    ranks = random.permutation(num_people) / max(1, num_people - 1)
    return np.round(most * (fewest / most) ** ranks).astype(np.int64)


def write(target: Path, num_people: int, fewest: int, most: int, seed: int) -> int:
    """Write the images of all people, and return their number."""
    number = counts(num_people, fewest, most, np.random.default_rng([seed, 0]))
    with bars(console()) as progress:
        for index in progress.track(range(num_people), description="People"):
            random = np.random.default_rng([seed, 1, index])
            person, folder = Person(random), target / f"{index:05d}"
            folder.mkdir(parents=True)
            for image in range(number[index]):
                person.image(random).save(folder / f"{image:03d}.jpg", quality=int(random.integers(55, 95)))
    return int(number.sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.sets.portraits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="folder to create")
    parser.add_argument("--people", type=int, default=1000, help="number of people (%(default)s)")
    parser.add_argument("--fewest", type=int, default=2, help="fewest images of a person (%(default)s)")
    parser.add_argument("--most", type=int, default=100, help="most images of a person (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of people and images (%(default)s)")
    options = parser.parse_args()
    if not 1 <= options.fewest <= options.most or options.people < 2 or options.seed < 0:
        sys.exit("error: --people must be at least 2, --seed at least 0, and 1 <= --fewest <= --most must hold")
    if options.target.exists():
        sys.exit(f"error: {options.target} exists; remove it or give another folder")
    total = write(options.target, options.people, options.fewest, options.most, options.seed)
    print(f"{options.target}: {total:,} images of {options.people:,} people")


if __name__ == "__main__":
    main()
