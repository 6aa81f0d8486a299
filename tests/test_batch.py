from typing import Any

import numpy as np
import torch

from storydist.data.batch import FrameRun, SpecialPieces, collate

SPECIAL = SpecialPieces(cls=2, sep=3)


def run(num_frames: int, story: int = 0, **changes) -> FrameRun:
    values: dict[str, Any] = {
        "story": story,
        "story_id": f"s{story}",
        "frames": np.full((num_frames, 2, 3, 3), story, dtype=np.uint8),
        "wordpieces": np.concatenate([np.arange(5, 5 + f, dtype=np.int32) for f in range(num_frames)]),
        "lengths": np.arange(num_frames, dtype=np.int32),
        "tags": np.array([[0, 7, 3], [0, 8, 1], [num_frames - 1, 9, 2], [-1, 4, 0]], dtype=np.int32),
        "characters": np.eye(num_frames, 2, dtype=np.uint8),
        "times_s": np.arange(num_frames, dtype=np.float32) * 2,
        "first_position": 0,
        "score": 0.5,
    }
    return FrameRun(**(values | changes))


def batch(*runs: FrameRun, context: int = 4, max_wordpieces: int = 20, max_tags: int = 8):
    return collate(runs, context=context, special=SPECIAL, max_wordpieces=max_wordpieces, max_tags=max_tags)


def test_windows_are_all_positions_of_all_stories_and_never_cross_stories():
    made = batch(run(6), run(4, 1), run(5, 2))
    assert made.windows_MK.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [10, 11, 12, 13]]
    assert made.target_M.tolist() == [4, 5, 14]  # the frame after the four, never the fourth itself
    assert made.window_story_M.tolist() == [0, 0, 2]
    assert made.valid_M.tolist() == [1, 1, 1]


def test_a_batch_without_a_window_has_one_that_counts_nothing():
    made = batch(run(3))
    assert made.windows_MK.shape == (1, 4)
    assert made.valid_M.tolist() == [0]


def test_padding_stories_do_not_count():
    made = batch(run(6), run(6, 1, valid=0.0))
    assert made.valid_B.tolist() == [1, 0]
    assert made.valid_M.tolist() == [1, 1, 0, 0]


def test_texts_get_their_special_pieces_and_a_cut_text_does_not_pretend_to_end():
    made = batch(run(6), max_wordpieces=6)
    assert made.wordpieces_NL[0].tolist() == [2, 3, 0, 0, 0, 0]
    assert made.wordpieces_NL[2].tolist() == [2, 5, 6, 3, 0, 0]
    assert made.wordpieces_NL[4].tolist() == [2, 5, 6, 7, 8, 3]
    assert made.wordpieces_NL[5].tolist() == [2, 5, 6, 7, 8, 0]  # five words, four kept, no [SEP]
    assert made.lengths_N.tolist() == [2, 3, 4, 5, 6, 5]
    assert made.target_lengths_M.tolist() == [6, 5]


def test_tags_go_to_their_frame_or_their_story():
    made = batch(run(3), run(2, 1))
    assert made.tags_NG[0].tolist() == [7, 8]
    assert made.tag_kinds_NG[0].tolist() == [3, 1]
    assert made.tag_mask_NG.tolist() == [[True, True], [False, False], [True, False], [True, True], [True, False]]
    assert made.story_tags_BG.tolist() == [[4], [4]]


def test_unknown_times_and_scores_are_marked_not_guessed():
    made = batch(run(2, score=float("nan"), times_s=np.array([0, np.nan], dtype=np.float32)))
    assert made.score_known_B.tolist() == [False]
    assert made.seconds_known_N.tolist() == [True, False]
    assert torch.isfinite(made.score_B).all() and torch.isfinite(made.seconds_N).all()


def test_characters_are_padded_per_story():
    made = batch(run(2), run(2, 1, characters=np.ones((2, 3), dtype=np.uint8)))
    assert made.character_mask_BP.tolist() == [[True, True, False], [True, True, True]]
    assert made.characters_NP.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_stories_without_characters_or_tags_are_fine():
    made = batch(run(2, characters=np.zeros((2, 0), dtype=np.uint8), tags=np.zeros((0, 3), dtype=np.int32)))
    assert not made.character_mask_BP.any() and not made.tag_mask_NG.any()


def test_moving_keeps_lengths_on_the_cpu():
    made = batch(run(5)).to(torch.device("meta"))
    assert made.frames_NHWC.device.type == "meta"
    assert made.lengths_N.device.type == made.target_lengths_M.device.type == "cpu"
