"""Ranks are real processes here: what they train together is what one would train on all of their rows."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from tests.engine.embedded import MODEL
from training.dialogues import dialogue
from training.parallel import ALONE, Ranks, launch, sum_over

ROWS = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
WANTED = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def fit(ranks, path):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    figures = []
    for _ in range(3):
        rows = slice(ranks.rank, None, ranks.count)
        loss = ((model(ROWS[rows]) - WANTED[rows]) ** 2).mean()
        loss.backward()
        figures.append(ranks.average(model.parameters(), float(loss.detach()), float(ranks.rank)))
        optimiser.step()
        optimiser.zero_grad()
    ranks.check_equal(model.parameters())
    counts = sum_over(ranks, torch.tensor([1.0 + ranks.rank]))
    torch.save({"model": model.state_dict(), "figures": figures, "counts": counts}, path / f"{ranks.rank}.pt")


def test_two_ranks_train_what_one_would_on_all_their_rows(tmp_path):
    fit(ALONE, tmp_path)
    alone = torch.load(tmp_path / "0.pt")
    launch(fit, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, weight in alone["model"].items():
        assert torch.equal(first["model"][name], second["model"][name])
        torch.testing.assert_close(first["model"][name], weight)
    for got, want in zip(first["figures"], alone["figures"], strict=True):
        assert got[0] == pytest.approx(want[0]) and got[1] == 0.5
    assert first["figures"] == second["figures"]
    assert first["counts"].item() == second["counts"].item() == 3.0 and alone["counts"].item() == 1.0


def come_apart(ranks):
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, float(ranks.rank))
    ranks.check_equal(model.parameters())


def fail(ranks):
    if ranks.rank == 1:
        raise ValueError("no rows")
    ranks.average([])


@pytest.mark.parametrize(("train", "said"), [(come_apart, "weights differ"), (fail, "no rows")])
def test_a_rank_that_fails_ends_the_run_with_its_reason(train, said):
    with pytest.raises(ProcessRaisedException, match=said):
        launch(train, 2)


def test_one_rank_needs_no_other():
    assert Ranks().first
    launch(come_apart, 1)


def train_for_ever(ranks, path):
    (path / f"{ranks.rank}").write_text(str(os.getpid()))
    while True:
        time.sleep(0.1)


def test_ranks_of_a_run_in_the_background_end_with_it(tmp_path):
    """A shell starts what it runs in the background deaf to SIGINT."""
    code = (
        "import signal, sys; from pathlib import Path; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from training.parallel import launch; from tests.training.test_parallel import train_for_ever\n"
        "if __name__ == '__main__': launch(train_for_ever, 2, Path(sys.argv[1]))"
    )
    (tmp_path / "run.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    run = subprocess.Popen([sys.executable, tmp_path / "run.py", tmp_path], env=environment)
    pids = [int(wait_for(lambda rank=rank: (tmp_path / rank).read_text())) for rank in "01"]
    run.terminate()
    run.wait()
    for pid in pids:
        wait_for(lambda pid=pid: not is_running(pid))


def wait_for(found):
    """What `found` returns, once it is something."""
    for _ in range(600):
        with suppress(OSError):
            if value := found():
                return value
        time.sleep(0.1)
    raise AssertionError("in vain")


def is_running(pid):
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def work_once(ranks, path):
    def work():
        time.sleep(0.5)
        with (path / "work").open("a") as file:
            file.write(f"by {ranks.rank}\n")

    ranks.once(work)
    (path / f"{ranks.rank}").write_text((path / "work").read_text())


def test_the_first_rank_works_while_the_others_wait(tmp_path):
    launch(work_once, 2, tmp_path)
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["by 0\n"] * 2
    work_once(ALONE, tmp_path)
    assert (tmp_path / "work").read_text() == "by 0\n" * 2


@pytest.mark.parametrize("module", ["training.eagle3", "training.mtp", "training.medusa"])
def test_the_trainers_of_drafters_run_on_two_ranks_from_their_commands(module, tmp_path):
    """As a user starts them: what spawned processes import is not what a test has imported."""
    calls = [dialogue(seed, intents=1) for seed in range(24)]
    lines = [json.dumps({"messages": call.messages, "tools": call.tools}) for call in calls]
    (tmp_path / "calls.jsonl").write_text("\n".join(lines))
    files = ("--conversations", tmp_path / "calls.jsonl")
    outputs = ("--work", tmp_path / "work", "--out", tmp_path / "out", "--minutes", "0.01", "--ranks", "2")
    command = [sys.executable, "-m", module, "--target", MODEL, *files, *outputs]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "chain of 4 emits" in done.stdout
    assert done.stdout.count("replies marked, 0 in a rendering of their own") == 1
    assert (tmp_path / "work" / "conversations.npz").exists()
    assert list((tmp_path / "out").iterdir())
