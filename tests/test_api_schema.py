"""The log API held against its own description, with requests nobody would think of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from tests.log_api import WIDE, LogApi, running_api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogApi]:
    # It tries wrong tokens, too.
    with running_api(tmp_path_factory.mktemp("api"), limits=replace(WIDE, wrong_tokens_at_once=10**6)) as api:
        yield api


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_whatever_is_asked_the_answer_is_one_that_the_description_knows(api, mode):
    description = schemathesis.openapi.from_dict(api.get("/openapi.json").json)
    operations: list[Any] = [result.ok() for result in description.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) == 7
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (operation.query or operation.path_parameters):
            continue  # nothing to get wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        def check(case: Any) -> None:
            if mode is GenerationMode.POSITIVE and "end" in (case.query or {}):
                case.query["start"] = 0  # that it lies before the end is more than a schema can say
            case.call_and_validate(
                base_url=api.url,
                headers={"Authorization": f"Bearer {api.token}"},
                verify=str(api.certificate),
            )

        check()
