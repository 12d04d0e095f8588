"""From a request to its plan: slots, deadline, effective parameters, warnings."""

import secrets
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve_app.branches import branched
from serve_app.errors import InvalidRequest, NotReady
from serve_app.fanout.prompt_syntax import syntax_warning
from serve_app.messages import ReplicaStatus, Slot
from serve_app.prompt_weights import LARGEST_WEIGHT, too_heavy
from serve_app.recipe import (
    OF_MASKS,
    OF_PICTURES,
    PROMPTS,
    SEED_SPAN,
    Changes,
    Output,
    PromptSyntax,
    Recipe,
    SchedulerName,
    Variation,
)
from serve_app.samplers import SAMPLERS, SCHEDULES, needs_spacing, refusal
from serve_app.schemas import GenerateRequest, Parameters, ServedScheduler, StartEvent

_FEW_STEPS = 8
_LONGEST_QUOTED = 40


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that can be generated, before anything is. `started` is monotonic."""

    id: str
    started: float
    timeout_s: float
    wants_grid: bool
    parameters: Parameters
    slots: list[Slot]
    warnings: list[str]
    best: int | None = None
    """How many of its sketches are finished without being asked for; None: those that somebody asks for."""

    @property
    def deadline(self) -> float:
        """When the request ends whatever is still missing; monotonic."""
        return self.started + self.timeout_s

    def start_event(self) -> StartEvent:
        varied = any(slot.variations for slot in self.slots)
        return StartEvent(
            id=self.id,
            seeds=[slot.seed for slot in self.slots],
            variations=[slot.variations for slot in self.slots] if varied else [],
            parameters=self.parameters,
            warnings=self.warnings,
        )


def plan_of(
    request: GenerateRequest, replica: ReplicaStatus, longest_s: float, max_prompt_tokens: int, canvas: Any = None
) -> Plan:
    """Return the plan of a request that starts now; it has `longest_s` seconds, or less if it says so.

    `canvas` is a reference to what its pictures have become. Raises InvalidRequest where the served model cannot do it.
    """
    started = time.monotonic()
    if canvas is not None and not replica.takes_pictures:
        message = "init_image: the served model's VAE has no encoder, so it cannot go on from a picture"
        raise InvalidRequest(message, "init_image")
    check_sketches(request, replica)
    id = request.id or str(uuid.uuid4())
    slots = [
        replace(
            slot,
            max_prompt_tokens=max_prompt_tokens,
            pause_after=request.sketched_at,
            score_by=request.keep.by if request.keep else None,
        )
        for slot in slots_of(request, seeds_of(request), replica.scheduler, id, canvas)
    ]
    recipe, output = slots[0].recipe, slots[0].output
    check_weights(recipe)
    check_sampling(recipe, replica.schedulers)
    return Plan(
        id=id,
        started=started,
        timeout_s=min(request.timeout_s or longest_s, longest_s),
        wants_grid=request.grid,
        parameters=Parameters(**dict(recipe), **dict(output), model=replica.model),
        slots=slots,
        warnings=warnings_of(request, slots[0], replica),
        best=request.keep.best if request.keep else None,
    )


def check_sketches(request: GenerateRequest, replica: ReplicaStatus) -> None:
    """Raise InvalidRequest if the served model can make no sketches, or nothing can compare them as asked."""
    if request.sketched_at is not None and not replica.has_previews:
        field = "keep" if request.keep else "pause_after"
        message = f"{field}: the served model has no preview decoder, so there would be no sketch to look at"
        raise InvalidRequest(message, field)
    if request.keep and request.keep.by not in replica.scorers:
        advice = f"choose one of {', '.join(replica.scorers)}"
        raise InvalidRequest(f'keep.by: nothing here compares sketches by "{request.keep.by}"; {advice}', "keep.by")


def branch_of(recipe: Recipe, step: int, changes: Changes) -> Recipe:
    """Return the recipe of an image that leaves another after a step. Raises InvalidRequest."""
    try:
        left = branched(recipe, step, changes.settings)
    except ValueError as error:
        raise InvalidRequest(str(error), "before") from error
    check_weights(left)
    return left


def check_weights(recipe: Recipe) -> None:
    """Raise InvalidRequest if a prompt weighs something beyond all bounds."""
    for field, text in recipe.texts.items() if recipe.prompt_syntax == "weighted" else ():
        if piece := too_heavy(text):
            most = f"weights lie between -{LARGEST_WEIGHT} and {LARGEST_WEIGHT}"
            raise InvalidRequest(
                f'{field}: "{piece.text.strip()[:_LONGEST_QUOTED]}" weighs {piece.weight:.9g}; {most}', field
            )


def check_sampling(recipe: Recipe, schedulers: Sequence[SchedulerName]) -> None:
    """Raise InvalidRequest unless a recipe's scheduler is one of a model's and can do what is asked of it."""
    scheduler = recipe.scheduler
    if scheduler is None or scheduler not in schedulers:
        advice = f"choose one of {', '.join(schedulers)}"
        raise InvalidRequest(f"scheduler: {scheduler} cannot sample the served model; {advice}", "scheduler")
    if refused := refusal(scheduler, recipe.sigma_schedule, recipe.num_inference_steps, recipe.first_step):
        field, why = refused
        raise InvalidRequest(f"{field}: {why}", field)


def served_schedulers(replicas: Sequence[ReplicaStatus]) -> list[ServedScheduler]:
    """Return what `check_sampling` lets pass, from what replicas say. Raises NotReady if there are none."""
    if not replicas:
        raise NotReady("no replica is there to say what its model takes; ask GET /health and try again")
    replica = replicas[0]
    return [
        ServedScheduler(
            name=name,
            said=SAMPLERS[name].said,
            default=name == replica.scheduler,
            sigma_schedules=[schedule for schedule in SCHEDULES if schedule in SAMPLERS[name].schedules],
        )
        for name in replica.schedulers
    ]


def seeds_of(request: GenerateRequest) -> list[int]:
    """Return one seed for each image: those listed, or consecutive ones from the given or a random base.

    Relatives of one image all have that one's seed.
    """
    if request.seeds is not None:
        return list(request.seeds)
    base = _chosen(request.seed)
    return [base if request.relatives else (base + i) % SEED_SPAN for i in range(request.num_images)]


def variations_of(request: GenerateRequest, images: int) -> list[tuple[Variation, ...]]:
    """Return the variations of each image: those asked for, of which the last one's seed counts up."""
    if not request.relatives:
        return [()] * images
    *kept, last = (one.model_copy(update={"seed": _chosen(one.seed)}) for one in request.relatives)
    assert last.seed is not None
    return [(*kept, last.model_copy(update={"seed": (last.seed + i) % SEED_SPAN})) for i in range(images)]


