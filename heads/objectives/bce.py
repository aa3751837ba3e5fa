"""Binary cross-entropy: a learned threshold for each class."""

from dataclasses import dataclass

from ..core.options import documented
from ..margins.margin import Margin
from .uniface import UniFace


@documented
@dataclass
class BCE(UniFace):
    """softplus(-(z_y - b_y)) + negative_weight * sum over the other active classes of softplus(z_j - b_j).

    Each class has a bias b, which starts at log(10 A), with A active classes in a step. The rows hold -b in their last
    column. With the margin `Softmax` z is an inner product, and -b replaces the bias of that margin.

    Source: the baseline of Zhou et al., "UniFace: Unified Cross-Entropy Loss for Deep Face Recognition", ICCV 2023;
    one-versus-all training of extreme classification, such as Renee (Jain et al., MLSys 2023).

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=CosFace(s=16, m=0.2), objective=BCE())
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    bias = "class"

    def initial_bias(self, margin: Margin, active_classes: float) -> float:
        return -super().initial_bias(margin, active_classes)
