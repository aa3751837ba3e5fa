"""Image networks of Hugging Face's transformers, with a linear layer to the embedding."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import check_patch, image_shape
from .pixels import Pixels

POOLS = ("mean", "first")


class HuggingFace(nn.Module):
    """A network of `transformers.AutoModel`, the mean of its last hidden states, and one linear layer.

    The linear layer is left out if the hidden states have `embedding_size` numbers.

    Args:
        name: kind of network (`vit`, `dinov2`, `convnext`), a folder, or a model of the hub (`facebook/dinov2-small`).
        input_shape: (C, H, W).
        embedding_size: dimension of the embeddings.
        pretrained: begin with the weights of `name`, a folder or a model of the hub; else with random ones. Images of
            one channel are repeated for a pretrained network of three, and its position embeddings are interpolated.
        config: changes of the network's config, such as `{hidden_size: 192, patch_size: 8}`.
        pool: `mean` over the hidden states, or the `first` one, which is the class token of many transformers.
        gradient_checkpointing: compute the layers again in the backward pass, which saves memory and takes time.
        pixel_mean: mean that was subtracted from the pixels of the data; a pretrained network gets those of its own.
        pixel_std: standard deviation that they were divided by.

    Raises:
        ValueError: transformers is missing, there is no such network, or an option or the images do not fit it.
    """

    def __init__(
        self,
        name: str | None = None,
        input_shape: Sequence[int] = (3, 224, 224),
        embedding_size: int = 512,
        pretrained: bool = False,
        config: dict[str, Any] | None = None,
        pool: str = "mean",
        gradient_checkpointing: bool = False,
        pixel_mean: Sequence[float] = (0.5,),
        pixel_std: Sequence[float] = (0.5,),
    ):
        super().__init__()
        channels, height, width = image_shape("hf", input_shape)
        if name is None:
            raise ValueError("backbone=hf needs a network; backbone.name=vit has random weights")
        if pool not in POOLS:
            raise ValueError(f"backbone.pool={pool} must be one of {', '.join(POOLS)}")
        size = height if height == width else (height, width)
        fitted = {} if pretrained else {"num_channels": channels, "image_size": size}
        self.network = load_network(name, pretrained, fitted, dict(config or {}))
        patch = getattr(self.network.config, "patch_size", None)
        if isinstance(patch, int):
            check_patch(patch, "backbone.config.patch_size", (height, width))
        self.pixels = Pixels(channels, *published_pixels(name), pixel_mean, pixel_std) if pretrained else nn.Identity()
        self.pool = pool
        self.options = {}
        if pretrained and "interpolate_pos_encoding" in inspect.signature(self.network.forward).parameters:
            self.options["interpolate_pos_encoding"] = True
        if gradient_checkpointing:
            if not self.network.supports_gradient_checkpointing:
                raise ValueError(f"backbone.gradient_checkpointing=true is not offered by {name}; set it to false")
            self.network.activation_checkpointing_enable({"use_reentrant": False})
        features = self._count_features(name, input_shape)
        self.fc = nn.Identity() if features == embedding_size else nn.Linear(features, embedding_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings: (N, C, H, W) -> (N, embedding_size)."""
        embeddings: Tensor = self.fc(self._features(images))
        return embeddings

    def _features(self, images: Tensor) -> Tensor:
        """Return the pooled hidden states: (N, C, H, W) -> (N, D)."""
        hidden: Tensor = self.network(self.pixels(images), **self.options).last_hidden_state
        if hidden.dim() == 4:  # convolutional networks: (N, D, H, W)
            if self.pool == "first":
                raise ValueError("backbone.pool=first takes the class token, which this network has not; use mean")
            return hidden.mean((2, 3))
        return hidden.mean(1) if self.pool == "mean" else hidden[:, 0]

    def _count_features(self, name: str, input_shape: Sequence[int]) -> int:
        """Return the size of the pooled hidden states. Raise ValueError for images that the network cannot take."""
        self.eval()
        try:
            with torch.no_grad():
                features = self._features(torch.zeros(1, *input_shape)).shape[1]
        except Exception as error:  # networks for other inputs fail in ways of their own
            raise ValueError(
                f"backbone.name={name} does not take images of shape {list(input_shape)} ({first_line(error)}); "
                "choose another data.size, or change the network with backbone.config"
            ) from None
        self.train()
        return features


def load_network(name: str, pretrained: bool, fitted: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """Return a network.

    Args:
        name: kind, folder or model of the hub.
        pretrained: whether to load its weights.
        fitted: values for the options of its config that describe images, where it has them.
        changes: the user's values for options of its config.
    """
    try:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
    except ImportError:
        raise ValueError("backbone=hf needs transformers; pip install -e '.[hf]'") from None
    if name in CONFIG_MAPPING:
        if pretrained:
            raise ValueError(f"backbone.name={name} is a kind of network without weights; give a folder or a model")
        config = AutoConfig.for_model(name)
    else:
        config = _from_hub(AutoConfig, name, trust_remote_code=False)
    known = config.to_dict()
    unknown = [option for option in changes if option not in known]
    if unknown:
        raise ValueError(
            f"backbone.config.{unknown[0]}={changes[unknown[0]]} is not an option of {name}, which has "
            f"{', '.join(sorted(known))}"
        )
    for option, value in {**{key: value for key, value in fitted.items() if key in known}, **changes}.items():
        setattr(config, option, value)
    try:
        network = (
            AutoModel.from_pretrained(name, config=config, trust_remote_code=False, use_safetensors=True)
            if pretrained
            else AutoModel.from_config(config)
        )
    except (OSError, RuntimeError, ValueError, TypeError, ImportError) as error:
        raise ValueError(f"backbone.name={name} cannot be built ({first_line(error)})") from None
    # Its pooling layer is not used, and its weights would be stored without being trained.
    pooler = getattr(network, "pooler", None)
    if pooler is not None and any(True for _ in pooler.parameters()):
        network.pooler = None
    return network


def published_pixels(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of the pixels that the weights of a folder or a model were trained on."""
    from transformers.models.auto.image_processing_auto import get_image_processor_config

    processor = _from_hub(get_image_processor_config, name)
    if "image_mean" not in processor or "image_std" not in processor:
        raise ValueError(
            f"backbone.name={name} has no preprocessor_config.json with image_mean and image_std, so that its pixels "
            "are unknown; add the file, or train with backbone.pretrained=false"
        )
    return processor["image_mean"], processor["image_std"]


def _from_hub(load: Any, name: str, **options: Any) -> Any:
    """Return what `load` reads of a folder or a model of the hub."""
    try:
        return getattr(load, "from_pretrained", load)(name, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"backbone.name={name} is neither a kind of network, nor a folder with a model, nor a model that can be "
            f"loaded from the hub ({first_line(error)})"
        ) from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message that is not empty."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
