"""A paper's worth of a profile: a core of few pages in two columns, and an appendix with all other figures
(PDF), tables (LaTeX, booktabs) and takeaways, in a folder with main.tex and references.bib.

Labels are fig:NN-name and tab:NN-name, the same in every run; the same runs give the same bytes. A folder is
written only where there is none, or over exactly what an earlier call has written.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Template

from prunekit.choices import CALLED, called
from prunekit.errors import UsageError
from prunekit.evaluate.compare import compare_many
from prunekit.evaluate.perplexity import Perplexity
from prunekit.files import check_folder, file_hash, read_json, replacing
from prunekit.metric.catalogue import METHODS
from prunekit.metric.tree import Tree
from prunekit.report import html
from prunekit.workbook import display, manifest, params, project
from prunekit.workbook.protocol import label

_MARK = "prunekit.json"  # what made the folder, and the hashes of all its files
_LONG = 40               # rows; longer tables run over pages, in an appendix
_LINE = 100              # characters of a line; in a table half as wide again, long cells are broken
_BEYOND = {"−": "-", "×": r"\times", "±": r"\pm", "·": r"\cdot", "≤": r"\le", "≥": r"\ge", "≈": r"\approx",
           "→": r"\to", "∞": r"\infty", "√": r"\surd", "Δ": r"\Delta", "α": r"\alpha", "τ": r"\tau",
           "λ": r"\lambda", "‖": r"\|", "²": "{}^2", "³": "{}^3", "∈": r"\in", "…": r"\dots",
           "“": "``", "”": "''", "‘": "`", "’": "'", "–": "--", "—": "---"}
_TEXT = set("“”‘’–—")
# The key of a method's paper in references.bib.
_CITED = {
    "magnitude": "han2015", "wanda": "sun2024", "ria": "zhang2024", "sparsegpt": "frantar2023",
    "pruner-zero": "dong2024", "gblm": "das2023", "wanda++": "yang2025", "admm": "boza2024",
    "grad-weight": "lee2019", "fisher": "lecun1989", "obd-layer": "lecun1989", "wanda-variant": "sun2024",
    "pruner-zero-variant": "dong2024"}
_SOLVERS = "$w_{ij}^2 / U_{jj}^2$"
_UPDATES = {None: "none", "obs": "OBS", "obs-iter": "OBS, by blocks", "admm": "ADMM"}
_CORE = "03_baselines"    # whose perplexities are the main table
_LEAD = (_CORE, "04_gp_search", "07_lora", "06_zero_shot", "05_tree_analysis")  # of which the core speaks
_FIGURES = 3              # of the core

_FIGURE = r"""\begin{figure%s}[%s]
\centering
\fit{\includegraphics{figures/%s.pdf}}
\caption{%s}
\label{fig:%s}
\end{figure%s}"""
_COLUMN = 5 * 72          # points; a figure that is wider goes over both columns


@dataclass(frozen=True)
class Section:
    """What one notebook gives: takeaways and, by name, the LaTeX of its figures (each in a column or over
    two) and tables, and `files` by their path in the folder. Without a finished run `run` is empty."""

    topic: str
    run: str = ""
    takeaways: Sequence[str] = ()
    figures: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)
    headlines: Sequence[str] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


def write(profile: str, target: Path) -> list[Section]:
    """Write the paper of a profile's finished runs to a folder; one Section per notebook, in order.

    A core in two columns (question, method, protocol, one main table, three figures, limits), and everything
    else in an appendix. Raises UsageError when nothing has finished, and for a folder that holds what this
    has not written.
    """
    params.resolve_profile(profile)
    _check(target)
    check_folder(target)
    sections = {topic: _section(profile, topic, manifest.read(profile, topic)) for topic in project.topics()}
    if not any(section.run for section in sections.values()):
        raise UsageError(f"The profile {profile} has no finished run: `prunekit run {profile}` first.")
    files = {"main.tex": _main(profile, sections).encode(),
             "references.bib": (html.TEMPLATES / "references.bib").read_bytes()}
    for section in sections.values():
        files |= section.files
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    mark = {"made by": "prunekit paper", "profile": profile, "files": hashes,
            "runs": {topic: section.run for topic, section in sections.items() if section.run}}
    files[_MARK] = (json.dumps(mark, indent=1) + "\n").encode()
    with replacing(target) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return list(sections.values())


def _main(profile: str, sections: Mapping[str, Section]) -> str:
    made = {topic: manifest.read(profile, topic) for topic, section in sections.items() if section.run}
    known = {key: value for content in reversed(made.values())   # of the first notebook that has it
             for key, value in content["parameters"].items()}
    leading = [sections[topic] for topic in _LEAD if topic in made]
    chosen = [(section, name) for section in leading for name in section.headlines][:_FIGURES]
    shown = {name for _, name in chosen}
    template = (html.TEMPLATES / "paper.tex.j2").read_text(encoding="utf-8")
    marks = {"variable_start_string": "<<", "variable_end_string": ">>", "block_start_string": "<%",
             "block_end_string": "%>", "comment_start_string": "<#", "comment_end_string": "#>"}
    return Template(template, trim_blocks=True, lstrip_blocks=True, **marks).render(
        known={key: latex(str(label(value))) for key, value in known.items()},
        run=next(iter(made.values())), methods=_methods(known.get("methods", ())),
        main=_main_table(profile, made.get(_CORE)),
        figures=[section.figures[name]("htb") for section, name in chosen],
        results=[(latex(project.title(section.topic)[0]), " ".join(map(_sentence, section.takeaways)))
                 for section in leading if section.takeaways],
        appendix=[_appendix(section, shown, section not in leading) for section in sections.values()]) + "\n"


def _appendix(section: Section, shown: set[str], speaks: bool) -> str:
    """What the core has not shown of a notebook; nothing where that is nothing."""
    said = [f"\\item {_sentence(sentence)}" for sentence in section.takeaways if speaks]
    body = ["\n".join(["\\begin{itemize}", *said, "\\end{itemize}"])] if said else []
    body += [draw("H") for name, draw in section.figures.items() if name not in shown]
    body += [f"\\input{{tables/{name}}}" for name in section.tables]
    title = f"\\section{{{latex(project.title(section.topic)[0])}}}"
    return "\n\n".join([title, *body]) + "\n" if body else ""


def _check(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file: give a new folder.")
    try:
        files = dict(read_json((target / _MARK).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        files = {}
    there = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    for name in there:
        if not (files and name == _MARK) and files.get(name) != file_hash(target / name):
            raise UsageError(f"{target} holds {name}, which `prunekit paper` has not written like that: "
                             "give a new folder, and keep what you write yourself elsewhere.")


# ---------------------------------------------------------------- the core

def _methods(names: Sequence[str]) -> list[str]:
    """The rows of the table of methods."""
    rows = []
    for name in names:
        method = METHODS.get(name)
        if method:
            key = _CITED.get(name, "")
            score = f"${method.tree.latex()}$" if method.tree else _SOLVERS
            cited = latex(called(name)) + (f"~\\cite{{{key}}}" if key else "")
            rows.append(" & ".join([cited, score, method.group, _UPDATES[method.update]]))
    return rows


def _main_table(profile: str, made: Mapping[str, Any] | None) -> str:
    """Perplexity by method and setting, with its interval below; in bold the lowest of a column, and all
    that cannot be told from it on the same windows."""
    saved = made["artifacts"] if made else {}
    if "tables/perplexity" not in saved or "nll" not in saved:
        return ""
    import pandas as pd

    folder = project.run_folder(profile, _CORE)
    rows, losses = (pd.read_csv(folder / next(iter(saved[name]["files"])))
                    for name in ("tables/perplexity", "nll"))
    rows = rows[rows["text"] == rows["text"].iloc[0]] if "text" in rows else rows  # of the first text
    methods, settings = list(dict.fromkeys(rows["method"])), list(dict.fromkeys(rows["setting"]))
    cells, below = {}, {}
    for setting, part in rows.groupby("setting", sort=False):
        found = {row.method: Perplexity(losses[f"{row.method}|{row.sparsity}|{row.pattern}"].to_numpy())
                 for row in part.itertuples()}
        best = part.loc[part["ppl"].idxmin(), "method"]
        others = {name: (ppl, found[best]) for name, ppl in found.items() if name != best}
        told = compare_many(others).set_index("name")["verdict"] if others else {}
        digits = display.format_column(pd.concat([part["ppl"], part["low"], part["high"]]).astype(float))
        for place, name in enumerate(part["method"]):
            value, low, high = digits[place::len(part)]
            bold = name == best or told[name] == "indistinguishable"
            cells[name, setting] = f"\\textbf{{{value}}}" if bold else value
            below[name, setting] = f"\\scriptsize {low} to {high}"
    lines = []
    for name in methods:
        for start, of, end in ((_cell(latex(name)), cells, ""), ("", below, "[2pt]")):
            lines.append(" & ".join([start, *(of.get((name, setting), "") for setting in settings)])
                         + rf" \\{end}")
    dense = Perplexity(losses["dense"].to_numpy())
    low, high = dense.interval
    caption = ("Perplexity by method and share of zeros, or pattern, with 95\\,\\% intervals over "
               f"{len(losses)} test windows; the dense model has {dense.value:.3f} "
               f"({low:.3f} to {high:.3f}). In bold the lowest of each column and what cannot be told from "
               "it, in pairs, by Holm's correction.")
    head = " & ".join(["", *(latex(str(setting)).replace(" \\%", "\\,\\%") for setting in settings)])
    return "\n".join([r"\begin{table*}[t]", r"\centering", f"\\caption{{{caption}}}", r"\label{tab:main}",
                      f"\\fit{{\\begin{{tabular}}{{l{'r' * len(settings)}}}", r"\toprule", head + r" \\",
                      r"\midrule", *lines, r"\bottomrule", r"\end{tabular}}", r"\end{table*}"])


# ---------------------------------------------------------------- from one run

def _section(profile: str, topic: str, made: Mapping[str, Any] | None) -> Section:
    if made is None:
        return Section(topic)
    folder, files = project.run_folder(profile, topic), {}
    figures, tables, headlines = {}, {}, []
    for key, artifact in made["artifacts"].items():
        if artifact["kind"] in ("figure", "table", "frame") and (gone := manifest.altered(folder, artifact)):
            raise UsageError(f"{project.relative(folder / gone[0])} is missing or was changed: `prunekit run "
                             f"{profile} {topic}` makes it again.")
        if artifact["kind"] not in ("figure", "table"):
            continue
        name, caption = f"{topic[:2]}-{key.partition('/')[2]}", _sentence(artifact["caption"])
        source = {Path(file).suffix: folder / file for file in artifact["files"]}
        if artifact["kind"] == "figure":
            files[f"figures/{name}.pdf"] = source[".pdf"].read_bytes()
            figures[name] = partial(_figure, name, caption, files[f"figures/{name}.pdf"])
            headlines += [name] if artifact.get("headline") else []
        elif table := _table(source[".tex"].read_text(encoding="utf-8"), name, caption):
            files[f"tables/{name}.tex"] = table.encode()
            tables[name] = table
    return Section(topic, made["id"], made["takeaways"], figures, tables, headlines, files)


def _figure(name: str, caption: str, pdf: bytes, where: str) -> str:
    """As a float, over both columns where it is wide; or here (`where` H)."""
    width = re.search(rb"/MediaBox \[ ?[\d.]+ [\d.]+ ([\d.]+)", pdf)
    star = "*" if where != "H" and width and float(width[1]) > _COLUMN else ""
    return _FIGURE % (star, where, name, caption, name, star)


def _table(source: str, name: str, caption: str) -> str:
    """The tabular of a saved table, in a float of the width of the line, or over pages where it is long;
    nothing of one that is empty."""
    tabular = re.search(r"\\begin\{tabular\}\{(\w*)\}\n(.*)\\end\{tabular\}", source, re.DOTALL)
    if not re.search(r"\\midrule\n(?!\\bottomrule)", tabular[2]):
        return ""
    columns, rules, said = _told_once(*tabular.groups())
    columns, wide, rules = _broken(columns, rules), sum(_widths(rules)), _with_formulas(rules)
    # At the beginning of a row these would be an argument of the rule or the \\ before it.
    rules = re.sub(r"^(?=[\[*])", "{}", beyond_ascii(rules), flags=re.MULTILINE)
    title = f"\\caption{{{caption}{beyond_ascii(said)}}}\n\\label{{tab:{name}}}"
    head, middle, rest = rules.partition("\\midrule\n")
    head += middle
    lines = rest.splitlines(keepends=True)
    if len(lines) > _LONG and wide <= 1.2 * _LINE:
        return (f"{{\\footnotesize\n\\begin{{longtable}}{{{columns}}}\n{title} \\\\\n{head}\\endfirsthead\n"
                f"{head}\\endhead\n{rest}\\end{{longtable}}}}\n")
    # What is too wide is made smaller, which cannot be done over pages: in pieces.
    pieces = ["".join(lines[start:start + _LONG]) for start in range(0, len(lines), _LONG)]
    return "".join(f"\\begin{{table}}[H]\n\\centering\n{title if piece == pieces[0] else ''}\n"
                   f"\\fit{{\\begin{{tabular}}{{{columns}}}\n{head}{piece}\\end{{tabular}}}}\n"
                   "\\end{table}\n" for piece in pieces)


def _rows(rules: str) -> list[list[str]]:
    return [line.removesuffix(r" \\").split(" & ") for line in rules.splitlines() if line.endswith(r" \\")]


def _widths(rules: str) -> list[int]:
    return [max(map(len, cells)) + 2 for cells in zip(*_rows(rules), strict=True)]


def _told_once(columns: str, rules: str) -> tuple[str, str, str]:
    """A table far too wide without the columns that are alike in all rows, and these as a sentence."""
    head, *rows = _rows(rules)
    alike = {place: cells[0] for place, cells in enumerate(zip(*rows, strict=True)) if len(set(cells)) == 1}
    if sum(_widths(rules)) <= 1.5 * _LINE or len(alike) == len(columns):
        return columns, rules, ""

    def less(cells: Iterable[str]) -> Iterator[str]:
        return (cell for place, cell in enumerate(cells) if place not in alike)

    lines = [" & ".join(less(line.removesuffix(r" \\").split(" & "))) + r" \\" if line.endswith(r" \\")
             else line for line in rules.splitlines()]
    said = ", ".join(f"{head[place]} {cell}" for place, cell in alike.items() if cell not in ("", "-"))
    return "".join(less(columns)), "\n".join(lines) + "\n", f" In all rows: {said}." if said else ""


def _broken(columns: str, rules: str) -> str:
    """The columns of a tabular; in one far too wide, those with long cells share what the others leave."""
    widths = _widths(rules)
    wide = {place: width for place, width in enumerate(widths)
            if width > 0.4 * _LINE and columns[place] == "l"}
    if sum(widths) <= 1.5 * _LINE or not wide:
        return columns
    left = max(0.6, 1 - (sum(widths) - sum(wide.values())) / _LINE)
    return "".join(f"P{{{left * wide[place] / sum(wide.values()):.2f}}}" if place in wide else column
                   for place, column in enumerate(columns))


# ---------------------------------------------------------------- text

def latex(text: str) -> str:
    """A caption or sentence: special characters escaped, formulas kept, all in ASCII and Latin letters."""
    return beyond_ascii(display.latex_text(text))


def _sentence(markdown: str) -> str:
    """A takeaway or caption: `code` (a metric as a formula) and **strong**; minus signs as such."""
    pieces = re.split(r"`(.+?)`", markdown)
    pieces[::2] = [_minus(latex(piece)) for piece in pieces[::2]]
    pieces[1::2] = [_formula(code) or f"\\texttt{{{latex(code)}}}" for code in pieces[1::2]]
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", "".join(pieces))


def _formula(text: str) -> str:
    """A metric's text as mathematics; "" if it is none, or just a letter."""
    try:
        return f"${Tree.parse(text).latex()}$" if re.search(r"[(*|]", text) else ""
    except UsageError:
        return ""


