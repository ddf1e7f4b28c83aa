"""A paper's worth of a profile: its figures (PDF), tables (LaTeX, booktabs) and takeaways in a folder with a
main.tex.

Labels are fig:NN-name and tab:NN-name, the same in every run; the same runs give the same bytes. A folder is
written only where there is none, or over exactly what an earlier call has written.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import UsageError
from prunekit.files import check_folder, file_hash, read_json, replacing
from prunekit.workbook import display, manifest, params, project

_MARK = "prunekit.json"  # what made the folder, and the hashes of all its files
_LONG = 40               # rows; longer tables run over pages, in an appendix
_LINE = 100              # characters of a line; in a table half as wide again, long cells are broken
_BEYOND = {"−": "-", "×": r"\times", "±": r"\pm", "·": r"\cdot", "≤": r"\le", "≥": r"\ge", "≈": r"\approx",
           "→": r"\to", "∞": r"\infty", "√": r"\surd", "Δ": r"\Delta", "α": r"\alpha", "τ": r"\tau",
           "λ": r"\lambda", "‖": r"\|", "²": "{}^2", "³": "{}^3", "∈": r"\in", "…": r"\dots",
           "“": "``", "”": "''", "‘": "`", "’": "'", "–": "--", "—": "---"}
_TEXT = set("“”‘’–—")
_PREAMBLE = r"""% Made by `prunekit paper`; prunekit.json beside it names the runs.
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[margin=2.5cm]{geometry}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage{amsmath,array,booktabs,caption,float,graphicx,longtable}
\newcolumntype{P}[1]{>{\raggedright\arraybackslash}p{#1\linewidth}}
\captionsetup{font=small,labelfont=bf}
\captionsetup[table]{position=top}
\captionsetup[longtable]{width=\linewidth}
% Tables and figures as they are, smaller only if wider than the line or nearly as high as the page.
\newsavebox{\fitbox}
\newcommand{\fit}[1]{\sbox{\fitbox}{#1}%
  \ifdim\wd\fitbox>\linewidth\sbox{\fitbox}{\resizebox{\linewidth}{!}{\usebox{\fitbox}}}\fi
  \ifdim\ht\fitbox>0.8\textheight\sbox{\fitbox}{\resizebox{!}{0.8\textheight}{\usebox{\fitbox}}}\fi
  \usebox{\fitbox}}
"""

_FIGURE = r"""\begin{figure}[H]
\centering
\fit{\includegraphics{figures/%s.pdf}}
\caption{%s}
\label{fig:%s}
\end{figure}"""


@dataclass(frozen=True)
class Section:
    """What one notebook gives: `files` by their path in the folder, and the LaTeX that shows them, `body`
    and `long` tables. Without a finished run `run` is empty, and the body says so."""

    topic: str
    run: str
    body: str
    long: str
    files: Mapping[str, bytes]


def write(profile: str, target: Path) -> list[Section]:
    """Write the paper of a profile's finished runs to a folder; one Section per notebook, in order.

    Raises UsageError when nothing has finished, and for a folder that holds what this has not written.
    """
    params.resolve_profile(profile)
    _check(target)
    check_folder(target)
    sections = [_section(profile, topic, manifest.read(profile, topic)) for topic in project.topics()]
    if not any(section.run for section in sections):
        raise UsageError(f"The profile {profile} has no finished run: `prunekit run {profile}` first.")
    title = f"\\title{{{latex(f'Symbolic pruning: {profile}')}}}\n\\author{{}}\n\\date{{}}\n"
    long = [section.long for section in sections if section.long]
    appendix = ["\\appendix\n\\section{Long tables}\n", *long] if long else []
    main = [_PREAMBLE + title, "\\begin{document}\n\\maketitle\n", *(section.body for section in sections),
            *appendix, "\\end{document}\n"]
    files = {"main.tex": "\n".join(main).encode()}
    for section in sections:
        files |= section.files
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    mark = {"made by": "prunekit paper", "profile": profile,
            "runs": {section.topic: section.run for section in sections if section.run}, "files": hashes}
    files[_MARK] = (json.dumps(mark, indent=1) + "\n").encode()
    with replacing(target) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return sections


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


# ---------------------------------------------------------------- from one run

def _section(profile: str, topic: str, made: Mapping[str, Any] | None) -> Section:
    folder, files, long = project.run_folder(profile, topic), {}, []
    body = [f"\\section{{{latex(project.title(topic)[0])}}}"]
    if made is None:
        missing = _sentence(f"**There is no finished run:** `prunekit run {profile} {topic}` makes one.")
        return Section(topic, "", f"{body[0]}\n\n{missing}\n", "", {})
    if made["takeaways"]:
        items = [f"\\item {_sentence(sentence)}" for sentence in made["takeaways"]]
        body.append("\n".join(["\\begin{itemize}", *items, "\\end{itemize}"]))
    for key, artifact in made["artifacts"].items():
        if artifact["kind"] not in ("figure", "table"):
            continue
        name, caption = f"{topic[:2]}-{key.partition('/')[2]}", latex(artifact["caption"])
        source = {Path(file).suffix: folder / file for file in artifact["files"]}
        if gone := [project.relative(path) for path in source.values() if not path.is_file()]:
            raise UsageError(f"{gone[0]} is missing: `prunekit run {profile} {topic}` makes it again.")
        if artifact["kind"] == "figure":
            files[f"figures/{name}.pdf"] = source[".pdf"].read_bytes()
            body.append(_FIGURE % (name, caption, name))
        else:
            table = _table(source[".tex"].read_text(encoding="utf-8"), name, caption)
            files[f"tables/{name}.tex"] = table.encode()
            shows = f"\\input{{tables/{name}}}"
            if "{longtable}" in table:
                long.append(shows + "\n")
                shows = f"Table \\ref{{tab:{name}}} in the appendix: {caption}"
            body.append(shows)
    return Section(topic, made["id"], "\n\n".join(body) + "\n", "\n".join(long), files)


def _table(source: str, name: str, caption: str) -> str:
    """The tabular of a saved table, in a float of the width of the line, or over pages where it is long."""
    tabular = re.search(r"\\begin\{tabular\}\{(\w*)\}\n(.*)\\end\{tabular\}", source, re.DOTALL)
    columns, rules = _broken(*tabular.groups()), tabular[2]
    # At the beginning of a row these would be an argument of the rule or the \\ before it.
    rules = re.sub(r"^(?=[\[*])", "{}", beyond_ascii(rules), flags=re.MULTILINE)
    title = f"\\caption{{{caption}}}\n\\label{{tab:{name}}}"
    if rules.count("\n") <= _LONG:
        tabular = f"\\fit{{\\begin{{tabular}}{{{columns}}}\n{rules}\\end{{tabular}}}}"
        return f"\\begin{{table}}[H]\n\\centering\n{title}\n{tabular}\n\\end{{table}}\n"
    head, middle, rest = rules.partition("\\midrule\n")
    head += middle
    return (f"{{\\footnotesize\n\\begin{{longtable}}{{{columns}}}\n{title} \\\\\n{head}\\endfirsthead\n"
            f"{head}\\endhead\n{rest}\\end{{longtable}}}}\n")


def _broken(columns: str, rules: str) -> str:
    """The columns of a tabular; in one far too wide, those with long cells share what the others leave."""
    rows = [line.removesuffix(r"\\").split(" & ") for line in rules.splitlines() if line.endswith(r"\\")]
    widths = [max(map(len, cells)) + 2 for cells in zip(*rows, strict=True)]
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
    """A takeaway: only `code` and **strong** are understood."""
    pieces = [latex(piece) for piece in re.split(r"`(.+?)`", markdown)]
    pieces[1::2] = [f"\\texttt{{{code}}}" for code in pieces[1::2]]
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", "".join(pieces))


def beyond_ascii(text: str) -> str:
    """Characters that pdfLaTeX does not know as commands, also in formulas; unknown ones by number."""
    def known(character: str) -> str:
        if ord(character) < 128 or "À" <= character <= "ſ" and character not in _BEYOND:  # letters of T1
            return character
        if character not in _BEYOND:
            return f"[U+{ord(character):04X}]"
        return _BEYOND[character] if character in _TEXT else f"\\ensuremath{{{_BEYOND[character]}}}"

    return "".join(map(known, text))
