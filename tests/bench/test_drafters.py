"""The comparison of drafters: what is counted, how ratios are made, and that every drafter of the engine has a row."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from bench import harness
from bench.acceptance import Tally
from bench.decode import Timed
from bench.drafters import counts, page
from bench.drafters.counts import IN_DOMAIN, SPLITS, Counted, Setting, settings
from bench.drafters.methods import Method, methods
from bench.drafters.parts import PartFiles
from bench.drafters.times import PLAIN, Costs, Times
from engine.config import EngineConfig, split_drafters
from engine.engine import Engine
from engine.load import load_proposer, load_target_for
from engine.policy import FixedPolicy
from engine.proposers.table import PROPOSERS
from tests.engine.embedded import MODEL


def test_every_drafter_of_the_engine_is_compared():
    named = {name for method in methods(MODEL) for name, _ in split_drafters(method.spec)}
    assert set(PROPOSERS) - {"none"} <= named


def test_what_a_checkpoint_adds_is_counted_in_its_files(tmp_path):
    save_file({"a": torch.zeros(3, 4, dtype=torch.bfloat16), "d2t": torch.zeros(9).long()}, tmp_path / "x.safetensors")
    method = Method("x", "eagle3:x", MODEL, tmp_path)
    assert method.parameters == 12 and method.training_minutes is None
    assert method.bytes == (tmp_path / "x.safetensors").stat().st_size
    (tmp_path / "training.json").write_text(json.dumps({"minutes": 7.5}))
    assert method.training_minutes == 7.5
    assert Method("y", "suffix", MODEL).parameters == 0


def test_noise_is_shared_where_there_is_any_and_a_method_can():
    assert not any(setting.coupled for setting in settings(False))
    shared = [setting for setting in settings(True) if setting.coupled]
    assert shared and all(setting.temperature > 0 and setting.shape == "tree" for setting in shared)
    assert {setting.split for setting in settings(True)} == set(SPLITS)


def test_counts_are_those_of_the_engines_own_turns():
    """On two prompts with the model's own head: tokens per forward from steps alone."""
    config = EngineConfig(str(MODEL), f"eagle3:{MODEL / 'eagle3'}", pool_tokens=4096)
    target = load_target_for(config)
    engine = Engine(target, load_proposer(config, target), FixedPolicy(counts.TREE))
    prompts = harness.prompts(harness.load_tokenizer(MODEL), harness.IN_DOMAIN, 1)[:2]
    wanted = [Setting(IN_DOMAIN), Setting(IN_DOMAIN, temperature=1.0, coupled=True)]
    found = counts.measure(engine, prompts, wanted, harness.stop_tokens(MODEL))
    assert target.pool.pages_in_use == 0 and not engine.sessions
    runs = [
        harness.run_turn(engine, prompt.ids, counts.Sampling(), stop=harness.stop_tokens(MODEL)) for prompt in prompts
    ]
    tally = found[wanted[0]]["all"]
    assert tally.tokens == sum(len(run.tokens) - 1 for run in runs)
    assert tally.per_forward > 1.5
    assert found[wanted[1]]["all"].forwards > 0


@pytest.fixture
def times():
    plain = [Timed([1] * 11, 1.0, 10), Timed([1] * 31, 3.0, 30)]
    fast = [Timed([1] * 11, 0.5, 4), Timed([2] * 31, 1.0, 9)]
    return Times({"EAGLE-3": Costs(1.0, 2.0, 3.0, 4.0)}, {PLAIN: plain, "EAGLE-3": fast})


def test_speed_is_over_all_tokens_and_its_interval_holds_it(times):
    ratio, low, high = times.over("EAGLE-3", PLAIN)
    assert ratio == pytest.approx((4.0 / 40) / (1.5 / 40))
    assert low <= ratio <= high and (low, high) == (pytest.approx(2.0), pytest.approx(3.0))
    assert times.tokens_per_second("EAGLE-3") == pytest.approx(40 / 1.5)
    assert times.same_text("EAGLE-3") == "1/2"


def test_a_reply_that_came_in_the_first_step_is_in_no_ratio(times):
    """A peer's draft model may write a whole reply before the clock has anything to time."""
    whole = [Timed([1] * 11, 0.0, 0, first=11), Timed([2] * 31, 1.0, 9)]
    with_peer = Times({}, {**times.runs, "peer": whole})
    assert with_peer.over("peer", PLAIN)[0] == pytest.approx(3.0)
    assert with_peer.tokens_per_second("peer") == pytest.approx(30)


def test_positions_are_of_all_steps():
    """Ten forwards: four drafted nothing, three of the others were right once, one of these twice."""
    stats = SimpleNamespace(steps=11, accepted_at=[3, 1, 0])
    tally = Tally()
    tally.add(SimpleNamespace(stats=stats, num_tokens=15))
    assert tally.positions(4)[:3] == [0.3, pytest.approx(1 / 3), 0.0] and math.isnan(tally.positions(4)[3])
    assert tally.per_forward == 1.4


def test_the_tables_show_what_was_measured_and_a_dash_where_nothing_was(times, tmp_path):
    shown = [Method("EAGLE-3", "eagle3:x", MODEL, Path("nowhere")), Method("other", "suffix", MODEL)]
    positions = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    counted = [Counted("EAGLE-3", Setting(IN_DOMAIN), 5, {"all": 3.456, "tool": 4.0}, [0.1] * 6)]
    counted.append(Counted("EAGLE-3", Setting(IN_DOMAIN, "chain"), 5, {"all": 2.5}, positions))
    found = page.by_setting(counted)
    table = page.main_table(shown, found, {"embedded": times})
    eagle, other = table.splitlines()[-2:]
    assert (
        "3.46" in eagle
        and "| 0.90 |" in eagle
        and "| 3.00 | 4.00 |" in eagle
        and "26.7" in eagle
        and "2.67 [2.00, 3.00]" in eagle
    )
    assert other.count("| -") > 10
    assert "| 4.00 |" in page.kind_table(shown, found)
    page.plot(shown, found, {"embedded": times}, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").stat().st_size > 1000


def test_a_part_that_was_measured_is_taken_from_its_file_only_by_a_run_that_resumes(times, tmp_path):
    counted = [Counted("EAGLE-3", Setting(IN_DOMAIN, temperature=0.7, coupled=True), 5, {"all": 3.4}, [0.1] * 6)]
    again = [Counted("EAGLE-3", Setting(IN_DOMAIN), 6, {"all": 3.5}, [math.nan] * 6)]
    first = PartFiles(tmp_path, resume=True)
    assert first.counted("counts", lambda: counted) == counted
    assert first.times("grown", lambda: times) == times
    resumed = PartFiles(tmp_path, resume=True)
    assert resumed.counted("counts", pytest.fail) == counted and resumed.times("grown", pytest.fail) == times
    assert resumed.machines == first.machines and "cores" in first.machines["counts"]
    anew = PartFiles(tmp_path, resume=False).counted("counts", lambda: again)
    assert anew[0].replies == 6 and all(math.isnan(share) for share in anew[0].positions)
