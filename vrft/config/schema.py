"""What a resolved config may hold: one dataclass a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vrft.config.sweep_question import Question


@dataclass
class Run:
    """dir: the run directory. resume: True to go on in one that exists."""

    name: str
    dir: str
    seed: int
    resume: bool


@dataclass
class Model:
    """path: a folder or a hub name; None for the model that ships with vrft. freeze: parts that are not trained.

    quantization: of the language model's frozen weights, under an adapter.
    """

    path: str | None
    revision: str | None
    family: str
    dtype: Literal["bfloat16", "float32"]
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    trust_remote_code: bool
    peft: dict | None
    freeze: list[Literal["vision", "projector", "language"]]
    quantization: Literal["nf4"] | None


@dataclass
class RewardOptionsSchema:
    """See `vrft.tasks.reward_terms.RewardOptions`."""

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
    """One of max_steps and epochs is set. args: fields of TRL's config.

    sft_thought: only for sft. own_samples, own_at_least: only where that is `own` (see `vrft.run.rejection_sampling`).
    """

    name: Literal["grpo", "sft"]
    prompts_per_step: int
    max_steps: int | None
    epochs: float | None
    eval_steps: int | None
    save_steps: int | None
    learning_rate: float
    args: dict
    sft_thought: Literal["gold", "empty", "none", "own"] | None = None
    own_samples: int | None = None
    own_at_least: float | None = None


@dataclass
class VLLM:
    """In the process: gpu_memory_utilization to sleep. A server: host to timeout_s. max_model_len: tokens, or None for
    the longest prompt and completion."""

    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int | None = None
    max_model_len: int | None = None
    sleep: bool | None = None
    host: str | None = None
    port: int | None = None
    group_port: int | None = None
    timeout_s: float | None = None


@dataclass
class Rollout:
    """sharing: of a prompt among its completions; auto where it is possible, on to stop where it is not, None for not.
    evaluate: True where an evaluation generates by vLLM too."""

    name: Literal["shared_prefix", "transformers", "vllm_colocate", "vllm_server"]
    temperature: float
    top_p: float
    top_k: int
    sharing: Literal["auto", "on"] | None = "auto"
    evaluate: bool = False
    vllm: VLLM | None = None


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
class Logging:
    """mode, entity, group, tags: of W&B; group None: that of the sweep. pictures: rollouts shown every
    `pictures_every` steps, None for none."""

    report_to: list[Literal["wandb", "tensorboard"]]
    project: str
    mode: Literal["online", "offline"] | None
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None
    pictures: int | None = None
    pictures_every: int | None = None


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
class Other:
    """Another task on whose test rows a run is judged beside its own; its keys are as in the groups of that name."""

    task: dict
    dataset: dict
    protocol: Protocol
    reward: Reward


@dataclass
class Evaluate:
    """Which parts run. checkpoint: the one `after` judges; also: further ones. titles: what tables call the test
    sets. others: `Other` by a name of one's own; a run's own task is left out."""

    before: bool
    train: bool
    after: bool
    checkpoint: Literal["best", "last"]
    also: list[Literal["best", "last"]]
    titles: dict[str, str]
    others: dict[str, dict] | None


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
    """A resolved config of the verbs that use a model; task and dataset keys belong to their own modules.

    launch: see `LAUNCHES`.
    """

    run: Run
    model: Model
    task: dict
    reward: Reward
    dataset: dict
    trainer: Trainer
    rollout: Rollout
    deepspeed: DeepSpeed
    memory: Memory
    launch: dict
    logging: Logging
    alarms: Alarms
    protocol: Protocol
    evaluate: Evaluate
    trust_code: list[str]
    question: Question | None = None
    predict: Predict | None = None
    probe: Probe | None = None
    plan: Plan | None = None
