import pytest

from tests.pruning.families import FAMILIES


@pytest.fixture
def model():
    return FAMILIES["LLaMA"].model()
