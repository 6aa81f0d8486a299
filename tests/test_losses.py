import numpy as np
import pytest
import torch

from storydist.data.stream import Stream
from storydist.losses import LossConfig, all_losses, counts, total
from tests.small_runs import batch_of, data_config, small_model


def means(index, *batches) -> dict[str, float]:
    model, losses = small_model(index), LossConfig()
    with torch.no_grad():
        found = [all_losses(losses, model(batch), batch, model.facts.score_std) for batch in batches]
    return {head: float(sum(f[head][0].double() for f in found) / sum(f[head][1] for f in found)) for head in found[0]}


def test_losses_equal_slow_plain_versions(tiny_index):
    batch, model = batch_of(tiny_index, 1, 2), small_model(tiny_index)
    with torch.no_grad():
        said = model(batch)
    found = means(tiny_index, batch)
    target = batch.frames_NHWC[batch.target_M].numpy().transpose(0, 3, 1, 2) / 255
    assert found["next_frame"] == pytest.approx(np.abs(said.next_frame_MCHW.numpy() - target).mean(), rel=1e-5)
    own = batch.frames_NHWC.numpy().transpose(0, 3, 1, 2) / 255
    assert found["reconstruction"] == pytest.approx(np.abs(said.reconstruction_NCHW.numpy() - own).mean(), rel=1e-5)
    share = said.text_logits_TV.double().softmax(1)[torch.arange(len(said.text_target_T)), said.text_target_T]
    assert found["next_text"] == pytest.approx(float(-share.log().mean()), rel=1e-5)
    a, b = said.text_embedding_ME.numpy(), said.text_target_NE[batch.target_M].numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert found["text_embedding"] == pytest.approx(1 - cosine.mean(), rel=1e-4)
    error = (said.score_B - batch.score_B).numpy() / model.facts.score_std
    assert found["score"] == pytest.approx((error**2).mean(), rel=1e-4)
    p, t = torch.sigmoid(said.character_logits_MP).numpy(), batch.characters_NP[batch.target_M].numpy()
    assert found["characters"] == pytest.approx(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(), rel=1e-4)


def test_any_split_over_micro_batches_gives_one_answer(tiny_index):
    stories = (1, 2, 3, 5, 8)  # texts, lengths and numbers of windows differ
    whole = means(tiny_index, batch_of(tiny_index, *stories))
    apart = means(tiny_index, *(batch_of(tiny_index, story) for story in stories))
    assert apart == pytest.approx(whole, rel=1e-5)


def test_padding_counts_nowhere(tiny_index):
    plain, padded = batch_of(tiny_index, 1, 2), batch_of(tiny_index, 1, 2, padding=True)
    assert means(tiny_index, padded) == pytest.approx(means(tiny_index, plain), rel=1e-5)


def test_counts_are_known_before_the_forward_pass(tiny_index):
    losses, model = LossConfig(), small_model(tiny_index)
    for batch in (batch_of(tiny_index, 1, 2, padding=True), batch_of(tiny_index, 0)):
        found = all_losses(losses, model(batch), batch, 1.0)
        assert counts(losses.heads(), batch).tolist() == [float(count) for _, count in found.values()]


def test_gradients_do_not_depend_on_the_number_of_micro_batches(tiny_index):
    losses, stories = LossConfig(), (1, 2, 3, 5)

    def gradients(groups: list[tuple[int, ...]]) -> list[torch.Tensor]:
        model = small_model(tiny_index)
        batches = [batch_of(tiny_index, *group) for group in groups]
        global_counts = torch.stack([counts(losses.heads(), batch) for batch in batches]).sum(0)
        for batch in batches:
            total(losses, all_losses(losses, model(batch), batch, model.facts.score_std), global_counts, 1.0).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for whole, cut in zip(gradients([stories]), gradients([(1,), (2, 3), (5,)]), strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


def test_a_story_without_score_or_text_takes_no_part(tiny_index):
    batch = batch_of(tiny_index, 1, 2)
    batch.score_known_B[0] = False
    batch.lengths_N[:] = 2
    losses, model = LossConfig(), small_model(tiny_index)
    assert dict(zip(losses.heads(), counts(losses.heads(), batch).tolist(), strict=True))["score"] == 1
    assert dict(zip(losses.heads(), counts(losses.heads(), batch).tolist(), strict=True))["text_embedding"] == 0
    loss = total(losses, all_losses(losses, model(batch), batch, 1.0), counts(losses.heads(), batch), 1.0)
    assert torch.isfinite(loss)


def test_switching_everything_off_is_refused():
    with pytest.raises(ValueError, match="every head is switched off"):
        LossConfig(next_frame=0, next_text=0, text_embedding=0, score=0, characters=0)


@pytest.mark.parametrize(
    ("world_size", "global_batch"), [(2, 24), (3, 24), (4, 24), (6, 24), (8, 24), (5, 35), (7, 35)]
)
def test_all_ranks_together_lose_as_one(tiny_index, world_size, global_batch):
    """Over the end of an epoch: 24 stories of unequal length, cut among ranks in any way."""

    def lost(ranks: int) -> dict[str, float]:
        streams = [
            Stream(tiny_index, data_config(tiny_index), seed=1, global_batch=global_batch, rank=r, world_size=ranks)
            for r in range(ranks)
        ]
        return means(tiny_index, *(stream.load_step(seen)[0] for seen in (0, global_batch) for stream in streams))

    assert lost(world_size) == pytest.approx(lost(1), rel=1e-6)
