"""tools/extract_clauses on small made-up LaTeX, and the clause file by its own rules."""

from __future__ import annotations

import copy
import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "extract_clauses"


def load_tool() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("extract_clauses", str(TOOL))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


tool = load_tool()

KETTLE = r"""
\section{Kettle}\label{sec:Things / Kettle}

A kettle boils water.  The cook MAY leave it. % MUST is only a comment here

\begin{description}
\item[KETTLE_F_WHISTLE(7)] The kettle whistles.  It SHOULD
 also steam.
\item[KETTLE_F_LIGHT(8)] The kettle MUST glow.
\end{description}

\devicenormative{\subsection}{Kettle}{Things / Kettle}

The kettle MUST heat \field{water} to
\hyperref[sec:A
label]{boiling}, i.e. until it steams.  It SHOULD then
whistle.  Otherwise, it MUST NOT.

When full,
\begin{itemize}
\item the kettle MUST close its lid,
\item the kettle stands still, and
\item the kettle SHOULD be
  \begin{enumerate}
  \item hot, and
  \item loud.
  \end{enumerate}
\end{itemize}

If any of these holds:
\begin{itemize}
\item it is cold,
\item it is empty,
\end{itemize}
the kettle MOST NOT whistle.

\begin{lstlisting}
int lid; // MUST NOT be found
\end{lstlisting}

\drivernormative{\subsection}{Kettle}{Things /
Kettle}

The cook must NOT drink KETTLE_F_OPTIONAL tea.  It is RECOMMENDED to
wait.

\section{Teapot}\label{sec:Things / Teapot}

The teapot MUST be warm.
"""


def found(kind: str, label: str = "Things / Kettle", item: str = "", text: str = KETTLE) -> list[Any]:
    start, end = tool.locate(text, kind, label, item)
    result: list[Any] = tool.sentences(text[start:end], text.count("\n", 0, start) + 1)
    return result


def texts(kind: str, **more: str) -> list[str]:
    return [sentence.text for sentence in found(kind, **more)]


def test_device_sentences() -> None:
    """Each sentence carries what it needs to be understood: list heads, items, closing words."""
    assert texts("device") == [
        "The kettle MUST heat water to boiling, i.e. until it steams.",
        "It SHOULD then whistle.",
        "It SHOULD then whistle. Otherwise, it MUST NOT.",
        "When full, the kettle MUST close its lid,",
        "When full, the kettle SHOULD be hot, and loud.",
        "If any of these holds: it is cold, it is empty, the kettle MOST NOT whistle.",
    ]


def test_lines_are_those_of_the_keywords() -> None:
    """A line break inside a dropped argument counts as a line of the file."""
    rows = KETTLE.split("\n")
    for sentence in found("device") + found("driver"):
        for line in sentence.lines:
            assert tool.KEYWORD.search(rows[line - 1]), (line, rows[line - 1])


def test_driver_and_mixed_case() -> None:
    """A label over two lines is found; names that contain a keyword are not keywords."""
    assert texts("driver") == [
        "The cook must NOT drink KETTLE_F_OPTIONAL tea.",
        "It is RECOMMENDED to wait.",
    ]


def test_body_ends_at_the_normative_block() -> None:
    """Running text excludes normative blocks, comments and the next section."""
    assert texts("body", label="sec:Things / Kettle") == [
        "The cook MAY leave it.",
        "It SHOULD also steam.",
        "[KETTLE_F_LIGHT(8)] The kettle MUST glow.",
    ]
    assert texts("body", label="sec:Things / Teapot") == ["The teapot MUST be warm."]


def test_item_of_a_description() -> None:
    assert texts("body", label="sec:Things / Kettle", item="KETTLE_F_WHISTLE(7)") == ["It SHOULD also steam."]


@pytest.mark.parametrize(
    ("kind", "label", "item"), [("device", "Things / Cup", ""), ("body", "sec:Things / Kettle", "NO_SUCH")]
)
def test_unknown_section(kind: str, label: str, item: str) -> None:
    with pytest.raises(tool.SpecError):
        tool.locate(KETTLE, kind, label, item)


def test_layout_of_the_source_does_not_matter() -> None:
    """Line breaks, spaces, comments and markup do not change a hash; a word does."""
    plain = tool.sentences("The kettle MUST heat water.")[0].hash
    assert tool.sentences("The  kettle\nMUST % why\n heat \\field{water}.")[0].hash == plain
    assert tool.sentences("The kettle MUST boil water.")[0].hash != plain


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("MUST", 1),
        ("MUST not and MUST NOT", 2),
        ("must not", 0),
        ("SHALL", 1),
        ("MOST", 0),
        ("MAY_BE", 0),
        ("a MAY-pole", 0),
        ("REQUIRED, OPTIONAL", 2),
    ],
)
def test_keywords(words: str, count: int) -> None:
    assert len(tool.KEYWORD.findall(words)) == count


