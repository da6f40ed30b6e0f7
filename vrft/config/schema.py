"""What a resolved config of a run may hold: one frozen model a group, every key with its type and its range.

`freeze` makes a `Config`; functions below `run/` take the section that they read. Keys stand in the order in which
`config.yaml` holds them. The keys of `task` and `dataset` belong to their own modules, those of `trainer.args` to TRL,
of `model.peft` to PEFT and of `deepspeed.config` to DeepSpeed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from vrft.config.launch_schema import Launch
from vrft.config.section import AboveZero, AtLeastOne, AtLeastZero, Number, Section, Share


class Run(Section):
    """dir: the run directory. resume: True to continue in one that exists."""

    name: str
    dir: str
    seed: AtLeastZero
    resume: bool


class Question(Section):
    """How `vrft report` shows a sweep; each of these is a config's key, or a group's name.

    Hyperparameters may be chosen on one seed. A *cell* is what a sweep compares: all children whose configs differ in
    nothing but the keys of `choose` and the seed. With `choose_seed` all their values run with that seed; with another
    seed a child runs only if, in its cell, its value had the best validation figure with that one.
    """

    title: str
    x: str | None = None  # the axis across
    lines: list[str] | None = None  # what makes a line of the plots
    panels: list[str] | None = None  # what makes a plot of its own
    choose: list[str] | None = None  # hyperparameters of which the best by validation is shown
    choose_seed: int | None = None  # None: every seed runs all values, and their mean chooses
    measure: list[str] | None = None  # `{test set}/{metric}`; None: the primary metric on every test set
    labels: dict[str, str] | None = None  # what values are called


class Model(Section):
    path: str | None  # a folder or a hub name; None: the model that ships with vrft
    revision: str | None
    family: str
    dtype: Literal["bfloat16", "float32"]
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    trust_remote_code: bool
    peft: dict[str, Any] | None
    quantization: Literal["nf4"] | None  # of the language model's frozen weights, under an adapter
    freeze: list[Literal["vision", "projector", "language"]]  # parts that are not trained


class RewardOptions(Section):
    """See `vrft.tasks.reward_terms.RewardOptions`."""

    matching: Literal["greedy", "hungarian"]
    iou_threshold: Number
    label_aware: bool
    length_limit: int
    on_fault: Literal["stop", "zero"]
    timeout_s: Number


class Reward(Section):
    options: RewardOptions
    name: str
    weights: dict[str, Number]  # of reward terms by name; a task takes the terms that it has
    weights_for: dict[str, dict[str, Any]] | None = None  # other weights for single tasks, by the task's name


class Trainer(Section):
    name: Literal["grpo", "sft"]
    prompts_per_step: AtLeastOne
    max_steps: AtLeastOne | None  # either this or epochs
    epochs: AboveZero | None
    eval_steps: AtLeastOne | None
    save_steps: AtLeastOne | None
    learning_rate: AboveZero
    sft_thought: Literal["gold", "empty", "none", "own"] | None = None  # of trainer=sft alone
    own_samples: AtLeastOne | None = None  # of sft_thought=own, as the next; see `vrft.run.rejection_sampling`
    own_at_least: Number | None = None
    args: dict[str, Any]  # fields of TRL's config


class VLLM(Section):
    """In the process: gpu_memory_utilization to sleep. A server: host to timeout_s."""

    gpu_memory_utilization: Number | None = None
    tensor_parallel_size: int | None = None
    max_model_len: int | None = None  # tokens; None: the longest prompt and completion
    sleep: bool | None = None
    host: str | None = None
    port: int | None = None
    group_port: int | None = None
    timeout_s: Number | None = None


def _varied(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError("it must be above 0: at 0 all completions of a prompt are one text")
    return temperature


class Rollout(Section):
    name: Literal["shared_prefix", "transformers", "vllm_colocate", "vllm_server"]
    temperature: Annotated[int | float, AfterValidator(_varied)]
    top_p: Share
    top_k: AtLeastZero
    sharing: Literal["auto", "on"] | None = None  # of a prompt: auto where possible, on: stop where it is not
    evaluate: bool = False  # True: an evaluation generates by vLLM too
    vllm: VLLM | None = None


class DeepSpeed(Section):
    config: dict[str, Any] | None  # DeepSpeed's own; None: plain data parallelism

    @property
    def zero(self) -> dict[str, Any]:
        """Its section `zero_optimization`, or nothing."""
        return (self.config or {}).get("zero_optimization") or {}


class Memory(Section):
    """The knobs against out-of-memory; pixels are areas."""

    num_generations: int  # G, the completions of one prompt
    max_pixels: int
    min_pixels: AtLeastOne
    gradient_checkpointing: bool
    completions_per_device: AtLeastOne | None  # None: no limit
    max_completion_length: AtLeastOne
    max_prompt_length: AtLeastOne
    evaluation_batch_size: AtLeastOne
    auto: bool = False  # True: the knobs are turned before a training until it fits …
    gpu: str | int | float | None = None  # … this GPU, or the one here

    @property
    def pixel_limits(self) -> dict[str, int]:
        """The area of an image after the processor's resize, as keyword arguments."""
        return {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}


