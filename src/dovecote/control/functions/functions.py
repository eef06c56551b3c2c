"""Functions and their immutable revisions: made, changed, found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Unpack

from dovecote.control.functions.bases import Bases, OnDemand
from dovecote.control.functions.wishes import Runs, parse_spec
from dovecote.errors import Conflict, Invalid, NotFound
from dovecote.model.environment import parse_env
from dovecote.model.ids import is_slug, new_id, parse_name, random_text
from dovecote.model.moments import moment_after
from dovecote.model.networks import parse_policy
from dovecote.model.records import Function, Revision, Start
from dovecote.model.rules import SaveRules, parse_rules
from dovecote.model.serving import (
    Affinity,
    Hooks,
    Invoking,
    Sharing,
    parse_affinity,
    parse_hooks,
    parse_invoking,
    parse_sharing,
)
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.trees import Template
from dovecote.model.volumes import Mount, apart
from dovecote.recent import Recent
from dovecote.store import Store

SANDBOX = "sandbox"  # every tenant has this function
TRIES = 8
RECENT_TTL = 10.0  # seconds that other replicas may call a function as it was before a change
MOST_RECENT = 10_000


class Functions:
    """`templates` are those that the hosts hold, `own` makes more; `level` is for functions that name none."""

    def __init__(
        self,
        store: Store,
        *,
        templates: Mapping[str, Template],
        level: str,
        levels: frozenset[str],
        own: OnDemand | None = None,
    ) -> None:
        self._store = store
        self.bases = Bases(store, templates, own)
        self._level = level
        self._levels = levels
        self._revisions: dict[str, Revision] = {}  # immutable, hence kept; bounded below
        # By tenant and name, and by no tenant and slug.
        self._recent: Recent[tuple[str, str], Function] = Recent(ttl=RECENT_TTL, most=MOST_RECENT)

    async def create(
        self,
        tenant_id: str,
        name: str,
        *,
        template: str = "base",
        spec: str = "small",
        level: str | None = None,
        network: NetworkPolicy | None = None,
        affinity: Affinity = Affinity(),
        sharing: Sharing = Sharing(),
        hooks: Hooks = Hooks(),
        invoking: Invoking = Invoking(),
        is_public: bool = False,
        env: Mapping[str, str] | None = None,
        start: Start | None = None,
        mounts: tuple[Mount, ...] = (),
        rules: SaveRules = SaveRules(),
        like: Revision | None = None,
    ) -> Function:
        """A function with its first revision. Raises Invalid, NotFound (no_such_template, ...), Conflict (exists).

        With `like`, a revision of the same tenant, it runs just that: the same template by digest, whatever its name
        means by now.
        """
        parse_name(name, "a function")
        if is_slug(name):
            raise Invalid(f"{name} looks like a name of ours", code="malformed_name", hint="choose one that says more")
        function_id = new_id("fun")
        if like is not None:
            revision = _next(like, function_id, None)
        else:
            revision = await self._plan(
                tenant_id, function_id, template=template, spec=spec, level=level, network=network, env=env, start=start
            )
            revision = replace(
                revision,
                mounts=apart(mounts),
                rules=parse_rules(rules),
                sharing=parse_sharing(sharing),
                hooks=parse_hooks(hooks),
            )
        function = Function(
            id=function_id,
            tenant_id=tenant_id,
            name=name,
            revision_id=revision.id,
            created_at=revision.created_at,
            slug=random_text(),
            affinity=parse_affinity(affinity),
            invoking=parse_invoking(invoking),
            is_public=is_public,
        )
        scope = self._store.tenant(tenant_id)
        async with scope.together() as t:
            await t.functions.insert(function)
            await t.revisions.insert(revision)
        return function

    async def revise(self, tenant_id: str, function_id: str, *, like: Revision) -> Revision:
        """The next revision of a function: what `like` runs, under a number of its own. Raises Conflict (stale)."""
        function = await self._store.tenant(tenant_id).functions.get(function_id)
        return await self.add_revision(function, like, is_current=True)

    async def update(
        self,
        function: Function,
        *,
        affinity: Affinity | None = None,
        invoking: Invoking | None = None,
        is_public: bool | None = None,
        files: int | None = None,
        **runs: Unpack[Runs],
    ) -> Function:
        """Takes effect at once; what `runs` says makes a new revision, which new sessions get.

        `files` is the number of a revision of it, whose files it shall have.

        `function` is as its caller saw it. Raises Conflict (stale: it was changed since; belongs_to_app), Invalid, and
        what `create` raises.
        """
        await self.check_own(function)
        if function.name == SANDBOX and (affinity or is_public or "sharing" in runs):
            raise Invalid("sandboxes have an instance each", hint="define a function of your own")
        changed = replace(
            function,
            affinity=parse_affinity(affinity or function.affinity),
            invoking=parse_invoking(invoking or function.invoking),
            is_public=function.is_public if is_public is None else is_public,
        )
        current = await self.revision(function.tenant_id, function.revision_id)
        return await self._revised(changed, await self._changed(current, runs, files) if runs or files else current)

    async def _revised(self, function: Function, revision: Revision) -> Function:
        """Stores the function as it is given, with a next revision unless that is its current one."""
        scope = self._store.tenant(function.tenant_id)
        if revision == await self.revision(function.tenant_id, function.revision_id):
            return await self._swapped(function)
        await self.add_revision(function, revision, is_current=True)
        return await scope.functions.get(function.id)

    async def add_revision(self, function: Function, revision: Revision, *, is_current: bool) -> Revision:
        """The next one, which says what this one says. Raises Conflict (stale)."""
        revision = _next(revision, function.id, await self._newest(function.tenant_id, function.id))
        try:
            async with self._store.tenant(function.tenant_id).together() as t:
                if is_current:
                    await t.functions.swap(replace(function, revision_id=revision.id))
                await t.revisions.insert(revision)
        finally:
            self._recent.forget()
        return revision

    async def rollback(self, function: Function, number: int) -> Function:
        """Runs an earlier revision again, or a later one. Raises NotFound (no_such_revision), Conflict."""
        await self.check_own(function)
        found = await self._by_number(function.tenant_id, function.id, number)
        return await self._swapped(replace(function, revision_id=found.id))

    async def _swapped(self, function: Function) -> Function:
        try:
            return await self._store.tenant(function.tenant_id).functions.swap(function)
        finally:
            self._recent.forget()

    async def _by_number(self, tenant_id: str, function_id: str, number: int) -> Revision:
        found = await self._store.tenant(tenant_id).revisions.find(function_id=function_id, number=number)
        if found is None:
            raise NotFound(
                f"the function has no revision {number}",
                code="no_such_revision",
                hint="`dovecote function revisions NAME` lists them",
            )
        return await self.revision(tenant_id, found.id)

    async def revisions(
        self, tenant_id: str, name: str, *, after: str | None = None, limit: int = 100
    ) -> tuple[Function, Sequence[Revision]]:
        """The newest first."""
        function = await self.get(tenant_id, name)
        revisions = self._store.tenant(tenant_id).revisions
        return function, await revisions.list(after=after, limit=limit, newest_first=True, function_id=function.id)

    async def check_own(self, function: Function) -> None:
        """Raises Conflict (belongs_to_app): what an app runs is changed by publishing."""
        apps = self._store.tenant(function.tenant_id).apps
        app = await apps.find(function_id=function.id, removed_at=None)
        if app is not None:
            raise Conflict(
                f"{function.name} belongs to the app {app.name}",
                code="belongs_to_app",
                hint="publish the app again, or unpublish it",
            )

    async def _changed(self, current: Revision, runs: Runs, number: int | None) -> Revision:
        wanted = current
        if number is not None:
            if "template" in runs:
                raise Invalid("files bring their template with them", hint="name either files or a template")
            source = await self._by_number(current.tenant_id, current.function_id, number)
            files = {name: getattr(source, name) for name in ("template", "template_name", "tree", "pinned")}
            wanted = replace(wanted, **files, start=current.start or source.start)
        if "template" in runs:
            digest, inside, its_start = await self.bases.pinned(current.tenant_id, runs["template"])
            wanted = replace(
                wanted,
                template=digest,
                template_name=runs["template"],
                pinned=inside,
                tree=None,
                start=its_start or current.start,
            )
        if "spec" in runs:
            wanted = replace(wanted, spec=parse_spec(runs["spec"]))
        if "level" in runs:
            wanted = replace(wanted, level=self._parse_level(runs["level"]))
        if "network" in runs:
            wanted = replace(wanted, network=parse_policy(runs["network"]))
        return replace(
            wanted,
            env=parse_env(runs.get("env", wanted.env)),
            start=runs.get("start", wanted.start),
            mounts=apart(runs.get("mounts", wanted.mounts)),
            rules=parse_rules(runs.get("rules", wanted.rules)),
            sharing=parse_sharing(runs.get("sharing", wanted.sharing)),
            hooks=parse_hooks(runs.get("hooks", wanted.hooks)),
        )

    def _parse_level(self, level: str | None) -> str:
        """The installation's own for None. Raises NotFound (no_such_level)."""
        level = level or self._level
        if level not in self._levels:
            raise NotFound(
                f"no isolation level {level!r} here",
                code="no_such_level",
                hint="there are " + ", ".join(sorted(self._levels)),
            )
        return level

    async def sandbox(self, tenant_id: str, *, template: str | None, spec: str | None, level: str | None) -> Revision:
        """A revision of the function `sandbox` for sandboxes that are not like its current one; made once for all.

        What is not named is as in the current one. Raises NotFound (no_such_template, no_such_spec, no_such_level).
        """
        function = await self.get(tenant_id, SANDBOX)
        current = await self.revision(tenant_id, function.revision_id)
        wanted = await self._plan(
            tenant_id,
            function.id,
            template=template or current.template_name,
            spec=spec or await self.bases.spec_of(tenant_id, template) or current.spec,
            level=level or current.level,
            network=current.network,
            env=current.env,
            start=None,
        )
        if template is None:
            wanted = replace(wanted, template=current.template, pinned=current.pinned, start=current.start)
        wanted = replace(wanted, mounts=current.mounts, rules=current.rules, hooks=current.hooks)
        for _ in range(TRIES):
            found = await self._like(wanted)
            if found is not None:
                return found
            try:
                wanted = _next(wanted, function.id, await self._newest(tenant_id, function.id))
                return await self._store.tenant(tenant_id).revisions.insert(wanted)
            except Conflict:
                continue  # another request made one meanwhile
        raise Conflict("revisions of the function `sandbox` come all the time", code="busy", hint="try again")

    async def _like(self, wanted: Revision) -> Revision | None:
        revisions = self._store.tenant(wanted.tenant_id).revisions
        same = {name: getattr(wanted, name) for name in ("function_id", "template", "template_name", "spec", "level")}
        async for each in revisions.each(**same):
            if replace(each, id=wanted.id, number=wanted.number, created_at=wanted.created_at) == wanted:
                return each
        return None

    async def _newest(self, tenant_id: str, function_id: str) -> Revision | None:
        return await self._store.tenant(tenant_id).revisions.newest(function_id=function_id)

    async def _plan(
        self,
        tenant_id: str,
        function_id: str,
        *,
        template: str,
        spec: str,
        level: str | None,
        network: NetworkPolicy | None,
        env: Mapping[str, str] | None,
        start: Start | None,
    ) -> Revision:
        parse_spec(spec)
        level = self._parse_level(level)
        digest, inside, its_start = await self.bases.pinned(tenant_id, template)
        return Revision(
            id=new_id("rev"),
            tenant_id=tenant_id,
            function_id=function_id,
            number=1,
            template=digest,
            template_name=template,
            tree=None,
            spec=spec,
            level=level,
            network=parse_policy(network or NetworkPolicy()),
            start=start or its_start,
            env=parse_env(env or {}),
            created_at=datetime.now(UTC),
            pinned=inside,
        )

    async def get(self, tenant_id: str, name: str) -> Function:
        """Raises NotFound (no_such_function). The function `sandbox` is made for a tenant when it first asks."""
        found = await self._store.tenant(tenant_id).functions.find(name=name)
        if found is not None:
            return found
        if name != SANDBOX:
            raise NotFound(f"no function {name!r}", code="no_such_function", hint="`dovecote function ls` lists them")
        try:
            return await self.create(tenant_id, SANDBOX)
        except Conflict:
            made = await self._store.tenant(tenant_id).functions.find(name=name)  # another request was first
            if made is None:
                raise
            return made

    async def by_slug(self, slug: str) -> Function | None:
        """Of any tenant: whoever knows the slug may call it, and no function has a name that looks like one.

        From memory, as `called`.
        """
        if not is_slug(slug):
            return None
        return await self._recent.get(("", slug), partial(self._store.everyone().functions.find, slug=slug))

    async def called(self, tenant_id: str, name: str) -> Function:
        """As `get`, for who calls it: on the warm path this asks nobody. Changes made here show at once."""
        found = await self._recent.get((tenant_id, name), partial(self.get, tenant_id, name))
        assert found is not None
        return found

    async def by_id(self, tenant_id: str, function_id: str) -> Function:
        """Raises NotFound (no_such_function)."""
        return await self._store.tenant(tenant_id).functions.get(function_id)

    async def public(self, slug: str) -> Function | None:
        """The function that anybody may call by that name, of whatever tenant."""
        return await self._store.everyone().functions.find(slug=slug, is_public=True)

    async def remove(self, tenant_id: str, function_id: str) -> None:
        """Forgets a function; its revisions stay for whoever still runs them. May be repeated."""
        try:
            await self._store.tenant(tenant_id).functions.delete(function_id)
        finally:
            self._recent.forget()

    async def list(self, tenant_id: str, *, after: str | None = None, limit: int = 100) -> Sequence[Function]:
        return await self._store.tenant(tenant_id).functions.list(after=after, limit=limit)

    async def revision(self, tenant_id: str, revision_id: str) -> Revision:
        kept = self._revisions.get(revision_id)
        if kept is not None and kept.tenant_id == tenant_id:
            return kept
        revision = await self._store.tenant(tenant_id).revisions.get(revision_id)
        if revision.pinned is None:
            # Written before it was recorded, when there was one template only.
            revision = replace(revision, pinned=self.bases.first)
        if len(self._revisions) >= 10_000:
            self._revisions.clear()
        self._revisions[revision_id] = revision
        return revision


def _next(like: Revision, function_id: str, newest: Revision | None) -> Revision:
    """After the newest of the function, which is known by its time."""
    number, at = newest.number + 1 if newest else 1, moment_after(newest, datetime.now(UTC))
    return replace(like, id=new_id("rev"), function_id=function_id, number=number, created_at=at)
