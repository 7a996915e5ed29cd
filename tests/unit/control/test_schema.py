"""The schemas themselves, and the small validator against the reference one."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archid.control.schema import METHODS, OUTPUTS, document
from archid.control.validation import Invalid, check
from tests.unit.control import samples

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**64),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    st.sampled_from(["ice", "repo", "sas", "", samples.HASH, samples.HASH.upper()]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "name", "site", "room", "server_kind", "lifetime_s", "script"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=10,
)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    try:
        check(value, schema)
    except Invalid:
        return False
    return True


def referee(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_every_output_schema_is_valid_json_schema(name: str) -> None:
    schema = document(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    # and uses only keywords that the daemon's own validator knows
    assert not fits(object(), OUTPUTS[name])


@pytest.mark.parametrize("name", sorted(METHODS))
@given(value=VALUES)
def test_the_validator_agrees_with_jsonschema(name: str, value: Any) -> None:
    for schema in (METHODS[name].params, METHODS[name].result):
        assert fits(value, schema) == referee(schema).is_valid(value)


@given(value=VALUES, schema=st.sampled_from([m.params for m in METHODS.values()]))
def test_the_validator_agrees_about_almost_valid_params(value: Any, schema: dict[str, Any]) -> None:
    almost = {
        "role": "ice",
        "name": "n",
        "site": "",
        "room": "",
        "server_kind": "sas",
        "lifetime_s": 60,
    }
    for key in almost:
        changed = {**almost, key: value}
        assert fits(changed, schema) == referee(schema).is_valid(changed)


def test_the_samples_fit() -> None:
    for schema, value in (
        (METHODS["status"].result, samples.STATUS),
        (
            METHODS["peers"].result,
            {"peers": samples.STATUS["peers"], "nodes": [samples.NODE_TRAFFIC]},
        ),
        (METHODS["scripts"].result, {"scripts": [samples.SCRIPT]}),
    ):
        check(value, schema)
        referee(schema).validate(value)


def test_a_message_names_the_place() -> None:
    broken = {**samples.STATUS, "peers": [samples.PEER, {**samples.PEER, "since_s": "now"}]}
    with pytest.raises(Invalid, match=r"peers\[1\].since_s must be a whole number"):
        check(broken, METHODS["status"].result)


def test_results_may_grow_and_params_may_not() -> None:
    check({**samples.STATUS, "weather": "fine"}, METHODS["status"].result)
    with pytest.raises(Invalid, match="weather is not known here"):
        check({"weather": "fine"}, METHODS["status"].params)


def test_an_unknown_keyword_is_a_mistake_in_the_schema() -> None:
    with pytest.raises(ValueError, match="oneOf"):
        check(1, {"oneOf": []})
