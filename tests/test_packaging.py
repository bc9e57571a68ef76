"""What is shipped beside the code: metadata, the Makefile, the CI script, accelerate's files and the licence."""

import ast
import configparser
import fnmatch
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from packaging.requirements import Requirement

from hf_finetune import __version__

ROOT = Path(__file__).resolve().parent.parent
LAUNCHES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> list[str]:
    return [line for line in text.strip().splitlines() if not line.startswith("#")]


class TestMetadata:
    def test_version_is_that_of_the_package(self, setup):
        assert setup["metadata"]["version"] == __version__

    def test_extras(self, setup):
        extras = setup["options.extras_require"]
        assert set(extras) == {"test", "dev", "benchmark"}
        names = {extra: {Requirement(line).name for line in lines(extras[extra])} for extra in extras}
        assert names["test"] <= names["dev"]
        assert {"ruff", "mypy"} <= names["dev"]
        assert names["benchmark"] == {"fastai"}

    def test_whatever_is_imported_is_required(self, setup):
        required = {Requirement(line).name.lower().replace("-", "_") for line in lines(setup["options"]["install_requires"])}
        distributions = importlib.metadata.packages_distributions()
        missing = {}
        for path in [*ROOT.glob("hf_finetune/**/*.py"), *ROOT.glob("recipes/*.py")]:
            for module in imported(path) - set(sys.stdlib_module_names) - {"hf_finetune"}:
                if not {name.lower().replace("-", "_") for name in distributions.get(module, [module])} & required:
                    missing[module] = str(path.relative_to(ROOT))
        assert missing == {}

    def test_every_data_file_is_shipped(self, setup):
        patterns = [
            package.replace(".", "/") + "/" + pattern
            for package, globs in setup["options.package_data"].items()
            for pattern in re.split(r"[,\s]+", globs.strip())
        ]
        files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_finetune").rglob("*") if path.is_file()]
        data = [name for name in files if not name.endswith((".py", ".pyc"))]
        assert data
        assert [name for name in data if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []

    def test_every_folder_of_the_package_is_a_package(self):
        folders = {path.parent for path in (ROOT / "hf_finetune").rglob("*.py")}
        assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []

    def test_licence_is_apache(self, setup):
        assert setup["metadata"]["license"] == "Apache-2.0"
        text = (ROOT / "LICENSE").read_text()
        assert "Apache License\n                           Version 2.0, January 2004" in text
        assert "END OF TERMS AND CONDITIONS" in text

    def test_changelog_has_an_unreleased_section(self):
        assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def imported(path: Path) -> set[str]:
    """Return the top-level modules that a file imports absolutely."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def make(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    settings = [f"{name}={value}" for name, value in variables.items()]
    # a make that runs these tests hands its own flags down
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name not in ("VENV", "PYTHON")}
    return subprocess.run(["make", *words, *settings], cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


@needs_make
class TestMakefile:
    @pytest.mark.parametrize(
        ("target", "command"),
        [
            ("demo", "recipes/vit_lora.py --preset demo --output_dir runs/demo --overwrite_output_dir"),
            ("test", "pytest -q"),
            ("slow", "pytest -q -m slow"),
            ("check", "ruff format --check ."),
            ("check", "mypy"),
            ("clean", "rm -rf .venv"),
        ],
    )
    def test_target(self, target, command, tmp_path):
        plan = make("--dry-run", target, VENV=str(tmp_path / "venv"))
        assert plan.returncode == 0, plan.stderr
        assert command in " ".join(plan.stdout.replace("\\\n", " ").split())

    @pytest.mark.parametrize(("target", "extras"), [("demo", "-e .\n"), ("test", "-e '.[test]'"), ("check", "-e '.[dev]'")])
    def test_target_sets_itself_up(self, target, extras, tmp_path):
        plan = make("--dry-run", target, VENV=str(tmp_path / "venv")).stdout
        assert f"-m venv {tmp_path / 'venv'}" in plan
        assert f"pip install --quiet {extras}" in plan

    def test_metadata_makes_the_installation_stale(self, tmp_path):
        venv = tmp_path / "venv"
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "pip").touch()
        stamp = venv / ".installed-test"
        stamp.touch()
        assert "pip install" not in make("--dry-run", "test", VENV=str(venv)).stdout
        os.utime(stamp, (0, 0))
        assert "pip install" in make("--dry-run", "test", VENV=str(venv)).stdout

    def test_help_names_every_target(self):
        words = re.findall(r"^make (\w+) ", make("help").stdout, re.MULTILINE)
        assert words == ["help", "demo", "test", "slow", "check", "clean"]

    def test_old_python(self, tmp_path):
        old = tmp_path / "python3.8"
        old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.10"\n')
        old.chmod(0o755)
        failed = make("test", VENV=str(tmp_path / "venv"), PYTHON=str(old))
        assert failed.returncode != 0
        assert "make: Python 3.8.10 is too old, Python 3.10 or later is needed; name another: make PYTHON=python3.11" in failed.stderr

    def test_no_python(self, tmp_path):
        failed = make("test", VENV=str(tmp_path / "venv"), PYTHON="no-such-python")
        assert failed.returncode != 0
        assert "make: there is no 'no-such-python'; name yours: make PYTHON=/path/to/python3.10" in failed.stderr


class TestCi:
    def test_runs_the_tests_and_then_the_checks(self):
        script = (ROOT / ".ci" / "run").read_text()
        assert script.startswith("#!/usr/bin/env bash\n")
        assert "set -euo pipefail" in script
        assert script.index("make test") < script.index("make check")

    def test_is_a_program_without_syntax_errors(self):
        assert os.access(ROOT / ".ci" / "run", os.X_OK)
        assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=False).returncode == 0


class TestAccelerateConfigs:
    def test_are_those_of_the_design(self):
        assert [path.stem for path in LAUNCHES] == ["cpu", "fsdp", "multi_gpu", "multi_node", "single_gpu"]

    @pytest.mark.parametrize(
        ("name", "kind", "machines"),
        [("cpu", "NO", 1), ("single_gpu", "NO", 1), ("multi_gpu", "MULTI_GPU", 1), ("fsdp", "FSDP", 1), ("multi_node", "MULTI_GPU", 2)],
    )
    def test_is_what_accelerate_reads(self, name, kind, machines):
        config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
        assert isinstance(config, ClusterConfig)
        assert config.distributed_type.value == kind
        assert config.num_machines == machines
        assert config.use_cpu is (name == "cpu")
        # the recipe's own flag decides, and its config.yaml records it
        assert config.mixed_precision == "no"

    @pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
    def test_says_when_to_use_it_and_whether_it_was_run(self, path):
        comment = " ".join(line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#"))
        assert f"accelerate launch --config_file accelerate_configs/{path.name}" in comment
        assert "Run here" in comment or "not run" in comment
