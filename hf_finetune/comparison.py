"""A recipe's question: one run by default, the whole comparison with `--study`."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_finetune.argument_parsing.study_flags import StudyFlags
from hf_finetune.arguments import Arguments, config_values, make_arguments, parse_arguments
from hf_finetune.errors import ConfigError, FinetuneError, Interrupted
from hf_finetune.launch import readable_logs
from hf_finetune.run_directory import remove_checkpoints

if TYPE_CHECKING:
    from hf_finetune.reporting.study import CellResult

logger = logging.getLogger(__name__)

# what a study does not hand to its runs: each has a folder and a seed of its own
_OF_ONE_RUN = ("output_dir", "seed", "run_name")


@dataclass(frozen=True)
class Comparison:
    """What a recipe compares.

    Attributes:
        recipe: Name of the script.
        title: Of the study's page.
        cells: Settings → name → what differs in the cell.
        description: First paragraphs of the help.
        defaults: Defaults of the recipe.
        demo: What `--preset demo` means here.
        seeds: Of a study.
        demo_seeds: Of a study with `--preset demo`.
        answer: Says in sentences what the results mean.
        enough: Told the results cell by cell; where it returns true the cells that follow are not made.
        reference: Cell → the one that it is compared with; by default the first.
        folder: Where the script is, for the command on the study's page.
    """

    recipe: str
    title: str
    cells: Callable[[Arguments], Mapping[str, Mapping[str, Any]]]
    description: str | None = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    demo: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    demo_seeds: tuple[int, ...] = (0, 1)
    answer: Callable[[Sequence[CellResult]], Sequence[str]] = lambda results: []
    enough: Callable[[Sequence[CellResult]], bool] | None = None
    reference: Callable[[str], str] | None = None
    folder: str = "recipes"

    def run(self, argv: Sequence[str] | None = None) -> None:
        """Do what the command line says, and print the outcome.

        Raises:
            FinetuneError: As `finetune` and `Study`; a study goes on with the same command.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        if "--study" in argv and int(os.environ.get("WORLD_SIZE", "1")) > 1:  # before the arguments, which wait for the other processes
            raise ConfigError(
                "--study makes its runs in one process each; start it with python, or with accelerate launch and one process."
            )
        flags = StudyFlags()
        arguments = parse_arguments(
            argv, recipe=self.recipe, defaults=self.defaults, demo=self.demo, description=self.description, study=flags
        )
        _refuse(flags, arguments, argv)
        if flags.study:
            return self._study(arguments, flags, argv)
        from hf_finetune.run import run_once  # the heavy imports, which a study leaves to its runs

        outcome = run_once(arguments)
        if arguments.training.should_save:
            logger.info("%s", outcome)

    def _study(self, arguments: Arguments, flags: StudyFlags, argv: Sequence[str]) -> None:
        from hf_finetune.reporting.study import Study

        seeds = flags.seeds or (self.demo_seeds if flags.preset == "demo" else self.seeds)
        common = {name: value for name, value in config_values(arguments).items() if name not in _OF_ONE_RUN}
        if common["data_seed"] is None:
            common["data_seed"] = self.seeds[0]  # the same validation photos, and so the same cached features, for every seed
        if flags.preset == "demo":
            common["report"] = False
            logger.info(
                "The runs of a demo study get no reports of their own, which would take most of its time; build_report(DIR) writes one."
            )
        study = Study(
            Path(str(arguments.training.output_dir)),
            self.cells(arguments),
            seeds,
            _run_apart,
            common=common,
            title=self.title,
            command=published_command(f"{self.folder}/{self.recipe}.py", argv),
            answer=self.answer,
            enough=self.enough,
            reference=self.reference,
        )
        try:
            study.run(flags.cells)
        except KeyboardInterrupt:
            raise Interrupted("Interrupted. What is finished is kept; the same command goes on with the rest.") from None
        page = study.directory / "study.md"
        logger.info("\n%s\nPage: %s   Plot: %s", page.read_text(encoding="utf-8").split("\n![", 1)[0], page, page.with_suffix(".png"))


def _refuse(flags: StudyFlags, arguments: Arguments, argv: Sequence[str]) -> None:
    """Raise `ConfigError` for flags that would have no effect, or the wrong one."""
    training = arguments.training
    if not flags.study:
        given = [name for name, value in (("--seeds", flags.seeds), ("--cells", flags.cells)) if value is not None]
        problems = [f"{name} has no effect without --study; add it or leave the first out." for name in given]
    else:
        wrong = {
            "--seed": any(word.partition("=")[0] == "--seed" for word in argv),
            "--lr_finder": training.lr_finder,
            "--push_to_hub": training.push_to_hub,
            "--resume_from_checkpoint": training.resume_from_checkpoint is not None,
            "--overwrite_output_dir": training.overwrite_output_dir,
        }
        problems = [
            f"{name} is of one run and --study makes many; leave one of them out. A study goes on by itself."
            for name in wrong
            if wrong[name]
        ]
    if problems:
        raise ConfigError(problems)


def layer_count(arguments: Arguments) -> int:
    """Return how many layer groups the network of `arguments` has before its head.

    Raises:
        FinetuneError: As `load_classifier`.
    """
    from hf_finetune.models.classifier import load_classifier
    from hf_finetune.models.layers import layer_groups

    model, _ = load_classifier(arguments.model.model, ["a", "b"], revision=arguments.model.model_revision)
    return len(layer_groups(model, arguments.training.layer_groups)) - 1


def published_command(script: str, argv: Sequence[str]) -> str:
    """Return the command for a page; a whole path on this machine becomes `path/to/` and its last part."""

    def shortened(word: str) -> str:
        flag, equals, value = word.partition("=")
        if equals and os.path.isabs(value):
            return f"{flag}=path/to/{Path(value).name}"
        return f"path/to/{Path(word).name}" if os.path.isabs(word) else word

    return shlex.join(["python", script, *map(shortened, argv)])


def _end_with_the_study() -> None:
    """Leave this process when the study's own is gone: two runs would write into one folder when the study goes on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_apart(settings: dict[str, Any]) -> None:
    """Make one run in a process of its own, so that its peak memory is its own and a crash is not the end of the study."""
    logger.info("\n%s", settings["output_dir"])
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["hf_finetune.run"])  # imported once for all runs
    with ProcessPoolExecutor(1, mp_context=context, initializer=_begin_process) as pool:
        try:
            pool.submit(_run_one, settings).result()
        except BrokenProcessPool:
            raise FinetuneError(
                f"The run in {settings['output_dir']} was killed, perhaps for want of memory. What is finished is kept; the same command "
                "goes on with the rest."
            ) from None


def _begin_process() -> None:
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    readable_logs()


def _run_one(settings: dict[str, Any]) -> None:
    from hf_finetune.run import run_once

    logger.info("%s", run_once(make_arguments(**settings)))
    remove_checkpoints(Path(settings["output_dir"]))  # a study has many runs, and none that is finished is resumed
