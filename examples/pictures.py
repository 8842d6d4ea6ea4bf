"""Four pictures, drawn by this program: a ship, an airplane, a truck and an automobile.

    python examples/pictures.py pictures
    keras-resnet classify BUNDLE pictures/*.png
    python examples/pictures.py photographs --each 40
    keras-resnet train --model resnet8 --data folder:photographs --out runs/photographs

Something to show a network of CIFAR-10's classes where no photograph is at hand. They are cartoons,
unlike everything that such a network was trained on. With `--each`, a directory of so many JPEG
files per class, to try a training on: the cartoon from elsewhere, in another light, with grain.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from keras_resnet.files import atomic_file

SIZE = 256
Color = tuple[int, int, int]


def gradient(top: Color, bottom: Color) -> Image.Image:
    """A sky."""
    share = np.linspace(0, 1, SIZE)[:, None, None]
    rows = np.array(top) * (1 - share) + np.array(bottom) * share
    return Image.fromarray(np.repeat(rows, SIZE, axis=1).astype(np.uint8))


def wheels(draw: ImageDraw.ImageDraw, lefts: Sequence[int], top: int, size: int) -> None:
    """Tires with a hub each."""
    for left in lefts:
        draw.ellipse((left, top, left + size, top + size), (22, 22, 22))
        hub = (left + size // 3, top + size // 3, left + 2 * size // 3, top + 2 * size // 3)
        draw.ellipse(hub, (155, 155, 155))


def ship() -> Image.Image:
    """A steamer on calm water."""
    picture = gradient((120, 165, 215), (205, 220, 235))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 165, SIZE, SIZE), (40, 85, 130))
    draw.polygon([(25, 140), (235, 140), (205, 190), (50, 190)], (150, 40, 35))
    draw.rectangle((70, 105, 180, 140), (240, 240, 240))
    draw.rectangle((95, 80, 150, 105), (225, 225, 225))
    draw.rectangle((115, 45, 135, 80), (60, 60, 70))
    for left in range(80, 175, 18):
        draw.rectangle((left, 115, left + 8, 124), (50, 70, 100))
    return picture


def airplane() -> Image.Image:
    """An airliner in the sky."""
    picture = gradient((70, 130, 210), (170, 205, 240))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((20, 110, 225, 148), (235, 235, 240))
    draw.polygon([(100, 130), (150, 130), (95, 215), (70, 215)], (190, 195, 205))
    draw.polygon([(115, 118), (150, 118), (120, 60), (100, 60)], (205, 210, 220))
    draw.polygon([(25, 125), (60, 115), (35, 65), (12, 65)], (200, 60, 50))
    for left in range(75, 200, 14):
        draw.ellipse((left, 120, left + 6, 126), (60, 80, 110))
    return picture


def truck() -> Image.Image:
    """A box truck on a road."""
    picture = gradient((170, 190, 210), (220, 220, 215))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 190, SIZE, SIZE), (105, 105, 105))
    draw.rectangle((15, 60, 165, 185), (235, 235, 235))
    draw.rectangle((168, 100, 240, 185), (190, 40, 40))
    draw.polygon([(185, 110), (232, 110), (238, 140), (185, 140)], (70, 95, 120))
    wheels(draw, (40, 85, 190), 168, 42)
    return picture


def automobile() -> Image.Image:
    """A car on a road."""
    picture = gradient((150, 180, 210), (215, 220, 225))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 175, SIZE, SIZE), (110, 110, 112))
    draw.polygon([(60, 130), (85, 85), (165, 85), (200, 130)], (175, 30, 30))
    draw.polygon([(72, 128), (92, 93), (122, 93), (122, 128)], (60, 80, 100))
    draw.polygon([(130, 128), (130, 93), (160, 93), (185, 128)], (60, 80, 100))
    draw.rounded_rectangle((15, 125, 242, 180), 16, (190, 35, 35))
    wheels(draw, (45, 170), 155, 46)
    return picture


PICTURES: tuple[Callable[[], Image.Image], ...] = (ship, airplane, truck, automobile)


def write_pictures(directory: Path) -> list[Path]:
    """Writes each as a PNG file that is called what it shows."""
    paths = []
    for picture in PICTURES:
        paths.append(directory / f"{picture.__name__}.png")
        with atomic_file(paths[-1]) as temporary:
            picture().filter(ImageFilter.GaussianBlur(2)).save(temporary)
    return paths


def photograph(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """The same thing on another day, 320 x 240 pixels: turned, shifted, nearer or farther."""
    margin = SIZE // 2
    pixels = np.pad(np.asarray(picture), ((margin, margin), (margin, margin), (0, 0)), "edge")
    turned = Image.fromarray(pixels).rotate(random.uniform(-15, 15), Image.Resampling.BILINEAR)
    width = SIZE * random.uniform(1.0, 1.6)
    left, top = SIZE * (1 + random.uniform(-0.2, 0.2, 2)) - (width / 2, width * 3 / 8)
    seen = turned.resize((320, 240), box=(left, top, left + width, top + width * 3 / 4))
    seen = ImageOps.mirror(seen) if random.random() < 0.5 else seen
    light, grain = random.uniform(0.5, 1.3, 3), random.normal(0, 12, (240, 320, 1))
    return Image.fromarray(np.clip(np.asarray(seen) * light + grain, 0, 255).astype(np.uint8))


def write_photographs(directory: Path, each: int = 40, seed: int = 0) -> Path:
    """Writes a directory of JPEG files per picture, as `folder:` reads them."""
    random = np.random.default_rng(seed)
    for picture in PICTURES:
        drawn = picture()
        for number in range(each):
            path = directory / picture.__name__ / f"{number:03}.jpg"
            with atomic_file(path) as temporary:
                photograph(drawn, random).save(temporary, quality=90)
    return directory


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the pictures and says where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--each", type=int, metavar="N", help="photographs of each class instead")
    options = parser.parse_args(arguments)
    if options.each is None:
        print("\n".join(map(str, write_pictures(options.out))))
    else:
        print(write_photographs(options.out, options.each))


if __name__ == "__main__":
    main()
