"""The interface of an index of nearest class rows.

An index answers for the rows at the time when it was built, and is not changed while it is in use. `rebuilt` makes
another index of the current rows, during which another thread can query this one.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from ..core.options import Configured, refuse_renamed_methods
from .vectors import Vectors


@dataclass(eq=False)
class Index(Configured, ABC):
    """Find the vectors of highest cosine: `build` once, then `query`.

    Vectors are float32 of unit length, embeddings float32 (n, D), positions int64. A subclass is a dataclass of its
    options, `@dataclass(eq=False)`.

    Examples:
        >>> [kind.__name__ for kind in (Annoy, Exact, IVF) if issubclass(kind, Index)]
        ['Annoy', 'Exact', 'IVF']
    """

    refreshable: ClassVar[bool] = True  # whether `refresh` works
    library_attributes: ClassVar[tuple[str, ...]] = ()  # attributes with a library's objects, which copies leave out
    radius: float = field(default=0.0, init=False, repr=False)  # radius of its `CenterVectors`

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        refuse_renamed_methods(cls)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of vectors, 0 before `build`."""

    @abstractmethod
    def build(
        self, vectors: Vectors, *, seed: int = 0, step: int = 0, search_scale: float = 1.0, background: bool = False
    ) -> None:
        """Index all vectors.

        Args:
            vectors: n vectors of unit length, float32 (n, D).
            seed: seed of the index's random choices.
            step: optimizer step, for options that follow a schedule.
            search_scale: factor on the number of trees, or of lists that a query searches.
            background: whether training continues in another thread, which the build must not block.
        """

    @abstractmethod
    def query(self, x_nD: Tensor, k: int) -> Tensor:
        """Return the positions of the k vectors of highest cosine with each embedding.

        Args:
            x_nD: embeddings (n, D), float32.
            k: number of neighbours.

        Returns:
            int64 (n, k), nearest first, on the device of the embeddings; -1 where fewer were found.
        """

    def refresh(self, vectors: Vectors, changed: Tensor) -> None:
        """Replace the vectors at these positions (m,) in place with their current values.

        Raises:
            ValueError: the index cannot be changed (`refreshable` is False).
        """
        raise ValueError(f"{type(self).__name__} cannot change its vectors; build a new index")

    def rebuilt(self, vectors: Vectors, changed: Tensor, **options: Any) -> "Index":
        """Return another index of the current vectors and leave this one unchanged.

        Args:
            vectors: the current vectors.
            changed: int64 (m,), the positions at which they differ from this index's.
            options: options of `build`.
        """
        index = self.empty_copy()
        index.build(vectors, **options)
        return index

    @abstractmethod
    def bytes_per_vector(self, width: int) -> float:
        """Return the memory in bytes for each vector of this width."""

    @abstractmethod
    def multiply_adds(self, count: int, width: int, k: int) -> float:
        """Return the multiply-adds of a query for k neighbours among `count` vectors of this width."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the built index as tensors and numbers."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` of an index with the same options returned."""

    def empty_copy(self) -> Self:
        """Return an index with the same options that is not built."""
        return replace(self)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle through `state_dict`, since a library's objects may allow neither."""
        own = {name: None if name in self.library_attributes else value for name, value in self.__dict__.items()}
        return {"own": own, "built": self.state_dict() if len(self) else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["own"])
        if state["built"] is not None:
            self.load_state_dict(state["built"])


def check_index(index: object) -> None:
    """Raise a ValueError if an option `index` is neither None nor an index."""
    if index is not None and not isinstance(index, Index):
        raise ValueError(f"index={index!r} must be an index object, such as index=Annoy(num_trees=50) or Exact()")
