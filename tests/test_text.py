"""Wordpieces: training, loading, encoding."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from storydist.data.text import SPECIAL_PIECES, Wordpieces, load_wordpieces, train_wordpieces

ROOT = Path(__file__).resolve().parents[1]
BERT_VOCABULARY = ROOT.parent / "shared" / "data" / "bert-base-uncased-vocab.txt"
TEXTS = ["The café's old boy ran, asking: why?", "A girl was running and asking.", "Two boys and a girl; 走路."] * 3


@pytest.fixture(scope="module")
def wordpieces() -> Wordpieces:
    return train_wordpieces(TEXTS, 200)


def test_special_pieces_come_first(wordpieces):
    assert wordpieces.pieces(range(5)) == list(SPECIAL_PIECES)
    assert (wordpieces.pad_id, wordpieces.unknown_id, wordpieces.cls_id, wordpieces.sep_id) == (0, 1, 2, 3)


def test_small_corpus_gives_fewer_pieces_and_large_one_as_many_as_asked():
    syllables = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
    words = [one + two for one in syllables for two in syllables]
    assert train_wordpieces(TEXTS, 5000).vocabulary_size < 200
    assert train_wordpieces([" ".join(words)] * 2, 500).vocabulary_size == 500


def test_training_is_repeatable_across_processes():
    """The library's own trainer is not: it numbers pieces in the order of a hash map."""
    code = (
        "import hashlib; from storydist.data.text import train_wordpieces as t\n"
        "words = [a + b + c for a in 'bdfgk' for b in ('ing', 'er', 'o', 'ate') for c in ('s', 'ly', 'ed', '')]\n"
        "print(hashlib.sha256(t([' '.join(words)] * 3, 100).to_bytes()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [subprocess.check_output([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert len(set(runs)) == 1


def test_encode_gives_flat_ids_and_lengths(wordpieces):
    flat, lengths = wordpieces.encode(["The BOY ran.", "", "Café girls"])
    assert flat.dtype == lengths.dtype == np.int32 and lengths.sum() == len(flat) and lengths[1] == 0
    assert wordpieces.pieces(flat[: lengths[0]]) == ["the", "boy", "ran", "."]
    assert wordpieces.decode(flat[lengths[0] :]).startswith("cafe girl")
    nothing, none = wordpieces.encode([])
    assert nothing.dtype == none.dtype == np.int32 and len(nothing) == len(none) == 0


def test_long_texts_are_not_cut(wordpieces):
    assert wordpieces.encode(["boy " * 3000])[1].tolist() == [3000]


def test_unknown_characters_and_special_words(wordpieces):
    flat, _ = wordpieces.encode(["☃ boy [SEP]"])
    assert flat[0] == wordpieces.unknown_id and wordpieces.sep_id not in flat
    assert wordpieces.decode([wordpieces.cls_id, *flat[:2], wordpieces.sep_id, 0, 0]) == "[UNK] boy"


def test_save_load_and_pickle_keep_the_tokenizer(wordpieces, tmp_path):
    wordpieces.save(tmp_path / "tokenizer")
    copies = [Wordpieces.load(tmp_path / "tokenizer"), pickle.loads(pickle.dumps(wordpieces))]
    copies.append(load_wordpieces(str(tmp_path / "tokenizer")))
    for copy in copies:
        assert copy.to_bytes() == wordpieces.to_bytes()
        assert np.array_equal(copy.encode(TEXTS)[0], wordpieces.encode(TEXTS)[0])
    assert hashlib.sha256((tmp_path / "tokenizer" / "tokenizer.json").read_bytes()).digest()


def test_texts_without_words_give_the_special_pieces():
    empty = train_wordpieces(["", ""], 8000)
    assert empty.vocabulary_size == 5 and empty.encode(["", ""])[1].tolist() == [0, 0]


def test_vocabulary_file_and_folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_PIECES, "boy", "##s", "."]) + "\n")
    for name in (tmp_path, tmp_path / "vocab.txt"):
        assert load_wordpieces(str(name)).encode(["Boys."])[0].tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [("boy\ngirl\n", r"\[PAD\]"), ("[PAD]\n[UNK]\n[CLS]\n[SEP]\nboy\nboy\n", "twice"), ("", r"\[PAD\]")],
)
def test_wrong_vocabulary_files(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_wordpieces(str(tmp_path / "vocab.txt"))


def test_wrong_tokenizer_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither"):
        load_wordpieces(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer file"):
        load_wordpieces(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_wordpieces(str(tmp_path / "none.json"))


def test_vocabulary_must_not_be_tiny():
    with pytest.raises(ValueError, match="at least 100"):
        train_wordpieces(TEXTS, 99)


@pytest.mark.skipif(not BERT_VOCABULARY.exists(), reason="BERT's vocabulary file is not here")
def test_berts_vocabulary_agrees_with_transformers():
    transformers = pytest.importorskip("transformers")
    lines = BERT_VOCABULARY.read_text(encoding="utf-8").splitlines()
    theirs = transformers.BertTokenizerFast(vocab={piece: number for number, piece in enumerate(lines)})
    ours = load_wordpieces(str(BERT_VOCABULARY))
    assert ours.vocabulary_size == len(lines) == 30522
    text = "The café's boy didn't run; unaffable — ﬁne 走路, naïve!"
    assert ours.encode([text])[0].tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(["Hello world"])[0].tolist() == [7592, 2088]
    assert (ours.pad_id, ours.cls_id, ours.sep_id) == (0, 101, 102)
