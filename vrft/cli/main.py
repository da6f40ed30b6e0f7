"""The command line: `vrft VERB [overrides]`, each verb a Hydra app whose primary config is `conf/VERB.yaml`.

A verb's work lies in the module of its name, whose `run` takes the frozen config and returns an exit code or None.
"""

from __future__ import annotations

import sys

import vrft
from vrft.cli.verbs import BASH_COMPLETION, FORMER_NAMES, VERBS, overview, verb_help
from vrft.errors import ExitCode, suggestion
from vrft.terminal import careful_terminal


@careful_terminal
def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if an audit found a way to cheat, a probe an obstacle or a plan
    too little memory, 2 for a user's mistake, 130 after Ctrl-C, else the worker's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else ExitCode.USER_ERROR
    if arguments[0] == "--version":
        print(f"vrft {vrft.__version__}")
        return 0
    verb, *overrides = arguments
    if verb == "completion":
        return _completion(overrides)
    if verb in FORMER_NAMES:
        print(
            f"vrft: {verb} is now called {FORMER_NAMES[verb]}; the old name goes with the next version", file=sys.stderr
        )
        verb = FORMER_NAMES[verb]
    if verb not in VERBS:
        hint = "the verb comes first; " if verb.startswith("-") or "=" in verb else suggestion(verb, VERBS)
        print(f"vrft: no verb {verb!r}; {hint}known: {', '.join(VERBS)}", file=sys.stderr)
        return ExitCode.USER_ERROR
    if "--help" in overrides or "-h" in overrides:
        print(verb_help(verb))
        return 0
    from vrft.cli.hydra_app import run_verb  # Hydra and pydantic: not for --help

    return run_verb(verb, overrides)


def _completion(shells: list[str]) -> int:
    """Print the function that completes words at TAB; the exit code."""
    if shells != ["bash"]:
        print('vrft completion: bash alone is offered: eval "$(vrft completion bash)"', file=sys.stderr)
        return ExitCode.USER_ERROR
    print(BASH_COMPLETION.replace("VERBS", " ".join(VERBS)))
    return 0
