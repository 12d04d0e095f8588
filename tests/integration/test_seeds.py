from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.integration.conftest import Running
from tests.integration.test_generate import picture


def images(answer: dict[str, Any]) -> dict[int, str]:
    return {image["seed"]: image["b64_json"] for image in answer["images"]}


def test_a_seed_gives_the_same_picture_however_it_is_asked_for(app: Running) -> None:
    four = images(app.generate(num_images=4, seed=20))
    again = images(app.generate(num_images=4, seed=20))
    listed = images(app.generate(seeds=[23, 21, 20, 22]))
    streamed = {e["seed"]: e["b64_json"] for e in app.stream(num_images=4, seed=20) if e["type"] == "image"}
    assert four == again == listed == streamed


def test_a_single_image_is_the_same_on_every_replica(app: Running) -> None:
    """One image at a time goes to the replica that waited longest, so ten of them have seen both."""
    before = {r.id: r.finished for r in app.replicas()}
    pictures = {app.generate(seeds=[33])["images"][0]["b64_json"] for _ in range(10)}
    assert len(pictures) == 1
    assert all(r.finished > before[r.id] for r in app.replicas()), "both replicas have generated"


def test_relatives_are_generated_again_from_what_their_answers_say(app: Running) -> None:
    asked = {"seed": 7, "num_images": 4, "variations": [{"seed": 100, "strength": 0.2}]}
    four = app.generate(**asked)["images"]
    assert [(image["seed"], image["variations"]) for image in four] == [
        (7, [{"seed": seed, "strength": 0.2}]) for seed in range(100, 104)
    ]
    for image in four:
        (alone,) = app.generate(num_images=1, seed=image["seed"], variations=image["variations"])["images"]
        assert alone["b64_json"] == image["b64_json"]
    start, *_ = streamed = app.stream(**asked)
    assert start["variations"] == [image["variations"] for image in four]
    assert {e["index"]: e["b64_json"] for e in streamed if e["type"] == "image"} == {
        image["index"]: image["b64_json"] for image in four
    }


def test_relatives_are_nearer_than_other_seeds(app: Running) -> None:
    def pixels(**asked: Any) -> Any:
        return picture(app.generate(num_images=1, **asked)["images"][0]["b64_json"]).astype(float)

    own, other = pixels(seed=7), pixels(seed=8)
    near, far = (pixels(seed=7, variations=[{"seed": 8, "strength": strength}]) for strength in (0.1, 0.6))
    away = [abs(one - own).mean() for one in (near, far, other)]
    assert 0 < away[0] < away[1] < away[2]
    assert abs(pixels(seed=7, variations=[{"seed": 8, "strength": 1}]) - other).mean() == 0
    assert abs(pixels(seed=7, variations=[{"seed": 8, "strength": 0}]) - own).mean() == 0


def test_neighbours_do_not_matter(app: Running) -> None:
    """The same four images, alone and in a crowd of other sizes, schedulers and step counts."""
    alone = images(app.generate(num_images=4, seed=40, preview_every=0))

    def crowd(i: int) -> dict[str, Any]:
        if i == 3:
            return app.generate(num_images=4, seed=40)
        return app.generate(
            num_images=3,
            seed=1000 * i,
            prompt=f"crowd {i}",
            width=64 + 8 * i,
            scheduler=("euler_a", "ddim", "unipc")[i % 3],
            num_inference_steps=3 + i,
        )

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(crowd, range(6)))
    assert all(image["status"] == "succeeded" for answer in answers for image in answer["images"])
    assert images(answers[3]) == alone