def _minus(text: str) -> str:
    """Hyphens before numbers, outside formulas, as minus signs."""
    parts = re.split(r"(\$[^$]*\$)", text)
    parts[::2] = [re.sub(r"(?<![\w.)}-])-(?=\d)", r"$-$", part) for part in parts[::2]]
    return "".join(parts)


def _with_formulas(rules: str) -> str:
    """The rows of a tabular with metrics as formulas, methods by their names, and minus signs."""
    def line(text: str) -> str:
        cells = text.removesuffix(r" \\")
        return text if cells == text else " & ".join(map(_cell, cells.split(" & "))) + r" \\"

    return "".join(f"{line(text)}\n" for text in rules.splitlines())


def _cell(cell: str) -> str:
    if cell in CALLED:
        return latex(CALLED[cell])
    if cell == r"w² / U\_ii²":  # SparseGPT's own score, which is no tree
        return _SOLVERS
    return _formula(cell.replace(r"\_", "_").replace(r"\{", "{")) or _minus(cell)


def beyond_ascii(text: str) -> str:
    """Characters that pdfLaTeX does not know as commands, also in formulas; unknown ones by number."""
    def known(character: str) -> str:
        if ord(character) < 128 or "À" <= character <= "ſ" and character not in _BEYOND:  # letters of T1
            return character
        if character not in _BEYOND:
            return f"[U+{ord(character):04X}]"
        return _BEYOND[character] if character in _TEXT else f"\\ensuremath{{{_BEYOND[character]}}}"

    return "".join(map(known, text))
