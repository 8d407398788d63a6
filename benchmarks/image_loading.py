"""Images a second that two cores make ready for pretraining: our loader beside a plain torchvision one.

    python benchmarks/image_loading.py
    python benchmarks/image_loading.py --case large --data DIR --workers 8 --images 4000

Both read the same files, draw the same two views with the same number of workers, and are run in turn. The plain one is
what most code does: `ImageFolder`, `transforms.v2` on Pillow images, `DataLoader`. Its second form blurs as the
official Matrix-SSL code does, with Pillow's filter, which approximates a Gaussian. CPU time is that of the workers and
of the main process together; other programs on the machine disturb it less than the rate. Reads /proc, so Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, positive, progress, ratio, table
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mce_llm.vision.data import (
    AugmentationSettings,
    DataSettings,
    ImageSource,
    open_images,
    train_views,
    view_loader,
)
from mce_llm.vision.data.augmentations import blur_kernel_size

PLAIN, PILLOW_BLUR, CACHED = "torchvision", "torchvision, Pillow's blur", "ours, kept in memory"
OURS = "ours"


@dataclass
class Case:
    """What is loaded.

    Attributes:
        size: Side of the views.
        files: Width and height of the images on disk.
        batch: Images in a batch.
        kept: Whether the images are few enough to be kept in memory by default.
    """

    size: int
    files: tuple[int, int]
    batch: int
    kept: bool


CASES = {
    "small": Case(size=32, files=(32, 32), batch=512, kept=True),
    "large": Case(size=224, files=(500, 375), batch=64, kept=False),
}


@dataclass
class Seen:
    """Images a second, and CPU milliseconds an image, of each repeat."""

    rates: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)


class PillowBlur:
    """The blur of the official code."""

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blur by a random radius."""
        sigma = torch.empty(1).uniform_(self.least, self.most).item()
        return image.filter(ImageFilter.GaussianBlur(radius=sigma))


