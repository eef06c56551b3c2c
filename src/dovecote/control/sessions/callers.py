"""Who calls a function at its own address, and as whom."""

from __future__ import annotations

from dataclasses import dataclass

from dovecote.control.functions import Functions
from dovecote.control.tenancy import Tenancy
from dovecote.errors import NotFound
from dovecote.model.records import Function
from dovecote.model.serving import DEFAULT_USER, PUBLIC_USER


@dataclass(frozen=True)
class Caller:
    """`is_known` means that a key of the function's tenant was shown. All others are one user, whatever they say."""

    function: Function
    is_known: bool

    def user(self, said: str) -> str:
        return (said or DEFAULT_USER) if self.is_known else PUBLIC_USER


async def find_caller(tenancy: Tenancy, functions: Functions, label: str, credential: str) -> Caller:
    """`label` is a function's name, for callers of its tenant, or its slug. Raises Unauthenticated, NotFound."""
    function = await functions.by_slug(label)
    if function is None:
        tenant_id = (await tenancy.authenticate(credential)).tenant_id
        return Caller(await functions.called(tenant_id, label), is_known=True)
    is_known = False
    if credential or not function.is_public:
        is_known = (await tenancy.authenticate(credential)).tenant_id == function.tenant_id
    if not is_known and not function.is_public:
        raise NotFound(f"no function {label!r}", code="no_such_function", hint="`dovecote function ls` lists them")
    return Caller(function, is_known)
