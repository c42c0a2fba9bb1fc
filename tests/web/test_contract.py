"""The API keeps what its OpenAPI document promises, whatever is sent."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


def test_no_request_is_a_server_error(settings: Any) -> None:
    from hypothesis import HealthCheck, given
    from hypothesis import settings as effort
    from schemathesis.checks import not_a_server_error
    from web_tools import URL

    from scdrugmap.web import create_app

    app = create_app(settings)
    api = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers={"Host": "127.0.0.1"})
    from fastapi.testclient import TestClient

    with TestClient(app, base_url=URL):
        tried = set()
        for operation in api.get_all_operations():
            found = operation.ok()
            if found.path.endswith("/events"):
                continue

            @effort(
                max_examples=6, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
            )
            @given(case=found.as_strategy())
            def sound(case: Any) -> None:
                answer = case.call(headers={"Host": "127.0.0.1"}, timeout=120)
                case.validate_response(answer, checks=[not_a_server_error])
                if answer.status_code >= 400:
                    error = answer.json()["error"]
                    assert set(error) == {"code", "message", "fix"}
                    assert "Traceback" not in answer.text

            sound()
            tried.add(found.path)
    assert len(tried) >= 18
