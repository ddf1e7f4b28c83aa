"""What pruning and searching cost on one GPU, in dense passes of the same run; and whether it finds the same.

    python benchmarks/gpu.py [--model DIR] [--only 135M …] [--minutes 8] [--device cuda]
        [--output benchmarks/gpu.json]

Random LLaMAs in bfloat16: the widths of 7B with 4 blocks, the shape of SmolLM2-135M, 7B whole; before them a
model from a directory, if given. Windows are 128 of 2,048 tokens, the unit is one pass of them through the
decoder blocks. Each figure is the median of three after a warm-up on few windows; of one, where three would
take too long. The files (JSON, a Markdown table beside it) are written anew after every row, and a row that
fails says why, so that a time limit or a missing feature loses nothing. --only: these parts (among them
"results", the comparison); what the file has of others, made on the same card, stays. --tiny: models of
nothing, to try it.
"""
from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import prunekit as pk
from prunekit.choices import Target
from prunekit.metric.catalogue import Method
from prunekit.models import layers
from prunekit.pruning import obs
from prunekit.pruning.inputs import InputStatistics, multiplies_exactly
from prunekit.pruning.masks import keep_mask, mask_sums
from prunekit.pruning.walk import batch_tokens

WIDE = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
SHAPES = {"7B widths, 4 blocks": WIDE | {"num_hidden_layers": 4},
          "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                   "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
          "7B whole": WIDE | {"num_hidden_layers": 32}}
TINY = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_hidden_layers": 2,
        "vocab_size": 128}
TREES = ("mul(W, sqrt(X))", "mul(abs(mul(W, W)), mms(G))", "mul(W, mul(G, sqrt(X)))")
LONG = 6.0  # seconds: what takes longer is measured once
Row = dict[str, Any]


