"""Zero-shot evaluation of a model while it trains: pictures go through the frozen tower once."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase, VisionTextDualEncoderModel

from cit_train.config import EvaluationConfig
from cit_train.evaluation.image_folder import ImageFolder
from cit_train.evaluation.zero_shot import Evaluation, PooledImages, evaluate, pooled_images


class Evaluator:
    """One image folder, evaluated again and again."""

    def __init__(self, config: EvaluationConfig, folder: ImageFolder, max_text_length: int) -> None:
        self.config = config
        self.folder = folder
        self._max_text_length = max_text_length
        self._pooled: PooledImages | None = None

    @classmethod
    def open(cls, config: EvaluationConfig, max_text_length: int) -> "Evaluator | None":
        """The evaluator that a config names; None when it names no pictures.

        Raises:
            ConfigError: The folder or the class file is not as it must be.
        """
        if not config.eval_data:
            return None
        classes = Path(config.eval_classes) if config.eval_classes else None
        folder = ImageFolder.open(Path(config.eval_data), classes)
        return cls(config, folder, max_text_length)

    def __call__(
        self, model: VisionTextDualEncoderModel, tokenizer: PreTrainedTokenizerBase
    ) -> Evaluation:
        """Evaluate the model as it is now; its vision tower must be the one of the first call."""
        if self._pooled is None:
            self._pooled = pooled_images(model, self.folder.paths)
        return evaluate(
            model,
            tokenizer,
            self._pooled,
            self.folder,
            prompts=self.config.prompts,
            max_text_length=self._max_text_length,
        )
