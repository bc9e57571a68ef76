"""`FinetuneTrainer`: the stock `transformers.Trainer` with the traps of image classification closed."""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Callable
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import nn
from transformers import BaseImageProcessor, EvalPrediction, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_finetune.argument_parsing.rates import parse_rates
from hf_finetune.arguments import FinetuneArguments
from hf_finetune.data.decoded import DecodedPhotos, photo_directory
from hf_finetune.data.stored_arrays import GIBIBYTE, ArrayStore, StoreError
from hf_finetune.data.transforms import EvalTransform, TrainTransform
from hf_finetune.models.classifier import quiet
from hf_finetune.models.freezing import FreezeSchedule, freeze
from hf_finetune.reporting.metrics import classification_metrics
from hf_finetune.training.allocator import keep_freed_memory
from hf_finetune.training.callbacks import BeginEpoch, ReadableLog
from hf_finetune.training.features import FeatureCache, Rows, feature_directory
from hf_finetune.training.losses import CrossEntropy
from hf_finetune.training.optim import check_rates, parameter_groups
from hf_finetune.training.precision import computing_dtype, set_layout
from hf_finetune.training.prefix import CACHED, PrefixError, find_frozen_prefix

logger = logging.getLogger(__name__)


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return `labels` [B] int64 and `pixel_values` [B, 3, H, W] float32, or the cached activations in their place, from examples."""
    inputs = CACHED if CACHED in examples[0] else "pixel_values"
    return {
        inputs: torch.stack([example[inputs] for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [N, C] float32 from logits [N, C], computed by torch as `pipeline` does."""
    return torch.from_numpy(logits).float().softmax(-1).numpy()


