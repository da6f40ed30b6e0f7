"""What a resolved config may hold: one dataclass a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class Run:
    """dir: the run directory. resume: True to go on in one that exists."""

    name: str
    dir: str
    seed: int
    resume: bool


@dataclass
class Model:
    """path: a folder or a hub name; None for the model that ships with vrft. freeze: parts that are not trained."""

    path: str | None
    revision: str | None
    family: str
    dtype: Literal["bfloat16", "float32"]
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    trust_remote_code: bool
    peft: dict | None
    freeze: list[Literal["vision", "projector", "language"]]


@dataclass
class RewardOptionsSchema:
    """See `vrft.rewards.RewardOptions`."""

    matching: Literal["greedy", "hungarian"]
    iou_threshold: float
    label_aware: bool
    length_limit: int
    on_fault: Literal["stop", "zero"]
    timeout_s: float


@dataclass
class Reward:
    """weights: of reward terms by name; a task takes the terms it has. weights_for: other weights for single tasks, by
    the task's name."""

    name: str
    weights: dict[str, float]
    options: RewardOptionsSchema
    weights_for: dict[str, dict] | None = None


@dataclass
class Trainer:
    """One of max_steps and epochs is set. args: fields of TRL's config. sft_thought: only for sft."""

    name: Literal["grpo", "sft"]
    prompts_per_step: int
    max_steps: int | None
    epochs: float | None
    eval_steps: int | None
    save_steps: int | None
    learning_rate: float
    args: dict
    sft_thought: Literal["gold", "empty", "none"] | None = None


@dataclass
class Rollout:
    """How completions are sampled. sharing: of a prompt among its completions; auto where it is possible, on to stop
    where it is not."""

    name: Literal["shared_prefix", "transformers"]
    temperature: float
    top_p: float
    top_k: int
    sharing: Literal["auto", "on"] = "auto"


@dataclass
class DeepSpeed:
    """config: DeepSpeed's own, or None for plain data parallelism."""

    config: dict | None


@dataclass
class Memory:
    """The knobs against out-of-memory; pixels are areas. completions_per_device: None for no limit. auto: whether they
    are turned to fit before a training, to which GPU if not the one here."""

    num_generations: int
    max_pixels: int
    min_pixels: int
    gradient_checkpointing: bool
    completions_per_device: int | None
    max_completion_length: int
    max_prompt_length: int
    evaluation_batch_size: int
    auto: bool = False
    gpu: str | float | None = None


@dataclass
class Launch:
    """threads: of one worker; None leaves them as they are. watchdog_s: seconds of silence that end a run, or None."""

    name: Literal["local", "torchrun"]
    nproc_per_node: int
    threads: int | None
    watchdog_s: float | None
    device: Literal["auto", "cpu", "cuda"]


@dataclass
class Logging:
    """mode: of W&B."""

    report_to: list[Literal["wandb", "tensorboard"]]
    project: str
    mode: Literal["online", "offline"] | None


@dataclass
class AlarmRule:
    """See `conf/alarms/usual.yaml`."""

    metric: str
    action: Literal["off", "warn", "stop", "stop_keep_best"]
    hint: str
    above: float | None = None
    below: float | None = None
    of: Literal["value", "first", "best"] | None = None
    while_rising: str | None = None


@dataclass
class Alarms:
    """window: logged steps of a mean. rules: `AlarmRule` by name."""

    name: str
    window: int
    non_finite: Literal["off", "stop", "stop_keep_best"]
    rules: dict


@dataclass
class Protocol:
    """n_resamples: of the bootstrap behind the intervals. asked, polygons: what counts of questions, of masks.

    score_source: what ranks the boxes of completions; n_samples, temperature: the samples whose agreement it may be.
    """

    name: str
    version: int
    scorer: str
    n_resamples: int
    asked: Literal["all", "present", "rows", "exist_map"] | None = None
    polygons: Literal["all", "first"] | None = None
    score_source: Literal["written", "token_probability", "agreement"] | None = None
    n_samples: int | None = None
    temperature: float | None = None


@dataclass
class Evaluate:
    """Which parts run. checkpoint: the one `after` judges; also: further ones. titles: what tables call the test
    sets."""

    before: bool
    train: bool
    after: bool
    checkpoint: Literal["best", "last"]
    also: list[Literal["best", "last"]]
    titles: dict[str, str]


@dataclass
class Predict:
    """One image and what is asked about it."""

    image: str
    ask: str
    out: str


@dataclass
class Probe:
    """How many training rows are probed, and by how many completions each."""

    rows: int
    completions: int


@dataclass
class Plan:
    """gpu: a name or GiB; None for the one here. image_wh: of an image before it is resized. prompt_tokens: of the
    longest prompt. compare: also with and without checkpointing and shared prompts. out: a JSON file."""

    gpu: str | float | None
    image_wh: list[int] | None
    prompt_tokens: int | None
    compare: bool
    out: str | None


@dataclass
class Config:
    """A resolved config of the verbs that use a model; task and dataset keys belong to their own modules."""

    run: Run
    model: Model
    task: dict
    reward: Reward
    dataset: dict
    trainer: Trainer
    rollout: Rollout
    deepspeed: DeepSpeed
    memory: Memory
    launch: Launch
    logging: Logging
    alarms: Alarms
    protocol: Protocol
    evaluate: Evaluate
    trust_code: list[str]
    predict: Predict | None = None
    probe: Probe | None = None
    plan: Plan | None = None


@dataclass
class BuildRun:
    """seed: of the draws. resume: True to go on in a folder in which a build was killed."""

    seed: int
    resume: bool


@dataclass
class BuildConfig:
    """A resolved config of the verb build; task and dataset keys belong to their own modules."""

    task: dict
    dataset: dict
    run: BuildRun
    trust_code: list[str]
    out: str
