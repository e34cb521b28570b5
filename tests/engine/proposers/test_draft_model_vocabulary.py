"""A draft model must speak the target's tokens: what is refused, by what words, and which paddings are none of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from engine.errors import ModelError
from engine.models.decoder import Decoder
from engine.proposers.draft_model import DraftModelProposer, load
from engine.proposers.setup import Setup
from tests.engine import checkpoints
from tests.engine import loading as targets

TOKENS = {f"t{i}": i for i in range(190)}


def write(directory: Path, tokens: dict[str, int] | None, rows: int = checkpoints.VOCAB) -> Path:
    """A checkpoint with so many rows, and a tokenizer of these tokens."""
    checkpoints.write("llama-tied", directory, seed=rows, vocab_size=rows)
    if tokens is not None:
        backend = Tokenizer(WordLevel(tokens, unk_token="t0"))
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="t0", eos_token="t2").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    """A target without a tokenizer."""
    directory = write(tmp_path_factory.mktemp("bare"), None)
    return targets.load(directory, torch.float32), directory


@pytest.fixture(scope="module")
def setup(bare: tuple[Decoder, Path], tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(bare[0], write(tmp_path_factory.mktemp("target"), TOKENS), pool_tokens=512, page_tokens=4)


def trees(proposer: DraftModelProposer, tokens: list[int], root: int) -> set[int]:
    draft = proposer.start()
    proposer.observe(draft, torch.tensor(tokens), None, None)
    tree = proposer.propose([draft], [root], [torch.zeros(8, checkpoints.VOCAB)], 60)[0]
    assert len(tree) == 60
    return set(tree.tokens[1:].tolist())


@pytest.mark.parametrize("rows", [195, checkpoints.VOCAB, 900])
def test_padding_rows_do_not_matter(rows: int, setup: Setup, tmp_path: Path) -> None:
    """Ids that the draft model lacks are read, ids that the target lacks are never drafted."""
    proposer = load(write(tmp_path, TOKENS, rows), setup)
    assert proposer.model.vocab_size == rows
    drafted = trees(proposer, [5, 210, 200, 6], 209)
    assert max(drafted) < min(rows, checkpoints.VOCAB)


SWAPPED = {**TOKENS, "t3": 4, "t4": 3}
RENAMED = {("other" if token == "t9" else token): i for token, i in TOKENS.items()}
SHIFTED = {token: i + (i >= 100) for token, i in TOKENS.items()}


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (SWAPPED, ["190 and 190, 2 differ", "'t3' is 4 and 3 in the target; 't4' is 3 and 4 in the target"]),
        (RENAMED, ["2 differ", "'t9' is missing and 9 in the target", "'other' is 9 and missing in the target"]),
        (dict(list(TOKENS.items())[:-1]), ["189 and 190, 1 differ", "'t189' is missing and 189 in the target"]),
        (TOKENS | {"more": 190}, ["191 and 190, 1 differ", "'more' is 190 and missing in the target"]),
        (SHIFTED, ["90 differ", "'t100' is 101 and 100 in the target; 't101' is 102", "'t102' is 103"]),
    ],
)
def test_other_tokens_are_refused_and_named(
    tokens: dict[str, int], said: list[str], setup: Setup, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as raised:
        load(write(tmp_path, tokens), setup)
    message = str(raised.value)
    assert all(part in message for part in [str(tmp_path), *said]), message
    assert message.count("in the target") <= 3


def test_a_token_that_has_no_row_is_refused(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="id 189"):
        load(write(tmp_path, TOKENS, 150), setup)


def test_it_is_refused_before_its_weights_are_read(setup: Setup, tmp_path: Path) -> None:
    write(tmp_path, SWAPPED)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="'t3' is 4"):
        load(tmp_path, setup)


def test_without_a_tokenizer_the_sizes_must_be_equal(setup: Setup, bare: tuple[Decoder, Path], tmp_path: Path) -> None:
    load(bare[1], setup)
    for rows in (200, 300):
        directory = write(tmp_path / str(rows), None, rows)
        with pytest.raises(ModelError, match=f"{rows} tokens, the target 211"):
            load(directory, setup)
    untold = Setup(setup.target, bare[1], pool_tokens=512)
    load(setup.model, untold)
    with pytest.raises(ModelError, match="300 tokens, the target 211"):
        load(write(tmp_path / "told", TOKENS, 300), untold)


def test_it_needs_a_checkpoint_that_could_be_a_target(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="draft needs a checkpoint: draft:DIRECTORY"):
        load(None, setup)
    with pytest.raises(ModelError, match=r"config\.json"):
        load(tmp_path, setup)
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(ModelError, match="MambaForCausalLM"):
        load(tmp_path, setup)
