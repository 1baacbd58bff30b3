import pytest
import torch

from tests.tolerances import CONTRACTION
from ttmodels import config as configs
from ttmodels.config import MLPConfig
from ttmodels.mlp import MLPClassifier
from ttmodels.tensor_train import TTShape

LAYERS = (TTShape((8, 24), (4, 6), (1, 5, 1)), TTShape((4, 6), (5, 2), (1, 3, 1)))
IMAGES = MLPConfig(("a", "b", "c"), (8, 8, 3), LAYERS, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))


def test_it_is_the_dense_network_of_its_matrices() -> None:
    model = MLPClassifier(IMAGES).eval()
    x = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    want = ((x.double() / 255 - torch.tensor(IMAGES.mean)) / torch.tensor(IMAGES.std)).flatten(1)
    for layer in model.trains:
        assert layer.bias is not None
        want = torch.relu(want @ layer.full().double() + layer.bias.double())
    want = want @ model.head.weight.double().T + model.head.bias.double()
    assert torch.allclose(model(x).double(), want, atol=CONTRACTION)


def test_features_come_as_they_are() -> None:
    model = MLPClassifier(MLPConfig(("a", "b"), (192,), LAYERS, activation="linear")).eval()
    x = torch.randn(4, 192)
    layers = torch.nn.Sequential(*model.trains, model.head)
    assert torch.allclose(model(x), layers(x), atol=CONTRACTION)


def test_json_round_trip_and_compression() -> None:
    assert configs.mlp_config_from_json(configs.to_json(IMAGES)) == IMAGES
    model = MLPClassifier(IMAGES)
    dense = 192 * 24 + 24 + 24 * 10 + 10 + 10 * 3 + 3
    assert model.compression() == pytest.approx(dense / model.num_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": (8, 8)}, r"input_shape: expected \[height, width, channels\] or \[features\]"),
        ({"input_shape": (9,)}, "input_modes of layer 0 .* multiply to 192, expected 9"),
        ({"layers": LAYERS[::-1]}, "input_modes of layer 0 .* multiply to 24, expected 192"),
        ({"layers": ()}, "layers: expected at least one"),
        ({"mean": (0.0, 0.0)}, "mean: expected 1 or 3 numbers"),
        ({"std": (0.0,)}, "std: expected positive numbers"),
        ({"activation": "swish"}, "activation: expected one of"),
        ({"labels": ("a",)}, "at least two labels"),
        ({"dropout": 1.0}, "dropout in"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    values = {"labels": ("a", "b"), "input_shape": (8, 8, 3), "layers": LAYERS}
    with pytest.raises(ValueError, match=message):
        MLPConfig(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("x", [torch.zeros(2, 8, 8, 3), torch.zeros(2, 8, 3, 8, dtype=torch.uint8)])
def test_another_input_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected torch.uint8 \[batch, 8, 8, 3\], got"):
        MLPClassifier(IMAGES)(x)