class PlainViews:
    """Both views, as a list of transforms each."""

    def __init__(self, case: Case, mean: Any, std: Any, *, pillow_blur: bool) -> None:
        self.views = [self._view(case, mean, std, number, pillow_blur) for number in (1, 2)]

    def __call__(self, image: Image.Image) -> tuple[Any, ...]:
        """Draw them."""
        return tuple(view(image) for view in self.views)

    @staticmethod
    def _view(case: Case, mean: Any, std: Any, number: int, pillow_blur: bool) -> v2.Compose:
        settings = AugmentationSettings()
        sigma = (settings.blur_sigma_min, settings.blur_sigma_max)
        blur: Any = PillowBlur(*sigma) if pillow_blur else v2.GaussianBlur(blur_kernel_size(case.size), sigma)
        steps: list[Any] = [
            v2.RandomResizedCrop(case.size, scale=(settings.crop_scale_min, settings.crop_scale_max)),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=settings.jitter_probability),
            v2.RandomGrayscale(settings.grayscale_probability),
        ]
        if settings.blurs(case.size):
            probability = settings.blur_probability_1 if number == 1 else settings.blur_probability_2
            steps.append(v2.RandomApply([blur], p=probability))
        if number == 2:
            steps.append(v2.RandomSolarize(128, settings.solarize_probability_2))
        steps += [
            v2.RandomHorizontalFlip(settings.flip_probability),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
        return v2.Compose(steps)


def draw_files(folder: Path, case: Case, count: int) -> None:
    """Write JPEG files with as much detail as photographs have: their sizes are like CIFAR's and ImageNet's."""
    with ProcessPoolExecutor() as pool:
        list(pool.map(_draw_file, [(folder, case.files, i) for i in range(count)], chunksize=16))


def _draw_file(task: tuple[Path, tuple[int, int], int]) -> None:
    folder, size, index = task
    random = np.random.default_rng(index)
    layers = np.zeros((size[1], size[0], 3), np.float32)
    for scale in (4, 16, 64, 256):
        coarse = random.integers(0, 256, (max(2, scale * 3 // 4), scale, 3), dtype=np.uint8)
        layers += (
            np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float32)
            / scale**0.6
        )
    layers = (layers - layers.min()) / (layers.max() - layers.min()) * 255
    place = folder / "train" / f"class{index % 10}"
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(layers.astype(np.uint8)).save(place / f"{index:06d}.jpg", quality=92)


def contenders(
    folder: Path, case: Case, workers: int, names: list[str]
) -> dict[str, Callable[[], Iterator[int]]]:
    """Name → a function that starts a loader and yields the number of images of each batch."""
    source = open_images(DataSettings(str(folder), image_size=case.size, cache_images="false"))
    kept: ImageSource = source
    if CACHED in names:
        begin = time.perf_counter()
        kept = open_images(DataSettings(str(folder), image_size=case.size, cache_images="true"))
        print(
            f"decoding {len(kept):,} images into memory: {time.perf_counter() - begin:.1f} s, not counted below"
        )

    def ours(images: ImageSource) -> Iterator[int]:
        views = train_views(case.size, images.mean, images.std)
        for batch in view_loader(images, views, case.batch, num_workers=workers):
            yield len(batch.labels)

    def plain(pillow_blur: bool) -> Iterator[int]:
        views = PlainViews(case, source.mean, source.std, pillow_blur=pillow_blur)
        loader: Any = DataLoader(
            ImageFolder(folder / "train", views),
            case.batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for _, labels in loader:
            yield len(labels)

    found = {
        PLAIN: lambda: plain(False),
        PILLOW_BLUR: lambda: plain(True),
        OURS: lambda: ours(source),
        CACHED: lambda: ours(kept),
    }
    return {name: found[name] for name in names}


def cpu_seconds() -> float:
    """CPU time so far of this process and of the workers that it has."""
    ticks = 0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system time
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(start: Callable[[], Iterator[int]]) -> tuple[float, float]:
    """One epoch after its first batch: images a second and CPU milliseconds an image."""
    counts = start()
    next(counts)
    images, begin, cpu = 0, time.perf_counter(), cpu_seconds()
    for count in counts:
        images += count
        seconds, used = time.perf_counter() - begin, cpu_seconds() - cpu
    return images / seconds, used / images * 1e3


def compare(calls: dict[str, Callable[[], Iterator[int]]], repeats: int) -> dict[str, Seen]:
    """Run every loader in turn, `repeats` times, and once before that to have the files in the system's cache."""
    seen = {name: Seen() for name in calls}
    for number in range(repeats + 1):
        for name, start in calls.items():
            progress(f"round {number}/{repeats}: {name}")
            rate, milliseconds = measure(start)
            if number:
                seen[name].rates.append(rate)
                seen[name].milliseconds.append(milliseconds)
    progress("")
    return seen


def report(seen: dict[str, Seen]) -> str:
    """Medians and ranges, and each loader's rate and CPU time against the plain one's."""
    base = next(iter(seen.values()))
    rows = []
    for name, values in seen.items():
        rate, cpu = statistics.median(values.rates), statistics.median(values.milliseconds)
        rows.append(
            [
                name,
                f"{rate:.0f}",
                f"{min(values.rates):.0f}–{max(values.rates):.0f}",
                ratio(rate, statistics.median(base.rates)),
                f"{cpu:.2f}",
                f"{min(values.milliseconds):.2f}–{max(values.milliseconds):.2f}",
                ratio(cpu, statistics.median(base.milliseconds)),
            ]
        )
    return table(["loader", "images/s", "range", "ratio", "CPU ms/image", "range", "ratio"], rows)


def run(name: str, data: Path | None, images: int, workers: int, repeats: int) -> None:
    """Measure one case and print its table."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = data or Path(temporary)
        if data is None:
            draw_files(folder, case, images)
        names = [PLAIN, *([PILLOW_BLUR] if AugmentationSettings().blurs(case.size) else []), OURS]
        calls = contenders(folder, case, workers, names + ([CACHED] if case.kept else []))
        what = data or f"{images} JPEG files of {case.files[0]}×{case.files[1]} pixels"
        print(
            f"\n{name}: {what}, two views of {case.size} pixels, batches of {case.batch}, {workers} workers"
        )
        print(report(compare(calls, repeats)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=[*CASES, "both"], default="both")
    parser.add_argument(
        "--data", type=Path, help="a directory with train/<class>/<file> instead of drawn files"
    )
    parser.add_argument(
        "--images", type=positive, help="files to draw; 10240 small and 512 large ones by default"
    )
    parser.add_argument("--workers", type=positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=positive, default=5)
    arguments = parser.parse_args()
    if arguments.data is not None and not (arguments.data / "train").is_dir():
        parser.error(f"there is no directory {arguments.data / 'train'}")
    if arguments.data is not None and arguments.case == "both":
        parser.error("--data needs --case small or --case large")
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    for name in CASES if arguments.case == "both" else [arguments.case]:
        images = arguments.images or {"small": 10240, "large": 512}[name]
        run(name, arguments.data, images, arguments.workers, arguments.repeats)


if __name__ == "__main__":
    main()
