"""MTP modules in every layout and place against a slow one, each trap of theirs, and text with and without them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from engine.engine import Engine
from engine.errors import ModelError
from engine.interfaces import Window
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.proposers import mtp
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.setup import Setup
from engine.sampling import Sampling
from engine.tree import DraftTree
from tests.engine import checkpoints, equal
from tests.engine.loading import load
from tests.engine.proposers import modules
from tests.engine.proposers.modules import SlowModule
from tests.engine.proposers.test_eagle3 import features as three_features
from tests.engine.proposers.test_eagle3 import path_to

TOKENS, ROOT = [5, 17, 101, 3, 44, 201], 9
LAYERS, WIDTH = 4, 48
UNLIKE = {"rms_norm_eps": 0.03, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
"""Of the targets: what a module would get wrong if it did not ask its target."""


@dataclass(frozen=True)
class Case:
    """A target without a module, transformers' model of it, and a module in the layout of its family."""

    directory: Path
    reference: PreTrainedModel
    target: Decoder
    tensors: dict[str, Tensor]
    embedding_first: bool

    def named(self, tensors: dict[str, Tensor] | None = None, more: int = 0) -> dict[str, Tensor]:
        """Under the layout's names; more: as a later module."""
        tensors = self.tensors if tensors is None else tensors
        return modules.deepseek(tensors, LAYERS + more) if self.embedding_first else modules.mimo(tensors, more)

    def slow(self, **changes: Tensor) -> SlowModule:
        return SlowModule(self.tensors | changes, self.target, embedding_first=self.embedding_first)

    def read(self, path: Path | None, **options: object) -> PairProposer:
        return mtp.load(path, replace(Setup(self.target, self.directory, 1024), **options))

    def alone(self, directory: Path, tensors: dict[str, Tensor] | None = None, **options: object) -> PairProposer:
        return self.read(modules.write(directory, self.named(tensors)), **options)


@pytest.fixture(scope="module", params=["mimo", "qwen3-qk-norm"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp(request.param)
    reference = checkpoints.write(request.param, directory, **UNLIKE)
    target = load(directory, torch.float64)
    return Case(directory, reference, target, modules.random_module(target.config), request.param != "mimo")


def features(target: Decoder, tokens: list[int]) -> Tensor:
    return three_features(target, tokens)[:, :1]


def draft(proposer: PairProposer, tokens: list[int], known: Tensor, budget: int = 16) -> DraftTree:
    session = proposer.start()
    proposer.observe(session, torch.tensor(tokens), known, None)
    tree = proposer.propose([session], [ROOT], [None], budget)[0]
    session.close()
    tree.check()
    return tree


def assert_drafts_like(proposer: PairProposer, slow: SlowModule, known: Tensor) -> None:
    """Every node of a tree of several levels scores what the slow module gives its path."""
    tree = draft(proposer, TOKENS, known)
    assert int(tree.depth.max()) > 1
    for node in range(1, len(tree)):
        wanted = slow.log_prob(known, TOKENS, ROOT, path_to(tree, node))
        assert math.log(float(tree.score[node])) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("place", ["alone", "inside", "inside, sharded"])
def test_a_module_drafts_like_the_slow_one_wherever_it_is(case: Case, place: str, tmp_path: Path) -> None:
    path: Path | None = None
    if place == "alone":
        path = modules.write(tmp_path / "module", case.named())
    else:
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((case.directory / name).read_bytes())
        modules.write_into(tmp_path, case.named(), sharded=place != "inside")
        load(tmp_path, torch.float64)  # takes no offence at the module
    proposer = case.read(path, model=tmp_path)
    assert (proposer.name, proposer.taps) == ("mtp", ("norm",))
    assert_drafts_like(proposer, case.slow(), features(case.target, TOKENS))


def test_a_pair_joins_a_state_with_the_token_after_it(case: Case, tmp_path: Path) -> None:
    """Worked by hand: positions 0, 1, 2 hold tokens 5, 6, 7 and the root stands at 3. The module reads the pairs
    (f0, 6), (f1, 7), (f2, root), and what it says behind the last is the first guess."""
    f, slow = features(case.target, [5, 6, 7]), case.slow()
    tree = draft(case.alone(tmp_path), [5, 6, 7], f, 2)
    out = slow.norm(slow.run(f[:, 0], [6, 7, ROOT])[-1], slow.t["norm.weight"])
    assert int(tree.tokens[1]) == int((case.target.lm_head_weight @ out).argmax())


def test_the_first_pair_is_not_masked(case: Case, tmp_path: Path) -> None:
    """Token 1 is read in the pair at position 0 alone, where other engines zero its embedding."""
    f, proposer = features(case.target, TOKENS), case.alone(tmp_path)
    other = [TOKENS[0], TOKENS[1] + 1, *TOKENS[2:]]
    assert not torch.equal(draft(proposer, TOKENS, f).score, draft(proposer, other, f).score)


@pytest.mark.parametrize("flag", ["embedding_first", "feeds_normed"])
def test_a_wrong_layout_would_be_seen(case: Case, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {name: replace(layout, **{flag: not getattr(layout, flag)}) for name, layout in mtp.LAYOUTS.items()}
    monkeypatch.setattr(mtp, "LAYOUTS", wrong)
    with pytest.raises(AssertionError):
        assert_drafts_like(case.alone(tmp_path), case.slow(), features(case.target, TOKENS))


@torch.no_grad()
def test_it_reads_the_state_behind_the_final_norm_unless_told_otherwise(case: Case, tmp_path: Path) -> None:
    before: list[Tensor] = []
    hook = case.reference.model.norm.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0][0]))
    normed = case.reference.model(torch.tensor([TOKENS])).last_hidden_state[0]
    hook.remove()
    for taps, wanted in ((None, normed), ((LAYERS,), before[0])):
        proposer = case.alone(tmp_path, taps=taps)
        cache, chain = case.target.new_cache(), DraftTree.chain(torch.tensor(TOKENS))
        cache.reserve(len(chain))
        known = case.target.forward([Window(cache, chain, "none")], proposer.taps)[0].features
        assert known is not None
        cache.close()
        torch.testing.assert_close(known[:, 0], wanted, atol=1e-5, rtol=1e-5)
        assert_drafts_like(proposer, case.slow(), known)


