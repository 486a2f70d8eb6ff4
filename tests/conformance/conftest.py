"""One Ray for all checks of the engine that needs one: starting it takes longer than a check."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

RAY = "engine-ray-"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The checks of that engine start processes, and so take seconds each."""
    for item in items:
        if RAY in item.name:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """A Ray with room for two workers, which engines find and leave alone."""
    pytest.importorskip("ray")
    from recdistill_ray import RayConfig
    from recdistill_ray.session import connected

    with connected(RayConfig()):
        yield


@pytest.fixture(autouse=True)
def ray_where_it_is_needed(request: pytest.FixtureRequest) -> None:
    """Starts Ray for the tests that are about it."""
    if RAY in request.node.name:
        request.getfixturevalue("one_ray")