class Sheet:
    """Rows as they come, written after each; and what is left of the time."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device, self.started = args, device, time.perf_counter()
        self.kept: list[Row] = []  # of parts not asked for
        self.rows: list[Row] = []
        self.unit = 0.0  # seconds of a dense pass
        self.about = {"date": date.today().isoformat(), "card": card(device), "driver": driver(device),
                      "torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton_version(),
                      "python": platform.python_version(), "tiny": args.tiny}
        if args.only and args.output.exists():
            before = json.loads(args.output.read_text())
            others = [key for key, value in self.about.items() if key != "date" and before[key] != value]
            if others:
                raise SystemExit(f"{args.output} is of another {' and '.join(others)}: give a new --output.")
            again = {*args.only, Path(args.model or "").name}  # a model that is given is measured always
            self.kept = [row for row in before["rows"] if row["part"] not in again]

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        order = ["results", *SHAPES]
        rows = sorted(self.kept + self.rows,
                      key=lambda row: order.index(row["part"]) if row["part"] in order else -1)
        self.args.output.write_text(json.dumps(self.about | {"rows": rows}, indent=1) + "\n")
        self.args.output.with_suffix(".md").write_text(markdown(self.about, rows))
        print(row, flush=True)

    def guarded(self, part: str, what: str, task: Callable[[], Row]) -> Row:
        """A row of what `task` finds, or of why it found nothing."""
        late = time.perf_counter() - self.started > 60 * self.args.minutes
        try:
            found = {"error": "left out for want of time"} if late else task()
        except Exception as error:  # noqa: BLE001 (the other rows are worth having)
            found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        free()
        self.add(part=part, what=what, **found)
        return found

    def time(self, part: str, what: str, task: Callable[[], object], *,
             before: Callable[[], object] = gc.collect, warm: Callable[[], object] | None = None,
             unit: bool = False, **more: Any) -> None:
        """Seconds, their multiple of the unit, peak memory. before: what is done, untimed, before a run."""
        def measured() -> Row:
            before()
            (warm or task)()
            runs, peak = [], 0.0
            while len(runs) < 3 and sum(runs) < LONG:
                before()
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                runs.append(seconds(task, self.device))
                if self.device.type == "cuda":
                    peak = torch.cuda.max_memory_allocated() / 2**30
            middle = statistics.median(runs)
            self.unit = middle if unit else self.unit
            times = round(middle / self.unit, 2) if self.unit else None
            return {"seconds": round(middle, 4), "dense passes": times, "lowest": round(min(runs), 4),
                    "highest": round(max(runs), 4), "runs": len(runs), "peak GiB": round(peak, 2)} | more
        self.guarded(part, what, measured)


def card(device: torch.device) -> str:
    if device.type != "cuda":
        return platform.processor() or platform.machine()
    known = torch.cuda.get_device_properties(device)
    return f"{known.name}, {known.total_memory / 2**30:.0f} GiB"


def driver(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    return said.split("\n")[0].strip()


def triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return triton.__version__


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def seconds(task: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    task()
    wait()
    return time.perf_counter() - start


def markdown(about: Row, rows: list[Row]) -> str:
    """One table for what was timed, one for what was compared."""
    timed = [row for row in rows if "seconds" in row or "error" in row]
    said = ", ".join(f"{key} {value}" for key, value in about.items() if value)
    lines = [said, "", "| model | what | seconds | × dense | peak GiB | runs |",
             "|---|---|---:|---:|---:|---:|"]
    for row in timed:
        figures = [row.get(key, "") for key in ("seconds", "dense passes", "peak GiB", "runs")]
        figures = [row["error"], "", "", ""] if "error" in row else figures
        lines.append(f"| {row['part']} | {row['what']} | {' | '.join(map(str, figures))} |")
    lines += ["", "| compared | found |", "|---|---|"]
    for row in rows:
        rest = {key: value for key, value in row.items() if key not in ("part", "what")}
        if row not in timed:
            said = ", ".join(f"{key}: {value}" for key, value in rest.items())
            lines.append(f"| {row['what']} | {said} |")
    return "\n".join(lines) + "\n"


# --- the same results? --------------------------------------------------------------------------------------


def share(a: Tensor, b: Tensor) -> float:
    return round(float((a.cpu() == b.cpu()).double().mean()), 8)


def compare(sheet: Sheet, tiny: bool) -> None:
    """The device's ways against the processor's, on the same numbers."""
    device, part, width = sheet.device, "results", 96 if tiny else 2048
    generator = torch.Generator().manual_seed(0)
    ties = torch.randint(50, (width + 3, width), generator=generator).float()
    spread = torch.rand(width + 3, width, generator=generator)
    for target, group in (("0.5", "row"), ("0.5", "layer"), ("0.5", "variant"), ("2:4", "row"),
                          ("4:8", "row"), ("5:16", "row")):
        def masks(target: Target = Target.parse(target), group: str = group) -> Row:
            pairs = [(keep_mask(S, *target, group), keep_mask(S.to(device), *target, group))
                     for S in (ties, spread)]
            return {"same": min(share(*pair) for pair in pairs),
                    "same sums": all(torch.equal(mask_sums(a), mask_sums(b).cpu()) for a, b in pairs)}
        sheet.guarded(part, f"masks {target} {group}, device and processor", masks)
    x = torch.randn(512 if tiny else 8192, width, generator=generator).bfloat16()

    def inputs() -> Row:
        X, H = (torch.zeros(rows, width, device=device) for rows in (1, width))
        found = InputStatistics(1, X, H)
        found.add(x.to(device))
        H = x.double().T @ x.double()
        return {"16-bit products": multiplies_exactly(device, x.dtype),
                "error of H": float((found.H.cpu() / 2 - H).abs().max() / H.abs().max()),
                "error of X": float((found.X.cpu() / H.diagonal() - 1).abs().max())}
    sheet.guarded(part, "statistics in bfloat16 and in float64", inputs)
    for pattern, metric in (("unstructured", None), ("2:4", None), ("4:8", None), ("2:4", "mul(W, sqrt(X))")):
        sheet.guarded(part, f"OBS update {pattern} {metric or ''}, as used and by the loop",
                      lambda pattern=pattern, metric=metric: updates(x, device, pattern, metric))
    sheet.guarded(part, "embedded/llama on the device and on the processor",
                  lambda: embedded(device, 2 if tiny else 32))


def updates(x: Tensor, device: torch.device, pattern: str, metric: str | None) -> Row:
    """A layer updated by what is used on the device, and by the loop there."""
    target = Target.parse("0.5" if pattern == "unstructured" else pattern)
    H = (x.float().T @ x.float()).to(device)
    factor = obs.inverse_factor(H)
    W = torch.randn(x.shape[1] + 5, x.shape[1], generator=torch.Generator().manual_seed(1)).to(device)
    score = pk.Tree.parse(metric).bind(W, None, H.diagonal()).score if metric else None
    found, kinds = {}, obs._KERNEL_ON
    try:
        for name, allowed in (("as used", kinds), ("loop", ())):
            obs._KERNEL_ON = allowed
            obs._solver.cache_clear()
            def update(name: str = name) -> None:
                V = W.clone()
                found[name] = obs.obs_update(V, factor, *target, score=score), V

            update()  # which compiles, and tries
            found[f"{name} took"] = round(seconds(update, device), 4)
    finally:
        obs._KERNEL_ON = kinds
        obs._solver.cache_clear()
    solver = obs._solver(device, min(128, W.shape[1]), 1, None, False).__module__.rpartition(".")[2]
    (keep, mine), (expected, theirs) = found["as used"], found["loop"]
    error = [float((((V - W) @ H) * (V - W)).sum()) for V in (mine, theirs)]
    return {"solver": solver, "same masks": share(keep, expected),
            "output error, relative": error[0] / error[1], "took": found["as used took"],
            "loop took": found["loop took"]}


def embedded(device: torch.device, n: int) -> Row:
    """A small real model in float32 here and there: masks, perplexities, a search's losses, masks' names."""
    settings = [("magnitude", "unstructured"), ("wanda", "unstructured"), ("pruner-zero", "2:4"),
                ("sparsegpt", "2:4")]
    masks, perplexities, losses, told = [], [], [], True
    for place in ("cpu", str(device)):
        model, tokenizer = pk.load_model("embedded/llama", dtype="float32", device=place)
        windows = {role: pk.token_windows("embedded", tokenizer, role, n, 128)
                   for role in ("calibration", "gradient", "search")}
        G = pk.collect_gradients(model, windows["gradient"], progress=False)
        asked = [{"method": method, "sparsity": 0.5, "pattern": pattern} for method, pattern in settings]
        for one in pk.prune_and_measure(model, windows["calibration"], windows["search"], asked, gradients=G,
                                        progress=False):
            masks.append(torch.cat([(layer.weight != 0).flatten().cpu() for layer in layers(model)]))
            perplexities.append(round(one.perplexity.value, 4))
        evaluator = pk.Evaluator(pk.Bench(model, windows["calibration"], windows["search"], gradients=G),
                                 ["0.6", "2:4"])
        outcomes = [evaluator(pk.Tree.parse(text)) for text in (*TREES, *TREES)]
        names = [one.masks for one in outcomes]
        told &= names[:3] == names[3:] and len(set(names)) == 3
        losses.append(torch.tensor([one.losses for one in outcomes[:3]]))
    found: Row = {"masks told apart": told, "losses differ by": float((losses[0] - losses[1]).abs().max())}
    for place, (method, pattern) in enumerate(settings):
        found[f"{method} {pattern}"] = {"same masks": share(masks[place], masks[place + 4]),
                                        "perplexities": perplexities[place::4]}
    return found


# --- what it costs ------------------------------------------------------------------------------------------


class Case:
    """A model on the device, its windows, a random G there, and how to make it dense again."""

    def __init__(self, model: nn.Module, device: torch.device, tiny: bool):
        self.model, self.device = model.eval(), device
        self.tokens, (n, seqlen) = batch_tokens(model), (4, 32) if tiny else (128, 2048)
        generator = torch.Generator().manual_seed(1)
        self.windows = torch.randint(model.config.vocab_size, (n, seqlen), generator=generator)
        self.layers = layers(model)
        self.dense = [layer.weight.clone() for layer in self.layers]

    @torch.no_grad()
    def restore(self) -> None:
        for layer, weight in zip(self.layers, self.dense, strict=True):
            layer.weight.copy_(weight)

    def random_G(self) -> pk.Gradients:
        torch.manual_seed(2)
        return pk.Gradients({layer.name: torch.rand_like(layer.weight) for layer in self.layers})

    @torch.no_grad()
    def forward(self, windows: Tensor | None = None) -> None:
        windows = self.windows if windows is None else windows
        for ids in windows.split(max(1, self.tokens // windows.shape[1])):
            self.model.model(input_ids=ids.to(self.device), use_cache=False)

    def prune(self, method: str, pattern: str, G: pk.Gradients | None) -> Callable[..., object]:
        def task(windows: Tensor = self.windows) -> None:
            pk.prune(self.model, windows, method, 0.5, pattern, gradients=G, progress=False)
        return task


def methods(sheet: Sheet, name: str, case: Case, chosen: list[tuple[str, str]], **more: Any) -> None:
    G = case.random_G() if any("G" in pk.METHODS[method].needs for method, _ in chosen) else None
    for method, pattern in chosen:
        task = case.prune(method, pattern, G)
        sheet.time(name, f"prune {method} {pattern}", task, before=case.restore,
                   warm=lambda task=task: task(case.windows[:2]), **more)
    case.restore()


def candidate(sheet: Sheet, name: str, case: Case, targets: list[str], G: pk.Gradients) -> None:
    """A search's candidate on 16 windows, and the parts that it cannot do without."""
    windows = case.windows[:16]
    case.restore()
    case.dense = []  # the bench has a copy of its own
    state: dict[str, Any] = {}

    def prepare() -> None:
        state["bench"] = pk.Bench(case.model, windows, windows, gradients=G)
        state["evaluator"] = pk.Evaluator(state["bench"], targets)

    sheet.time(name, "search: preparing it", prepare, warm=lambda: None)
    if "evaluator" not in state:
        return
    bench, evaluator, left = state["bench"], state["evaluator"], list(TREES)

    def scores() -> None:
        with torch.no_grad():
            for index in range(len(bench.layers)):
                bench.scores(pk.Tree.parse(TREES[1]), index)

    def decide() -> None:
        with torch.no_grad():
            bench.decide_all(Method("", pk.Tree.parse(TREES[1])), evaluator.targets)

    def one() -> None:
        left.append(left.pop(0))
        outcome = evaluator(pk.Tree.parse(left[-1]))
        if outcome.defect:
            raise RuntimeError(outcome.defect)

    sheet.time(name, "search: scores of all layers", scores)
    sheet.time(name, f"search: scores and masks at {' and '.join(targets)}", decide)
    sheet.time(name, "search: losses of 16 windows", lambda: bench.measure(windows))
    sheet.time(name, f"search: a candidate at {' and '.join(targets)}, 16 windows", one)


