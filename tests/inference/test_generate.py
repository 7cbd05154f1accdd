"""`hypnos generate`: one continuation or several, and the same answers as the server's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launch.cli import main
from pretrain.errors import UserError
from pretrain.inference.chat import chat_form
from pretrain.inference.generate import continue_text, generate, open_run, question
from pretrain.inference.sampling import Sampling
from tests.convert.made import config, write_run
from tests.documents import program
from tokenizer.encode import Tokenizer
from tokenizer.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    train([Path(__file__).read_text() * 8], folder / "small.model", vocab_size=420)
    return write_run(folder / "run", config(folder / "small.model"))


def written(run: Path, prompt: str, **options: int) -> list[str]:
    started = continue_text(*open_run(run), prompt, Sampling(), max_tokens=40, **options)
    texts = dict.fromkeys(started, "")
    for one, piece in generate(started):
        texts[one] += piece.text
    return list(texts.values())


def test_samples_are_what_each_seed_gives_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    together = written(run, "def ", samples=3)
    assert len(set(together)) == 3
    options = ["--prompt", "def ", "--tokens", "40", "--temperature", "1"]
    for seed, text in enumerate(together):
        assert main(["generate", str(run), *options, "--seed", str(seed)]) == 0
        assert capsys.readouterr().out == f"def {text}\n"
    assert main(["generate", str(run), *options, "--samples", "3"]) == 0
    parts = [f"---- {i} of 3\ndef {text}\n" for i, text in enumerate(together, 1)]
    assert capsys.readouterr().out == "".join(parts)


def test_n_changes_what_is_written(run: Path) -> None:
    assert written(run, "import torch" * 3, passes=1) != written(run, "import torch" * 3, passes=4)


def test_the_program_of_the_documents(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/first").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(program("inference.md"), found)
    assert found["session"].passes == found["other"].passes == 4
    assert found["logits"].shape == (2, 420) and found["logits"].isfinite().all()


def test_the_weights_may_be_bf16(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, exact = (open_run(run, precision)[0].model for precision in ("bf16", "fp32"))
    for mine, theirs in zip(low.parameters(), exact.parameters(), strict=True):
        assert mine.dtype == torch.bfloat16 and torch.equal(mine, theirs.bfloat16())
    opened = []
    monkeypatch.setattr(
        "pretrain.inference.generate.open_run",
        lambda *given: opened.append(open_run(*given)) or opened[-1],
    )
    command = ["generate", str(run), "--prompt", "def ", "--tokens", "40", "--precision"]
    assert main([*command, "bf16"]) == 0
    assert opened[0][0].model.dtype == torch.bfloat16


def test_it_ends_before_a_stop_string(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = written(run, "def ")
    stop = text[7:9]
    command = ["generate", str(run), "--prompt", "def ", "--tokens", "40", "--temperature", "1"]
    assert main([*command, "--stop", stop]) == 0
    assert capsys.readouterr().out == f"def {text[: text.index(stop)]}\n"


def test_a_question_is_written_as_the_server_does(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.load(run / "tokenizer.model")
    ids = question(chat_form(tokenizer), "Who?", "Be brief.")
    assert tokenizer.decode(ids) == "System: Be brief.\nUser: Who?\nAssistant:"
    command = ["generate", str(run), "--prompt", "Who?", "--tokens", "9", "--chat"]
    assert main([*command, "--system", "Be brief."]) == 0
    assert "Who?" not in capsys.readouterr().out
    assert main(["generate", str(run), "--prompt", "Who?", "--system", "Be brief."]) == 2
    assert "give --chat, too" in capsys.readouterr().err
    assert main([*command, "--chat-template-kwargs", '{"think": false}']) == 2
    assert "there is no chat template here; leave them out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--chat-template-kwargs", "think=false"])
    assert "'think=false' is not a JSON object" in capsys.readouterr().err


def test_a_question_by_a_template_of_transformers(run: Path, tmp_path: Path) -> None:
    tokenizer, template = Tokenizer.load(run / "tokenizer.model"), tmp_path / "chat_template.jinja"
    template.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    ids = question(chat_form(tokenizer, template), "Who?", "Be brief.")
    assert tokenizer.decode(ids) == "<system>Be brief.<user>Who?<assistant>"
    for text in ("{% for %}", "{{ messages.__class__.__mro__ }}", "{{ raise_exception('no') }}"):
        template.write_text(text)
        with pytest.raises(UserError, match=f"^{template}: cannot be used: "):
            chat_form(tokenizer, template)


def test_settings_out_of_bounds_are_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run), "--prompt", "a", "--top-p", "2"]) == 2
    assert "top_p = 2.0: must be above 0 and at most 1" in capsys.readouterr().err
