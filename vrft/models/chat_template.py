"""Prompts by a model's chat template. That is code from elsewhere: it is tried first, within limits of its own."""

from __future__ import annotations

import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path

from jinja2 import TemplateError
from transformers import ProcessorMixin

from vrft.errors import UserError, first_line

_SECONDS, _BYTES = 3, 2**30
_PATIENCE_S = 60  # of the clock: the machine may be busy
_QUESTION = "Which one?"
_ERRORS = (  # of a program, its author's
    TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, SyntaxError, TypeError,
    ValueError,
)  # fmt: skip


def chat(question: str, n_images: int) -> list[dict]:
    """One user message, images before the text. TRL builds the same prompt from a question and its images."""
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def render_prompt(processor: ProcessorMixin, question: str, n_images: int, response_prefix: str = "") -> str:
    """The prompt as text; the completion begins where it ends.

    response_prefix: the fixed start of the completion. Raises `UserError` if the chat template cannot be rendered from
    the messages alone.
    """
    try:
        text = processor.apply_chat_template(chat(question, n_images), add_generation_prompt=True, tokenize=False)
    except _ERRORS as error:
        raise UserError(
            f"the model's chat template cannot be rendered ({type(error).__name__}: {first_line(error)})"
        ) from None
    return text + response_prefix


def check_chat_template(processor: ProcessorMixin, path: str) -> None:
    """Raise `UserError` unless the chat template writes a question into a prompt, in 3 s of CPU and 1 GiB of memory.

    path: of the model, for the message.
    """
    # Forked, as importing transformers takes seconds. The child runs the template alone: it takes no lock.
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_try, args=(processor, sending))
    child.start()
    sending.close()
    try:
        fault = receiving.recv() if receiving.poll(_PATIENCE_S) else "the model's chat template does not end"
    except EOFError:  # the system has ended it
        fault = f"the model's chat template takes more than {_SECONDS} s or {_BYTES / 2**30:g} GiB"
    child.kill()
    child.join()
    if fault:
        raise UserError(
            f"model.path={path}: {fault}; give the folder the template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json) that the model was published with"
        )


def _try(processor: ProcessorMixin, sending: Connection) -> None:
    """Send what is wrong with the template, or None."""
    if (statm := Path("/proc/self/statm")).is_file():  # Linux; elsewhere time alone is limited
        n_pages = int(statm.read_text(encoding="ascii").split()[0])
        _limit(resource.RLIMIT_AS, n_pages * resource.getpagesize() + _BYTES)
    _limit(resource.RLIMIT_CPU, _SECONDS)
    _limit(resource.RLIMIT_CORE, 0)
    try:
        is_asked = _QUESTION in render_prompt(processor, _QUESTION, 1)
        fault = None if is_asked else "the model's chat template leaves the question out of the prompt"
    except UserError as error:
        fault = str(error)
    sending.send(fault)


def _limit(kind: int, most: int) -> None:
    """Set the soft limit, which cannot be above the hard one."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
