"""Networks of the library timm (Wightman, 2019), with a linear layer to the embedding."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from . import check_patch, image_shape
from .pixels import Pixels


class Timm(nn.Module):
    """A network of `timm.create_model`, whose classifier is the linear layer to the embedding.

    Args:
        name: name of the network, `resnet50d` or `vit_tiny_patch16_224.augreg_in21k`; see `timm.list_models()`.
        input_shape: (C, H, W).
        embedding_size: dimension of the embeddings.
        pretrained: begin with published weights; images of one channel are repeated for three.
        options: other arguments of the network, such as `{drop_path_rate: 0.1}`.
        gradient_checkpointing: compute the blocks again in the backward pass, which saves memory and takes time.
        pixel_mean: mean that was subtracted from the pixels of the data; a pretrained network gets those of its own.
        pixel_std: standard deviation that they were divided by.

    Raises:
        ValueError: timm or torchvision is missing, there is no such network, or an option does not fit it.
    """

    def __init__(
        self,
        name: str | None = None,
        input_shape: Sequence[int] = (3, 224, 224),
        embedding_size: int = 512,
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        pixel_mean: Sequence[float] = (0.5,),
        pixel_std: Sequence[float] = (0.5,),
    ):
        super().__init__()
        channels, height, width = image_shape("timm", input_shape)
        if name is None:
            raise ValueError("backbone=timm needs a network; backbone.name=resnet50d is one")
        try:
            import timm
        except ImportError as error:
            raise ValueError(
                f"backbone=timm needs timm and torchvision ({error}); pip install timm torchvision, in builds that fit "
                "your torch"
            ) from None
        if name.partition(".")[0] not in timm.list_models():
            raise ValueError(f"backbone.name={name} is not a network of timm; timm.list_models() lists them")
        given: dict[str, Any] = {"num_classes": embedding_size, "pretrained": pretrained}
        if not pretrained:
            given["in_chans"] = channels
        if timm.get_pretrained_cfg(name).fixed_input_size:
            given["img_size"] = (height, width)
        try:
            self.network = timm.create_model(name, **{**given, **(options or {})})
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ValueError(f"backbone.name={name} cannot be built for {height}x{width} pixels ({error})") from None
        patches = getattr(getattr(self.network, "patch_embed", None), "patch_size", None)
        if patches is not None:
            check_patch(max(patches), "backbone.options.patch_size", (height, width))
        self.network.set_grad_checkpointing(gradient_checkpointing)
        published = self.network.pretrained_cfg
        self.pixels = (
            Pixels(channels, published["mean"], published["std"], pixel_mean, pixel_std)
            if pretrained
            else nn.Identity()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings: (N, C, H, W) -> (N, embedding_size)."""
        embeddings: Tensor = self.network(self.pixels(images))
        return embeddings
