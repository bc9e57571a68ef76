"""Push a finished run to the Hub, now or again:

    python recipes/push.py runs/demo --hub_model_id ann/drawn-pets [--hub_private_repo]

The token is the one of `hf auth login`, or HF_TOKEN. Prints the address of the repository; ends with status 2 for input that cannot be
used and 3 when the Hub refuses, fails or cannot be reached. Nothing on disk is changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from hf_finetune.errors import ConfigError, did_you_mean, listed
from hf_finetune.launch import run_recipe
from hf_finetune.reporting.hub import push_run

FLAGS = ("--hub_model_id", "--hub_private_repo", "--help")


USAGE = "python recipes/push.py DIR --hub_model_id ID [--hub_private_repo]"


class Parser(argparse.ArgumentParser):
    """Raises what is wrong with the command line, and never prints it with the values: one of them may be a token."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. Usage: {USAGE}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ConfigError: All that is wrong with it.
    """
    parser = Parser(description=__doc__, usage=USAGE, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR", nargs="?", help="the --output_dir of a finished run")
    parser.add_argument("--hub_model_id", metavar="ID", help="the repository: namespace/name, or name in your own namespace")
    parser.add_argument("--hub_private_repo", action="store_true", help="the repository must be private")
    arguments, unknown = parser.parse_known_args(argv)
    problems = [unknown_flag(word.split("=")[0]) for word in unknown if word.startswith("-")]
    if unknown and not problems:
        problems.append(f"One folder is pushed at a time; there are {len(unknown)} words more than DIR.")
    if arguments.directory is None:
        problems.append("Which run? Give the --output_dir of a finished run as DIR.")
    if not arguments.hub_model_id and not any("'--hub_model_id'" in problem for problem in problems):
        problems.append("Where to? Give --hub_model_id namespace/name.")
    if problems:
        raise ConfigError([*problems[:-1], f"{problems[-1]} Usage: {USAGE}"])
    return arguments


def unknown_flag(flag: str) -> str:
    """Say that there is no such flag, what it was probably meant to be, and where a token belongs."""
    if "token" in flag:
        return f"There is no flag {flag}: a token is not given on the command line, but with `hf auth login` or in HF_TOKEN."
    return f"There is no flag {flag}.{did_you_mean(flag, FLAGS)} The flags are {listed(FLAGS)}."


def main() -> None:
    """Push the run that the command line names."""
    arguments = parse(sys.argv[1:])
    print(push_run(arguments.directory, arguments.hub_model_id, private=arguments.hub_private_repo))


if __name__ == "__main__":
    run_recipe(main)
