"""Nearest class rows of an embedding: the interface of an index.

An index answers for the rows as they were when it was built. One that serves is not changed: `rebuilt` makes
another for the rows as they are now, while this one goes on answering from another thread.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from .vectors import Vectors


class Index(ABC):
    """Positions of the vectors of highest cosine. `build` once, then `query`."""

    refreshable: ClassVar[bool] = True
    library_attributes: ClassVar[tuple[str, ...]] = ()  # attributes that hold a library's objects
    radius: float = 0.0  # that `CenterVectors` had

    @abstractmethod
    def __len__(self) -> int:
        """Vectors it holds, 0 before `build`."""

    @abstractmethod
    def build(
        self, vectors: Vectors, *, seed: int = 0, step: int = 0, search_scale: float = 1.0, background: bool = False
    ) -> None:
        """Of all vectors.

        Args:
            step: of the training, for options that change with it.
            search_scale: factor on the number of trees or lists looked through.
            beside: another thread is at work that must not be held up.
        """

    @abstractmethod
    def query(self, x_nD: Tensor, k: int) -> Tensor:
        """Embeddings (n, D) -> int64 (n, k), nearest first; -1 where fewer were found."""

    def refresh(self, vectors: Vectors, changed: Tensor) -> None:
        """Takes in what these positions (m,) hold now."""
        raise ValueError(f"{type(self).__name__} cannot change what it holds: build it anew")

    def rebuilt(self, vectors: Vectors, changed: Tensor, **options: Any) -> "Index":
        """Another index, of the vectors as they are now; only those at `changed` differ from this one's.

        Takes the options of `build`.
        """
        index = self.empty_copy()
        index.build(vectors, **options)
        return index

    @abstractmethod
    def bytes_per_vector(self, width: int) -> float:
        """Memory that an index takes for each vector of this width."""

    @abstractmethod
    def multiply_adds(self, count: int, width: int, k: int) -> float:
        """Of a query for k neighbours among so many vectors of this width."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @abstractmethod
    def empty_copy(self) -> "Index":
        """With the same options, not built."""

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go through `state_dict`, since a library's objects may allow neither."""
        own = {name: None if name in self.library_attributes else value for name, value in self.__dict__.items()}
        return {"own": own, "built": self.state_dict() if len(self) else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["own"])
        if state["built"] is not None:
            self.load_state_dict(state["built"])
