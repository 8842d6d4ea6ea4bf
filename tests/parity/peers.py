"""Networks that nobody here wrote, with random weights, and how they are compared with ours."""

import keras
import numpy as np
import pytest
import torch

import keras_resnet

# timm imports torchvision, which finds its compiled operators only beside another build of torch;
# timm's networks use none of them, so declaring the two that it asks for is enough.
_operators = torch.library.Library("torchvision", "DEF")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

TOLERANCE = 1e-4  # of the largest magnitude of what is compared


def sized(value, name: str | None):
    """A parameter of a test, marked `large` if the network of that name has over 40 M weights."""
    is_large = name is not None and keras_resnet.get_counts(name).parameters > 40e6
    return pytest.param(value, marks=pytest.mark.large) if is_large else value


def by_depth(template: str, *depths: int) -> list:
    return [sized(depth, template.format(depth)) for depth in depths]


def randomized(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fresh normalizations all multiply by 1 and add 0, so an error in them would cancel."""
    rng = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.empty_like(like).uniform_(low, high, generator=rng)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
                module.weight.copy_(uniform(module.weight, 0.3, 1.0))
                module.bias.copy_(uniform(module.bias, -0.5, 0.5))
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.copy_(uniform(module.running_mean, -0.5, 0.5))
                module.running_var.copy_(uniform(module.running_var, 0.2, 3.0))
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.bias is not None:
                module.bias.copy_(uniform(module.bias, -0.5, 0.5))
    return network.eval()


def images(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, height, width, channels)).astype(np.float32)


def with_features(model: keras.Model) -> keras.Model:
    """A model's feature maps, and its logits or its last output."""
    features = keras_resnet.feature_model(model, model.architecture.levels).output
    return keras.Model(model.inputs, {**features, "output": model.output})


def outputs_of(model: keras.Model, pixels: np.ndarray) -> dict[str, np.ndarray]:
    values = with_features(model)(keras.ops.convert_to_tensor(pixels), training=False)
    return {name: keras.ops.convert_to_numpy(value) for name, value in values.items()}


def torch_input(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def from_torch(value: torch.Tensor) -> np.ndarray:
    """To a numpy array, NHWC."""
    array = value.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, as a part of the largest magnitude."""
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all()
    largest = np.abs(theirs).max()
    assert largest > 0
    return float(np.abs(ours - theirs).max() / largest)


def largest_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    assert set(ours) == set(theirs)
    return max(difference(ours[name], theirs[name]) for name in theirs)
