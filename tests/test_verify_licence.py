"""The two verifiers that apps copy, docs/verify/verify.py and verify.ts: the same cases, the same outcomes."""

import json
import shutil
import subprocess
from base64 import urlsafe_b64encode
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import skip
from tests.worker.test_offline import verifier
from worker import keyring
from worker.offline import Licence, signed

ROOT = Path(__file__).parent.parent
NODE = ROOT / "tests" / "node"
TYPESCRIPT = ROOT / "docs" / "verify" / "verify.ts"

AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
ENDS = AT + timedelta(days=30)
SECOND, TOLERANCE = timedelta(seconds=1), timedelta(minutes=5)
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def kid_of(private: Ed25519PrivateKey) -> str:
    return keyring.kid_of(private.public_key().public_bytes_raw())


def listed(*keys: tuple[str, Ed25519PrivateKey]) -> dict[str, Any]:
    return {
        "keys": [
            {"kid": kid, "alg": "Ed25519", "public_key": keyring.base64url(key.public_key().public_bytes_raw()),
             "signs_from": "2026-01-01T00:00:00Z", "retired_at": None, "until": None}
            for kid, key in keys
        ]
    }  # fmt: skip


KEYS = listed((kid_of(OTHER), OTHER), (kid_of(PRIVATE), PRIVATE))


def licence(private: Ed25519PrivateKey = PRIVATE, **fields: Any) -> str:
    drafted = Licence(
        **{
            "id": "5b1d", "license_key_id": "7c1e", "display_key": "****-7D54AB", "benefit": "pro-key",
            "benefit_id": "b1", "description": "License key for Acme Pro · ü 日本", "customer_id": "c1",
            "external_customer_id": "usr/1", "organization_id": None, "activation_id": None, "fingerprint": None,
            "issued_at": AT, "valid_until": ENDS, "paid_through": None, **fields,
        }
    )  # fmt: skip
    return signed(drafted, kid_of(private), private).text


def written(payload: bytes, private: Ed25519PrivateKey = PRIVATE, head: str = "almoner1") -> str:
    """Any payload, signed as a licence is."""
    said = f"{head}.{keyring.base64url(payload)}"
    return f"{said}.{keyring.base64url(private.sign(said.encode()))}"


@dataclass(frozen=True)
class Case:
    text: str
    outcome: str | None
    """`good`, or why it is refused; None where only both must say the same, and not that it is good."""
    now: datetime = AT
    fingerprint: str | None = None
    last_seen: datetime | None = None
    keys: str = json.dumps(KEYS)

    def for_node(self) -> dict[str, Any]:
        return {
            "text": self.text, "keys": json.loads(self.keys), "now": self.now.isoformat(),
            "fingerprint": self.fingerprint, "last_seen": self.last_seen.isoformat() if self.last_seen else None,
        }  # fmt: skip


GOOD, BOUND = licence(), licence(fingerprint="abc", activation_id="a1")
HEAD, PAYLOAD, SIGNATURE = GOOD.split(".")
NO_KEYS = json.dumps({"keys": []})
SWAPPED = json.dumps(listed((kid_of(PRIVATE), OTHER)))


def with_payload(**fields: Any) -> bytes:
    return json.dumps({"version": 1, "kid": kid_of(PRIVATE), "fingerprint": None, "issued_at": "2026-11-01T12:00:00Z",
                       "valid_until": "2026-12-01T12:00:00Z", **fields}).encode()  # fmt: skip


