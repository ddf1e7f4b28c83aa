"""Progress bars: on stderr, but in a notebook, which paints that red, on stdout."""
from __future__ import annotations

import sys
from typing import Any

import tqdm as _library


class tqdm(_library.tqdm):
    """`tqdm.tqdm`, which knows where it is."""

    def __init__(self, *args: Any, file: Any = None, **options: Any):
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        notebook = hasattr(shell, "kernel")
        super().__init__(*args, file=file or (sys.stdout if notebook else None), **options)
