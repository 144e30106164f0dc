"""What the Python clients' scripts share: they call, note what they got, and print it as JSON."""

import json
import sys
from collections.abc import Callable
from typing import Any


class Played:
    """What a client got from each call, and as which of its errors the sidecar's arrived."""

    def __init__(self, dump: Callable[[Any], Any]) -> None:
        self.known: dict[str, Any] = json.loads(sys.argv[1])
        self._dump = dump
        self._answers: dict[str, Any] = {}
        self._errors: dict[str, Any] = {}
        self._failures: dict[str, str] = {}

    def call(self, name: str, ask: Callable[[], Any]) -> Any:
        """Call, and note the answer; what goes wrong is noted too, and the next calls go on."""
        try:
            answer = ask()
            self._answers[name] = self._dump(answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            self._failures[name] = f"{type(error).__name__}: {error}"[:2000]
            return None
        return answer

    def refused(self, name: str, ask: Callable[[], Any]) -> None:
        """Call what the sidecar refuses, and note the error."""
        try:
            self._failures[name] = f"it was not refused: {ask()}"[:2000]
        except Exception as error:  # noqa: BLE001 - as above
            status = getattr(error, "status_code", None)
            self._errors[name] = {
                "class": type(error).__name__, "status": status, "retry_after": getattr(error, "retry_after", None),
                "detail": self._dump(getattr(error, "error", None) or getattr(error, "data", None)),
            }  # fmt: skip

    def end(self) -> None:
        """Print everything."""
        print(json.dumps({"answers": self._answers, "errors": self._errors, "failures": self._failures}))  # noqa: T201
