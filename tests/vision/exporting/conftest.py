import pytest
import torch

from mce_llm.vision.models import BackboneSpec, build_backbone, save_backbone

SIZE = 32
FACTS = {
    "image_size": SIZE,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.25],
    "method": "matrix_ssl",
    "epochs": 3,
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Folders of encoders by name, each made once."""
    made = {}

    def save(name, stem="imagenet", seed=0, **arguments):
        key = (name, stem, seed, repr(sorted(arguments.items())))
        if key not in made:
            torch.manual_seed(seed)
            spec = BackboneSpec(name, stem, arguments)
            made[key] = tmp_path_factory.mktemp("encoder")
            save_backbone(build_backbone(spec), spec, made[key], FACTS)
        return made[key]

    return save
