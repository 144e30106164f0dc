"""Verification, against Polar's own vectors (polar.md 2.3) and against the reference library."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from worker.verify import NotVerified, Verified, fingerprint, keys_of, verify

ID = "0f0e0d0c-0b0a-4a09-8807-060504030201"
TIMESTAMP = 1790000000
NOW = datetime.fromtimestamp(TIMESTAMP, UTC)
BODY = '{"type":"customer_seat.claimed","timestamp":"2026-11-01T00:00:00.000000Z","data":{"note":"Ærø"}}'.encode()
STANDARD = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
TOLERANCE = timedelta(seconds=300)

VECTORS = [
    (STANDARD, "standard", "v1,03opnKzY9Na3VuyNMgyJ9tk7qpY54ycfzrMlcA+PP34="),
    (STANDARD, "legacy", "v1,Va5c4+zNS0Yq+OCZ2b3KTKUQdJJjimH3/DpT7VgfuG4="),
    ("whsec_ovyN6cPrTv56AApvzCaJno08SSmGJmgbWilb33N2JuK", "legacy",
     "v1,Acggqa/RGPEIz43GqcDHeK8z2uLkUNYizhKgE8JRRiM="),
    ("polar_whs_ovyN6cPrTv56AApvzCaJno08SSmGJmgbWilb33N2JuK", "legacy",
     "v1,txVwP9mWcX/tipUKK46cNRWCzk82niBjaP13msQu0rk="),
]  # fmt: skip


def check(
    signature: str,
    *,
    secrets: tuple[str, ...] = (STANDARD,),
    body: bytes = BODY,
    now: datetime = NOW,
    headers: dict[str, str] | None = None,
) -> Verified:
    sent = {"webhook-id": ID, "webhook-timestamp": str(TIMESTAMP), "webhook-signature": signature}
    headers = sent | (headers or {})
    return verify(headers, body, keys_of(secrets), now, TOLERANCE)


GOOD = VECTORS[0][2]


@pytest.mark.parametrize(("secret", "scheme", "signature"), VECTORS)
def test_polars_vectors_verify_and_name_their_secret_and_scheme(secret: str, scheme: str, signature: str) -> None:
    verified = check(signature, secrets=("another secret", secret))
    assert (verified.webhook_id, verified.sent_at) == (ID, NOW)
    assert (verified.secret, verified.scheme) == (fingerprint(secret), scheme)
    assert secret not in repr(verified)


@pytest.mark.parametrize(("secret", "scheme", "signature"), VECTORS)
def test_one_changed_byte_anywhere_is_refused(secret: str, scheme: str, signature: str) -> None:
    for changed in (
        {"body": BODY + b" "},
        {"headers": {"webhook-id": ID[:-1] + "2"}},
        {"headers": {"webhook-timestamp": str(TIMESTAMP + 1)}},
        {"secrets": (secret + "x",)},
    ):
        with pytest.raises(NotVerified, match="No signature matches"):
            check(signature, **{"secrets": (secret,)} | changed)


def test_the_reference_librarys_own_vector_verifies() -> None:
    # From the library's test suite: the secret without prefix is signed under its decoded bytes.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert verify(headers, body, keys_of([secret]), at, TOLERANCE).scheme == "standard"


@given(key=st.binary(min_size=1, max_size=64), body=st.text(max_size=200), webhook_id=st.uuids().map(str))
def test_what_the_reference_library_signs_verifies_and_agrees_byte_for_byte(
    key: bytes, body: str, webhook_id: str
) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    signature = Webhook(secret).sign(webhook_id, NOW, body)
    headers = {"webhook-id": webhook_id, "webhook-timestamp": str(TIMESTAMP), "webhook-signature": signature}
    assert verify(headers, body.encode(), keys_of([secret]), NOW, TOLERANCE).scheme == "standard"


def test_any_of_several_signatures_may_match_and_other_versions_are_passed_over() -> None:
    assert check(f"v1a,{GOOD[3:]} v2,xyz v1,AAAA {GOOD} v1,")
    with pytest.raises(NotVerified):
        check(f"v1a,{GOOD[3:]}")
    with pytest.raises(NotVerified):
        check(GOOD[3:])


def test_signatures_beyond_sixteen_are_not_looked_at() -> None:
    assert check(" ".join(["v1,AAAA"] * 15 + [GOOD]))
    with pytest.raises(NotVerified):
        check(" ".join(["v1,AAAA"] * 16 + [GOOD]))


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_refused(missing: str) -> None:
    with pytest.raises(NotVerified, match="are needed"):
        check(GOOD, headers={missing: ""})


@pytest.mark.parametrize(
    "bad",
    [{"webhook-timestamp": "17900000.5"}, {"webhook-timestamp": "nan"}, {"webhook-timestamp": "-1"},
     {"webhook-timestamp": "1" * 16}, {"webhook-timestamp": "\uff11\uff17"}, {"webhook-id": "a b"},
     {"webhook-id": "x" * 256}, {"webhook-id": "a\nb"}, {"webhook-id": "ä"}],
)  # fmt: skip
def test_a_malformed_header_is_refused(bad: dict[str, str]) -> None:
    with pytest.raises(NotVerified, match="malformed"):
        check(GOOD, headers=bad)


@pytest.mark.parametrize(("seconds", "good"), [(300, True), (-300, True), (301, False), (-301, False)])
def test_the_clock_may_differ_by_five_minutes_either_way(seconds: int, good: bool) -> None:
    now = NOW + timedelta(seconds=seconds)
    if good:
        assert check(GOOD, now=now)
        return
    with pytest.raises(NotVerified, match="clock right") as refused:
        check(GOOD, now=now)
    assert f"301 s in the {'past' if seconds > 0 else 'future'}" in str(refused.value)


def test_a_stale_request_with_a_wrong_signature_learns_nothing_of_our_clock() -> None:
    with pytest.raises(NotVerified, match="No signature matches"):
        check("v1,AAAA", now=NOW + timedelta(days=1))


def test_a_timestamp_beyond_the_calendar_is_refused_not_an_error() -> None:
    huge = "9" * 15
    signature = "v1," + base64.b64encode(
        hmac.digest(STANDARD.encode(), f"{ID}.{huge}.".encode() + BODY, hashlib.sha256)
    ).decode()  # fmt: skip
    with pytest.raises(NotVerified, match="in the future"):
        check(signature, headers={"webhook-timestamp": huge})


@pytest.mark.parametrize("secret", ["whsec_", "whsec_!!!!", "whsec_AAA*", "whsec_A", "plain", "whsec_ä"])
def test_a_secret_that_is_no_base64_signs_under_the_legacy_scheme_alone(secret: str) -> None:
    assert [key.scheme for key in keys_of([secret])] == ["legacy"]


def test_a_standard_secret_may_come_without_its_padding() -> None:
    assert check(GOOD, secrets=(STANDARD.rstrip("="),)).scheme == "standard"


@given(signature=st.text(st.characters(max_codepoint=255), max_size=80), body=st.binary(max_size=50))
def test_no_header_makes_it_fail_in_another_way(signature: str, body: bytes) -> None:
    with pytest.raises(NotVerified):
        check(signature, body=body)
