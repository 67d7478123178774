"""The description of the REST surface: it is that of the routes, and no request that it allows ends in a 5xx."""

from __future__ import annotations

import json
import os
import re

import hypothesis.strategies as st
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator

from catalog.openapi import document
from catalog.routes import routes
from tests.catalog.gateway_fixture import ALICE, SYSTEM, Content, InProcess

SCALE = int(os.environ.get("SHIFTER_TEST_SCALE", "1"))
METHODS = ("get", "post", "put", "delete", "patch")


def test_every_route_is_described_and_nothing_else(site: InProcess) -> None:
    served = {"/": {"get"}}
    for template, resource in routes(site.gateway).items():
        path = template.replace("{tag:path}", "{tag}")
        served[path] = {method for method in METHODS if hasattr(resource, f"on_{method}")}
    described = {path: set(item) & set(METHODS) for path, item in document()["paths"].items()}
    assert described == served


def test_the_document_is_served_as_it_is_written(site: InProcess) -> None:
    result = site.request("GET", "/api/openapi.json", uid=None)
    assert result.json == json.loads(json.dumps(document()))
    assert result.headers["content-type"] == "application/json"


def test_its_references_and_schemas_are_sound() -> None:
    text = json.dumps(document())
    for reference in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert reference in document()["components"]["schemas"]
    for schema in document()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


OPERATIONS = [(path, method) for path, item in document()["paths"].items() for method in METHODS if method in item]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_described_request_ends_in_a_5xx_or_an_undescribed_answer(site: InProcess, path: str, method: str) -> None:
    site.registry.contents["bar"] = Content()
    site.pulled("bar:1", ALICE)
    schema = schemathesis.openapi.from_wsgi("/api/openapi.json", site.gateway.app)

    @given(case=schema[path][method].as_strategy(), known=st.booleans(), uid=st.sampled_from([0, ALICE]))
    @settings(
        max_examples=15 * SCALE, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
    )
    def play(case: schemathesis.Case, known: bool, uid: int) -> None:
        given_names = case.path_parameters or {}
        if "system" in given_names:
            given_names["system"] = SYSTEM if known or len(given_names["system"]) % 3 else given_names["system"]
        if known and "tag" in given_names:
            given_names |= {"itype": "docker", "tag": "bar:1"}
        response = case.call(headers={"authentication": site.minter.credential(uid)})
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            refused = response.json()
            assert refused["status"] == response.status_code
            assert refused["error"]
        # A path parameter may be such that another route, or none, is meant.
        described = document()["paths"][path][method]["responses"]
        assert str(response.status_code) in {*described, "404", "405"}, (response.status_code, response.text)

    play()