NAMED = {
    "as issued": Case(GOOD, "good"),
    "with the line's end": Case(f"{GOOD}\n", "good"),
    "with space around": Case(f" \t\r\n{GOOD}\r\n", "good"),
    "without a device, shown on one": Case(GOOD, "good", fingerprint="abc"),
    "on its device": Case(BOUND, "good", fingerprint="abc"),
    "at its last second": Case(GOOD, "good", now=ENDS - SECOND),
    "on a clock that is a little slow": Case(GOOD, "good", now=AT - TOLERANCE),
    "seen a little later than now": Case(GOOD, "good", last_seen=AT + TOLERANCE),
    "seen before": Case(GOOD, "good", last_seen=AT - timedelta(days=9)),
    "of the other key": Case(licence(OTHER), "good"),
    "with a field that is new": Case(written(with_payload(limit=3)), "good"),
    "expired": Case(GOOD, "expired", now=ENDS),
    "expired long ago": Case(GOOD, "expired", now=ENDS + timedelta(days=999)),
    "on a clock before it was issued": Case(GOOD, "not_yet_valid", now=AT - TOLERANCE - SECOND),
    "on a clock that was set back": Case(GOOD, "clock_set_back", last_seen=AT + TOLERANCE + SECOND),
    "expired, with the clock set back": Case(GOOD, "clock_set_back", last_seen=ENDS + SECOND),
    "on another device": Case(BOUND, "fingerprint_mismatch", fingerprint="abd"),
    "on a device that says nothing": Case(BOUND, "fingerprint_mismatch"),
    "bound to an empty name": Case(written(with_payload(fingerprint="")), "fingerprint_mismatch"),
    "of a key that is not listed": Case(GOOD, "unknown_key", keys=NO_KEYS),
    "of an unknown kid": Case(written(with_payload(kid="0123456789abcdef")), "unknown_key"),
    "of a kid that objects have": Case(written(with_payload(kid="__proto__")), "unknown_key"),
    "of another key under this kid": Case(GOOD, "bad_signature", keys=SWAPPED),
    "signed by somebody else": Case(written(with_payload(), OTHER), "bad_signature"),
    "with the signature of another": Case(f"{HEAD}.{PAYLOAD}.{BOUND.split('.')[2]}", "bad_signature"),
    "with the payload of another": Case(f"{HEAD}.{BOUND.split('.')[1]}.{SIGNATURE}", "bad_signature"),
    "with a signature of zeros": Case(f"{HEAD}.{PAYLOAD}.{'A' * 86}", "bad_signature"),
    "with a short signature": Case(f"{HEAD}.{PAYLOAD}.{SIGNATURE[:-2]}", "malformed"),
    "with a long signature": Case(f"{HEAD}.{PAYLOAD}.{SIGNATURE}AA", "malformed"),
    "without a signature": Case(f"{HEAD}.{PAYLOAD}.", "malformed"),
    "of two parts": Case(f"{HEAD}.{PAYLOAD}", "malformed"),
    "of four parts": Case(f"{GOOD}.{SIGNATURE}", "malformed"),
    "with padding": Case(f"{HEAD}.{PAYLOAD}.{SIGNATURE}==", "malformed"),
    "broken over lines": Case(f"{GOOD[:40]}\n{GOOD[40:]}", "malformed"),
    "of another format": Case(written(with_payload(), head="almoner2"), "malformed"),
    "of a later version": Case(written(with_payload(version=2)), "malformed"),
    "with the version as text": Case(written(with_payload(version="1")), "malformed"),
    "empty": Case("", "malformed"),
    "only dots": Case("..", "malformed"),
    "with nothing in it": Case(written(b"{}"), "malformed"),
    "with a list in it": Case(written(b'["kid"]'), "malformed"),
    "with a text in it": Case(written(b'"kid"'), "malformed"),
    "with null in it": Case(written(b"null"), "malformed"),
    "with a number for a kid": Case(written(with_payload(kid=1)), "malformed"),
    "with NaN in it": Case(written(with_payload(limit=float("nan"))), "malformed"),
    "with Infinity in it": Case(written(with_payload(limit=float("inf"))), "malformed"),
    "with a byte order mark": Case(written(b"\xef\xbb\xbf" + with_payload()), "malformed"),
    "in UTF-16": Case(written(with_payload().decode().encode("utf-16")), "malformed"),
    "with bytes that are no text": Case(written(with_payload()[:-1] + b"\xff}"), "malformed"),
    "with something behind": Case(written(with_payload() + b"x"), "malformed"),
    "in base64 with + and /": Case(written(with_payload(x="?>?>")).replace("_", "/").replace("-", "+"), "malformed"),
}


def tampered() -> list[Case]:
    """Each character of a licence changed, left out, and doubled: none of them is good."""
    cases = []
    for place, letter in enumerate(GOOD):
        for other in ("B" if letter == "A" else "A", letter.swapcase(), "", letter * 2, "=", "\u00e9"):
            changed = GOOD[:place] + other + GOOD[place + 1 :]
            if changed != GOOD:
                cases.append(Case(changed, None))
    return cases


