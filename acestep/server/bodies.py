"""What stands in a request's body: JSON, a form or a multipart form, read within limits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.server.fields import UPLOADS, squashed

if TYPE_CHECKING:
    from starlette.requests import Request

    from acestep.server.store import Store

_MOST_FIELDS = 200
_MOST_FILES = 4
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_NAMES = {squashed(name): ours for ours, names in UPLOADS.items() for name in names}


class BodyError(Exception):
    """The body cannot be understood; with the status that says so.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Body:
    """A request's body.

    Attributes:
        values: names to what was sent; of a form texts.
        files: uploads by the parameter that they are, written to the store's folder.
    """

    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def discard(self) -> None:
        """Remove the uploads."""
        for path in self.files.values():
            path.unlink(missing_ok=True)


async def read(request: Request, store: Store, part_bytes: int) -> Body:
    """The body of a request.

    Args:
        request: not yet read.
        store: takes the files.
        part_bytes: of one field of a form.

    Raises:
        BodyError: it is of another kind (415), or not what it says (400).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _FORMS:
        return await _form(request, store, part_bytes)
    raw = await request.body()
    if kind in ("", "application/json") or kind.endswith("+json"):
        return Body(parsed(raw) if raw.strip() or kind else {})
    raise BodyError(
        f"'{kind[:60]}' is not taken here; send application/json, or a form", status=415
    )


def parsed(raw: bytes) -> dict[str, Any]:
    """A JSON object, its texts fit to be written.

    Raises:
        BodyError: it is none.
    """
    try:
        value = json.loads(raw, parse_constant=_refuse)
        value = cleaned(value)
    except RecursionError:
        raise BodyError("the JSON is nested too deeply") from None
    except ValueError:
        raise BodyError("the body is not JSON; send an object") from None
    if not isinstance(value, dict):
        raise BodyError("the body is no JSON object")
    return value


def cleaned(value: Any) -> Any:
    """Plain data whose texts can be written as UTF-8: lone halves of characters become `?`."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {cleaned(name): cleaned(one) for name, one in value.items()}
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    return value


async def _form(request: Request, store: Store, part_bytes: int) -> Body:
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException

    body = Body()
    try:
        async with request.form(
            max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=part_bytes
        ) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    body.values.setdefault(name, cleaned(value))
                elif (ours := _NAMES.get(squashed(name))) and ours not in body.files:
                    path = body.files[ours] = store.new_upload()
                    with path.open("wb") as target:
                        shutil.copyfileobj(value.file, target)
    except (HTTPException, ValueError) as error:
        body.discard()
        told = error.detail if isinstance(error, HTTPException) else "it is not what it says it is"
        raise BodyError(f"the form cannot be read: {told}") from None
    except BaseException:
        body.discard()
        raise
    return body


def lists(name: str, value: Any, most: int) -> list[str]:
    """A list of texts, which may be sent as its JSON, or one of them alone.

    Raises:
        BodyError: it is something else, or longer than `most`.
    """
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BodyError(f"{name} is not JSON") from None
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BodyError(f"{name} is no list of ids")
    if len(value) > most:
        raise BodyError(f"{name} has {len(value)} ids; the most is {most}")
    return list(value)


def too_long(values: Iterable[tuple[str, Any, int]]) -> str | None:
    """What is longer than it may be, in a line; None where nothing is."""
    for name, value, most in values:
        if isinstance(value, str) and len(value) > most:
            return f"the {name} has {len(value)} characters; the most is {most}"
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
