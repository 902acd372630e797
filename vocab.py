"""Vocabulary and tokenizers: captions -> words -> token ids, and the command that builds a vocabulary.

    python vocab.py --data_path data --data_name rsitmd_precomp --out vocab/rsitmd_vocab.json

NLTK's tokenizers need none of its downloads here: sentences by an untrained Punkt model, words by the Treebank rules,
as `nltk.word_tokenize` combines them.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktSentenceTokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from option.options import Options
from util.lists import read_captions
from utils import InputError, Parser, check_writable_file, not_installed, read_json, run_command, write_json

logger = logging.getLogger("galr")

SENTENCES, WORDS = PunktSentenceTokenizer(), NLTKWordTokenizer()
UNKNOWN = "<unk>"
IDS = "input_ids"  # of Hugging Face's tokenizers
LONGEST = 512  # tokens of a caption, where a tokenizer names no limit
# Characters that word processors put in the place of typed ones; invisible marks (zero-width, soft hyphen) are dropped.
TYPED = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201b\u2032\u02bc"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u2033"), '"'),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2013\u2014\u2212"), "-"),
    **dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"), None),
}
MARKS = frozenset(", . : ; ? ( ) [ ] & ! * @ # $ %".split())

# NLTK's 179 English stop words: its corpus is a download, and releases of it since have grown to 198.
STOP_WORDS = frozenset(
    """i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he him his
    himself she she's her hers herself it it's its itself they them their theirs themselves what which who whom this
    that that'll these those am is are was were be been being have has had having do does did doing a an the and but if
    or because as until while of at by for with about against between into through during before after above below to
    from up down in out on off over under again further then once here there when where why how all any both each few
    more most other some such no nor not only own same so than too very s t can will just don don't should should've
    now d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven
    haven't isn isn't ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren
    weren't won won't wouldn wouldn't""".split()
)


class Vocabulary(NamedTuple):
    """Words in index order: `words[i]` has index i + 1, 0 is padding, `<unk>` is last."""

    words: tuple[str, ...]

    @property
    def index(self) -> dict[str, int]:
        """Return the index of each word."""
        return {word: i for i, word in enumerate(self.words, start=1)}


def plain(text: str) -> str:
    """Return a text in the characters of a keyboard: Unicode's NFKC, straight quotes, hyphens, no invisible marks.

    >>> plain("water\u2019s\u00a0edge"), plain("cafe\u0301") == plain("caf\u00e9")
    ("water's edge", True)
    """
    return text if text.isascii() else unicodedata.normalize("NFKC", text.translate(TYPED))


def tokenize(caption: str) -> list[str]:
    """Return the lower-case words of a caption without punctuation marks; sentence ends inside it are split off.

    >>> tokenize("Two ships, one of them white. They don't move.")
    ['two', 'ships', 'one', 'of', 'them', 'white', 'they', 'do', "n't", 'move']
    """
    sentences = SENTENCES.tokenize(plain(caption).lower())
    return [token for sentence in sentences for token in WORDS.tokenize(sentence) if token not in MARKS]


def build(captions: Iterable[str], threshold: int = 5, keep_stopwords: bool = False) -> Vocabulary:
    """Build the vocabulary of words with at least `threshold` occurrences, in order of first appearance.

    >>> build(["a ship", "two ships", "a white ship"], threshold=2).words
    ('ship', '<unk>')
    """
    counts: Counter[str] = Counter()
    for caption, times in Counter(captions).items():  # the data sets repeat many
        for token in tokenize(caption):
            counts[token] += times
    dropped = frozenset() if keep_stopwords else STOP_WORDS
    words = [word for word, count in counts.items() if count >= threshold and word not in dropped | {UNKNOWN}]
    return Vocabulary((*words, UNKNOWN))


def encode(caption: str, index: dict[str, int]) -> list[int]:
    """Return the token ids of a caption; unknown words become `<unk>`, and so does a caption without any word.

    >>> encode("one ship", Vocabulary(("ship", "<unk>")).index)
    [2, 1]
    """
    unknown = index[UNKNOWN]
    return [index.get(token, unknown) for token in tokenize(caption)] or [unknown]


def save(vocabulary: Vocabulary, path: str | os.PathLike) -> None:
    """Write the published JSON form: word2idx, idx2word, and idx, the next free index."""
    index = vocabulary.index
    write_json(path, {"word2idx": index, "idx2word": {str(i): w for w, i in index.items()}, "idx": len(index) + 1})


def load(path: str | os.PathLike) -> Vocabulary:
    """Read a vocabulary file. Raise InputError where its parts do not agree."""
    tree = read_json(path, "vocabulary", "build it with: python vocab.py --data_path DIR --data_name NAME_precomp")
    index = tree.get("word2idx") if isinstance(tree, dict) else None
    if not isinstance(index, dict) or not index or any(type(i) is not int for i in index.values()):
        raise InputError(f"vocabulary {path}: word2idx must be a table of words and integers")
    words = sorted(index, key=index.__getitem__)
    if [index[word] for word in words] != list(range(1, len(words) + 1)):
        raise InputError(f"vocabulary {path}: the indices must be 1 to {len(words)}, each once")
    if UNKNOWN not in index:
        raise InputError(f"vocabulary {path}: the word {UNKNOWN} is missing")
    return Vocabulary(tuple(words))


# ---------------------------------------------------------------- token ids


def load_words(options: Options) -> tuple[str, ...]:
    """Return the words of the vocabulary; none where the model has a tokenizer of its own."""
    return load(options.dataset.vocab_path).words if options.model.tokenizer == "vocabulary" else ()


