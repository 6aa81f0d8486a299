"""Metrics of descriptions: cross entropy per wordpiece, the condition gap's shuffle, overlap of generated text.

METEOR is left out: every kept implementation needs WordNet data that has to be downloaded.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

STOCK_PHRASE = "the tension"  # in 34 % of the real descriptions
VOCABULARY_CHUNK = 2048  # rows of logits widened at once; bounds the memory, not the result


def cross_entropy_sum(logits_TV: Tensor, target_T: Tensor) -> Tensor:
    """Negative log likelihood of each of T wordpieces, in nats, float64 [T]. No padding may be among them."""
    if len(logits_TV) != len(target_T):
        raise ValueError(f"logits of {len(logits_TV)} wordpieces for {len(target_T)} targets; they must be as many")
    parts = [
        functional.cross_entropy(logits.float(), target, reduction="none").double()
        for logits, target in zip(logits_TV.split(VOCABULARY_CHUNK), target_T.split(VOCABULARY_CHUNK), strict=True)
    ]
    return torch.cat(parts) if parts else logits_TV.new_zeros(0, dtype=torch.float64)


def derangement(valid_M: Tensor, generator: torch.Generator) -> Tensor | None:
    """int64 [M] on the CPU: a random cycle through the valid windows; none of them keeps its place, the others do.

    None if fewer than two windows are valid: nothing can be exchanged.
    """
    rows = torch.nonzero(valid_M.cpu() > 0).flatten()
    if len(rows) < 2:
        return None
    cycle = rows[torch.randperm(len(rows), generator=generator)]
    order = torch.arange(len(valid_M))
    order[cycle] = cycle.roll(1)
    return order


def overlap(generated: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU in [0, 100] (sacrebleu, corpus level, 13a tokens) and mean ROUGE-L F1 in [0, 1]; at least one text."""
    if len(generated) != len(references) or not generated:
        raise ValueError(
            f"{len(generated)} generated texts for {len(references)} references; they must be as many, and some"
        )
    # Half a second and more, which no run that starts or resumes needs to wait for.
    import sacrebleu
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(references, generated, strict=True)
    rouge = [scorer.score(reference, text)["rougeL"].fmeasure for reference, text in pairs]
    return {
        "BLEU": float(sacrebleu.corpus_bleu(list(generated), [list(references)]).score),
        "ROUGE-L": float(sum(rouge) / len(rouge)),
    }


def variety(texts: Sequence[str]) -> dict[str, float]:
    """Distinct-1 and -2 (Li et al. 2016: distinct n-grams over all), and the share of texts with the stock phrase."""
    return {
        "distinct-1": distinct_ngrams(texts, 1),
        "distinct-2": distinct_ngrams(texts, 2),
        f'stock phrase "{STOCK_PHRASE}"': sum(STOCK_PHRASE in text.lower() for text in texts) / max(1, len(texts)),
    }


def distinct_ngrams(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of whitespace-separated words over all n-grams, in [0, 1]; 0 if there are none."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.lower().split()
        counts.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(counts) / counts.total() if counts else 0.0