def _chosen(seed: int | None) -> int:
    return secrets.randbelow(SEED_SPAN) if seed is None else seed


def preview_steps_of(request: GenerateRequest) -> frozenset[int]:
    """Return the steps to preview after: those listed, or the first that is done and every so many; never the last."""
    if request.preview_steps is not None:
        return frozenset(request.preview_steps)
    if not request.preview_every:
        return frozenset()
    done, last = request.first_step, request.num_inference_steps
    every = range(request.preview_every, last, request.preview_every)
    return frozenset({done + 1, *(step for step in every if step > done)} - {last})


def slots_of(
    request: GenerateRequest,
    seeds: Sequence[int],
    default_scheduler: SchedulerName,
    generation: str = "",
    canvas: Any = None,
) -> list[Slot]:
    """Return the slots of a request, one for each seed; `generation` is its id."""
    recipe = Recipe.of(request).model_copy(update={"scheduler": request.scheduler or default_scheduler})
    output, preview_steps = Output.of(request), preview_steps_of(request)
    return [
        Slot(index, seed, recipe, output, preview_steps, request.grid, canvas, generation, variations=variations)
        for index, (seed, variations) in enumerate(zip(seeds, variations_of(request, len(seeds)), strict=True))
    ]


def warnings_of(request: GenerateRequest, slot: Slot, replica: ReplicaStatus) -> list[str]:
    """Return a sentence for each setting that has no effect or is seldom meant; `slot` is any one of the request."""
    warnings = []
    avoided = ("negative_prompt", "negative_prompt_2", "negative_original_size", "negative_target_size")
    guided = [phase.guided for phase in request.phases]
    unguided = () if any(guided) else tuple(name for name in avoided if getattr(request, name))
    warnings += [f"{name} has no effect: guidance_scale is 1 or less" for name in unguided]
    if "guidance_rescale" in request.model_fields_set and request.guidance_rescale and not any(guided):
        warnings.append("guidance_rescale has no effect: guidance_scale is 1 or less")
    warnings += _without_effect_before(request)
    warnings += [f"{name} has no effect: {lacks}" for name, lacks in _without_pictures(request)]
    if request.output_compression is not None and request.output_format == "png":
        warnings.append("output_compression has no effect: a PNG is lossless")
    if slot.preview_steps and not replica.has_previews:
        warnings.append("no previews: the model has no preview decoder")
    scheduler = slot.recipe.scheduler or replica.scheduler
    spaced = needs_spacing(scheduler, slot.recipe.sigma_schedule)
    if spaced and replica.model.timestep_spacing == "leading" and slot.recipe.num_inference_steps <= _FEW_STEPS:
        warnings.append(
            f"num_inference_steps: {slot.recipe.num_inference_steps} is few for leading timesteps; a distilled "
            "model (Turbo, Lightning, Hyper) needs model.timestep_spacing: trailing, any other more steps"
        )
    warnings += _unread(request.texts, request.prompt_syntax)
    return warnings


def warnings_of_changes(changes: Changes, recipe: Recipe) -> Iterator[str]:
    """Yield a sentence for each setting that changes in vain where a paused image goes on by a recipe."""
    if not recipe.guided:
        yield from _without_guidance(changes)
    yield from _unread({name: text for name, text in changes.settings.items() if name in PROMPTS}, recipe.prompt_syntax)


def _unread(texts: Mapping[str, str], syntax: PromptSyntax) -> Iterator[str]:
    """Yield a sentence for each text that has what is not read."""
    return filter(None, (syntax_warning(field, text, syntax) for field, text in texts.items()))


def _without_guidance(changes: Changes) -> Iterator[str]:
    for name in ("negative_prompt", "negative_prompt_2", "guidance_rescale"):
        if getattr(changes, name):
            yield f"{name} has no effect: guidance_scale is 1 or less"


def _without_effect_before(request: GenerateRequest) -> Iterator[str]:
    """Yield a sentence for each phase, or setting of one, that makes no step of the picture another."""
    for place, (phase, recipe) in enumerate(zip(request.before, request.phases[:-1], strict=True)):
        if phase.until_step <= request.first_step:
            yield f"before.{place} has no effect: strength leaves out the first {request.first_step} steps"
        elif not recipe.guided:
            yield from (f"before.{place}.{warning}" for warning in _without_guidance(phase))


def _without_pictures(request: GenerateRequest) -> Iterator[tuple[str, str]]:
    """Yield the settings of pictures that a request makes without them, and what it lacks."""
    lacks = "there is no init_image" if request.init_image is None else "there is no mask_image"
    for name in OF_PICTURES if request.init_image is None else () if request.mask_image else OF_MASKS:
        if getattr(request, name) != Recipe.model_fields[name].default:
            yield name, lacks