def encode_captions(captions: Sequence[str], options: Options, words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encode captions by the tokenizer of the model -> token_ids (M, T), 0 = padding and only that; lengths (M,).

    words: as `load_words` returns them. Raise InputError where a tokenizer cannot be had.
    """
    tokenizer = TOKENIZERS[options.model.tokenizer](options, words)
    distinct = list(dict.fromkeys(captions))  # the data sets repeat many
    known = dict(zip(distinct, map(torch.tensor, tokenizer(distinct)), strict=True))
    token_ids = pad_sequence([known[caption] for caption in captions], batch_first=True)
    return token_ids, torch.tensor([len(known[caption]) for caption in captions])


Tokenizer = Callable[[list[str]], list[list[int]]]  # captions -> their ids, from 1


def _by_vocabulary(_: Options, words: Sequence[str]) -> Tokenizer:
    index = Vocabulary(tuple(words)).index
    return lambda captions: [encode(caption, index) for caption in captions]


def _open_clip(options: Options, _: Sequence[str]) -> Tokenizer:
    """Build the tokenizer of a CLIP, its ids plus one.

    The zeros with which OpenAI's fills up its rows behind the end of the text are cut off; the rows of others are kept.
    """
    with not_installed("model.clip"):
        import open_clip
    arch = options.model.clip.arch
    tokenizer = open_clip.get_tokenizer(arch.replace("/", "-") if ":" not in arch else arch)
    ends = isinstance(tokenizer, open_clip.SimpleTokenizer)

    def uncut(caption: str) -> int:
        return len(tokenizer.encode(caption)) + 2 if ends else len(tokenizer.tokenizer(caption)[IDS])

    def encode_rows(captions: list[str]) -> list[list[int]]:
        rows = tokenizer(captions).numpy()
        full = [caption for caption, row in zip(captions, rows, strict=True) if row[-1] or not ends]
        _warn_of_cut(map(uncut, full), rows.shape[1])
        lengths = [row.nonzero()[0][-1] + 1 if ends else len(row) for row in rows]
        return [(row[:length] + 1).tolist() for row, length in zip(rows, lengths, strict=True)]

    return encode_rows


def _hugging_face(options: Options, _: Sequence[str]) -> Tokenizer:
    """Build the tokenizer of a transformer, its ids plus one: 0 may be one of its tokens."""
    with not_installed("model.seq2vec.arch transformer"):
        from transformers import AutoTokenizer
    path = options.model.seq2vec.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        longest = min(tokenizer.model_max_length, LONGEST)
    except Exception as error:  # damaged files raise errors of many kinds
        raise InputError(f"model.seq2vec.path {path}: no tokenizer is read there ({error!s:.200})") from None

    def encode_rows(captions: list[str]) -> list[list[int]]:
        rows = tokenizer(captions, truncation=True, max_length=longest)[IDS]
        full = [caption for caption, row in zip(captions, rows, strict=True) if len(row) == longest]
        _warn_of_cut((len(tokenizer(caption)[IDS]) for caption in full), longest)
        return [[token + 1 for token in tokens] for tokens in rows]

    return encode_rows


def _warn_of_cut(lengths: Iterable[int], longest: int) -> None:
    """Warn of captions whose ends a tokenizer cuts off: what differs there alone becomes the same."""
    if cut := sum(length > longest for length in lengths):
        logger.warning(f"{cut} captions have more than {longest} tokens; what is beyond them is not read")


TOKENIZERS = {"vocabulary": _by_vocabulary, "clip": _open_clip, "transformer": _hugging_face}


# ---------------------------------------------------------------- command


def main() -> None:
    """Build the vocabulary that the command line asks for."""
    parser = Parser(prog="vocab.py", description="Build the vocabulary of a data set from its captions.")
    add, both = parser.add_argument, ["train", "test"]
    add("--data_path", required=True, help="folder with {train,test}_caps.txt, or the folder that it is in")
    add("--data_name", required=True, help="name of the data set, such as rsitmd_precomp")
    add("--splits", nargs="+", default=both, choices=both, help="captions to read; train: without those of the test")
    add("--threshold", type=int, default=5, help="keep words with so many occurrences (default 5)")
    add("--keep-stopwords", action="store_true", help="keep words such as above, between, under")
    add("--out", help="default: vocab/NAME_vocab.json")
    arguments = parser.parse_args()
    if arguments.threshold < 1:
        raise InputError(f"--threshold must be 1 or more, got {arguments.threshold}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", arguments.data_name):
        raise InputError(f"--data_name may hold letters, digits, '.', '_' and '-', got {arguments.data_name}")

    out = Path(arguments.out or f"vocab/{arguments.data_name.removesuffix('_precomp')}_vocab.json")
    check_writable_file(out)

    named = Path(arguments.data_path, arguments.data_name)  # the published command line
    folder = named if named.is_dir() else Path(arguments.data_path)
    splits: Sequence[str] = sorted(set(arguments.splits), reverse=True)  # train before test
    captions = [caption for split in splits for caption in read_captions(folder, split)]
    vocabulary = build(captions, arguments.threshold, arguments.keep_stopwords)
    if len(vocabulary.words) == 1:
        raise InputError(
            f"no word of the {len(captions)} captions occurs {arguments.threshold} times; lower --threshold"
        )
    save(vocabulary, out)
    logger.info(f"{out}: {len(vocabulary.words)} words from {len(captions)} captions ({' and '.join(splits)})")


if __name__ == "__main__":
    run_command(main)
