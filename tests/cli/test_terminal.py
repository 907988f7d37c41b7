"""What the commands print and read, on consoles of every encoding."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyro_vae import evaluate, train
from pyro_vae.cli import parser, terminal, train_arguments
from pyro_vae.models.registry import PARTS
from pyro_vae.runs.config import Config, DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from tests.children import ROOT

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SMALL = "--epochs 1 --latent-dim 2 --hidden 8 --num-samples 30 --threads 1 --device cpu".split()


def process(*words: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[bytes]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON", "COLUMNS"))}
    environment = kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"} | settings
    return subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, timeout=120)


def printed(text: str, encoding: str) -> bytes:
    """What a console of this encoding gets of a text."""
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with terminal.any_encoding():
            print(text, end="", flush=True)
    assert stream.errors == "strict"  # as it was
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("-23.84 ± 0.32, β ≤ 1, 8 × 8", "utf-8", "-23.84 ± 0.32, β ≤ 1, 8 × 8".encode()),
        ("-23.84 ± 0.32, β ≤ 1, 8 × 8", "ascii", b"-23.84 +/- 0.32, beta <= 1, 8 x 8"),
        ("-23.84 ± 0.32, β ≤ 1, 8 × 8", "cp1252", b"-23.84 \xb1 0.32, beta <= 1, 8 \xd7 8"),
        ("-23.84 ± 0.32, β ≤ 1, 8 × 8", "latin-1", b"-23.84 \xb1 0.32, beta <= 1, 8 \xd7 8"),
        ("é ½…", "ascii", b"e 12..."),
        ("≥ ≈ − – — → ∞ µ “a” ‘b’ █", "ascii", b">= ~ - - - -> inf mu \"a\" 'b' #"),
        ("数", "ascii", b"\\u6570"),
    ],
)
def test_letters_that_an_encoding_lacks_become_ascii(text, encoding, expected):
    assert printed(text, encoding) == expected


def test_bytes_of_file_names_come_out_as_they_were():
    text = "runs/β".encode().decode("ascii", "surrogateescape")
    assert printed(text, "ascii") == printed(text, "utf-8") == "runs/β".encode()


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        pytest.param("train", {"PYTHONIOENCODING": "cp1252"}, marks=pytest.mark.slow),
        pytest.param("train", C_LOCALE, marks=pytest.mark.slow),  # as the run below, and the next one in ASCII
        pytest.param("evaluate", {"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_help_is_printed_whatever_the_encoding(tmp_path, module, settings):
    result = process("-m", f"pyro_vae.{module}", "--help", cwd=tmp_path, **settings)
    assert (result.returncode, result.stderr) == (0, b"")
    shown = result.stdout.decode("ascii")
    assert "--threads N" in shown
    assert "examples:\n  python -m pyro_vae" in shown.replace("\r", "")


@pytest.mark.parametrize(
    "settings", [C_LOCALE, pytest.param({"PYTHONIOENCODING": "cp1252"}, marks=pytest.mark.slow)], ids=str
)
def test_a_run_where_the_locale_knows_ascii_only(tmp_path, settings):
    without_pictures = (
        "import sys; from pyro_vae import evaluate, report, train\n"
        "report.draw_pictures = lambda *args: []\n"
        "sys.exit(train.main(sys.argv[1:]) or evaluate.main([sys.argv[-1], '--num-samples', '20', '--device', 'cpu']))"
    )
    words = [*SMALL, "--data-dir", "données/β", "--run-dir", "run-β"]
    result = process("-c", without_pictures, *words, cwd=tmp_path, **settings)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if b"1/1" in line]
    assert len(lines) == 1
    assert (b" \xb1 " if "PYTHONIOENCODING" in settings else b" +/- ") in lines[0]
    folder = tmp_path / "run-β"  # under its own name, whatever the locale
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert written["data"]["data_dir"] == str(tmp_path / "données" / "β")
    assert Config.from_dict(written).train.epochs == 1
    assert (folder / "metrics.csv").read_bytes().isascii()
    assert b"20 importance samples" in result.stdout


def test_an_error_on_a_console_of_ascii(tmp_path):
    result = process("-m", "pyro_vae.train", "--elbo", "träce", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 2
    assert result.stderr.replace(b"\r", b"").startswith(
        b"pyro_vae.train: error: unknown objective 'trace': expected one of"
    )
    assert result.stderr.count(b"\n") == 1


# --version and --help.


@pytest.mark.parametrize("command", [train, evaluate])
@pytest.mark.parametrize("words", [["--version"], ["--epochs", "many", "--version"]])
def test_version(command, words, capsys):
    assert command.main(words) == 0
    out, error = capsys.readouterr()
    assert out == terminal.versions() + "\n"
    assert out.startswith("pyro_vae ")
    assert ", torch " in out
    assert error == ""


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_has_groups_two_examples_and_every_flag(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    shown = capsys.readouterr().out
    assert all(len(line) <= int(columns) for line in shown.splitlines() if "python -m" not in line)
    order = [shown.index(f"\n{group} options:\n") for group in ("data", "model", "training", "evaluation", "run")]
    assert order == sorted(order)
    assert "\n  The model p(z) p(x|z) and its guide q(z|x).\n" in shown
    examples = [line.split()[3:] for line in shown.splitlines() if line.startswith("  python -m pyro_vae.train ")]
    assert len(examples) == 2
    for words in examples:
        train_arguments.parse(words)
    names = [
        n
        for section in (DataConfig, ModelConfig, TrainConfig, EvaluateConfig, train_arguments.Options)
        for n in vars(section())
    ]
    for name in names:
        assert f"--{name.replace('_', '-')}" in shown
    for internal in ("{None}", "None", "True", "False", "STR", "INT"):
        assert internal not in shown


@pytest.mark.parametrize("command", ["train", "evaluate", "data.__main__", "testing.__main__"])
def test_help_is_readable_in_80_columns(monkeypatch, capsys, command):
    monkeypatch.setenv("COLUMNS", "80")
    module = importlib.import_module(f"pyro_vae.{command}")
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if len(line) > 80 and "python -m" not in line] == []
    assert not re.search(r"[a-z]-\n", shown), "a flag or a name is broken"
    assert "``" not in shown


def helped(monkeypatch, capsys, *words: str) -> str:
    """What the command prints with ``--help``, on one line."""
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit, match="0"):
        train.main([*words, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_help_quotes_the_string_below_each_field(monkeypatch, capsys):
    shown = helped(monkeypatch, capsys)
    assert "--latent-dim N Size of the latent vector. (default: 16)" in shown
    assert "0 for none. (default: as many as there are test images" in shown
    assert "--download, --no-download Download missing files. (default: yes)" in shown


def test_help_lists_the_names_of_the_registries(monkeypatch, capsys):
    shown = helped(monkeypatch, capsys)
    for key, names in train_arguments.NAMES.items():
        said = shown[shown.index(f" --{key.replace('_', '-')} WORD ") :].split("(default:")[0]
        assert [name for name in names if name not in said] == [], key


def test_help_shows_the_defaults_of_a_model(monkeypatch, capsys):
    said = "Weight of the codes' total correlation"
    assert "(default: none)" in helped(monkeypatch, capsys).split(said)[1][:150]
    assert "(default: 6.0)" in helped(monkeypatch, capsys, "--model", "tcvae").split(said)[1][:150]


# The parser.


@dataclass(frozen=True)
class Inner:
    """Some flags."""

    count: int = 1
    share: float | None = None
    widths: tuple[int, ...] = (2, 3)
    both: float | str = 1.0


@dataclass(frozen=True)
class Outer:
    """All flags."""

    inner: Inner = field(default_factory=Inner, metadata={"group": "some"})
    name: str = "x"
    loud: bool = False
    sure: bool | None = None
    kinds: tuple[str, ...] = ()
    at_place: Path | None = None


def parse(text: str, default: Outer | None = None) -> Outer:
    return parser.parse(default or Outer(), text.split(), prog="python -m prog", description="D.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Outer()),
        ("--count 3 --share 1e-3", Outer(Inner(3, 1e-3))),
        ("--share 2", Outer(Inner(share=2.0))),
        ("--share -1e-3", Outer(Inner(share=-1e-3))),
        ("--share -inf --count -2", Outer(Inner(-2, -float("inf")))),
        ("--share None", Outer()),
        ("--widths", Outer(Inner(widths=()))),
        ("--widths 5 --name y", Outer(Inner(widths=(5,)), "y")),
        ("--widths 5 -6 7 --loud", Outer(Inner(widths=(5, -6, 7)), loud=True)),
        ("--widths=5 --widths 7", Outer(Inner(widths=(7,)))),
        ("--loud --no-loud --count=-4", Outer(Inner(-4))),
        ("--count 3 --count 4", Outer(Inner(4))),
        ("--both 2", Outer(Inner(both=2.0))),
        ("--both a=2,b_c=3", Outer(Inner(both="a=2,b_c=3"))),
        ("--sure", Outer(sure=True)),
        ("--sure --no_sure", Outer(sure=False)),
        ("--kinds a b", Outer(kinds=("a", "b"))),
        ("--at_place=a_b/c --name=", Outer(name="", at_place=Path("a_b/c"))),
        ("--widths=3 4", Outer(Inner(widths=(3, 4)))),
        ("--widths=-3 4 --loud", Outer(Inner(widths=(-3, 4)), loud=True)),
        ("--kinds=a=1 b=2 --count 3", Outer(Inner(3), kinds=("a=1", "b=2"))),
        ("--kinds=-x", Outer(kinds=("-x",))),
        ("--kinds=", Outer(kinds=("",))),
        ("--name=-x --loud --", Outer(name="-x", loud=True)),
        ("--name -", Outer(name="-")),
    ],
)
def test_words_become_values(text, expected):
    assert parse(text) == expected


def test_a_flag_that_is_left_out_has_its_default():
    default = Outer(Inner(7, 0.5, (1,)), "d", True)
    assert parse("", default) == default
    assert parse("--share None --no-loud", default) == Outer(Inner(7, None, (1,)), "d", False)


@pytest.mark.parametrize("columns", ["30", "80", "200"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--counts 5", "unrecognized flag --counts; did you mean --count?"),
        ("--coun 5", "unrecognized flag --coun; did you mean --count?"),
        (
            "--no-loude",
            "unrecognized flag --no-loude; did you mean --no-loud?",
        ),
        ("--zzz=1", "unrecognized flag --zzz; see --help for all flags."),
        ("-x", "unrecognized flag -x; see --help for all flags."),
        ("--count five", "--count: expected a whole number, got 'five'; see --help."),
        ("--count 1.5", "--count: expected a whole number, got '1.5'; see --help."),
        ("--share half", "--share: expected a number, got 'half'; see --help."),
        ("--widths 1 x", "--widths: expected a whole number, got 'x'; see --help."),
        ("--count", "--count: expected a value, got none; see --help."),
        ("--count --", "--count: expected a value, got none; see --help."),
        ("--count --loud", "--count: expected a value, got '--loud'; see --help."),
        ("--name -x", "--name: expected a value, got '-x'; if it is the value, write --name=-x."),
        ("--loud=False", "--loud: expected no value, got 'False'; write --no-loud."),
        ("--no-loud=no", "--no-loud: expected no value, got 'no'; write --loud."),
        ("--loud=yes", "--loud: expected no value, got 'yes'; write --loud."),
        ("--help=1", "--help: expected no value, got '1'; write --help."),
        ("--loud -- --count 3", "unexpected word '--count': expected no words after --; remove the --."),
        ("-- stray", "unexpected word 'stray': expected no words after --; remove the --."),
        ("stray", "unexpected word 'stray': expected flags and their values; see --help."),
        ("--loud stray", "unexpected word 'stray': expected flags and their values; see --help."),
    ],
)
def test_what_cannot_be_read_is_one_sentence(monkeypatch, text, expected, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(ValueError, match="^" + expected.replace("?", "\\?") + "$"):
        parse(text)


@dataclass(frozen=True)
class Placed:
    """Flags with a positional argument."""

    runs: tuple[Path, ...] = field(default=(), metadata={"positional": True})
    kinds: tuple[str, ...] = ()
    loud: bool = False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a --loud b", Placed((Path("a"), Path("b")), loud=True)),
        ("-- -a", Placed((Path("-a"),))),
        ("a --loud -- --b_c --", Placed((Path("a"), Path("--b_c"), Path("--")), loud=True)),
        ("--kinds x -- a", Placed((Path("a"),), ("x",))),
        ("--kinds=x a", Placed((Path("a"),), ("x",))),
        ("--kinds x a", Placed((), ("x", "a"))),
    ],
)
def test_words_after_two_dashes_are_positional(text, expected):
    assert parser.parse(Placed(), text.split(), prog="python -m prog", description="D.") == expected


@pytest.mark.parametrize("kind", PARTS)
def test_help_lists_the_arguments_of_parts(monkeypatch, capsys, kind):
    mixed = type("Mixed", (), {"arguments": {"components": 5, "scale": 0.1}})
    monkeypatch.setitem(PARTS[kind], "mix", mixed)
    said = helped(monkeypatch, capsys).split(f" --{kind} WORD ")[1].split("(default:")[0]
    assert "mix:COMPONENTS:SCALE" in said