def selection_metrics(label_names: list[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return a `compute_metrics` that gives the scalar metrics of `hf_finetune.reporting.metrics` for selection on validation."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        metrics = classification_metrics(softmax(logits), labels, label_names)
        return {name: value for name, value in metrics.items() if isinstance(value, float)}

    return compute


def last_epoch(args: FinetuneArguments) -> int:
    """Return the number of an epoch that no epoch of the training comes after; `max_steps` may take any number of them."""
    return sys.maxsize if args.max_steps > 0 else max(math.ceil(args.num_train_epochs) - 1, 0)


def parameter_counts(model: nn.Module) -> tuple[str, str]:
    """Return how many parameters train, and how many there are, with commas."""
    parameters = list(model.parameters())
    return f"{sum(p.numel() for p in parameters if p.requires_grad):,}", f"{sum(p.numel() for p in parameters):,}"


class FinetuneTrainer(Trainer):
    """A `Trainer` for image classifiers that resumes, accumulates, selects and shards exactly.

    What differs from the stock Trainer, and why:

    - Checkpoints carry the names of the parameters in memory. The stock Trainer writes the names of older releases for ViT, DeiT, DINOv2,
      BEiT and Swin, and its non-strict reload then leaves most of the encoder untouched, on resume and on best-model reload alike.
    - The loss is a sum divided by the examples of the whole optimizer step, so accumulation and several processes give the same gradient.
    - Weight decay spares every parameter of at most one dimension and the embeddings that the network names.
    - Augmentation is told the epoch before the first batch of it, so that a resumed epoch draws the same views.

    Args:
        model: A classifier from `load_classifier`, plain or as a `PeftModel`.
        args: The training arguments.
        train_dataset: Rows with `image`, `label` and `image_id`, as `load_dataset` returns them.
        eval_dataset: The validation split; selection happens here.
        processor: The checkpoint's image processor; it is saved beside every checkpoint.
        augmentation: Name of the training augmentation, see `hf_finetune.data.transforms`.
        views: Random views of each photo; None draws new ones in every epoch.
        schedule: What trains when; None leaves every parameter as it is, as for LoRA.
        loss: A callable as `CrossEntropy`; by default cross-entropy with `args.label_smoothing_factor`.
        callbacks: Further callbacks.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: FinetuneArguments,
        train_dataset: datasets.Dataset,
        eval_dataset: datasets.Dataset,
        processor: BaseImageProcessor,
        *,
        augmentation: str = "light",
        views: int | None = None,
        schedule: FreezeSchedule | None = None,
        loss: Callable[..., torch.Tensor] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if args.device.type == "cpu":
            keep_freed_memory()
        self.eval_transform = EvalTransform(processor)
        self.train_transform = TrainTransform(processor, augmentation, args.seed, views)
        self.photos = {"train": train_dataset, "validation": eval_dataset}
        self.layout = set_layout(model)
        self.features: FeatureCache | None = None
        self.schedule, self._trained = schedule, set[str]()
        self._train_rows = Rows(train_dataset.with_transform(self.train_transform))
        self._eval_rows = Rows(eval_dataset.with_transform(self.eval_transform))
        if schedule is not None:
            freeze(model, schedule, last_epoch(args))
        check_rates(model, parse_rates(args.group_lr or ""))  # here, and not where the optimizer is made, when the run has begun
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._train_rows,
            eval_dataset=self._eval_rows,
            data_collator=collate,
            processing_class=processor,
            compute_metrics=selection_metrics(train_dataset.features["label"].names),
            compute_loss_func=loss or CrossEntropy(args.label_smoothing_factor),
            callbacks=[BeginEpoch(self.train_transform, self.begin_epoch), *(callbacks or [])],
        )
        if schedule is not None and not schedule.constant:
            self.args.dataloader_persistent_workers = False  # they would go on reading what an earlier stage read
        self.label_names = ["labels"]
        for stock in (ProgressCallback, PrinterCallback):
            self.remove_callback(stock)
        self.add_callback(ReadableLog())

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer over `parameter_groups`; the class and its options are the Trainer's own choice (`--optim`)."""
        if self.optimizer is None:
            self._trained = set()
            if self.schedule is not None:
                # whatever will train is in the optimizer, and in DDP's buckets, from the first step on; begin_epoch freezes it until then
                self.schedule.apply(cast(PreTrainedModel, self.model), last_epoch(cast(FinetuneArguments, self.args)))
            target = cast(PreTrainedModel, self.model if model is None else model)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, target)
            own = cast(FinetuneArguments, self.args)
            groups = parameter_groups(
                target,
                learning_rate=options.pop("lr"),
                weight_decay=own.weight_decay,
                head_learning_rate=own.head_learning_rate,
                layer_lr_decay=own.layer_lr_decay,
                group_rates=parse_rates(own.group_lr or ""),
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def predict_split(self, dataset: datasets.Dataset) -> np.ndarray:
        """Return the probabilities [N, C] float32 of the model in evaluation mode for the rows of `dataset`, in their order."""
        output = self.predict(self._rows(dataset))
        return softmax(np.asarray(output.predictions))

    def begin_epoch(self, epoch: int) -> None:
        """Let the parameters train that the schedule names for `epoch`, and choose what training and evaluation read.

        Called before every epoch. It does something in the first one of a training, and where the schedule unfreezes.
        """
        model = cast(PreTrainedModel, self.model)
        trained = self.schedule.apply(model, epoch) if self.schedule else {name for name, p in model.named_parameters() if p.requires_grad}
        if trained == self._trained:
            return
        if self._trained and self.schedule:
            logger.info("Epoch %d: %s of %s parameters train from here on.", epoch, *parameter_counts(model))
        self._trained = trained
        self._keep_features()
        self._keep_photos()

    def _keep_features(self) -> None:
        """Compute the activations of the frozen part once, for training and evaluation; one log line says so, or why not."""
        model = cast(PreTrainedModel, self.model)
        if self.features is not None:
            self.features.prefix.detach()
            self.features = None
        self._train_rows.source = self.photos["train"].with_transform(self.train_transform)
        self._eval_rows.source = self.photos["validation"].with_transform(self.eval_transform)
        if all(parameter.requires_grad for parameter in model.parameters()):
            return  # nothing is frozen, so nobody expects a cache
        limit = cast(FinetuneArguments, self.args).feature_cache_gb
        try:
            self._refuse_features(limit)
            images = torch.stack([self.photos["train"].with_transform(self.eval_transform)[row]["pixel_values"] for row in (0, -1)])
            features = FeatureCache(
                find_frozen_prefix(model, images.to(self.args.device), self._autocast),
                ArrayStore(feature_directory(), int(limit * GIBIBYTE)),
                self.eval_transform,
                batch_size=self.args.eval_batch_size,
                autocast=self._autocast,
                dtype=computing_dtype(self.args),
            )
            with self.args.main_process_first(desc="features"):
                self._train_rows.source = features.rows(self.photos["train"], self.train_transform)
        except (PrefixError, StoreError) as reason:
            logger.info("No feature cache: %s.", str(reason).removesuffix("."))
            return
        self.features = features
        features.prefix.attach()
        if self.args.eval_strategy != "no":
            with self.args.main_process_first(desc="features"):
                self._eval_rows.source = self._rows(self.photos["validation"]).source
        logger.info(
            "Feature cache: what is frozen below %s is not computed again in any epoch (%d photos computed in %.0f s, %d found).",
            *(features.summary()[key] for key in ("boundary", "computed", "seconds", "reused")),
        )

    def _keep_photos(self) -> None:
        """Decode the training photos once, where random views are drawn from them; a log line says why it cannot be done."""
        limit = cast(FinetuneArguments, self.args).image_cache_gb
        if limit == 0 or self.features is not None or not self.train_transform.crops or self.state.num_train_epochs <= 1:
            return
        store = ArrayStore(photo_directory(), int(limit * GIBIBYTE))
        try:
            with self.args.main_process_first(desc="photos"):
                self._train_rows.source = DecodedPhotos(self.photos["train"], self.train_transform, store)
        except StoreError as reason:
            logger.info("The training photos are decoded in every epoch: %s.", reason)

    def _refuse_features(self, limit: float) -> None:
        """Raise `PrefixError` where the settings of the run leave nothing to keep."""
        transform = self.train_transform
        if limit == 0:
            raise PrefixError("--feature_cache_gb is 0.")
        if transform.random and transform.views is None:
            raise PrefixError(
                f"--augmentation {transform.augmentation} draws new views in every epoch; --augmentation_views K keeps K of them."
            )
        if self.args.torch_compile or self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.n_gpu > 1:
            raise PrefixError("it does not work with --torch_compile, FSDP, DeepSpeed or several GPUs in one process.")

    def _rows(self, photos: datasets.Dataset) -> Rows:
        """Return what evaluation reads for `photos`: their activations where there is a cache, else the photos transformed."""
        if self.features is not None:
            try:
                return Rows(self.features.rows(photos, self.eval_transform))
            except StoreError as reason:
                logger.info("%d photos go through the whole network in every evaluation: %s.", len(photos), reason)
        return Rows(photos.with_transform(self.eval_transform))

    def _autocast(self) -> torch.autocast:
        dtype = computing_dtype(self.args)
        return torch.autocast(self.args.device.type, dtype, enabled=dtype != torch.float32)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate under inference mode, which keeps no books for autograd at all."""
        with torch.inference_mode():
            return super().prediction_step(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(model, PreTrainedModel):
            super()._save(output_dir, state_dict)
            return
        model.save_pretrained = functools.partial(type(model).save_pretrained, model, save_original_format=False)  # type: ignore[method-assign]
        try:
            with quiet():
                super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained
