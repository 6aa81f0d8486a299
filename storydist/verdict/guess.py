"""What a model says of a batch, in the form in which floors say it too."""

from typing import TYPE_CHECKING

import torch

from storydist.data.batch import Batch
from storydist.verdict.text_metrics import cross_entropy_sum, derangement
from storydist.verdict.truth import Guess, Truth

if TYPE_CHECKING:
    from storydist.model import Prediction, StoryModel


def model_guess(model: "StoryModel", batch: Batch, truth: Truth, generator: torch.Generator) -> Guess:
    """What the model says of a batch's valid windows and stories. `generator` (CPU) shuffles the conditions."""
    prediction = model(batch)
    windows, stories = batch.valid_M > 0, batch.valid_B > 0
    guess = Guess()
    if prediction.next_frame_MCHW is not None:
        guess.frame_MCHW = prediction.next_frame_MCHW[windows]
    if prediction.text_embedding_ME is not None:
        guess.embedding_ME = prediction.text_embedding_ME[windows]
    if prediction.character_logits_MP is not None:
        guess.characters_MP = prediction.character_logits_MP[windows] > 0
    if prediction.score_B is not None:
        guess.score_B = prediction.score_B[stories].float().cpu().numpy()
    if prediction.text_logits_TV is not None:
        guess.wordpiece_losses_T = _losses(prediction, windows, truth)
        order = derangement(batch.valid_M, generator)
        if order is not None:
            shuffled = model(batch, shuffle_condition=order.to(batch.valid_M.device))
            guess.shuffle_losses_T = _losses(shuffled, windows, truth) - guess.wordpiece_losses_T
    return guess


def _losses(prediction: "Prediction", windows_M: torch.Tensor, truth: Truth) -> torch.Tensor:
    """Loss of each target wordpiece of the valid windows, float64 [T].

    Raises ValueError if the model was scored on other wordpieces than the windows' targets hold.
    """
    assert prediction.text_logits_TV is not None
    assert prediction.text_target_T is not None and prediction.text_window_T is not None
    real = windows_M[prediction.text_window_T]
    target = prediction.text_target_T[real]
    if len(target) != len(truth.wordpieces_T) or int(target.sum()) != int(truth.wordpieces_T.sum()):
        raise ValueError(
            f"the model was scored on {len(target)} wordpieces, not on the {len(truth.wordpieces_T)} of the targets; "
            "its text decoder must be scored on the description after the input frames"
        )
    return cross_entropy_sum(prediction.text_logits_TV[real], target)