@pytest.mark.parametrize("taps", [(), (1, 2), (LAYERS + 1,), (-1,)])
def test_taps_that_no_module_can_read_are_refused(case: Case, taps: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reads one state"):
        case.alone(tmp_path, taps=taps)


def test_noise_perturbs_every_rows_logits(case: Case, tmp_path: Path) -> None:
    module = case.alone(tmp_path).head
    g = torch.Generator().manual_seed(4)
    x = torch.randn(3, WIDTH, generator=g, dtype=torch.float64)
    noise = torch.randn(checkpoints.VOCAB, generator=g)
    plain, fed = module.predict(x)
    noised, fed_again = module.predict(x, noise)
    torch.testing.assert_close(noised, (plain + noise).log_softmax(-1))
    assert torch.equal(fed, fed_again)


def test_its_own_embedding_and_output_rows(case: Case, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(2)
    shape = (checkpoints.VOCAB, WIDTH)
    names = ("embed_tokens.weight", "shared_head.head.weight")
    own = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name in names}
    proposer = case.alone(tmp_path, case.tensors | own)
    assert_drafts_like(proposer, case.slow(**own), features(case.target, TOKENS))


def test_copies_of_the_targets_embedding_and_output_rows_are_not_held_twice(case: Case, tmp_path: Path) -> None:
    target = case.target
    copies = {"embed_tokens.weight": target.embedding, "shared_head.head.weight": target.lm_head_weight}
    module = case.alone(tmp_path, case.tensors | copies).head
    assert isinstance(module, mtp.Module)
    assert module._embedding.data_ptr() == target.embedding.data_ptr()
    assert module._lm_head.data_ptr() == target.lm_head_weight.data_ptr()


def test_of_several_modules_the_first_drafts(case: Case, tmp_path: Path) -> None:
    later = case.named(modules.random_module(case.target.config, seed=1), more=1)
    proposer = case.read(modules.write(tmp_path, case.named() | later))
    assert_drafts_like(proposer, case.slow(), features(case.target, TOKENS))


def test_what_does_not_fit_is_said_by_name(case: Case, tmp_path: Path) -> None:
    named = case.named()

    def refuse(message: str, tensors: dict[str, Tensor]) -> None:
        with pytest.raises(ModelError, match=message):
            case.read(modules.write(tmp_path, tensors))

    assert len(named) == len(case.tensors)
    for name in named:
        refuse(f"{name} is missing", {other: tensor for other, tensor in named.items() if other != name})
        refuse(f"{name} has shape", named | {name: torch.zeros(3, 5)})
    for name in ("self_attn.o_proj.bias", "mlp.gate_proj.bias", "embed_tokens.bias"):
        more = case.named({name: torch.zeros(WIDTH)})
        refuse(f"unexpected tensors: {next(iter(more))}", named | more)
    refuse("unexpected tensors: lm_head.weight", named | {"lm_head.weight": torch.zeros(5)})
    refuse("no MTP module.*model.layers.4. or model.mtp_layers.0.", {"model.layers.9.eh_proj.weight": torch.zeros(1)})
    case.read(modules.write(tmp_path, named | case.named({"self_attn.rotary_emb.inv_freq": torch.zeros(8)})))


def test_a_target_without_a_module_has_none_to_offer(case: Case) -> None:
    with pytest.raises(ModelError, match="no MTP module"):
        case.read(None)


def test_a_target_takes_no_offence_at_what_is_there_for_drafting(case: Case, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((case.directory / "config.json").read_bytes())
    own = load_file(case.directory / "model.safetensors")
    for more, refused in (
        ({"medusa_head.0.0.linear.weight": torch.zeros(2)}, False),
        (modules.deepseek({"eh_proj.weight": torch.zeros(2), "enorm.weight": torch.zeros(2)}, LAYERS + 1), False),
        (modules.mimo({"enorm.weight": torch.zeros(2)}, 2), False),
        ({"model.medusa.weight": torch.zeros(2)}, True),
        (modules.deepseek({"input_layernorm.weight": torch.zeros(2)}, LAYERS), True),  # num_hidden_layers is wrong
        (modules.deepseek({"eh_proj.weight": torch.zeros(2)}, LAYERS - 1), True),
    ):
        save_file(own | more, tmp_path / "model.safetensors")
        if refused:
            with pytest.raises(ModelError, match=f"unexpected tensors: {next(iter(more))}"):
                load(tmp_path, torch.float64)
        else:
            load(tmp_path, torch.float64)


@torch.no_grad()
def test_the_target_says_what_transformers_says(case: Case) -> None:
    """MiMo's logits are those of Qwen2 with the same weights."""
    cache, chain = case.target.new_cache(), DraftTree.chain(torch.tensor(TOKENS))
    cache.reserve(len(chain))
    logits = case.target.forward([Window(cache, chain)])[0].logits
    cache.close()
    torch.testing.assert_close(logits, case.reference(torch.tensor([TOKENS])).logits[0], atol=1e-9, rtol=0)


SAMPLINGS: Sequence[Sampling] = (
    Sampling(),
    Sampling(0.8, seed=1),
    Sampling(1.2, top_p=0.9, seed=2),
    Sampling(0.6, top_k=20, repetition_penalty=1.2, seed=3),
)


@pytest.mark.parametrize("chain", [False, True])
def test_text_is_the_same_with_and_without_it(case: Case, chain: bool, tmp_path: Path) -> None:
    proposer = case.alone(tmp_path, chain=chain)
    engine, count = Engine(case.target, proposer, FixedPolicy()), equal.Count("random weights", "mtp")
    for prompt in equal.random_prompts(3, seed=8):
        base = equal.warm(engine, prompt)
        for nodes, sampling in zip((5, 16, 60, 8), SAMPLINGS, strict=True):
            engine.drafting.policy = FixedPolicy(nodes)
            wanted = equal.reply(engine, base, sampling, max_tokens=24, drafting=False)
            assert equal.reply(engine, base, sampling, max_tokens=24, count=count) == wanted
        engine.close(base)
    assert count.lengths[0] and max(count.lengths) > 0, "random weights accept by chance"
    assert case.target.pool.pages_in_use == proposer.pool.pages_in_use == 0
