"""Settings of the ingress that may change while the service runs: no replica restarts."""

from pydantic import Field

from serve_app.config.base import Config
from serve_app.recipe import CHUNK_TOKENS, MOST_PROMPT_CHUNKS, USUAL_PROMPT_TOKENS
from serve_app.setting_types import AbsolutePath, BaseUrl, Origins, Places, VariableName


class LimitsConfig(Config):
    """What a request may ask for."""

    max_images: int = Field(default=16, ge=1, description="Maximum number of images in one request.")
    max_steps: int = Field(
        default=100,
        ge=1,
        le=998,
        description="Maximum number of denoising steps. Schedulers have 1000 timesteps, less their offset.",
    )
    max_prompt_tokens: int = Field(
        default=USUAL_PROMPT_TOKENS,
        ge=CHUNK_TOKENS,
        le=MOST_PROMPT_CHUNKS * CHUNK_TOKENS,
        multiple_of=CHUNK_TOKENS,
        description="How much of a prompt is read, in tokens: CLIP reads 75 at once, so a multiple of that. A picture "
        "whose prompt is longer comes with a warning that names what is not read.",
    )
    max_body_bytes: int = Field(
        default=2**24,
        ge=1024,
        description="Maximum size of a request body in bytes. Pictures in it are a third larger than their files; the "
        "texts of `before` may take up to 400 kB.",
    )
    max_picture_pixels: int = Field(
        default=2**24,
        ge=64,
        description="Maximum number of pixels of a picture to go on from. While decoded each takes up to 32 bytes "
        "of memory; an ingress decodes those of two requests at once.",
    )


class AdmissionConfig(Config):
    """When requests are refused with 429."""

    max_waiting_images: int = Field(
        default=64, ge=0, description="How many images may queue. Each ingress replica takes its part."
    )


class StreamsConfig(Config):
    """How long a generation can be read once its client has gone or it has ended."""

    keep_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="How long a generation is kept after its end, and goes on for a client that left and said `wait`, "
        "in seconds.",
    )
    max_kept_bytes: int = Field(
        default=2**28,
        ge=0,
        description="Maximum size of all ended generations that an ingress replica keeps, in bytes of memory; the "
        "oldest are dropped first.",
    )


class TrajectoriesConfig(Config):
    """What is kept of images that are paused after a sketch (`pause_after`)."""

    ttl_s: float = Field(
        default=600.0,
        gt=0,
        le=86400,
        description="How long an image stays paused, in seconds; then it ends as `cancelled`, with error type "
        "`expired`. A stream may last as long: Serve's own `http_options.request_timeout_s` must be above this and "
        "`request_timeout_s` together.",
    )
    max_bytes: int = Field(
        default=2**28,
        ge=0,
        description="Maximum size of all that is kept of the paused images of an ingress replica, in bytes of memory: "
        "up to 1.9 MB each at 1024x1024, and once for each request the picture and mask to go on from. Requests that "
        "may exceed it get a 429. 0: no image can be paused. An ingress replica "
        "answers 10,000 requests at once, and each stream with paused images is one of them.",
    )


class FilesConfig(Config):
    """Where images are stored for answers with URLs, and for how long."""

    path: AbsolutePath | None = Field(
        default=None,
        description="Absolute path of the folder of images, shared by all ingress replicas. Null: no URLs in answers.",
    )
    ttl_s: float = Field(default=3600.0, ge=1, description="How long a file is kept, in seconds.")
    max_bytes: int = Field(
        default=2**30,
        ge=2**20,
        description="Maximum size of all files together, in bytes; the oldest are deleted first.",
    )
    base_url: BaseUrl | None = Field(
        default=None,
        description="What URLs begin with, such as https://images.example.com. "
        "Null: the address the request was sent to.",
    )


class AuthConfig(Config):
    """Who may use the service. The config never holds the keys: dashboards and logs show it."""

    keys_env: VariableName | None = Field(
        default=None,
        description="Name of the ingress's environment variable with the API keys, separated by commas or newlines.",
    )
    keys_file: AbsolutePath | None = Field(
        default=None,
        description="Absolute path of a file with one API key per line; reloaded when it changes.",
    )

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self.keys_env is not None or self.keys_file is not None


class PicturesConfig(Config):
    """Pictures to go on from."""

    fetch_from: Places = Field(
        default=(),
        description="Where pictures that requests give as URLs may be fetched from, such as "
        "https://images.example.com; redirects are not followed. Empty: nowhere.",
    )


class A1111Config(Config):
    """The API of A1111's web UI, below /sdapi."""

    enabled: bool = Field(default=True, description="Whether to serve it.")


class CorsConfig(Config):
    """Which other web pages may call the service."""

    allow_origins: Origins = Field(
        default=(), description="Origins such as https://app.example.com, or `*` for any. Empty: none."
    )


class LiveSettings(Config):
    """The settings of the ingress that may change while the service runs: Serve's `user_config` of `Ingress`."""

    limits: LimitsConfig = LimitsConfig()
    admission: AdmissionConfig = AdmissionConfig()
    streams: StreamsConfig = StreamsConfig()
    trajectories: TrajectoriesConfig = TrajectoriesConfig()
    files: FilesConfig = FilesConfig()
    auth: AuthConfig = AuthConfig()
    cors: CorsConfig = CorsConfig()
    a1111: A1111Config = A1111Config()
    pictures: PicturesConfig = PicturesConfig()
