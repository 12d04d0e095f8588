"""The served models as requests choose them, and bodies whose bounds are those of the model that they name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeGuard, TypeVar

from pydantic import BaseModel, ValidatorFunctionWrapHandler, WrapValidator

from serve_app.config import AppArgs, ModelConfig
from serve_app.errors import InvalidRequest
from serve_app.ingress.pictures import WithPictures
from serve_app.schemas import GenerateRequest

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """A model: its settings, the class that validates requests for it, and what generates them.

    `named` is its name in the config, None for an only model without.
    """

    named: str | None
    args: AppArgs
    request: type[GenerateRequest]
    service: WithPictures

    @property
    def name(self) -> str:
        """What it is called. Raises NotReady where only its replicas know, and none has said it."""
        return self.named or self.service.model().name

    @property
    def name_if_known(self) -> str | None:
        """What it is called; None where its replicas have still to say it. Asking wakes nobody."""
        known = self.service.known_model()
        return self.named or (known.name if known else None)

    @property
    def model(self) -> ModelConfig:
        return self.args.model


class Offers:
    """All offers, the default first."""

    def __init__(self, *offers: Offer) -> None:
        self._offers = offers

    def __iter__(self) -> Iterator[Offer]:
        return iter(self._offers)

    @property
    def default(self) -> Offer:
        return self._offers[0]

    @property
    def names(self) -> str:
        """All names in words. Raises NotReady as `Offer.name` does."""
        return ", ".join(f'"{offer.name}"' for offer in self)

    def called(self, name: str) -> Offer | None:
        """Return the offer of a name, or whose weights lie at this path. Raises NotReady as `Offer.name` does."""
        by_name = (offer for offer in self if offer.name == name)
        by_path = (offer for offer in self if offer.model.path == name)
        return next(by_name, None) or next(by_path, None)

    def chosen(self, name: str | None, param: str = "model") -> Offer:
        """Return the offer of a name, without one the default. Raises InvalidRequest if there is none, NotReady."""
        offer = self.default if name is None else self.called(name)
        if offer is None:
            raise InvalidRequest(f'{param}: "{name}" is not served here; choose one of {self.names}', param)
        return offer


Choose = Callable[[str | None], Offer]
"""Finds the model that a request names, None: it names none. Raises ServiceError."""

NameIn = Callable[[Mapping[str, Any]], Any]
"""Returns what a body that is not validated yet says of its model."""


class Bodies(Generic[Body]):
    """The classes that validate the bodies of a route: each offer's has its own bounds and defaults."""

    def __init__(self, offers: Offers, make: Callable[[Offer], type[Body]], choose: Choose, name_in: NameIn) -> None:
        self._classes = {offer: make(offer) for offer in offers}
        self._offers = {kind: offer for offer, kind in self._classes.items()}
        self.default = self._classes[offers.default]
        """The default model's, which OpenAPI shows."""
        self._choose = choose
        self._name_in = name_in

    @property
    def annotation(self) -> Any:
        """The type of a route's body."""
        return Annotated[self.default, WrapValidator(self._validated)]

    def class_for(self, body: Mapping[str, Any]) -> type[Body]:
        """Return the class of the model that a body names. Raises ServiceError."""
        name = self._name_in(body)
        return self._classes[self._choose(name if _is_text(name) else None)]

    def offer_of(self, body: Body) -> Offer:
        """Return the model that a valid body is for."""
        return self._offers[type(body)]

    def _validated(self, body: Any, of_default: ValidatorFunctionWrapHandler) -> Body:
        kind = self.class_for(body) if isinstance(body, Mapping) else self.default
        valid: Body = of_default(body) if kind is self.default else kind.model_validate(body)
        return valid


def _is_text(name: Any) -> TypeGuard[str]:
    """Return whether this can be a name. Anything else, such as half a character, is for the class to refuse."""
    return isinstance(name, str) and not any("\ud800" <= character <= "\udfff" for character in name)
