"""The desk where users' wishes are taken: pull, import, remove, change of ACL, look-up.

Decides, from the image list and the configuration, what a wish means now (an answer from the catalog, joining a pull that runs, a
new attempt) and records it. Does no work on images itself: workers do (catalog.workers). Knows no HTTP; everything that
cannot be done raises `Refused` or `NotFound` with a sentence for the user.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple
from uuid import UUID

from catalog import reference as references
from catalog.acl import Access, granted
from catalog.application import Catalog
from catalog.callers import Caller
from catalog.config import Configuration, Platform
from catalog.credential import Credential
from catalog.domain import ImageReference
from catalog.image_list import ImageList
from catalog.leases import Leases
from catalog.publication import Publication
from catalog.record import Record
from catalog.reference import Reference
from catalog.states import NotAllowed, State
from catalog.told import Told, sees

USED_EVERY = 3600.0  # seconds: one Used event a reference in this time, at most
_TRIES = 20


class NotFound(Exception):
    """No such image or platform, or not for this user; the two must not be told apart."""


class Refused(Exception):
    """The wish cannot be granted; the text says why."""


class Unfit(Refused):
    """The wish does not fit the state that the image is in; another time it may."""


class Forbidden(Exception):
    """This user has not the right; the text says who has."""


class Changed(NamedTuple):
    """A change that is recorded. unsettled: a sentence when nodes do not know of it yet, else empty."""

    record: Record
    unsettled: str


class Wallet:
    """Registry credentials of running attempts: in memory only, gone with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[UUID, int], Credential] = {}

    def put(self, identity: UUID, attempt: int, credential: Credential) -> None:
        with self._lock:
            self._held[identity, attempt] = credential

    def get(self, identity: UUID, attempt: int) -> Credential | None:
        with self._lock:
            return self._held.get((identity, attempt))

    def drop(self, identity: UUID, attempt: int) -> None:
        with self._lock:
            self._held.pop((identity, attempt), None)


