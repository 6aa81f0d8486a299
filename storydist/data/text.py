"""Descriptions as wordpieces: a BERT WordPiece tokenizer, trained here or loaded.

Saved as one plain file, `tokenizer.json` of the tokenizers library (https://github.com/huggingface/tokenizers).
Trained here the vocabulary begins [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4; loaded vocabularies keep their own ids.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from storydist.data.files import write_atomic

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILE_NAME = "tokenizer.json"
MIN_VOCABULARY = 100
_MAX_ALPHABET = 1000  # BERT's own limit; rarer characters become [UNK]


class Wordpieces:
    """A WordPiece tokenizer. Ids are 0 to `vocabulary_size - 1`.

    Raises ValueError when the tokenizer lacks one of [PAD], [UNK], [CLS], [SEP].
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.vocabulary_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id = (self._special(piece) for piece in SPECIAL_PIECES[:4])

    def _special(self, piece: str) -> int:
        found = self._tokenizer.token_to_id(piece)
        if found is None:
            raise ValueError(f"the tokenizer has no {piece}; a BERT WordPiece tokenizer is needed")
        return found

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Wordpieces of all texts end to end (int32 [T]) and of how many each consists (int32 [len(texts)]).

        No special tokens are added and nothing is cut; an empty text has 0 wordpieces.
        """
        encoded = [part.ids for part in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int32)
        return np.array([wordpiece for ids in encoded for wordpiece in ids], dtype=np.int32), lengths

    def decode(self, ids: Iterable[int]) -> str:
        """Lower-case text of wordpieces; padding, [CLS] and [SEP] are left out, [UNK] is shown."""
        unwritten = (self.pad_id, self.cls_id, self.sep_id)
        kept = [int(wordpiece) for wordpiece in ids if int(wordpiece) not in unwritten]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The wordpieces as they are spelled in the vocabulary, for example "##ing"."""
        return [self._tokenizer.id_to_token(int(wordpiece)) or "" for wordpiece in ids]

    def to_bytes(self) -> bytes:
        """The content of tokenizer.json; the same tokenizer gives the same bytes."""
        return self._tokenizer.to_str(pretty=False).encode()

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json into `folder`, which is made if needed."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomic(Path(folder) / FILE_NAME, self.to_bytes())

    @classmethod
    def load(cls, folder: str | Path) -> "Wordpieces":
        """The tokenizer that `save` wrote. FileNotFoundError or ValueError naming the file when that fails."""
        return cls(_from_file(Path(folder) / FILE_NAME))

    def __reduce__(self) -> tuple:
        return (_from_bytes, (self.to_bytes(),))


def _from_bytes(content: bytes) -> Wordpieces:
    return Wordpieces(Tokenizer.from_str(content.decode()))


def train_wordpieces(texts: Sequence[str], vocabulary_size: int) -> Wordpieces:
    """A WordPiece vocabulary of at most `vocabulary_size`, from pieces that occur at least twice in `texts`.

    BERT's uncased normalisation and word splitting. The result depends on `texts` alone; texts without any word (frames
    without descriptions) give the special pieces only. Raises ValueError when `vocabulary_size` is below 100.
    """
    if vocabulary_size < MIN_VOCABULARY:
        raise ValueError(f"a vocabulary of {vocabulary_size} wordpieces is too small; use at least {MIN_VOCABULARY}")
    tokenizer = _bert_tokenizer({})
    alphabet = _alphabet(tokenizer.normalizer, texts)
    if not alphabet:
        return Wordpieces(_bert_tokenizer({piece: number for number, piece in enumerate(SPECIAL_PIECES)}))
    # The library numbers the "##x" pieces as its hash map yields them and breaks ties by those numbers, so two runs
    # differ. Given as special pieces they have fixed numbers; only the vocabulary is kept, so they end as ordinary.
    pieces = [*SPECIAL_PIECES, *alphabet, *(f"##{character}" for character in alphabet if character.isalnum())]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocabulary_size, len(pieces)),
        min_frequency=2,
        special_tokens=pieces,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Wordpieces(_bert_tokenizer(tokenizer.get_vocab(with_added_tokens=True)))


def _alphabet(normalizer: normalizers.Normalizer, texts: Sequence[str]) -> list[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    for blank in [character for character in counts if character.isspace()]:
        del counts[blank]
    kept = sorted(counts, key=lambda character: (-counts[character], character))[:_MAX_ALPHABET]
    return sorted(kept)


def load_wordpieces(name: str) -> Wordpieces:
    """A trained tokenizer: a folder or file with tokenizer.json or vocab.txt, or else a name on the Hugging Face Hub.

    A vocab.txt is taken as BERT uncased. Raises ValueError or FileNotFoundError, naming `name`, when it cannot be
    loaded or is no BERT WordPiece tokenizer.
    """
    path = Path(name)
    if path.is_dir():
        files = [path / file for file in (FILE_NAME, "vocab.txt") if (path / file).is_file()]
        if not files:
            raise FileNotFoundError(f"folder {path} has neither {FILE_NAME} nor vocab.txt")
        path = files[0]
    tokenizer = _from_file(path) if path.is_file() else _from_hub(name)
    if not isinstance(tokenizer.model, models.WordPiece):
        raise ValueError(f"tokenizer {name} is a {type(tokenizer.model).__name__} model; a BERT WordPiece is needed")
    return Wordpieces(tokenizer)


def _from_file(path: Path) -> Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a tokenizer file: it is not UTF-8 text (byte {error.start})") from None
    if path.suffix == ".txt":
        return _bert_tokenizer(_vocabulary(path, text))
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"{path} is not a tokenizer file: {error}") from None


def _vocabulary(path: Path, text: str) -> dict[str, int]:
    pieces = text.rstrip("\n").split("\n")
    vocabulary = {piece.rstrip("\r"): number for number, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise ValueError(f"{path} holds a wordpiece twice: {len(pieces)} lines, {len(vocabulary)} different")
    return vocabulary


def _from_hub(name: str) -> Tokenizer:
    if name.startswith((".", "/", "~")) or name.endswith((".txt", ".json")):
        raise FileNotFoundError(f"tokenizer {name}: no such file or folder")
    try:
        return Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises no narrower class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"tokenizer {name} is neither a folder or file here nor loadable from the Hub ({reason}); "
            "without a network use train:8000"
        ) from None


def _bert_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """BERT uncased around a vocabulary: cleaned, lower case, no accents; split at blanks and punctuation."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer
