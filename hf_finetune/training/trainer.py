"""`FinetuneTrainer`: the stock `transformers.Trainer` with the traps of image classification closed."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, EarlyStoppingCallback, EvalPrediction, PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_finetune.argument_parsing.rates import parse_rates
from hf_finetune.arguments import FinetuneArguments
from hf_finetune.data.mixing import BatchMixing
from hf_finetune.data.transforms import TrainTransform
from hf_finetune.models.batchnorm import BatchNormPolicy, check_recomputation
from hf_finetune.models.classifier import quiet
from hf_finetune.models.folding import folded_batchnorm
from hf_finetune.models.freezing import Freezer, FreezeSchedule
from hf_finetune.models.layers import group_table
from hf_finetune.reporting.metrics import classification_metrics
from hf_finetune.training.allocator import keep_freed_memory
from hf_finetune.training.callbacks import BeginEpoch, ReadableLog
from hf_finetune.training.features import CachedFeatures, FeatureCache
from hf_finetune.training.inputs import Inputs
from hf_finetune.training.loop import ExactLoop
from hf_finetune.training.losses import CrossEntropy
from hf_finetune.training.micro_batches import in_parts, micro_batch_size
from hf_finetune.training.optim import check_rates, optimizer_options, parameter_groups
from hf_finetune.training.precision import set_layout
from hf_finetune.training.prefix import CACHED
from hf_finetune.training.schedulers import optimizer_step_of_epoch, with_unfreeze_warmup
from hf_finetune.training.weight_average import WeightAverage

logger = logging.getLogger(__name__)


class Collate:
    """Makes a batch of examples: `labels` [B] int64 and `pixel_values` [B, 3, H, W] float32, or cached activations in their place.

    Args:
        mixing: Mixes the photos and labels of training batches, whose examples carry a `view_seed`; labels are then [B, C] float32.
    """

    def __init__(self, mixing: BatchMixing | None = None) -> None:
        self.mixing = mixing

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch."""
        inputs = CACHED if CACHED in examples[0] else "pixel_values"
        values = torch.stack([example[inputs] for example in examples])
        labels = torch.tensor([example["labels"] for example in examples])
        if self.mixing and "view_seed" in examples[0]:
            values, labels = self.mixing(values, labels, [example["view_seed"] for example in examples])
        return {inputs: values, "labels": labels}


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


