"""Zero-shot evaluation during training: pictures pass through a frozen vision tower only once."""

import logging
from pathlib import Path

from transformers import PreTrainedTokenizerBase, VisionTextDualEncoderModel

from cit_curate.errors import ConfigError
from cit_curate.metadata.tasks import Metric, load_task
from cit_curate.storage.row_cache import RowCache
from cit_curate.terminal import print_line
from cit_train.config import EvaluationConfig
from cit_train.evaluation.open_folder import open_folder
from cit_train.evaluation.open_task import open_task
from cit_train.evaluation.pooled_images import PooledImages, pooled_images
from cit_train.evaluation.prompts import DEFAULT_PROMPTS, choose_prompts
from cit_train.evaluation.readers.labelled_images import Flags, LabelledImages
from cit_train.evaluation.zero_shot import Evaluation, evaluate
from cit_train.models.freeze import trains_vision_tower
from cit_train.models.pooled_vision import PooledVision

__all__ = ["Evaluator"]

logger = logging.getLogger(__name__)
_FLAGS = Flags(data="--eval-data", classes="--eval-classes")


class Evaluator:
    """One task or image folder that a model is evaluated on repeatedly.

    Attributes:
        config: The config.
        images: The pictures with their classes.
        prompts: The texts with `{}` for the class name.
        metric: The task's metric.
        vision: The frozen part of the vision tower; None = that of the model, in PyTorch.
        kept: The vectors of pictures that earlier evaluations with this frozen tower have kept.
            None = they are kept in memory alone.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        images: LabelledImages,
        max_text_length: int,
        *,
        prompts: tuple[str, ...],
        metric: Metric = "accuracy",
    ) -> None:
        self.config = config
        self.images = images
        self.prompts = prompts
        self.metric: Metric = metric
        self.vision: PooledVision | None = None
        self.kept: RowCache | None = None
        self._max_text_length = max_text_length
        self._pooled: PooledImages | None = None

    @classmethod
    def open(cls, config: EvaluationConfig, max_text_length: int) -> "Evaluator | None":
        """The evaluator of a config; None when the config has no `eval_data`.

        Raises:
            ConfigError: The task, the folder or the class list is missing or malformed, or the
                folder holds splits or a single class.
            BadInputError: There is no image, or one without a label.
            DamagedError: A file of the task is truncated.
        """
        if not config.eval_data:
            return None
        root = Path(config.eval_data)
        classes = Path(config.eval_classes) if config.eval_classes else None
        if not config.eval_task:
            images = open_folder(root, classes=classes, flags=_FLAGS)
            prompts = choose_prompts(
                None, requested=config.prompts, use_template=config.use_template
            )
            return cls(config, images, max_text_length, prompts=prompts)
        task = load_task(config.eval_task)
        if not root.is_dir():
            raise ConfigError(f"--eval-data: there is no folder {root}")
        images = open_task(task.name, root, classes=classes, flags=_FLAGS)
        prompts = choose_prompts(
            task,
            requested=() if config.prompts == DEFAULT_PROMPTS else config.prompts,
            use_template=config.use_template,
            extra_prompts=config.extra_prompts,
        )
        return cls(config, images, max_text_length, prompts=prompts, metric=task.metric)

    def __call__(
        self, model: VisionTextDualEncoderModel, tokenizer: PreTrainedTokenizerBase
    ) -> Evaluation:
        """Evaluate the model's current weights.

        Args:
            model: The dual encoder. While its vision tower is frozen below the head, only the first
                call reads pixels; later calls must pass the same model.
            tokenizer: The text tower's tokenizer.
        """
        if self._pooled is None or trains_vision_tower(model):
            self._pooled = pooled_images(
                model, self.images.images, vision=self.vision, kept=self.kept
            )
        return evaluate(
            model,
            tokenizer,
            self._pooled,
            self.images,
            prompts=self.prompts,
            max_text_length=self._max_text_length,
            metric=self.metric,
        )

    def announce(self) -> None:
        """Show how a class list was matched, and warn of what makes the accuracy say little."""
        if self.images.naming:
            print_line(self.images.naming, stderr=True)
        for note in self.images.notes:
            logger.warning("%s: %s", _FLAGS.data, note)

    @property
    def best_metric(self) -> str:
        """The metric that chooses `checkpoints/best`: the task's, or the config's."""
        return self.metric if self.config.eval_task else self.config.best_metric

    def best_value(self, evaluation: Evaluation) -> float:
        """The value of `best_metric`, in percent."""
        if self.config.eval_task:
            return evaluation.value
        if self.config.best_metric == "mean_per_class":
            return evaluation.mean_per_class
        return evaluation.accuracy

    def is_out_of_patience(self, *, update: int, best_update: int) -> bool:
        """Whether training should stop: `patience` evaluations have passed since the best one.

        A pure function of update numbers, so that a resumed run stops at the same update.

        Args:
            update: The update of the latest evaluation.
            best_update: The update of the best evaluation so far, which may be the latest.
        """
        every, patience = self.config.eval_every, self.config.patience
        return patience > 0 and update // every - best_update // every >= patience