# --- a whole made-up checkout -----------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with one LaTeX file, and a clause file that fits it."""
    spec = tmp_path / "spec"
    spec.mkdir()
    (spec / "kettle.tex").write_text(KETTLE, encoding="utf-8")
    group = {
        "id": "KET-DEV",
        "section": "Things / Kettle",
        "file": "kettle.tex",
        "lines": [1, 2],
        "locate": [{"kind": "device", "label": "Things / Kettle"}],
    }
    common: dict[str, Any] = {
        "section": "Things / Kettle",
        "file": "kettle.tex",
        "role": "device",
        "level": "MUST",
    }
    tail: dict[str, Any] = {
        "observed": "device",
        "how": "Look.",
        "dialects": ["virtio-1.4"],
        "ambiguities": [],
    }
    clauses: list[dict[str, Any]] = [
        {
            "id": f"KET-DEV-{number:02d}",
            "group": "KET-DEV",
            **common,
            "lines": list(sentence.lines),
            "text": "Hot.",
            "hash": sentence.hash,
            "sentences": [sentence.hash],
            **tail,
        }
        for number, sentence in enumerate(tool.group_sentences(spec, group), 1)
    ]
    clauses.append(
        {
            "id": "INF-01",
            "group": "INF",
            **common,
            "level": "INFO",
            "lines": [4],
            "text": "It boils.",
            "hash": tool.digest(tool.passage(KETTLE, 4, 4)),
            "sentences": [],
            **tail,
        }
    )
    data = {
        "schema": "virtio-ipsec/clauses/1",
        "source": {"repository": "r", "tag": "t", "commit": "c", "files": {}, "repeated": []},
        "groups": [group, {"id": "INF", "section": "", "file": "", "lines": [], "locate": []}],
        "clauses": clauses,
    }
    path = tmp_path / "clauses.json"
    path.write_text(tool.dump(data), encoding="utf-8")
    return spec, path


def run(checkout: tuple[Path, Path], *more: str) -> int:
    spec, path = checkout
    status: int = tool.main(["--spec", str(spec), "--clauses", str(path), *more])
    return status


def edit(checkout: tuple[Path, Path], old: str, new: str) -> None:
    path = checkout[0] / "kettle.tex"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_fitting_checkout_passes(checkout: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkout) == 0
    assert "7 clauses, 6 sentences, 0 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\item the kettle MUST close its lid,\n", "", "KET-DEV-04 finds no sentence"),
        ("When full,", "The kettle MUST shine.\n\nWhen full,", "no clause for the sentence"),
        ("then\nwhistle", "then\nsing", "the sentence of KET-DEV-02 changed"),
        ("it is cold", "it is warm", "the sentence of KET-DEV-06 changed"),
        ("A kettle boils water.", "A kettle cools water.", "INF-01"),
    ],
    ids=["deleted", "added", "word", "list item", "passage"],
)
def test_a_changed_checkout_fails(
    checkout: tuple[Path, Path], capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    edit(checkout, old, new)
    assert run(checkout) == 1
    assert message in capsys.readouterr().out


def test_moved_lines_are_a_note(checkout: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    edit(checkout, "\\section{Kettle}", "\n\n\\section{Kettle}")
    assert run(checkout) == 0
    assert "lines moved" in capsys.readouterr().out


def test_write_refreshes_hashes_and_lines(checkout: tuple[Path, Path]) -> None:
    """--write accepts changed words (and still fails once, so that somebody rereads the clause)."""
    edit(checkout, "\\section{Kettle}", "\n\\section{Kettle}")
    edit(checkout, "then\nwhistle", "then\nsing")
    before = json.loads(checkout[1].read_text(encoding="utf-8"))["clauses"]
    assert run(checkout, "--write") == 1
    assert run(checkout) == 0
    after = json.loads(checkout[1].read_text(encoding="utf-8"))["clauses"]
    assert after[1]["hash"] != before[1]["hash"]
    assert after[0]["lines"] == [line + 1 for line in before[0]["lines"]]
    assert after[0]["hash"] == before[0]["hash"]


def test_a_clause_may_cite_some_keywords_only() -> None:
    """Two clauses that share a sentence keep their share of its lines when it moves."""
    assert tool.renumber([410, 412], {407, 410, 412}) == [410, 412]
    assert tool.renumber([410, 412], {417, 420, 422}) == [420, 422]
    assert tool.renumber([1, 5], {10, 12}) == [10, 12]


def test_missing_checkout(checkout: tuple[Path, Path], tmp_path: Path) -> None:
    assert tool.main(["--spec", str(tmp_path / "none"), "--clauses", str(checkout[1])]) == 2


# --- the committed clause file ----------------------------------------------------------------


def committed() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROOT / "spec" / "clauses.json").read_text(encoding="utf-8"))
    return data


def test_the_clause_file_is_in_order() -> None:
    result = subprocess.run(
        [sys.executable, str(TOOL), "--check"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


def test_the_clause_file_is_written_as_the_tool_writes_it() -> None:
    text = (ROOT / "spec" / "clauses.json").read_text(encoding="utf-8")
    assert tool.dump(json.loads(text)) == text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "NET-FEAT-1"),
        ("id", "NET-IPSEC-DEV-01"),
        ("role", "cook"),
        ("level", "WILL"),
        ("text", "no full stop"),
        ("hash", None),
        ("hash", "abc"),
        ("sentences", ["0" * 64]),
        ("observed", "perhaps"),
        ("how", " "),
        ("dialects", []),
        ("ambiguities", ["12"]),
        ("lines", [3, 2]),
        ("net_twin", "NET-NONE-01"),
    ],
)
def test_check_finds_faults(field: str, value: Any) -> None:
    data = copy.deepcopy(committed())
    assert tool.check(data) == []
    data["clauses"][0][field] = value
    assert tool.check(data)


def test_help_has_an_example() -> None:
    result = subprocess.run([sys.executable, str(TOOL), "--help"], capture_output=True, text=True, check=True)
    assert "example:" in result.stdout
