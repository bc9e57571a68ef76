"""What training and evaluation read: photos, decoded photos, or activations of the frozen part, whichever is the least work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import datasets
import torch
from torch import nn

from hf_finetune.arguments import FinetuneArguments
from hf_finetune.data.decoded import DecodedPhotos, KeptViews, photo_directory
from hf_finetune.data.stored_arrays import GIBIBYTE, ArrayStore, StoreError
from hf_finetune.data.transforms import EvalTransform, TrainTransform
from hf_finetune.training.features import FeatureCache, Rows, feature_directory
from hf_finetune.training.precision import computing_dtype
from hf_finetune.training.prefix import PrefixError, find_frozen_prefix

logger = logging.getLogger(__name__)


class Inputs:
    """The rows that a trainer's loaders read, which change with what is frozen.

    Args:
        train: Training photos.
        validation: Photos to select by.
        transform: Draws the training views.
        args: The limits of the caches, the batch sizes and the precision.
        mixed: Whether batches of photos are mixed, which activations cannot be.

    Attributes:
        train: What the training loader reads.
        validation: What the evaluation loader reads.
        features: The feature cache in use, or None.
    """

    def __init__(
        self, train: datasets.Dataset, validation: datasets.Dataset, transform: TrainTransform, args: FinetuneArguments, *, mixed: bool
    ) -> None:
        self.transform, self.args, self.mixed = transform, args, mixed
        self.photos = {"train": train, "validation": validation}
        self.train = Rows(train.with_transform(transform))
        self.validation = Rows(validation.with_transform(self.evaluation))
        self.features: FeatureCache | None = None
        self._earlier: list[tuple[str, int, int, float]] = []

    def summary(self) -> dict[str, Any] | None:
        """Return what the feature cache did so far, in all stages of a schedule together; None where there was none."""
        stages = [*self._earlier, *([self.features.figures()] if self.features else [])]
        if not stages:
            return None
        boundaries, computed, reused, seconds = zip(*stages, strict=True)
        return {"boundaries": list(boundaries), "computed": sum(computed), "reused": sum(reused), "seconds": sum(seconds)}

    @property
    def evaluation(self) -> EvalTransform:
        """The view of a photo without augmentation."""
        return self.transform.evaluation

    def choose(self, model: nn.Module, epochs: float, *, sharded: bool) -> None:
        """Choose what is read from now on; what is kept for the first time is computed here.

        Args:
            model: What trains, frozen as it is from now on.
            epochs: Of the whole training.
            sharded: Whether parameters are spread over processes.
        """
        self.release()
        self.train.source = self.photos["train"].with_transform(self.transform)
        self.validation.source = self.photos["validation"].with_transform(self.evaluation)
        if any(not parameter.requires_grad for parameter in model.parameters()):  # else nobody expects a cache
            self._keep_features(model, sharded)
        if epochs > 1:
            self._keep_photos()

    def release(self) -> None:
        """Let the whole network compute again."""
        if self.features is not None:
            self.features.prefix.detach()
            self._earlier.append(self.features.figures())
            self.features = None

    def detach(self) -> None:
        """Let the network take photos alone until `choose`, or inside `attached`."""
        if self.features is not None:
            self.features.prefix.detach()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the network take activations inside the block, where there are some, and be as it was afterwards."""
        prefix = self.features.prefix if self.features else None
        if prefix is None or prefix.attached:
            yield
            return
        prefix.attach()
        try:
            yield
        finally:
            prefix.detach()

    def rows(self, photos: datasets.Dataset) -> Rows:
        """Return what evaluation reads for `photos`: their activations where there is a cache, else the photos transformed."""
        if self.features is not None:
            try:
                return Rows(self.features.rows(photos, self.evaluation))
            except StoreError as reason:
                logger.info("%d photos go through the whole network in every evaluation: %s.", len(photos), reason)
        return Rows(photos.with_transform(self.evaluation))

    def autocast(self) -> torch.autocast:
        """Return the precision to compute in."""
        dtype = computing_dtype(self.args)
        return torch.autocast(self.args.device.type, dtype, enabled=dtype != torch.float32)

    def _keep_features(self, model: nn.Module, sharded: bool) -> None:
        """Compute the activations of the frozen part once, for training and evaluation; one log line says so, or why not."""
        anew = self._drawn_anew()
        try:
            self._refuse_features(sharded)
            if anew and self.args.eval_strategy == "no":
                raise PrefixError(anew)
            images = torch.stack([self.photos["train"].with_transform(self.evaluation)[row]["pixel_values"] for row in (0, -1)])
            features = FeatureCache(
                find_frozen_prefix(model, images.to(self.args.device), self.autocast),
                ArrayStore(feature_directory(), int(self.args.feature_cache_gb * GIBIBYTE)),
                self.evaluation,
                batch_size=self.args.eval_batch_size,
                autocast=self.autocast,
                precision=self._precision(),
            )
            with self.args.main_process_first(desc="features"):
                if anew:
                    self.validation.source = features.rows(self.photos["validation"], self.evaluation)
                else:
                    self.train.source = features.rows(self.photos["train"], self.transform)
        except (PrefixError, StoreError) as reason:
            logger.info("No feature cache: %s.", str(reason).removesuffix("."))
            return
        self.features = features
        features.prefix.attach()
        if self.args.eval_strategy != "no" and not anew:
            with self.args.main_process_first(desc="features"):
                self.validation.source = self.rows(self.photos["validation"]).source
        logger.info(
            "Feature cache%s: what is frozen below %s is not computed again in any epoch (%d photos computed in %.0f s, %d found).",
            f" for validation alone, since {anew.removesuffix('.')}" if anew else "",
            *(features.prefix.boundary, features.computed, features.seconds, features.reused),
        )

    def _keep_photos(self) -> None:
        """Decode once the photos that have no activations and are read in every epoch."""
        if self.args.image_cache_gb == 0:
            return
        store = ArrayStore(photo_directory(), int(self.args.image_cache_gb * GIBIBYTE))
        if self.features is None or self._drawn_anew():
            with self._kept("train"):
                kept = DecodedPhotos if self.transform.crops else KeptViews
                self.train.source = kept(self.photos["train"], self.transform, store)
        if self.features is None and self.args.eval_strategy != "no":
            with self._kept("validation"):
                self.validation.source = KeptViews(self.photos["validation"], self.evaluation, store)

    @contextmanager
    def _kept(self, split: str) -> Iterator[None]:
        """Keep photos in one process first; a log line says why it cannot be done."""
        try:
            with self.args.main_process_first(desc="photos"):
                yield
        except StoreError as reason:
            logger.info("The photos of %s are decoded in every epoch: %s.", split, reason)

    def _refuse_features(self, sharded: bool) -> None:
        """Raise `PrefixError` where the settings of the run leave nothing to keep."""
        if self.args.feature_cache_gb == 0:
            raise PrefixError("--feature_cache_gb is 0.")
        if self.args.torch_compile or sharded or self.args.n_gpu > 1:
            raise PrefixError("it does not work with --torch_compile, FSDP, DeepSpeed or several GPUs in one process.")

    def _drawn_anew(self) -> str | None:
        """Return why the photos of training have no activations that could be kept, or None; those of validation have."""
        if self.mixed:
            return "--mixup_alpha and --cutmix_alpha mix photos, not activations."
        if self.transform.random and self.transform.views is None:
            what = "--random_erasing" if self.transform.augmentation == "none" else f"--augmentation {self.transform.augmentation}"
            return f"{what} draws new views in every epoch; --augmentation_views K keeps K of them."
        return None

    def _precision(self) -> str:
        """Return what decides how exactly activations are computed."""
        device, settings = self.args.device.type, cast(Any, torch.backends)
        # the older allow_tf32 raises once the newer setting was written
        tf32 = f" {settings.cuda.matmul.fp32_precision} {settings.cudnn.conv.fp32_precision}" if device == "cuda" else ""
        return f"{computing_dtype(self.args)} {device}{tf32}"
