"""States that know which ones may follow them."""

from enum import Enum
from typing import Self


class IllegalTransition(Exception):
    """A state cannot follow another: a fault of ours."""


class State(Enum):
    """A state of something that ends."""

    @property
    def following(self) -> frozenset[Self]:
        """The states that may follow."""
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return not self.following

    def to(self, state: Self) -> Self:
        """Return the state that follows. Raises IllegalTransition."""
        if state not in self.following:
            raise IllegalTransition(f"{type(self).__name__}: what is {self.value} cannot become {state.value}")
        return state
