import numpy as np
import pytest
import torch

from storydist.losses import LossConfig, all_losses, counts, total
from storydist.model import HEADS
from storydist.model.text import nucleus
from tests.small_runs import batch_of, small_model

OFF = dict.fromkeys(HEADS, 0.0)


def tensors(prediction) -> dict[str, torch.Tensor]:
    return {name: value for name, value in prediction._asdict().items() if value is not None}


def test_shapes_and_ranges(tiny_index):
    batch, model = batch_of(tiny_index, 1, 2, 0), small_model(tiny_index)
    num_frames, num_windows = len(batch.frames_NHWC), len(batch.target_M)
    found = tensors(model(batch))
    assert found["next_frame_MCHW"].shape == (num_windows, 3, 12, 24)
    assert found["reconstruction_NCHW"].shape == (num_frames, 3, 12, 24)
    assert all(found[name].min() >= 0 and found[name].max() <= 1 for name in ("next_frame_MCHW", "reconstruction_NCHW"))
    num_targets = int((batch.target_lengths_M - 1).sum())
    assert found["text_logits_TV"].shape == (num_targets, model.words.num_embeddings)
    assert found["text_target_T"].shape == found["text_window_T"].shape == (num_targets,)
    assert found["text_embedding_ME"].shape == (num_windows, 12)
    assert found["character_logits_MP"].shape == (num_windows, 3)
    assert found["score_B"].shape == (3,)


def test_the_text_is_scored_on_the_words_that_follow(tiny_index):
    batch, model = batch_of(tiny_index, 1, 2), small_model(tiny_index)
    found = model(batch)
    for window, row in enumerate(batch.target_M.tolist()):
        length = int(batch.lengths_N[row])
        told = found.text_target_T[found.text_window_T == window].tolist()
        assert (
            told == batch.wordpieces_NL[row, 1:length].tolist()
        )  # shifted by one, [CLS] never predicted, padding never scored


@pytest.mark.parametrize("head", [h for h in HEADS if h != "reconstruction"])
def test_each_head_alone_predicts_only_its_own_and_reaches_every_parameter(tiny_index, head):
    losses = LossConfig(**(OFF | {head: 1.0}))
    batch, model = batch_of(tiny_index, 1, 2), small_model(tiny_index, losses).train()
    prediction = model(batch)
    found = all_losses(losses, prediction, batch, 1.0)
    assert list(found) == [head]
    total(losses, found, counts(losses.heads(), batch), 1.0).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_every_parameter_gets_a_gradient(tiny_index):
    losses, batch, model = (
        LossConfig(),
        batch_of(tiny_index, 1, 2, 3, 4),
        small_model(tiny_index, dropout=0.0, score_dropout=0.0).train(),
    )
    total(losses, all_losses(losses, model(batch), batch, 1.0), counts(losses.heads(), batch), 1.0).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_neighbours_and_padding_change_nothing(tiny_index):
    model = small_model(tiny_index)
    alone = model(batch_of(tiny_index, 2))
    among = model(batch_of(tiny_index, 2, 5, 7, padding=True))
    num_windows = len(alone.next_frame_MCHW)
    torch.testing.assert_close(among.next_frame_MCHW[:num_windows], alone.next_frame_MCHW)
    torch.testing.assert_close(among.text_embedding_ME[:num_windows], alone.text_embedding_ME)
    torch.testing.assert_close(among.text_logits_TV[: len(alone.text_logits_TV)], alone.text_logits_TV)
    torch.testing.assert_close(among.score_B[:1], alone.score_B)
    torch.testing.assert_close(among.character_logits_MP[:num_windows], alone.character_logits_MP)


def test_a_window_sees_neither_its_target_nor_anything_later(tiny_index):
    batch, model = batch_of(tiny_index, 2), small_model(tiny_index)
    before = model(batch)
    target = int(batch.target_M[0])
    batch.frames_NHWC[target:] = 255 - batch.frames_NHWC[target:]
    batch.tags_NG[target:] = 1
    batch.seconds_N[target:] += 3
    batch.characters_NP[target:] = 1 - batch.characters_NP[target:]
    words = batch.wordpieces_NL.clone()
    batch.wordpieces_NL[target:, 1] = torch.where(words[target:, 1] == 7, 8, 7)
    after = model(batch)
    for name in ("next_frame_MCHW", "text_embedding_ME", "character_logits_MP"):
        torch.testing.assert_close(getattr(after, name)[0], getattr(before, name)[0], msg=name)
    assert not torch.equal(after.next_frame_MCHW[1], before.next_frame_MCHW[1])
    # Teacher forcing shows the decoder the target's earlier words, so only the first word's logits must not move.
    torch.testing.assert_close(after.text_logits_TV[0], before.text_logits_TV[0])
    assert not torch.equal(after.score_B, before.score_B)  # the score judges the whole story


