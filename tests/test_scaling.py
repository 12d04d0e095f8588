from dataclasses import dataclass, field, replace

import pytest

from serve_app.scaling import IMAGES, PER_SECOND, QUEUED, ImagesPolicy


@dataclass
class Context:
    """Serve's context of a policy, as far as it is used."""

    aggregated_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    target_num_replicas: int = 2


def measured(images: list[float], queued: float, paces: list[float]) -> Context:
    values = {IMAGES: images, QUEUED: [queued] * len(images), PER_SECOND: paces}
    metrics = {name: {str(i): n for i, n in enumerate(numbers)} for name, numbers in values.items()}
    return Context(metrics, len(images))


@pytest.mark.parametrize(
    ("images", "queued", "paces", "wanted"),
    [
        ([0, 0], 0, [2, 2], 0),  # Serve keeps the fewest
        ([4, 4], 12, [2, 2], 2),  # 20 images, each replica finishes 10 in 5 s; two are kept while any are queued
        ([8, 8], 84, [2, 2], 10),
        ([8, 8], 84, [0, 4], 5),  # one that has finished nothing yet says nothing about the pace
        ([8, 8], 4, [0, 0], 5),  # nothing was finished yet: one for each batch
        ([4, 4, 4, 4], 0, [4, 4, 4, 4], 0.8),
    ],
)
def test_as_many_replicas_as_finish_all_images_in_time(
    images: list[float], queued: float, paces: list[float], wanted: float
) -> None:
    assert ImagesPolicy(target_wait_s=5, capacity=4, at_first=1)(measured(images, queued, paces)) == (wanted, {})


def test_nothing_changes_while_nothing_is_known() -> None:
    policy = ImagesPolicy(target_wait_s=5, capacity=4, at_first=1)
    assert policy(Context(target_num_replicas=3)) == (3, {})
    assert policy(Context({IMAGES: {}}, target_num_replicas=3)) == (3, {})


def test_a_deployment_begins_with_so_many_and_keeps_those_it_has() -> None:
    policy = ImagesPolicy(target_wait_s=5, capacity=4, at_first=2)
    assert policy(Context(target_num_replicas=1)) == (2, {})
    assert policy(Context(target_num_replicas=3)) == (3, {})
    policy(measured([0], 0, [2]))
    assert policy(Context(target_num_replicas=0)) == (0, {}), "it has fallen asleep"


def test_none_is_stopped_while_images_are_queued() -> None:
    assert ImagesPolicy(target_wait_s=100, capacity=4, at_first=1)(measured([8, 8, 8], 1, [1, 1, 1]))[0] == 3


def test_none_that_starts_is_stopped_while_images_are_queued() -> None:
    policy = ImagesPolicy(target_wait_s=100, capacity=4, at_first=1)
    assert policy(replace(measured([8, 8], 1, [1, 1]), target_num_replicas=3))[0] == 3
