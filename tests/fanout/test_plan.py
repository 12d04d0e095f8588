import pytest

from serve_app.errors import InvalidRequest
from serve_app.fanout.plan import plan_of, preview_steps_of, seeds_of, slots_of, variations_of
from serve_app.recipe import Phase, Variation
from serve_app.schemas import GenerateRequest
from tests.fakes import REPLICA


@pytest.mark.parametrize(
    ("seed", "images", "expected"), [(0, 3, [0, 1, 2]), (2**32 - 2, 4, [2**32 - 2, 2**32 - 1, 0, 1]), (7, 1, [7])]
)
def test_seeds_count_up_from_the_first_and_wrap(seed: int, images: int, expected: list[int]) -> None:
    assert seeds_of(GenerateRequest(prompt="a", seed=seed, num_images=images)) == expected


def test_without_a_seed_the_base_is_random() -> None:
    request = GenerateRequest(prompt="a", num_images=2)
    first, second = seeds_of(request), seeds_of(request)
    assert first != second
    assert first[1] == (first[0] + 1) % 2**32


def test_listed_seeds_are_taken_as_they_are() -> None:
    assert seeds_of(GenerateRequest(prompt="a", seeds=[9, 3, 5])) == [9, 3, 5]


def test_a_branch_is_told_what_has_no_effect() -> None:
    request = GenerateRequest(
        prompt="a",
        negative_prompt="dull",
        guidance_scale=1,
        init_image="sha256:0",
        strength=0.7,
        prompt_syntax="weighted",
        before=(
            Phase(until_step=6, prompt="b"),
            Phase(until_step=8, negative_prompt="grey"),
            Phase(until_step=9, prompt="[b|c]", negative_prompt="grey", guidance_scale=3.0),
        ),
    )
    first, second, third = plan_of(request, REPLICA, 60, 225).warnings
    assert first == "before.0 has no effect: strength leaves out the first 6 steps"
    assert second == "before.1.negative_prompt has no effect: guidance_scale is 1 or less"
    assert third.startswith("before.2.prompt: read as plain words: [b|c]")
    heavy = request.model_copy(update={"before": (Phase(until_step=8, prompt_2="(b:1001)"),)})
    with pytest.raises(InvalidRequest, match=r"before\.0\.prompt_2: \"b\" weighs 1001;"):
        plan_of(heavy, REPLICA, 60, 225)


def test_relatives_have_one_seed_and_their_last_variation_counts_up() -> None:
    variations = tuple(Variation(seed=seed, strength=far) for seed, far in ((5, 0.5), (9, 0), (2**32 - 1, 0.2)))
    request = GenerateRequest(prompt="a", seed=7, num_images=3, variations=variations)
    assert seeds_of(request) == [7, 7, 7]
    kept = Variation(seed=5, strength=0.5)
    expected = [(kept, Variation(seed=seed, strength=0.2)) for seed in (2**32 - 1, 0, 1)]
    assert variations_of(request, 3) == expected
    assert [slot.variations for slot in slots_of(request, seeds_of(request), "ddim")] == expected


def test_listed_seeds_stay_and_variations_without_a_seed_are_random() -> None:
    request = GenerateRequest(prompt="a", seeds=[3, 4], variations=(Variation(strength=0.1),))
    assert seeds_of(request) == [3, 4]
    (first,), (second,) = variations_of(request, 2)
    assert first.seed is not None
    assert second.seed == (first.seed + 1) % 2**32
    assert variations_of(request, 2) != [(first,), (second,)]


def test_a_strength_of_0_is_no_variation() -> None:
    request = GenerateRequest(prompt="a", seed=7, num_images=2, variations=(Variation(seed=5, strength=0),))
    assert (seeds_of(request), variations_of(request, 2)) == ([7, 8], [(), ()])


def test_slots_carry_everything_a_picture_depends_on() -> None:
    request = GenerateRequest(
        prompt="a",
        negative_prompt="b",
        width=64,
        height=72,
        num_inference_steps=3,
        guidance_scale=2.5,
        output_format="webp",
        output_compression=80,
        preview_steps=[2, 1],
        grid=True,
    )
    first, second = slots_of(request, [5, 6], "ddim")
    assert (first.index, first.seed, second.index, second.seed) == (0, 5, 1, 6)
    assert (first.recipe.prompt, first.recipe.negative_prompt, first.recipe.width, first.recipe.height) == (
        "a",
        "b",
        64,
        72,
    )
    assert (first.recipe.num_inference_steps, first.recipe.guidance_scale, first.recipe.scheduler) == (3, 2.5, "ddim")
    assert (first.output.output_format, first.output.output_compression, first.preview_steps, first.keep_pixels) == (
        "webp",
        80,
        frozenset({1, 2}),
        True,
    )


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [
        (5, 20, {1, 5, 10, 15}),
        (1, 4, {1, 2, 3}),
        (0, 4, set()),
        (100, 4, {1}),
        (2, 4, {1, 2}),
        (5, 1, set()),
        (4, 4, {1}),
    ],
)
def test_previews_come_after_the_first_and_every_so_many_steps_but_never_the_last(
    every: int, steps: int, expected: set[int]
) -> None:
    assert preview_steps_of(GenerateRequest(prompt="a", num_inference_steps=steps, preview_every=every)) == expected


def test_listed_preview_steps_are_taken_as_they_are() -> None:
    assert preview_steps_of(GenerateRequest(prompt="a", preview_steps=[9, 3])) == {3, 9}
    assert preview_steps_of(GenerateRequest(prompt="a", preview_steps=[])) == set()


def test_a_named_scheduler_wins_over_the_models() -> None:
    request = GenerateRequest(prompt="a", scheduler="unipc")
    assert slots_of(request, [1], "ddim")[0].recipe.scheduler == "unipc"


def test_what_a_strength_leaves_out_is_no_work_and_no_preview() -> None:
    request = GenerateRequest(prompt="a", init_image="x", strength=0.6, num_inference_steps=20, preview_every=4)
    assert request.first_step == 8
    assert preview_steps_of(request) == {9, 12, 16}
    assert [GenerateRequest(prompt="a", init_image="x", strength=s).first_step for s in (0.05, 0.29, 0.99, 1)] == [
        19,
        15,
        1,
        0,
    ]


@pytest.mark.parametrize("heavy", ["(apple:1000.5)", "(apple:-9999)", "(" * 200 + "apple", "(apple:" + "9" * 400 + ")"])
@pytest.mark.parametrize("field", ["prompt", "negative_prompt_2"])
def test_weights_beyond_all_bounds_are_refused(field: str, heavy: str) -> None:
    request = GenerateRequest.model_validate({"prompt": "a", field: heavy, "prompt_syntax": "weighted"})
    with pytest.raises(InvalidRequest, match='"apple" weighs') as refused:
        plan_of(request, REPLICA, 60, 225)
    assert refused.value.param == field
    plan_of(request.model_copy(update={"prompt_syntax": "plain"}), REPLICA, 60, 225)
