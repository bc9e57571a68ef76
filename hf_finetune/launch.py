"""What every recipe does around its one call: log lines for a person, errors without a traceback, an exit status for a script."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable

from hf_finetune.errors import FinetuneError, HubError, Interrupted

EXIT_BAD_INPUT, EXIT_HUB, EXIT_INTERRUPTED = 2, 3, 130


def run_recipe(main: Callable[[], None]) -> None:
    """Call `main` and leave the process: status 0, 2 for input that cannot be used, 3 for the Hub, 130 for Ctrl-C.

    A `FinetuneError` is printed as one paragraph on the error stream; any other exception is a defect and keeps its traceback.
    """
    readable_logs()
    _use_all_cores()
    if {"-h", "--help"} & set(sys.argv[1:]):
        _spare_peft()
    try:
        main()
    except Interrupted as error:
        _leave(str(error), EXIT_INTERRUPTED)
    except HubError as error:
        _leave(f"error: {error}", EXIT_HUB)
    except FinetuneError as error:
        _leave(f"error: {error}", EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        _leave("Interrupted. What was saved so far is kept; go on with --resume_from_checkpoint last.", EXIT_INTERRUPTED)


def _leave(message: str, status: int) -> None:
    sys.stdout.flush()
    if os.environ.get("RANK", "0") == "0":  # every process of a launch meets the same error; once is enough
        sys.stderr.write(f"{message}\n")
    sys.exit(status)


def _use_all_cores() -> None:
    """Take back the one thread to which `accelerate launch` without a configuration file limits a process that is alone on its machine.

    The limit is read when torch is imported, which no recipe has done yet.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if alone and "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]


def _spare_peft() -> None:
    """Keep `transformers.TrainingArguments` from importing peft, half of the wait for `--help`, in a process that ends with its help."""
    import transformers.utils

    transformers.utils.is_peft_available = lambda: False


def readable_logs() -> None:
    """Send this package's lines to the output stream as they are, and silence what a user can do nothing about."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("hf_finetune")
    package.setLevel(logging.INFO)
    package.handlers = [handler]
    package.propagate = False
    # renamed attribute inside transformers, warned of by its own save_pretrained and by peft
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
