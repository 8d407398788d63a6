import numpy as np
import pytest

from mce_llm.vision.data.torchvision_sets import ArrayImages
from mce_llm.vision.probing import SubsetError, balanced_subset, read_subset, write_subset

NAMES = [f"n0{c}/n0{c}_{i}.JPEG" for c in range(3) for i in range(5)] + ["n00/same.JPEG", "n01/same.JPEG"]
LABELS = [0] * 5 + [1] * 5 + [2] * 5 + [0, 1]


class Named(ArrayImages):
    @property
    def names(self):
        return NAMES


@pytest.fixture
def source():
    pixels = np.zeros((len(NAMES), 2, 2, 3), np.uint8)
    return Named(pixels, LABELS, ["n00", "n01", "n02"], "files (train)")


def written(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    return tmp_path / "list.txt"


def test_simclr_s_form_is_read(tmp_path, source):
    path = written(tmp_path, "n01_2.JPEG\nn00_0.JPEG\r\n\n  n02_4.JPEG \nn00/same.JPEG")
    assert read_subset(path, source) == [0, 7, 14, 15]


def test_what_is_written_is_read_again(tmp_path, source):
    write_subset(tmp_path / "list.txt", source, [3, 15, 16])
    assert read_subset(str(tmp_path / "list.txt"), source) == [3, 15, 16]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("", "names no image"),
        ("\n \n", "names no image"),
        ("n00_0.JPEG\nn00_1.JPEG\nn00_0.JPEG", r"1 names come more than once \(n00_0.JPEG\)"),
        (
            "n00_9.JPEG\nn00_1.JPEG\nn07_1.JPEG",
            r"2 of 3 names are not in files \(train\) \(n00_9.JPEG, n07_1.JPEG\); its names are like 'n00/n00_0.JPEG'",
        ),
        ("n01/n00_0.JPEG", "1 of 1 names are not in"),  # the class is part of the name where it is given
        ("0_0.JPEG", "1 of 1 names are not in"),  # a part of a name is none
        ("same.JPEG", r"1 names are of several images of files \(train\) \(same.JPEG\); write class/file"),
        ("n00_0.JPEG\nn00/n00_0.JPEG", "some images are named in two ways"),
        ("\n".join(f"x{i}" for i in range(9)), r"9 of 9 names .*\(x0, x1, x2, x3, x4, …\)"),
        ("n00_0.JPEG\nn00_0.JPEG\nx", "1 names come more than once.*1 of 3 names are not in"),
    ],
)
def test_lists_that_cannot_be_used(text, pattern, tmp_path, source):
    with pytest.raises(SubsetError, match=pattern):
        read_subset(written(tmp_path, text), source)


def test_files_that_are_no_lists(tmp_path, source):
    with pytest.raises(SubsetError, match=r"there is no list .*gone.txt; subset_file is a text file"):
        read_subset(tmp_path / "gone.txt", source)
    with pytest.raises(SubsetError, match="cannot be read"):
        read_subset(tmp_path, source)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SubsetError, match="cannot be read"):
        read_subset(tmp_path / "binary.txt", source)


def test_a_balanced_share(small):
    source = small.images(200, classes=4)
    tenth = balanced_subset(source, 0.1)
    assert np.bincount([source.labels[i] for i in tenth]).tolist() == [5, 5, 5, 5]
    assert tenth == balanced_subset(source, 0.1)
    assert set(tenth) < set(balanced_subset(source, 0.3))
    assert len(balanced_subset(source, 1e-6)) == 4  # one of each class at least
    assert len(balanced_subset(source, 1.0)) == 200
    for fraction in (0.0, 1.5, -1.0):
        with pytest.raises(SubsetError, match=r"fraction must be in \(0, 1\], got"):
            balanced_subset(source, fraction)