class Logging(Section):
    """mode to tags: of W&B."""

    report_to: list[Literal["wandb", "tensorboard"]]
    project: str
    mode: Literal["online", "offline"] | None
    entity: str | None = None
    group: str | None = None  # None: that of the sweep
    tags: list[str] | None = None
    pictures: AtLeastOne | None = None  # rollouts shown every `pictures_every` steps; None: none
    pictures_every: AtLeastOne | None = None


class AlarmRule(Section):
    """See `conf/alarms/usual.yaml`."""

    metric: str
    of: Literal["value", "first", "best"] | None = None
    above: Number | None = None
    below: Number | None = None
    while_rising: str | None = None
    action: Literal["off", "warn", "stop", "stop_keep_best"]
    hint: str


class Alarms(Section):
    name: str
    window: AtLeastOne  # logged steps of a mean
    non_finite: Literal["off", "stop", "stop_keep_best"]
    rules: dict[str, AlarmRule]


class Protocol(Section):
    name: str
    version: int
    scorer: str
    polygons: Literal["all", "first"] | None = None  # what counts of masks
    asked: Literal["all", "present", "rows", "exist_map"] | None = None  # which questions count
    n_resamples: AtLeastOne  # of the bootstrap behind the intervals
    score_source: Literal["written", "token_probability", "agreement"] | None = None  # what ranks boxes for AP
    n_samples: AtLeastOne | None = None  # of score_source=agreement, as the next
    temperature: AboveZero | None = None


class Other(Section):
    """Another task on whose test rows a run is judged beside its own; its keys are as in the groups of that name."""

    task: dict[str, Any]
    dataset: dict[str, Any]
    protocol: Protocol
    reward: Reward


class Evaluate(Section):
    """Which parts of an experiment run, and what is judged."""

    before: bool
    train: bool
    after: bool
    checkpoint: Literal["best", "last"]  # which one `after` judges
    also: list[Literal["best", "last"]]  # further checkpoints to judge
    titles: dict[str, str]  # what tables call the test sets
    others: dict[str, Other] | None  # further tasks by a name of one's own; the run's own task is left out


class Derived(Section):
    """What `freeze` adds: one step dealt out to processes, and where it runs."""

    device: Literal["cpu", "cuda"]
    per_device_train_batch_size: AtLeastOne  # in completions for GRPO, in rows for SFT
    gradient_accumulation_steps: AtLeastOne


class Predict(Section):
    """One image and what is asked about it."""

    image: str
    ask: str
    out: str


class Probe(Section):
    rows: AtLeastOne  # how many training rows are probed
    completions: Annotated[int, Field(ge=2)]  # of each


class Plan(Section):
    gpu: str | int | float | None  # a name or GiB; None: the one here
    image_wh: list[int] | None  # of an image before it is resized
    prompt_tokens: AtLeastOne | None  # of the longest prompt
    compare: bool  # also with and without checkpointing and shared prompts
    out: str | None  # a JSON file


class Config(Section):
    """A resolved config of the verbs that use a model. predict, probe, plan: of the verb of that name."""

    trust_code: list[str]
    run: Run
    evaluate: Evaluate
    question: Question | None = None
    model: Model
    task: dict[str, Any]
    reward: Reward
    dataset: dict[str, Any]
    trainer: Trainer
    rollout: Rollout
    deepspeed: DeepSpeed
    memory: Memory
    launch: Launch
    logging: Logging
    alarms: Alarms
    protocol: Protocol
    predict: Predict | None = None
    probe: Probe | None = None
    plan: Plan | None = None
    derived: Derived | None = None

    @property
    def prompt_settings(self) -> dict[str, Any]:
        """What a checkpoint's `vrft.json` keeps, by its names there (`vrft.models.prompt_settings.PROMPT_SETTINGS`)."""
        memory = self.memory
        limits = {key: getattr(memory, key) for key in ("min_pixels", "max_pixels", "max_completion_length")}
        return {"task": self.task, "family": self.model.family, **limits}