class Desk:
    """Takes wishes. `wake` is called with the identity of a reference for which there is new work, `settle_soon` with a
    platform whose nodes are to be told of a change.
    """

    def __init__(
        self,
        configuration: Configuration,
        catalog: Catalog,
        images: ImageList,
        leases: Leases,
        publication: Publication,
        wallet: Wallet,
        wake: Callable[[UUID], None],
        settle_soon: Callable[[Platform], None],
    ) -> None:
        self.configuration = configuration
        self.catalog = catalog
        self.images = images
        self._leases = leases
        self._publication = publication
        self._wallet = wallet
        self._wake = wake
        self._settle_soon = settle_soon
        self._told = Told(leases.table)

    def platform(self, system: str) -> Platform:
        platform = self.configuration.platforms.get(system)
        if platform is None:
            known = ", ".join(sorted(self.configuration.platforms))
            raise NotFound(f"system {system!r} is not configured here; configured: {known}")
        return platform

    def reference(self, system: str, itype: str, text: str) -> Reference:
        """The canonical reference for what a client wrote. Raises Refused."""
        try:
            return references.parse(
                system,
                itype,
                text,
                default_location=self.configuration.default_location,
                locations=self.configuration.locations,
            )
        except references.ReferenceInvalid as error:
            raise Refused(str(error)) from None

    # Look-up

    def find(self, reference: Reference, caller: Caller) -> Record:
        """The record of a usable image that `caller` may see. Raises NotFound."""
        record = self._find(reference, caller)
        if record is None or not record.usable:
            raise NotFound(f"no image {reference} on {reference.system}")
        return record

    def look_up(self, reference: Reference, caller: Caller, *, lease: bool = False) -> Record:
        """As `find`, and it counts as use; with `lease` the image's file also stays for a while: a job waits for it."""
        record = self.find(reference, caller)
        self._use(record, caller)
        if lease and record.image is not None:
            self._publication.lease(self.platform(record.reference.system), record.image.id)
        return record

    def known(self, reference: Reference, caller: Caller) -> Record:
        """The record of a reference, in whatever state, that `caller` may see or administers. Raises NotFound."""
        record = self.images.get(reference)
        if record is None or not (caller.admin or record.open_to(caller.uid, caller.groups)):
            raise NotFound(f"no image {reference} on {reference.system}")
        return record

    def _find(self, reference: Reference, caller: Caller) -> Record | None:
        if reference.itype == "id":
            for same in self.images.with_image(reference.tag):
                if same.reference.system == reference.system and sees(same, caller):
                    return same
            return None
        record = self.images.get(reference)
        return record if record is not None and sees(record, caller) else None

    def _use(self, record: Record, caller: Caller) -> None:
        now = self.catalog.clock()
        if record.used_at is not None and abs(now - record.used_at) < USED_EVERY:
            return

        def command(image: ImageReference) -> None:
            used = image.record.used_at
            if image.record.image is not None and (used is None or abs(now - used) >= USED_EVERY):
                image.use(now, uid=caller.uid, user=caller.name)

        self.catalog.change(record.reference, command)

    # Pull

    def pull(self, reference: Reference, caller: Caller, asked: Access | None) -> Record:
        """A wish for `reference`, or a poll: the same call again asks how it goes.

        Returns the record to answer with: READY from the catalog while it is fresh, the running attempt, a FAILURE
        that the caller waited for and was not told yet, or a new attempt: who waited for one that failed at the registry
        with somebody else's credential has one with his own. Raises Refused.
        """
        try:
            located = references.locate(
                reference.tag,
                default_location=self.configuration.default_location,
                locations=self.configuration.locations,
            )
        except references.ReferenceInvalid as error:
            raise Refused(str(error)) from None
        credential = caller.credential_for(located.location, self.configuration.default_location)

        def begin(now: float) -> Record:
            return self.catalog.change(
                reference,
                lambda image: image.request_pull(
                    now,
                    uid=caller.uid,
                    user=caller.name,
                    gid=caller.gid,
                    asked=asked,
                    admin=caller.admin,
                    credentialed=credential is not None,
                    gateway=self._leases.instance,
                    location=located.location,
                ),
            )

        fixed = located.source.digest is not None
        return self._ask(reference, caller, asked, begin, credential, lambda r, now: fixed or self._fresh(r, now))

    def import_file(self, reference: Reference, caller: Caller, asked: Access | None, path: str, form: str) -> Record:
        """A wish to bring in the file at `path`, or a poll of it. Raises Refused, Forbidden."""
        users = self.configuration.import_users
        if users is None:
            raise Forbidden("import is switched off here; an administrator can set ImportUsers")
        if users != ("all",) and caller.name not in users and str(caller.uid) not in users:
            raise Forbidden(f"{caller.name} may not import images; an administrator can add the name to ImportUsers")
        if reference.itype in {"docker", "id"}:
            raise Refused(f"an import cannot have the type {reference.itype}; use custom, as in custom:name:version")

        def begin(now: float) -> Record:
            current = self.images.get(reference)
            if current is not None and current.image is not None and not self._may_change(current, caller):
                raise Forbidden(f"{reference} belongs to another user; choose another name")
            return self.catalog.change(
                reference,
                lambda image: image.request_import(
                    now,
                    uid=caller.uid,
                    user=caller.name,
                    gid=caller.gid,
                    asked=asked,
                    admin=caller.admin,
                    gateway=self._leases.instance,
                    path=path,
                    form=form,
                ),
            )

        return self._ask(reference, caller, asked, begin, None, lambda r, now: False)

    def _ask(
        self,
        reference: Reference,
        caller: Caller,
        asked: Access | None,
        begin: Callable[[float], Record],
        credential: Credential | None,
        fresh: Callable[[Record, float], bool],
    ) -> Record:
        for _ in range(_TRIES):
            now = self.catalog.clock()
            record = self.images.get(reference)
            try:
                if record is not None:
                    if record.attempt is not None and record.state.live:
                        return self._told.failed(record, caller, now) or self._join(record, caller, asked, now)
                    if self._told.waited(record, caller, credential, now):
                        return record
                    if record.state is State.READY and fresh(record, now) and _satisfied(record, caller, asked):
                        self._use(record, caller)
                        return record
                    if (failed := self._told.failed(record, caller, now)) is not None:
                        return failed
                begun = begin(now)
            except NotAllowed:
                continue  # somebody changed it since it was read: look again
            assert begun.attempt is not None
            if credential is not None:
                self._wallet.put(reference.uuid, begun.attempt.number, credential)
            self._wake(reference.uuid)
            return begun
        raise Refused(f"{reference} is being changed by too many at once; try again")

    def _join(self, record: Record, caller: Caller, asked: Access | None, now: float) -> Record:
        assert record.attempt is not None
        if record.attempt.took_part(caller.uid):
            return record
        return self.catalog.change(
            record.reference,
            lambda image: image.join_pull(now, uid=caller.uid, user=caller.name, gid=caller.gid, asked=asked),
        )

    def _fresh(self, record: Record, now: float) -> bool:
        # A time of pull that lies ahead comes from a clock that was set back since; asking the registry is safe.
        return record.pulled_at is not None and -5 <= now - record.pulled_at < self.configuration.pull_update_timeout

    # Change

    def change_access(self, reference: Reference, caller: Caller, access: Access) -> Changed:
        """Sets who may see `reference`. Raises NotFound, Forbidden, Refused."""
        record = self.known(reference, caller)
        if not self._may_change(record, caller):
            raise Forbidden(f"only the owner of {reference} or an administrator may change its ACL")
        return self._settled(
            reference, lambda image: image.change_access(access, self.catalog.clock(), uid=caller.uid, user=caller.name)
        )

    def remove(self, reference: Reference, caller: Caller) -> Changed:
        """Takes the image of `reference` away. Raises NotFound, Forbidden, Refused."""
        record = self.known(reference, caller)
        if record.state is State.REMOVED:
            raise NotFound(f"no image {reference} on {reference.system}")
        if not self._may_change(record, caller):
            raise Forbidden(f"only the owner of {reference} or an administrator may remove it")
        by = "owner" if record.owner == caller.uid else "admin"
        return self._settled(
            reference, lambda image: image.remove(self.catalog.clock(), by=by, uid=caller.uid, user=caller.name)
        )

    def expire(self, reference: Reference, *, by: str, uid: int | None, user: str) -> Changed:
        """Lets an image expire; the caller's right was checked before. Raises Refused."""
        return self._settled(reference, lambda image: image.expire(self.catalog.clock(), by=by, uid=uid, user=user))

    def restore(self, reference: Reference, *, uid: int | None, user: str) -> Changed:
        """Brings an expired image back. Raises Refused, also when its file is gone."""
        record = self.images.get(reference)
        platform = self.platform(reference.system)
        image = record.image if record is not None else None
        if image is not None and not self._publication.place(platform).store.contains(image.object):
            raise Unfit(f"the file of {reference} has been swept from the store; pull it again")
        return self._settled(reference, lambda image: image.restore(self.catalog.clock(), uid=uid, user=user))

    def expired_by_policy(self, system: str) -> list[Record]:
        """What nobody has used for ImageExpirationTimeout and no pull is bringing anew."""
        horizon = self.catalog.clock() - self.configuration.image_expiration.total_seconds()
        return [record for record in self.images.unused_since(system, horizon) if not record.state.live]

    def expire_if_unused(self, reference: Reference, *, uid: int | None, user: str) -> Changed | None:
        """Lets an image expire by policy; None when a pull began or somebody used it since it was chosen."""
        horizon = self.catalog.clock() - self.configuration.image_expiration.total_seconds()

        def command(image: ImageReference) -> None:
            record = image.record
            if not record.usable or record.state.live or record.used_at is None or record.used_at >= horizon:
                raise NotAllowed(f"{reference} is in use")
            image.expire(self.catalog.clock(), by="policy", uid=uid, user=user)

        try:
            return self._settled(reference, command)
        except Refused:
            return None

    def unsettled(self, record: Record) -> str:
        """A sentence when nodes do not know yet who may run the image of `record`, else empty."""
        platform = self.platform(record.reference.system)
        if platform.accesstype != "remote" or record.image is None:
            return ""  # told before the change is answered
        if not self._publication.owes(platform, record.image.id):
            return ""
        return (
            f"recorded, but not yet told to the nodes of {platform.name}: that follows as soon as they can be reached"
        )

    def _settled(self, reference: Reference, command: Callable[..., None]) -> Changed:
        """Records a change and tells the nodes. What lies on other machines is told by somebody else: they may not answer,
        and a client, and the thread that serves him, would wait for them.
        """
        before = self.images.get(reference)
        platform = self.platform(reference.system)
        later = platform.accesstype == "remote"
        noted = before.image.id if before is not None and before.image is not None else None
        try:
            with ExitStack() as owing:
                if noted is not None:
                    owing.enter_context(self._publication.owing(platform, noted, later=later))
                record = self.catalog.change(reference, command)
                touched = {r.image.id for r in (before, record) if r is not None and r.image is not None}
                for image_id in touched:
                    if not later:
                        self._publication.settle(platform, image_id)
                    elif image_id != noted:  # a pull has ended in between
                        self._publication.owe(platform, image_id)
        except NotAllowed as error:
            raise Unfit(str(error)) from None
        if not later or not touched:
            return Changed(record, "")
        self._settle_soon(platform)
        return Changed(record, f"recorded; the nodes of {platform.name} are told as soon as they can be reached")

    def _may_change(self, record: Record, caller: Caller) -> bool:
        owner = record.owner if record.owner is not None else (record.attempt.uid if record.attempt else None)
        return caller.admin or (owner is not None and owner == caller.uid)


def _satisfied(record: Record, caller: Caller, asked: Access | None) -> bool:
    """Whether the catalog's answer is all that the caller wants: he may see it, and it has the ACL that he asks for."""
    if not sees(record, caller):
        return False
    owner = caller.admin or record.owner == caller.uid
    return granted(record.access, asked, caller.uid, owner=owner) == record.access