def random_model(shape: Row, device: torch.device, dtype: torch.dtype, seqlen: int) -> nn.Module:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=seqlen))
    finally:
        torch.set_default_dtype(before)


def cases(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    dtype = torch.float32 if args.tiny else torch.bfloat16
    if args.model:
        name = Path(args.model).name
        yield name, lambda: pk.load_model(args.model, dtype=str(dtype)[6:], device=str(device))[0]
    for name, shape in list(SHAPES.items())[2 * args.tiny:]:
        if args.only and name not in args.only:
            continue
        yield name, lambda shape=shape: random_model(TINY if args.tiny else shape, device, dtype, 2048)


def measure(sheet: Sheet, name: str, make: Callable[[], nn.Module]) -> None:
    case = Case(make(), sheet.device, sheet.args.tiny)
    whole = name == "7B whole"
    sheet.unit = 0.0
    sheet.time(name, "dense pass", case.forward, warm=lambda: case.forward(case.windows[:16]), unit=True,
               weights=sum(layer.weight.numel() for layer in case.layers), windows=list(case.windows.shape),
               **{"tokens per call": case.tokens})
    chosen = [("wanda", "unstructured")] if whole else [
        ("magnitude", "unstructured"), ("wanda", "unstructured"), ("wanda", "2:4"),
        ("pruner-zero", "unstructured"), ("gblm", "2:4"), ("sparsegpt", "unstructured"),
        ("sparsegpt", "2:4")]
    methods(sheet, name, case, chosen)
    few, G = case.windows[:32], {}

    def collect(windows: Tensor = few) -> None:
        G.clear()  # one at a time
        G[0] = pk.collect_gradients(case.model, windows, on_device=case.model.dtype, progress=False)

    sheet.time(name, f"G of {len(few)} windows", collect, warm=lambda: collect(few[:1]))
    if not whole:
        def twice() -> Row:
            found = [pk.collect_gradients(case.model, few[:4], on_device=torch.float32, progress=False)
                     for _ in range(2)]
            return {"same to the last bit": all(torch.equal(*(one[layer] for one in found))
                                                for layer in found[0])}
        sheet.guarded(name, "G of 4 windows, twice", twice)
    if G:
        candidate(sheet, name, case, ["0.5"] if whole else ["0.6", "2:4"], G[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a model directory, measured first")
    parser.add_argument("--only", nargs="+", default=[], choices=["results", *SHAPES])
    parser.add_argument("--minutes", type=float, default=8.0, help="no row begins after so many")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="models of nothing, to see that all of it runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    elif not args.tiny:
        parser.error("there is no GPU here: give --tiny to see that all of it runs")
    sheet = Sheet(args, device)
    if not args.only or "results" in args.only:
        compare(sheet, args.tiny)
    for name, make in cases(args, device):
        try:
            measure(sheet, name, make)
        except Exception as error:  # noqa: BLE001 (the other models are worth having)
            sheet.add(part=name, what="the model", error=f"{type(error).__name__}: {str(error)[:300]}")
        free()


if __name__ == "__main__":
    main()
