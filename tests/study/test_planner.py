"""What `hypnos plan` finds, and what it says when nothing fits."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from parallel.combinations import refusal
from pretrain.config.checks import validate
from pretrain.config.load import load
from pretrain.errors import UserError
from pretrain.study.hardware import load_hardware, names
from pretrain.study.planner import plan, settings, with_layout

ROOT = Path(__file__).parents[2]
SMALL = str(ROOT / "configs/recipes/100M.toml")


def test_best_first_and_allowed() -> None:
    h100 = load_hardware("h100")
    config = load(SMALL, ["train.batch=32"])
    found = plan(config, 16, h100)
    seconds = [e.seconds for e in found.best]
    assert seconds == sorted(seconds) and len(found.best) > 3
    grids = {(e.layout.tp, e.layout.cp, e.layout.pp) for e in found.best}
    assert len(grids) == len(found.best) and any(cp > 1 for _, cp, _ in grids)
    for e in found.best:
        assert refusal(e.layout) is None
        assert e.memory.total <= h100.usable_bytes
        assert e.layout.tp * e.layout.cp * e.layout.pp * e.dp == 16
        assert e.rows * e.dp * e.layout.microbatches == 32
        # the settings in the table's last line give this layout
        again = load(SMALL, ["train.batch=32", *settings(config, e.layout)])
        assert again == with_layout(config, e.layout)
        validate(again)


def test_what_is_set_stays() -> None:
    config = load(SMALL, ["train.batch=32", "parallel.pp=2", "train.microbatches=4"])
    found = plan(config, 8, load_hardware("h100"), fixed=["parallel.pp", "train.microbatches"])
    assert {(e.layout.pp, e.layout.microbatches) for e in found.best} == {(2, 4)}


def test_context_parallel_ranks_are_planned() -> None:
    """If the configuration has them: exchanges, and half of the activations but for logits, which
    both compute in parts.
    """
    h100, layout = load_hardware("h100"), ["parallel.pp=1", "parallel.tp=1", "train.batch=16"]
    layout += ["parallel.recompute=none", "train.microbatches=1"]
    fixed = ["parallel.cp", *(text.partition("=")[0] for text in layout)]
    alone = plan(load(SMALL, layout), 4, h100, fixed=fixed).best[0]
    shared = plan(load(SMALL, [*layout, "parallel.cp=2"]), 8, h100, fixed=fixed).best[0]
    assert alone.dp == shared.dp == 4 and alone.rows == shared.rows
    assert shared.memory.activations == pytest.approx(alone.memory.activations / 2, rel=0.03)
    assert shared.exchange_s > alone.exchange_s and shared.seconds < alone.seconds


def test_ranks_that_share_a_layer_are_on_one_host() -> None:
    """12 GPUs are 8 and 4 on hosts of 8: groups of 4 fit. Hosts of 3 do not divide into pairs."""
    h100 = load_hardware("h100")
    for devices, most in ((8, 4), (3, 1)):
        hardware = replace(h100, node=replace(h100.node, devices=devices))
        config = load(SMALL, ["train.batch=12"])
        tps = {e.layout.tp for e in plan(config, 12, hardware, top=100).best}
        assert max(tps) <= most and all(most % tp == 0 for tp in tps)


def test_ranks_that_share_a_host_take_longer() -> None:
    """The whole step does; beyond the measured numbers of ranks, as long as with the largest."""
    h100, config = load_hardware("h100"), load(SMALL, ["train.batch=32"])
    node = replace(h100.node, devices=2, shared=True)
    crowded = replace(h100, node=replace(node, crowding=[1.25, 1.5]))
    for ranks, longer in ((1, 1), (2, 1.25), (4, 1.5), (16, 1.5)):
        alone, among_others = (
            plan(config, ranks, where, fixed=["train.microbatches"]).best[0]
            for where in (replace(h100, node=node), crowded)
        )
        assert among_others.layout == alone.layout
        assert among_others.seconds == pytest.approx(longer * alone.seconds)
        assert among_others.mfu == pytest.approx(alone.mfu / longer)


def test_memory_decides() -> None:
    h100 = load_hardware("h100")
    config = load(str(ROOT / "configs/recipes/7B.toml"), ["train.batch=16"])
    with pytest.raises(UserError) as told:
        plan(config, 1, h100)
    assert "the smallest" in str(told.value) and "--gpus" in str(told.value)
    less = replace(h100, device=replace(h100.device, memory_gib=40.0))
    small = load(SMALL, ["train.batch=64"])
    few = plan(small, 1, replace(h100, device=replace(h100.device, memory_gib=12.0))).best[0]
    many = plan(small, 1, less).best[0]
    assert few.memory.total < many.memory.total and few.seconds > many.seconds


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set train\.batch to a multiple of"):
        plan(load(SMALL, ["train.batch=3"]), 512, load_hardware("h100"))
    whole = ["train.batch=512", "train.microbatches=4"]
    fixed = ["parallel.tp", "parallel.cp", "parallel.pp", "train.microbatches"]
    with pytest.raises(UserError, match=r"train\.microbatches to a divisor of 1, or leave it out"):
        plan(load(SMALL, whole), 512, load_hardware("h100"), fixed=fixed)
    with pytest.raises(UserError, match="tp must divide heads"):
        plan(load(SMALL, ["parallel.tp=2"]), 3, load_hardware("h100"), fixed=["parallel.tp"])
    with pytest.raises(UserError, match="name one of a100, b200, h100, h200"):
        load_hardware("h1000")
    full = (ROOT / "configs/hardware/h100.toml").read_text().replace("reserved_gib = ", "#")
    (tmp_path / "full.toml").write_text(full.replace("[device]", "[device]\nreserved_gib = 80"))
    with pytest.raises(UserError, match=r"leaves nothing of device\.memory_gib = .*; lower it"):
        load_hardware(str(tmp_path / "full.toml"))


def test_an_a100_is_slower_than_an_h100_and_holds_as_much() -> None:
    a100, h100 = load_hardware("a100"), load_hardware("h100")
    assert a100.usable_bytes == h100.usable_bytes
    config = load(SMALL, ["train.batch=16"])
    slow, fast = (plan(config, 8, each, top=1).best[0].seconds for each in (a100, h100))
    assert 1.2 * fast < slow < 989 / 312 * fast  # kernel launches take equally long on both


def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    rows = tmp_path / "rows.csv"
    arguments = ["plan", SMALL, "--gpus", "8", "train.batch=16", "--top", "2", "--csv", str(rows)]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "tokens/s" in out and "the fastest of each tp x cp x pp" in out
    assert out.splitlines()[-1].startswith(
        f"next, on 8 GPUs: hypnos launch local --ranks 8 {SMALL}"
    )
    assert "train.batch=16" in out.splitlines()[-1]
    assert len(list(csv.DictReader(rows.read_text().splitlines()))) == 2
    assert "warning" not in err
    assert main([*arguments, "model.norm_eps=1e-5"]) == 0
    assert "`hypnos export --to gguf` will refuse" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["plan", SMALL, "--gpus", "8", "model.vocab_size=0"]) == 2
    assert "set model.vocab_size" in capsys.readouterr().err


@pytest.mark.parametrize("name", names())
def test_hardware_files_are_whole(name: str) -> None:
    hardware = load_hardware(name)
    assert 0.1 < hardware.device.product_share < 1
    assert hardware.peak("fp32") == hardware.peak("bf16")
