"""Settings of the number of replicas."""

from pydantic import Field

from serve_app.config.base import Config


class ScalingConfig(Config):
    """How the number of replicas follows the images that are asked for."""

    min_replicas: int = Field(
        default=1,
        ge=0,
        description="Fewest replicas. 0: the service sleeps while nobody asks for images. A first request wakes it, "
        "and is refused with a Retry-After that follows how long starts take.",
    )
    max_replicas: int = Field(ge=1, description="Most replicas.")
    target_wait_s: float = Field(
        default=20.0,
        gt=0,
        description="In how many seconds all images shall be finished, those in work and in the queue; more replicas "
        "start if it takes longer.",
    )
    upscale_delay_s: float = Field(
        default=5.0, ge=0, description="For how long more replicas must be needed before they are started, in seconds."
    )
    downscale_delay_s: float = Field(
        default=300.0, ge=0, description="For how long fewer replicas must do before some are stopped, in seconds."
    )
