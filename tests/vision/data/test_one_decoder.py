"""Images are opened in one place: whatever else would open them has another idea of depth, range or orientation."""

import ast
import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.scripts import ROOT
from mce_llm.vision.coco import CocoImage
from mce_llm.vision.coco.dataset import read_image as read_coco_image
from mce_llm.vision.data import CorruptImageError
from mce_llm.vision.data.folders import FolderImages
from mce_llm.vision.data.tables import TableImages

DECODER = ("mce_llm/vision/data/decoding.py", "mce_llm/vision/data/metadata.py")
# What the benchmark of loading is compared with: torchvision's own.
ALLOWED = {("benchmarks/image_loading.py", "ImageFolder")}
READERS = {
    "pil_loader",
    "default_loader",
    "decode_image",
    "decode_jpeg",
    "decode_png",
    "decode_webp",
    "imread",
}
READERS |= {
    "exif_transpose",
    "getexif",
    "ImageFolder",
    "DatasetFolder",
    "CocoDetection",
    "accimage_loader",
    "mimread",
}
PACKAGES = {"cv2", "imageio", "skimage", "tifffile", "rasterio", "pyvips", "turbojpeg", "accimage"}


def openings(source):
    """What in a module opens or converts images."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            module = getattr(node, "module", None) or ""
            paths = [module, *names, *(f"{module}.{name}" for name in names)]
            found += [p for p in paths if p.split(".")[0] in PACKAGES or p == "torchvision.io"]
            found += [name for name in names if name in READERS]
        elif isinstance(node, ast.Attribute) and node.attr in READERS:
            found.append(node.attr)
        elif isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            arguments = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if call in ("Image.open", "PIL.Image.open"):
                found.append(call)
            elif call.endswith(".convert") and "RGB" in arguments:
                found.append('.convert("RGB")')
            elif call == "datasets.Image" and "decode=False" not in map(ast.unparse, node.keywords):
                found.append("datasets.Image that decodes")
    return found


def test_only_the_decoder_opens_images():
    files = [
        f
        for folder in ("mce_llm", "recipes", "eval", "vision", "benchmarks", "docs")
        for f in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 100
    strays = [
        (name, what)
        for file in files
        if (name := str(file.relative_to(ROOT))) not in DECODER
        for what in openings(file.read_text(encoding="utf-8"))
    ]
    assert sorted(set(strays) - ALLOWED) == []


def test_the_decoder_is_found_by_the_same_rules():
    found = [what for name in DECODER for what in openings((ROOT / name).read_text(encoding="utf-8"))]
    assert {"Image.open", '.convert("RGB")', "getexif"} <= set(found)


@pytest.mark.parametrize(
    "statement",
    [
        "from PIL import Image\nImage.open(path)",
        "import PIL.Image\nPIL.Image.open(path)",
        'image.convert("RGB")',
        "from torchvision.datasets.folder import pil_loader",
        "from torchvision.io import decode_image",
        "import torchvision.io",
        "import torchvision\ntorchvision.io.decode_image(data)",
        "import cv2",
        "from skimage import io",
        "plt.imread(path)",
        "def f():\n    from imageio.v3 import imread",
        "table.cast_column(name, datasets.Image())",
        "ImageOps.exif_transpose(image)",
    ],
)
def test_what_would_be_found(statement):
    assert openings(statement)


def test_what_is_none():
    assert (
        openings(
            "from PIL import Image\nImage.fromarray(x).save(y)\ndatasets.Image(decode=False)\nx.convert('L')"
        )
        == []
    )


LEVELS = np.arange(192, dtype=np.uint8).reshape(12, 16)


def written(kind):
    """An image file of some kind, and what it shows."""
    exif = Image.Exif()
    exif[0x0112] = 8
    image, options = {
        "16 bits": (Image.fromarray(LEVELS.astype(np.uint16) * 257), {"format": "PNG"}),
        "16 bits, TIFF": (Image.fromarray(LEVELS.astype(np.uint16) * 257), {"format": "TIFF"}),
        "floats": (Image.fromarray(LEVELS.astype(np.float32) / 255), {"format": "TIFF"}),
        "turned": (Image.fromarray(np.rot90(LEVELS, -1).copy()), {"format": "PNG", "exif": exif}),
        "palette": (Image.fromarray(LEVELS).convert("P"), {"format": "PNG"}),
        "transparent": (Image.fromarray(LEVELS).convert("RGBA"), {"format": "WEBP", "lossless": True}),
    }[kind]
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def from_every_source(data, folder):
    """The image as each kind of source gives it."""
    (folder / "images" / "class").mkdir(parents=True)
    path = folder / "images" / "class" / "x.png"  # the content decides, not the ending
    path.write_bytes(data)
    rows = {"bytes": [data], "path": [{"bytes": None, "path": str(path)}]}
    yield lambda: FolderImages(folder / "images", "folder").image(0)
    for values in rows.values():
        yield lambda values=values: TableImages(datasets.Dataset.from_dict({"image": values}), "table").image(
            0
        )
    pictures = datasets.Dataset.from_dict({"image": rows["path"]}).cast_column("image", datasets.Image())
    yield lambda: TableImages(pictures, "pictures").image(0)
    yield lambda: read_coco_image(CocoImage(1, path, 12, 16, upright=True))


@pytest.mark.parametrize("kind", ["16 bits", "16 bits, TIFF", "floats", "turned", "palette", "transparent"])
def test_every_source_gives_the_same_pixels(kind, tmp_path):
    expected = torch.from_numpy(LEVELS).expand(3, -1, -1)
    found = [read() for read in from_every_source(written(kind), tmp_path)]
    assert len(found) == 5
    assert all(torch.equal(image, expected) for image in found)


def test_every_source_refuses_what_no_range_is_known_of(tmp_path):
    file = io.BytesIO()
    Image.fromarray(LEVELS.astype(np.int32)).save(file, "TIFF")
    for read in from_every_source(file.getvalue(), tmp_path):
        with pytest.raises(
            ValueError, match=r"holds whole numbers of 32 bits from 0 to 191, .*\[0, 1\]$"
        ) as caught:
            read()
        assert isinstance(caught.value, CorruptImageError) or "Coco" in type(caught.value).__name__
