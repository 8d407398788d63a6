"""Images are opened in one place: whatever else would open them has another idea of depth, range or orientation."""

import ast

import pytest

from helpers.scripts import ROOT

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