def test_the_drawn_frame_and_the_copies_make_a_mixture(tiny_index):
    batch, model = batch_of(tiny_index, 2), small_model(tiny_index)
    assert model.mixer is not None
    last = model.mixer.join[-1]
    assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
    with torch.no_grad():
        last.bias[:] = torch.tensor([0.0, 0.0, 0.0, 60.0, 0.0])  # all weight on the last input
    torch.testing.assert_close(
        model(batch).next_frame_MCHW, batch.frames_NHWC[batch.windows_MK[:, -1]].permute(0, 3, 1, 2) / 255
    )


def test_a_shuffled_condition_moves_the_text_and_nothing_else(tiny_index):
    batch, model = batch_of(tiny_index, 1, 2), small_model(tiny_index)
    num_windows = len(batch.target_M)
    with torch.no_grad():
        plain, rolled = model(batch), model(batch, torch.arange(num_windows).roll(1))
    assert not torch.allclose(plain.text_logits_TV, rolled.text_logits_TV)
    assert torch.equal(plain.next_frame_MCHW, rolled.next_frame_MCHW)
    same = model(batch, torch.arange(num_windows))
    torch.testing.assert_close(same.text_logits_TV, plain.text_logits_TV)


def test_the_frozen_text_target_is_a_plain_projection(tiny_index):
    batch, model = batch_of(tiny_index, 1, 2), small_model(tiny_index)
    target = model.text_target
    found = target(batch.wordpieces_NL)
    for row, length in enumerate(batch.lengths_N.tolist()):
        words = sorted(set(batch.wordpieces_NL[row, :length].tolist()))
        slow = target.projection_VE[words].sum(0) - target.centre_E
        torch.testing.assert_close(found[row], slow / slow.norm())
    assert not any(p is target.projection_VE for p in model.parameters())


def test_it_overfits_one_batch(tiny_index):
    # A score per story, texts and faces can be learned by heart; noise frames can only be copied where they repeat.
    losses, batch = LossConfig(reconstruction=0, next_frame=0), batch_of(tiny_index, 1, 2)
    model = small_model(tiny_index, losses, width=32, dropout=0.0, score_dropout=0.0, word_dropout=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        found = all_losses(losses, model(batch), batch, model.facts.score_std)
        loss = total(losses, found, counts(losses.heads(), batch), 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3, {head: (s / c).item() for head, (s, c) in found.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"temporal": "lstm"},
        {"attention_heads": 0},
        {"tags": "none"},
        {"tags": "after"},
        {"latent": "relu"},
        {"copy_frames": False},
    ],
)
def test_every_choice_builds_and_runs(tiny_index, changes):
    found = tensors(small_model(tiny_index, **changes)(batch_of(tiny_index, 1, 2)))
    assert all(torch.isfinite(value).all() for value in found.values())


def test_generation_depends_on_the_seed_alone_and_stops_at_the_end(tiny_index):
    batch, model = batch_of(tiny_index, 1, 2), small_model(tiny_index)

    def generate(seed: int) -> list[list[int]]:
        return model.generate(batch, first=2, last=3, max_wordpieces=9, generator=torch.Generator().manual_seed(seed))

    texts = generate(1)
    assert texts == generate(1) != generate(2)
    assert len(texts) == len(batch.target_M)
    assert all(len(text) <= 9 and 3 not in text for text in texts)


def test_nucleus_never_leaves_the_smallest_set_that_reaches_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(2000, 1)
    drawn = nucleus(logits, 0.8, torch.Generator().manual_seed(0))
    shares = np.bincount(drawn.numpy(), minlength=4) / 2000
    np.testing.assert_allclose(shares, [0.625, 0.375, 0, 0], atol=0.04)
    assert set(nucleus(logits, 0.01, torch.Generator().manual_seed(0)).tolist()) == {0}


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu(tiny_index):
    batch, model = batch_of(tiny_index, 1, 2), small_model(tiny_index)
    on_cpu = tensors(model(batch))
    on_gpu = tensors(model.cuda()(batch.to(torch.device("cuda"))))
    for name, value in on_cpu.items():
        torch.testing.assert_close(on_gpu[name].cpu(), value, atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gpu_half_precision_trains_its_lstms(tiny_index, dtype):
    losses, batch, model = (
        LossConfig(),
        batch_of(tiny_index, 1, 2).to(torch.device("cuda")),
        small_model(tiny_index).cuda().train(),
    )
    with torch.autocast("cuda", dtype=dtype):
        loss = total(losses, all_losses(losses, model(batch), batch, 1.0), counts(losses.heads(), batch).cuda(), 1.0)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
