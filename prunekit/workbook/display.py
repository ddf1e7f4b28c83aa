"""How figures and tables look in a notebook, on a page and in a paper: formatting, HTML, LaTeX, no dates."""
from __future__ import annotations

import base64
import importlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.choices import NAMED, called, percent
from prunekit.files import replacing_file, write_atomic
from prunekit.workbook import manifest, project

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Shown:
    """What a notebook displays for a saved figure, table or sentence."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


# A magnitude and Fisher's information need not be the methods.
_TYPESET = re.compile(rf"`[^`]*`|\$[^$]*\$|(?!magnitude|fisher)(?P<name>{NAMED})|(?P<share>(?<=\d)%)|"
                      r"(?:(?<=\bat )|(?<=\btargets )|(?<=runed to ))(?P<goal>0\.\d\d?)(?!\d|\.\d)|"
                      r"(?<![\w.,:/+-])(?!(?:19|20)\d\d\b)(?P<whole>\d{4,})(?![\w:/-]|[.,]\d)")


def typeset(text: str) -> str:
    """Numbers of a sentence by one rule, 70 % (also of a target, "at 0.7"), and 3,545 but for years, and
    methods by the names that people know; code and formulas stay."""
    return _TYPESET.sub(lambda found: " %" if found["share"] else f"{int(found[0]):,}" if found["whole"]
                        else percent(found[0]) if found["goal"] else called(found[0]) if found["name"]
                        else found[0], text)


def counted(number: int, noun: str) -> str:
    """1 thread, 2 threads."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def figure_files(figure: Figure) -> dict[str, bytes]:
    """SVG and PDF, byte for byte the same for the same figure (no dates, fixed identifiers).

    Fonts in the PDF are TrueType: venues refuse Type 3.
    """
    import matplotlib as mpl

    files = {}
    with mpl.rc_context({"svg.hashsalt": "prunekit", "svg.fonttype": "path", "pdf.fonttype": 42}):
        for suffix, dates in ((".svg", {"Date": None}), (".pdf", {"CreationDate": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], metadata=dates, bbox_inches="tight")
            files[suffix] = buffer.getvalue()
    return files


def show_figure(svg: bytes, file: str, caption: str) -> Shown:
    data, plain = base64.b64encode(svg).decode(), typeset(caption)
    image = f'<img alt="{escape(plain)}" src="data:image/svg+xml;base64,{data}">'
    return Shown(f'<figure class="pk-figure" data-file="{escape(file)}">{image}'
                 f"<figcaption>{marked_up(caption)}</figcaption></figure>", plain)


def choose_from(draw: Callable[..., Figure], **choices: list[Any]) -> Shown | None:
    """A menu for each argument of `draw` (a slider for numbers), which draws again at every choice. Without
    the extra `widgets`, and in `prunekit run`, where nobody chooses: how to do that by hand."""
    try:
        if "PRUNEKIT_LOG" in os.environ:  # see batch/notebook.py
            raise ImportError
        widgets = importlib.import_module("ipywidgets")
    except ImportError:
        first = ", ".join(f"{name}={values[0]!r}" for name, values in choices.items())
        by_hand = f"For menus in JupyterLab, `pip install ipywidgets`; or call `{draw.__name__}({first})`."
        return show_text(by_hand, "pk-banner")

    def again(**chosen: Any) -> Shown:
        return show_figure(figure_files(draw(**chosen))[".svg"], "", ", ".join(map(str, chosen.values())))
    menus = {name: widgets.SelectionSlider(options=values, value=values[len(values) // 2])
             if isinstance(values[0], float) else values for name, values in choices.items()}
    widgets.interact(again, **menus)
    return None


# ---------------------------------------------------------------- tables

def format_column(column: pd.Series, null: float | None = None) -> list[str]:
    """Cells as people read them: numbers of a column with the same few decimals, nothing for missing values.

    null: what would be no difference; a number beside it gets as many decimals as print it on its own side.
    """
    import pandas as pd

    from prunekit.evaluate.intervals import decimals

    if not _numeric(column):
        return ["" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value) for value in column]
    if pd.api.types.is_integer_dtype(column):
        return [f"{value:,}" for value in column]
    finite = [abs(value) for value in column if pd.notna(value) and math.isfinite(value)]
    largest = max(finite, default=0.0)
    most = 1 if largest >= 1000 else 2 if largest >= 100 else 3 if largest >= 1 else 4
    needed = max((len(f"{value:.{most}f}".rstrip("0").partition(".")[2]) for value in finite), default=0)

    def cell(value: float) -> str:
        if pd.isna(value):
            return ""
        if column.name in ("p", "p_holm"):  # a probability that is not zero is not shown as zero
            return "under 0.001" if value < 0.001 else f"{value:.3f}"
        if 0 < largest < 1e-3:
            return f"{value:.2e}"
        return f"{value:z,.{needed if null is None else decimals([value], null, needed)}f}"

    return [cell(value) for value in column]


def _numeric(column: pd.Series) -> bool:
    from pandas.api import types

    return types.is_numeric_dtype(column) and not types.is_bool_dtype(column)


# What a column is called where people read it; files keep the short names.
HEADINGS = {
    "ppl": "perplexity", "reached": "share of zeros", "zeros": "share of zeros", "error": "output error",
    "p_holm": "p (Holm)", "detectable": "detectable difference", "tuned": "after fine-tuning",
    "recovered": "recovered share", "memory_mb": "peak memory (MB)", "tokens_per_second": "tokens/s",
    "kl": "KL divergence (nats)", "changed": "answers changed", "num_fewshot": "few-shot examples",
    "fitness": "loss", "i": "candidate", "rho": "rank correlation",
}

_NAMES = {"method", "rival", "first", "second", "target"}  # columns of methods, and what they prune to

# Columns that say how far two things are apart, and what they hold where these are the same.
_NULLS = {"ratio": 1.0, "difference": 0.0, "change": 0.0, "effect": 0.0}


def readable(frame: pd.DataFrame) -> list[tuple[str, list[str], bool]]:
    """(heading, cells, are they numbers?) of each column as people read it.

    Columns `low` and `high` (or `tuned_low` and `tuned_high`, …), which are bounds of 95 % intervals, become
    one; beside a ratio or a difference their printed ends lie on the same side of no difference as they do.
    `holm_low` and `holm_high` are bounds at the level that Holm's correction leaves.
    """
    import pandas as pd

    intervals = any(str(name).endswith("low") for name in frame)
    null = next((value for name, value in _NULLS.items() if name in frame and intervals), None)
    columns = []
    for name in frame:
        start = re.fullmatch(r"(.*?)[_ ]?low", str(name))
        high = str(name)[:-3] + "high" if start else None
        if high in frame and _numeric(frame[name]):
            bounds = format_column(pd.concat([frame[name], frame[high]]).astype(float), null)
            pairs = zip(bounds[:len(frame)], bounds[len(frame):], strict=True)
            heading = "interval (Holm)" if name == "holm_low" else "95 % interval"
            columns.append((heading, [f"{low} to {top}" if low or top else "" for low, top in pairs], True))
        elif not (str(name).endswith("high") and f"{str(name)[:-4]}low" in frame and _numeric(frame[name])):
            heading = HEADINGS.get(name, percent(str(name).replace("_", " ")))
            cells = format_column(frame[name], null if name in _NULLS else None)
            if name in _NAMES and not _numeric(frame[name]):
                cells = [called(percent(cell)) for cell in cells]
            columns.append((heading, cells, _numeric(frame[name])))
    return columns


def show_table(frame: pd.DataFrame, file: str, caption: str) -> Shown:
    """A table with its caption above it; numbers to the right."""
    columns = readable(frame)
    classes = [' class="num"' if numeric else "" for *_, numeric in columns]

    def row(cells: Iterable[str], tag: str, scope: str = "") -> str:
        looks = zip(cells, classes, strict=True)
        return "".join(f"<{tag}{scope}{look}>{escape(cell)}</{tag}>" for cell, look in looks)

    head = row((heading for heading, *_ in columns), "th", ' scope="col"')
    rows = zip(*(cells for _, cells, _ in columns), strict=True)
    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return Shown(f'<figure class="pk-table" id="table-{Path(file).stem}" data-file="{escape(file)}">'
                 f"<figcaption>{marked_up(caption)}</figcaption>{table}</figure>",
                 f"{typeset(caption)}\n{frame.to_string(index=False)}")


def latex_table(frame: pd.DataFrame, name: str, caption: str) -> str:
    """The same table for a paper, with booktabs rules."""
    import pandas as pd

    columns = readable(frame)
    formatted = pd.DataFrame(dict(enumerate(cells for _, cells, _ in columns)))
    return formatted.to_latex(index=False, escape=True, caption=latex_text(caption), label=f"tab:{name}",
                              header=[latex_text(heading) for heading, *_ in columns],
                              column_format="".join("r" if numeric else "l" for *_, numeric in columns))


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped; formulas between dollars stay."""
    special = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "$": r"\$"}
    return re.sub(r"\$[^$]*\$|[&%#_{}$^~\\]", lambda match: match[0] if len(match[0]) > 1 else
                  special.get(match[0], f"\\{match[0]}"), typeset(text))


def show_text(markdown: str, look: str) -> Shown:
    return Shown(f'<p class="{look}">{marked_up(markdown)}</p>', markdown)


def show_takeaway(sentence: str, table: str) -> Shown:
    """With a link to the table that it rests on, if there is one."""
    rests = f' <a class="pk-rests" href="#table-{escape(table)}">rows</a>' * bool(table)
    return Shown(f'<p class="pk-takeaway">{marked_up(sentence)}{rests}</p>', sentence)


def marked_up(markdown: str) -> str:
    """One generated sentence as HTML; only `code` and **strong** are understood."""
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", escape(typeset(markdown)))
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)


def as_plain(value: Any) -> Any:
    """numpy and torch scalars as Python numbers, for JSON."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


MOST = 40_000  # values; more are not written, and the figure is kept as it is


@dataclass(frozen=True)
class Rebuilt:
    """`word`: same (byte for byte), changed (drawn anew), kept (it has no table) or damaged (its table was
    changed, so nothing is drawn)."""

    topic: str
    name: str
    word: str


def recipe(figure: Figure) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """What draws this figure again: (for the manifest, for the CSV); None if something else drew it."""
    by, given = (figure.drawn["by"], figure.drawn["arguments"]) if hasattr(figure, "drawn") else ("", {})
    tables = [name for name, value in given.items() if hasattr(value, "columns")]
    if len(tables) != 1 or given[tables[0]].size > MOST:
        return None
    frame = given[tables[0]]
    # The few digits of a float32 would be read as another number.
    frame = frame.astype({column: "float64" for column in frame if frame[column].dtype == "float32"})
    index = 0 if list(frame.index) == list(range(len(frame))) else frame.index.nlevels
    made = {"by": by, "data": tables[0], "index": index, "kinds": [dtype.kind for dtype in frame.dtypes],
            "arguments": {name: value for name, value in given.items() if name != tables[0]}}
    return made, frame.reset_index(names=[f"index{i}" for i in range(index)]) if index else frame


def draw(made: Mapping[str, Any], file: Path) -> Figure:
    """The figure of a recipe and its CSV."""
    import pandas as pd

    from prunekit import figures

    table, index = pd.read_csv(file, dtype=str, keep_default_na=False), made["index"]
    read = {"f": lambda text: float(text or "nan"), "i": int, "b": lambda text: text == "True"}
    for column, kind in zip(table.columns[index:], made["kinds"], strict=True):
        if kind in read:
            table[column] = table[column].map(read[kind])
    table = table.set_index(list(table.columns[:index])) if index else table
    return getattr(figures, made["by"])(**{made["data"]: table}, **made["arguments"])


def rebuild(profile: str, topics: Iterable[str] = ()) -> Iterator[Rebuilt]:
    """Draw the figures of a profile's finished runs again, from their CSVs alone; what became of each."""
    for topic in project.named(topics):
        content = manifest.read(profile, topic)
        if content is None:
            continue
        folder = project.run_folder(profile, topic)
        for key, artifact in content["artifacts"].items():
            if artifact["kind"] == "figure":
                yield Rebuilt(topic, key.partition("/")[2], _again(folder, artifact))
        write_atomic(folder / "manifest.json", json.dumps(content, indent=1))


def _again(folder: Path, artifact: dict[str, Any]) -> str:
    files = {Path(file).suffix: folder / file for file in artifact["files"]}
    if not artifact.get("drawn") or not files[".csv"].is_file():
        return "kept"
    if any(file.endswith(".csv") for file in manifest.altered(folder, artifact)):
        return "damaged"  # its table is not what the run wrote
    outcome = "same"
    for suffix, content in figure_files(draw(artifact["drawn"], files[".csv"])).items():
        if not files[suffix].is_file() or files[suffix].read_bytes() != content:
            outcome = "changed"
            with replacing_file(files[suffix]) as file:
                file.write_bytes(content)
    artifact |= manifest.artifact_files(folder, artifact["files"])
    return outcome
