"""The OpenAPI document against the server: requests that schemathesis makes of it."""

import json
import urllib.request

import pytest
from serving import serving

from sora_jax.serve.api.body import CreateBody

schemathesis = pytest.importorskip("schemathesis", reason="needs sora_jax[ci]: schemathesis")
CASES = 25  # of each operation


def test_the_document_names_every_field_and_operation(tmp_path):
    with serving(tmp_path / "out") as server, urllib.request.urlopen(f"{server.address}/openapi.json") as answer:
        document = json.load(answer)
    fields = document["components"]["schemas"]["CreateBody"]["properties"]
    assert set(fields) == set(CreateBody.model_fields) and all(field["description"] for field in fields.values())
    operations = {f"{method} {path}" for path, found in document["paths"].items() for method in found}
    assert operations == {
        "post /v1/videos",
        "get /v1/videos",
        "post /v1/videos/edits",
        "post /v1/videos/extensions",
        "post /v1/videos/characters",
        "get /v1/videos/characters/{character_id}",
        "post /v1/videos/{video_id}/remix",
        "get /v1/videos/{video_id}",
        "delete /v1/videos/{video_id}",
        "get /v1/videos/{video_id}/content",
        "get /v1/videos/{video_id}/preview",
        "get /v1/inputs/{file_id}",
        "get /v1/models",
        "get /v1/models/{model_id}",
    }


@pytest.mark.slow
def test_made_up_requests_get_the_answers_that_the_document_promises(tmp_path):
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    seen = set()
    with serving(tmp_path / "out") as server:
        schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy())
            def check(case):
                seen.add(case.call_and_validate(checks=checks).status_code)

            check()
    assert {200, 400, 404} <= seen