class FinetuneTrainer(ExactLoop):
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
        augmentation: Name of the training augmentation, see `hf_finetune.data.augmentation_text`, or a transform that draws the views.
        mixing: Mixes the photos of a batch.
        schedule: What trains when; None leaves every parameter as it is, as for LoRA.
        batch_norm: What BatchNorm does; with a mode and no schedule everything else trains.
        loss: A callable as `CrossEntropy`; by default cross-entropy with `args.label_smoothing_factor`.
        callbacks: Further callbacks.

    Attributes:
        micro_batch: How many photos of a training batch go through the network at once; None for all of them.
        layout: Memory layout of the weights.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: FinetuneArguments,
        train_dataset: datasets.Dataset,
        eval_dataset: datasets.Dataset,
        processor: BaseImageProcessor,
        *,
        augmentation: str | TrainTransform = "light",
        mixing: BatchMixing | None = None,
        schedule: FreezeSchedule | None = None,
        batch_norm: BatchNormPolicy | None = None,
        loss: Callable[..., torch.Tensor] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if args.device.type == "cpu":
            keep_freed_memory()
        transform = TrainTransform(processor, augmentation, args.seed) if isinstance(augmentation, str) else augmentation
        transform.with_seeds |= bool(mixing)
        self.inputs = Inputs(train_dataset, eval_dataset, transform, args, mixed=bool(mixing))
        self.layout = set_layout(model)
        if schedule is None and batch_norm is not None and batch_norm.mode is not None:
            schedule = FreezeSchedule.none()
        self.freezer = Freezer(model, schedule, batch_norm) if schedule else None
        self._trained: set[str] = set()
        if self.freezer:
            self.freezer.apply(last_epoch(args))
        if args.activation_checkpointing:
            check_recomputation(model)
        check_rates(model, parse_rates(args.group_lr or ""), args.layer_groups)  # here: where the optimizer is made the run has begun
        self.average = WeightAverage(model, args.ema_decay) if args.ema_decay else None
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.inputs.train,
            eval_dataset=self.inputs.validation,
            data_collator=Collate(mixing),
            processing_class=processor,
            compute_metrics=selection_metrics(train_dataset.features["label"].names),
            compute_loss_func=loss or CrossEntropy(args.label_smoothing_factor),
            callbacks=[BeginEpoch(transform, self.begin_epoch), *([self.average] if self.average else []), *(callbacks or [])],
        )
        if schedule is not None and not schedule.constant:
            self.args.dataloader_persistent_workers = False  # they would go on reading what an earlier stage read
        # a resumed run stops where the uninterrupted one does only if evaluations without an improvement are counted on
        self.args.restore_callback_states_from_checkpoint |= any(isinstance(one, EarlyStoppingCallback) for one in callbacks or [])
        self._parts_by_default = loss is None  # another loss may not count the examples of the whole batch
        self.micro_batch = self._choose_micro_batch()
        self.label_names = ["labels"]
        for stock in (ProgressCallback, PrinterCallback):
            self.remove_callback(stock)
        self.add_callback(ReadableLog())

    @property
    def features(self) -> FeatureCache | None:
        """The feature cache in use."""
        return self.inputs.features

    @property
    def _sharded(self) -> bool:
        """Whether parameters are spread over processes."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer over `parameter_groups`; the class and its options are those of `--optim`."""
        if self.optimizer is None:
            self._trained, own = set(), cast(FinetuneArguments, self.args)
            if self.freezer:
                # whatever will train is in the optimizer, and in DDP's buckets, from the first step on; begin_epoch freezes it until then
                self.freezer.apply(last_epoch(own))
            target = cast(PreTrainedModel, self.model if model is None else model)
            optimizer_class, options = optimizer_options(own) or self.get_optimizer_cls_and_kwargs(own, target)
            groups = parameter_groups(
                target,
                learning_rate=options.pop("lr"),
                weight_decay=own.weight_decay,
                head_lr=own.head_lr,
                backbone_lr=own.backbone_lr,
                layer_lr_decay=own.layer_lr_decay,
                group_rates=parse_rates(own.group_lr or ""),
                granularity=own.layer_groups,
                unfrozen_in=self.freezer.first_epochs(last_epoch(own)) if self.freezer and own.unfreeze_warmup else None,
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Build the course of the learning rate that `--lr_scheduler_type` names, with `--unfreeze_warmup` for groups unfrozen later."""
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        own = cast(FinetuneArguments, self.args)
        if own.unfreeze_warmup:
            batches = len(self.get_train_dataloader())
            groups = cast(torch.optim.Optimizer, self.optimizer).param_groups
            starts = [optimizer_step_of_epoch(group["unfrozen_in"], batches, own.gradient_accumulation_steps) for group in groups]
            scheduler = self.lr_scheduler = cast(Any, with_unfreeze_warmup(scheduler, starts, own.unfreeze_warmup))
        return scheduler

    def _get_learning_rate(self) -> float:
        """Return the highest rate of all groups for the log; the Trainer's own is that of the first group, often the slowest."""
        if self.is_deepspeed_enabled:
            return super()._get_learning_rate()
        return max(group["lr"] for group in cast(torch.optim.Optimizer, self.optimizer).param_groups)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the stock Trainer does, and leave a network without hooks of the feature cache, which can be copied and saved whole."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.inputs.detach()

    def predict_split(self, dataset: datasets.Dataset) -> np.ndarray:
        """Return the probabilities [N, C] float32 of the model in evaluation mode for the rows of `dataset`, in their order."""
        output = self.predict(self.inputs.rows(dataset))
        return softmax(np.asarray(output.predictions))

    def begin_epoch(self, epoch: int) -> None:
        """Let the parameters train that the schedule names for `epoch`, and choose what training and evaluation read.

        Called before every epoch. It does something in the first one of a training, and where the schedule unfreezes.
        """
        model = cast(PreTrainedModel, self.model)
        trained = self.freezer.apply(epoch) if self.freezer else {name for name, p in model.named_parameters() if p.requires_grad}
        if trained == self._trained:
            return
        if self.freezer and not self._trained and not all(p.requires_grad for p in model.parameters()):
            logger.info("\n%s\n", group_table(self.freezer.model, cast(FinetuneArguments, self.args).layer_groups))
        elif self.freezer and self._trained:
            logger.info("Epoch %d: %s of %s parameters train from here on.", epoch, *parameter_counts(model))
        if self.state.global_step == 0 and not self._trained:
            self._recalibrate()
        self.inputs.choose(model, self.state.num_train_epochs, sharded=self._sharded)
        self.micro_batch = self._choose_micro_batch()
        if self.micro_batch and not self._trained:
            logger.info("A batch trains in parts of at most %d photos: the gradient of all of it, in less memory.", self.micro_batch)
        self._trained = trained

    def _choose_micro_batch(self) -> int | None:
        """Return how many photos go through the network at once, for what trains and is read now; called first for what it refuses."""
        # what starts at kept activations needs little memory
        by_default = self._parts_by_default and not isinstance(self.inputs.train.source, CachedFeatures)
        own, spec = cast(FinetuneArguments, self.args), self.inputs.transform.spec
        return micro_batch_size(own, cast(nn.Module, self.model), spec, sharded=self._sharded, by_default=by_default)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        """Add up the gradient of a batch, part by part, and return its loss; without a count of its examples it is taken whole."""
        *parts, last = in_parts(inputs, self.micro_batch if num_items_in_batch is not None else None)
        losses = []
        for part in parts:
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack([*losses, super().training_step(model, last, num_items_in_batch)]).sum()

    def _recalibrate(self) -> None:
        """Estimate the statistics of BatchNorm on the training photos, where the policy says so; every process does all of it alike."""

        def batches() -> Iterator[torch.Tensor]:
            rows, size = self.inputs.rows(self.inputs.photos["train"]), self.args.eval_batch_size
            # shuffled: in batches of few classes the variance between classes would be lost
            order = np.random.default_rng(self.args.seed).permutation(len(rows)).tolist()
            for batch in DataLoader(rows, batch_size=size, sampler=order, collate_fn=Collate(), drop_last=len(rows) % size == 1):
                yield batch["pixel_values"].to(self.args.device)

        if self.freezer:
            with self.inputs.autocast():
                norms, photos = self.freezer.recalibrate(batches)
            if norms:
                logger.info("BatchNorm: mean and variance of %d layers estimated anew on %d training photos.", norms, photos)

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the average of the weights, where there is one, from cached activations, where there are some."""
        with self.inputs.attached(), self.average.in_place() if self.average else contextlib.nullcontext(), self._folded(dataloader):
            return super().evaluation_loop(dataloader, *args, **kwargs)

    def _folded(self, dataloader: DataLoader) -> contextlib.AbstractContextManager[None]:
        """Fold BatchNorm into convolutions, where the weights are whole, no compiler does it, and the optimizer is not schedule-free."""
        if self.args.torch_compile or self._sharded or self.args.n_gpu > 1 or hasattr(self.optimizer, "eval"):
            return contextlib.nullcontext()

        def example() -> dict[str, Any]:
            batch = self._prepare_inputs(self.data_collator([dataloader.dataset[0]]))
            return {name: values for name, values in batch.items() if name != "labels"}

        return folded_batchnorm(cast(nn.Module, self.model), example)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate under inference mode, which keeps no books for autograd at all."""
        with torch.inference_mode():
            return super().prediction_step(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        self._save_model(output_dir, state_dict)
        if self.average:
            self.average.save(output_dir or cast(str, self.args.output_dir))

    def _save_model(self, output_dir: str | None, state_dict: dict[str, torch.Tensor] | None) -> None:
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average:
            self.average.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average:
            self.average.load(cast(str, self.state.best_model_checkpoint))  # becomes the model where the training ends