def garbage() -> list[Case]:
    """What Hypothesis thinks of: any text, any parts, any JSON, any bytes, and all of it signed."""
    found: list[Case] = []
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
    documents = json_values | st.dictionaries(st.sampled_from(["kid", "version", "x"]), json_values)
    payloads = st.binary() | documents.map(lambda value: json.dumps(value).encode())
    encoded = payloads.map(lambda data: urlsafe_b64encode(data).decode().rstrip("="))
    parts = st.tuples(st.just("almoner1") | st.text(), encoded | st.text(), encoded | st.text())
    texts = st.text() | parts.map(".".join) | payloads.map(written)

    @settings(max_examples=300, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(text=texts.filter(lambda text: text.isascii() or text.encode("utf-8", "ignore").decode() == text))
    def collect(text: str) -> None:
        found.append(Case(text, None))

    collect()
    return found


def by_python(case: Case) -> dict[str, Any]:
    try:
        said = verifier.verify(case.text, json.loads(case.keys), case.now, case.fingerprint, case.last_seen)
    except verifier.LicenceError as error:
        return {"reason": error.reason}
    return {"said": said}


def by_typescript(cases: list[Case]) -> list[dict[str, Any]]:
    """All cases in one process; what is told is JSON."""
    document = json.dumps({"cases": [case.for_node() for case in cases]})
    found: list[dict[str, Any]] = json.loads(node("verify_cases.mjs", str(TYPESCRIPT), typed=document))
    return found


def node(script: str, *arguments: str, typed: str = "") -> str:
    program = needs_node()
    done = subprocess.run([program, str(NODE / script), *arguments], input=typed, capture_output=True, text=True,
                          timeout=50, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def _node_program() -> str | None:
    return shutil.which("node") if (NODE / "node_modules" / "typescript").is_dir() else None


def needs_node() -> str:
    program = _node_program()
    if program is None:
        skip("no Node, or no tests/node/node_modules: npm ci --prefix tests/node")
    return str(program)


def outcome_of(found: dict[str, Any]) -> str:
    return "good" if "said" in found else str(found["reason"])


@pytest.mark.parametrize("name", NAMED)
def test_the_verifier_in_python_says_what_a_licence_is(name: str) -> None:
    assert outcome_of(by_python(NAMED[name])) == NAMED[name].outcome


def test_in_python_nothing_that_was_tampered_with_is_good() -> None:
    outcomes = Counter(outcome_of(by_python(case)) for case in tampered())
    assert set(outcomes) == {"malformed", "bad_signature", "unknown_key"}
    assert outcomes["bad_signature"] > 300
    assert outcomes["unknown_key"] >= 5


def test_in_python_garbage_is_refused_with_a_reason() -> None:
    assert {outcome_of(by_python(case)) for case in garbage()} <= {"malformed", "unknown_key", "bad_signature"}


def test_both_verifiers_say_the_same() -> None:
    needs_node()
    cases = [*NAMED.values(), *tampered(), *garbage()]
    differing = [
        (case, python, typescript)
        for case, python, typescript in zip(cases, map(by_python, cases), by_typescript(cases), strict=True)
        if python != typescript
    ]
    assert not differing, differing[:3]


def test_the_verifier_in_typescript_says_what_a_licence_is() -> None:
    found = by_typescript(list(NAMED.values()))
    assert {name: outcome_of(one) for name, one in zip(NAMED, found, strict=True)} == {
        name: case.outcome for name, case in NAMED.items()
    }


@pytest.mark.slow
def test_the_verifier_in_typescript_has_the_right_types() -> None:
    compiler = str(NODE / "node_modules" / "typescript" / "bin" / "tsc")
    strict = ["--noEmit", "--strict", "--target", "es2022", "--module", "esnext", "--lib", "es2022,dom"]
    done = subprocess.run([needs_node(), compiler, *strict, str(TYPESCRIPT)], capture_output=True, text=True,
                          timeout=50, check=False)  # fmt: skip
    assert (done.stdout, done.returncode) == ("", 0)


def test_a_time_that_is_none_is_an_error_and_no_way_past_the_end() -> None:
    ended = Case(licence(), None, now=ENDS + timedelta(days=1))
    naive = datetime(2026, 11, 2)  # noqa: DTZ001 - that is what is tried
    for times in ({"now": naive}, {"now": AT, "last_seen": naive}):
        with pytest.raises(TypeError, match="with a zone"):
            verifier.verify(ended.text, json.loads(ended.keys), **times)
    document = ended.for_node()
    invalid = [document | {"now": "never"}, document | {"last_seen": "never"}]
    found = json.loads(node("verify_cases.mjs", str(TYPESCRIPT), typed=json.dumps({"cases": invalid})))
    assert found == [{"reason": "TypeError: not a time"}] * 2


def test_a_licence_has_no_place_for_an_algorithm() -> None:
    assert "alg" not in Licence.__struct_fields__
    assert by_python(Case(written(with_payload(alg="none")), None))["said"]["alg"] == "none"  # nobody looks at it
