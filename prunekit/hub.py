"""Reaching the Hugging Face hub, or knowing at once that it cannot be reached."""
from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Inside, hub ids resolve over the network, if there is one, else from the cache without long retries.

    By the libraries' constants, for lm-eval loads data sets itself and takes no `local_files_only`.
    """
    import datasets.config
    import huggingface_hub.constants

    settings = (huggingface_hub.constants, datasets.config)
    before = [setting.HF_HUB_OFFLINE for setting in settings]
    offline = any(before) or not _reachable(huggingface_hub.constants.ENDPOINT)
    try:
        for setting in settings:
            setting.HF_HUB_OFFLINE = offline
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.HF_HUB_OFFLINE = value


def _reachable(endpoint: str) -> bool:
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # only the proxy knows
    address = urlsplit(endpoint)
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=5):
            return True
    except OSError:
        return False
