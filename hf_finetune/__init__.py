"""hf-finetune: transfer learning of image classifiers with the Hugging Face libraries."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# name → module that defines it; loaded on first use, so that `import hf_finetune` costs nothing beyond Python itself
_EXPORTS = {
    "load_dataset": "hf_finetune.data.catalog",
    "load_classifier": "hf_finetune.models.classifier",
    "add_lora": "hf_finetune.models.lora",
    "FinetuneArguments": "hf_finetune.arguments",
    "DataArguments": "hf_finetune.arguments",
    "ModelArguments": "hf_finetune.arguments",
    "parse_arguments": "hf_finetune.arguments",
    "make_arguments": "hf_finetune.arguments",
    "FinetuneTrainer": "hf_finetune.training.trainer",
    "BatchNormMode": "hf_finetune.models.batchnorm",
    "BatchNormPolicy": "hf_finetune.models.batchnorm",
    "BatchMixing": "hf_finetune.data.mixing",
    "FreezeSchedule": "hf_finetune.models.freezing",
    "layer_groups": "hf_finetune.models.layers",
    "Study": "hf_finetune.reporting.study",
    "evaluate_classifier": "hf_finetune.training.evaluation",
    "finetune": "hf_finetune.run",
    "build_report": "hf_finetune.reporting.report",
    "push_run": "hf_finetune.reporting.hub",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
