"""The event-sourced aggregate: one image reference, its events and the commands that make them.

Each command checks the state table (catalog.states) and either raises `NotAllowed` with a reason or triggers exactly one
event; each event's `fold` says what it changes in the `Record`. Events carry JSON values only, name no password, and are
described in docs/events.md: that file and old logs bind them, so a change of an event's fields means a new
`class_version` and an `upcast_v1_v2`. The stream of a reference is its audit history.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from eventsourcing.domain import Aggregate

from catalog.acl import Access, granted
from catalog.record import Attempt, Image, Record, begun, changed
from catalog.reference import Reference
from catalog.states import Action, NotAllowed, Stage, State, check


class Superseded(Exception):
    """Another worker has taken this pull over, or it has ended; the one who is told must stop."""


def when(at: float) -> datetime:
    """Unix seconds as the aware time that events carry."""
    return datetime.fromtimestamp(at, tz=UTC)


class ImageReference(Aggregate):
    """One reference: `record` is what its events add up to."""

    TOPIC = "ImageReference"
    record: Record

    def __init__(self, system: str, itype: str, tag: str) -> None:
        self.record = Record(Reference(system, itype, tag), State.INIT, 1, self.created_on.timestamp())

    class Event(Aggregate.Event):
        """What happened to a reference. `action` is its word in histories."""

        action: ClassVar[str] = ""

        def apply(self, aggregate: ImageReference) -> None:
            aggregate.record = self.after(aggregate.record)

        def after(self, record: Record) -> Record:
            """The record once this event has happened."""
            folded = self.fold(record)
            return changed(folded, version=self.originator_version, changed_at=self.timestamp.timestamp())

        def fold(self, record: Record) -> Record:
            return record

    class Created(Event, Aggregate.Created):
        """The reference was spoken of for the first time."""

        TOPIC = "Created"
        action = "named"
        system: str
        itype: str
        tag: str

        def apply(self, aggregate: ImageReference) -> None:
            """Nothing: __init__ made the record."""

        def first(self) -> Record:
            """The record that this event begins."""
            reference = Reference(self.system, self.itype, self.tag)
            return Record(reference, State.INIT, self.originator_version, self.timestamp.timestamp())

    class PullRequested(Event):
        """A pull begins; `asked` is an Access in JSON, or None."""

        TOPIC = "PullRequested"
        action = "pull"
        uid: int
        user: str
        gid: int
        asked: dict[str, Any] | None
        admin: bool
        credentialed: bool
        gateway: str
        location: str

        def fold(self, record: Record) -> Record:
            return changed(record, state=State.INIT, attempt=begun(self, record, "pull"))

    class PullJoined(Event):
        """Somebody else asked for what is being pulled already."""

        TOPIC = "PullJoined"
        action = "join"
        uid: int
        user: str
        gid: int
        asked: dict[str, Any] | None

        def fold(self, record: Record) -> Record:
            assert record.attempt is not None
            asked = Access.from_json(self.asked) if self.asked else None
            return changed(record, attempt=changed(record.attempt, joined={**record.attempt.joined, self.uid: asked}))

    class StageReached(Event):
        """A worker began a stage; the first one of a worker is also its claim."""

        TOPIC = "StageReached"
        action = "stage"
        stage: str
        worker: str

        def fold(self, record: Record) -> Record:
            assert record.attempt is not None
            attempt = changed(record.attempt, worker=self.worker, since=self.timestamp.timestamp())
            return changed(record, state=State(self.stage), attempt=attempt)

    class PullCompleted(Event):
        """The image is in the store and published. `image` and `access` in JSON."""

        TOPIC = "PullCompleted"
        action = "ready"
        image: dict[str, Any]
        access: dict[str, Any]
        owner: int
        uid: int
        user: str

        def fold(self, record: Record) -> Record:
            at = self.timestamp.timestamp()
            return changed(
                record,
                state=State.READY,
                attempt=changed(record.attempt, since=at, reason=None) if record.attempt else None,
                image=Image.from_json(self.image),
                usable=True,
                access=Access.from_json(self.access),
                owner=self.owner,
                pulled_at=at,
                used_at=at,
            )

    class PullFailed(Event):
        """The pull ended without an image; `reason` is a sentence for its user."""

        TOPIC = "PullFailed"
        action = "failure"
        reason: str
        stage: str
        uid: int
        user: str

        def fold(self, record: Record) -> Record:
            assert record.attempt is not None
            attempt = changed(
                record.attempt, reason=self.reason, failed_in=self.stage, since=self.timestamp.timestamp()
            )
            return changed(record, state=State.FAILURE, attempt=attempt)

    class ImportRequested(Event):
        """An import begins, of a file that the gateway can read."""

        TOPIC = "ImportRequested"
        action = "import"
        uid: int
        user: str
        gid: int
        asked: dict[str, Any] | None
        admin: bool
        gateway: str
        path: str
        format: str

        def fold(self, record: Record) -> Record:
            return changed(record, state=State.INIT, attempt=begun(self, record, "import"))

    class ImportCompleted(PullCompleted):
        """As PullCompleted, for an import."""

        TOPIC = "ImportCompleted"
        action = "imported"

    class ImportFailed(PullFailed):
        """As PullFailed, for an import."""

        TOPIC = "ImportFailed"
        action = "import failure"

    class Migrated(PullCompleted):
        """The image was taken over from the catalog of an older gateway."""

        TOPIC = "Migrated"
        action = "migrated"

    class Tagged(PullCompleted):
        """The reference was pointed at an image that another reference brought."""

        TOPIC = "Tagged"
        action = "tagged"

    class AclChanged(Event):
        """Who may see the reference was changed without a pull."""

        TOPIC = "AclChanged"
        action = "acl"
        access: dict[str, Any]
        uid: int
        user: str

        def fold(self, record: Record) -> Record:
            return changed(record, access=Access.from_json(self.access))

    class Used(Event):
        """Somebody looked it up or asked for it while it was fresh; at most one an hour, and it moves the expiry."""

        TOPIC = "Used"
        action = "used"
        uid: int
        user: str

        def fold(self, record: Record) -> Record:
            return changed(record, used_at=self.timestamp.timestamp())

    class Gone(Event):
        """Base of the events after which the image cannot be run."""

        TOPIC = "Gone"
        by: str
        uid: int | None
        user: str

    class Expired(Gone):
        """`by` is `admin`, or `policy` when it had not been used for ImageExpirationTimeout. Can be restored."""

        TOPIC = "Expired"
        action = "expired"

        def fold(self, record: Record) -> Record:
            return changed(record, state=State.EXPIRED, usable=False)

    class Removed(Gone):
        """Its owner or an administrator took it away; `by` is `owner` or `admin`."""

        TOPIC = "Removed"
        action = "removed"

        def fold(self, record: Record) -> Record:
            return changed(record, state=State.REMOVED, usable=False, image=None)

    class Untagged(Gone):
        """The tag was taken off; other references to the image stay."""

        TOPIC = "Untagged"
        action = "untagged"

        def fold(self, record: Record) -> Record:
            return changed(record, state=State.REMOVED, usable=False, image=None)

    class Restored(Event):
        """An expired image was brought back."""

        TOPIC = "Restored"
        action = "restored"
        uid: int | None
        user: str

        def fold(self, record: Record) -> Record:
            return changed(record, state=State.READY, usable=True, used_at=self.timestamp.timestamp())

    # Commands. `at` is the time of the event in Unix seconds.

    @classmethod
    def name(cls, reference: Reference, at: float) -> ImageReference:
        """A new reference; nothing has been pulled yet."""
        return cls._create(
            cls.Created,
            id=reference.uuid,
            timestamp=when(at),
            system=reference.system,
            itype=reference.itype,
            tag=reference.tag,
        )

    def request_pull(
        self,
        at: float,
        *,
        uid: int,
        user: str,
        gid: int,
        asked: Access | None,
        admin: bool,
        credentialed: bool,
        gateway: str,
        location: str,
    ) -> None:
        self._check(Action.PULL)
        self.trigger_event(
            self.PullRequested,
            timestamp=when(at),
            uid=uid,
            user=user,
            gid=gid,
            asked=asked.to_json() if asked else None,
            admin=admin,
            credentialed=credentialed,
            gateway=gateway,
            location=location,
        )

    def join_pull(self, at: float, *, uid: int, user: str, gid: int, asked: Access | None) -> None:
        self._check(Action.JOIN)
        self.trigger_event(
            self.PullJoined,
            timestamp=when(at),
            uid=uid,
            user=user,
            gid=gid,
            asked=asked.to_json() if asked else None,
        )

    def request_import(
        self,
        at: float,
        *,
        uid: int,
        user: str,
        gid: int,
        asked: Access | None,
        admin: bool,
        gateway: str,
        path: str,
        form: str,
    ) -> None:
        self._check(Action.IMPORT)
        self.trigger_event(
            self.ImportRequested,
            timestamp=when(at),
            uid=uid,
            user=user,
            gid=gid,
            asked=asked.to_json() if asked else None,
            admin=admin,
            gateway=gateway,
            path=path,
            format=form,
        )

    def reach(self, stage: Stage, at: float, worker: str, *, attempt: int, takeover: bool = False) -> None:
        """A worker begins `stage`. With `takeover` it claims the pull; else it must hold it. Raises Superseded."""
        self._check(Action.STAGE)
        held = self._hold(worker, attempt, takeover=takeover)
        if str(self.record.state) == stage and held.worker == worker:
            return
        self.trigger_event(self.StageReached, timestamp=when(at), stage=str(stage), worker=worker)

    def access_after(self, image: Image) -> tuple[Access, int]:
        """The access and the owner that completing the present attempt with `image` will give.

        Those who joined count when the image proved public: who waited for a pull with somebody else's credential has
        proved nothing, and asks again with his own.
        """
        record, attempt = self.record, self.record.attempt
        assert attempt is not None
        held = record.access if record.image is not None and record.state is not State.REMOVED else None
        owner = attempt.uid if held is None or record.owner is None else record.owner
        access = granted(held, attempt.asked, attempt.uid, owner=attempt.admin or attempt.uid == owner)
        if image.anonymous:
            for uid, asked in attempt.joined.items():
                access = granted(access, asked, uid, owner=False)
        return access, owner

    def complete(self, image: Image, access: Access, owner: int, at: float, worker: str, *, attempt: int) -> None:
        """The image is published. `access` and `owner` come from `access_after`. Raises Superseded."""
        self._check(Action.COMPLETE)
        current = self._hold(worker, attempt)
        self.trigger_event(
            self.ImportCompleted if current.kind == "import" else self.PullCompleted,
            timestamp=when(at),
            image=image.to_json(),
            access=access.to_json(),
            owner=owner,
            uid=current.uid,
            user=current.user,
        )

    def fail(self, reason: str, at: float, worker: str | None, *, attempt: int) -> None:
        """The attempt ends with a reason. `worker` None: nobody holds it. Raises Superseded."""
        self._check(Action.FAIL)
        current = self._hold(worker, attempt)
        self.trigger_event(
            self.ImportFailed if current.kind == "import" else self.PullFailed,
            timestamp=when(at),
            reason=reason,
            stage=str(self.record.state),
            uid=current.uid,
            user=current.user,
        )

    def change_access(self, access: Access, at: float, *, uid: int, user: str) -> None:
        self._check(Action.CHANGE_ACL)
        self.trigger_event(self.AclChanged, timestamp=when(at), access=access.to_json(), uid=uid, user=user)

    def use(self, at: float, *, uid: int, user: str) -> None:
        self._check(Action.USE)
        self.trigger_event(self.Used, timestamp=when(at), uid=uid, user=user)

    def expire(self, at: float, *, by: str, uid: int | None, user: str) -> None:
        if not self.record.usable:
            check(Action.EXPIRE, self.record.state, str(self.record.reference), has_image=False)
            raise NotAllowed(f"cannot expire {self.record.reference}: it has no image")
        self._check(Action.EXPIRE)
        self.trigger_event(self.Expired, timestamp=when(at), by=by, uid=uid, user=user)

    def remove(self, at: float, *, by: str, uid: int, user: str) -> None:
        self._check(Action.REMOVE)
        self.trigger_event(self.Removed, timestamp=when(at), by=by, uid=uid, user=user)

    def restore(self, at: float, *, uid: int | None, user: str) -> None:
        self._check(Action.RESTORE)
        self.trigger_event(self.Restored, timestamp=when(at), uid=uid, user=user)

    def tag_as(self, image: Image, access: Access, at: float, *, uid: int, user: str) -> None:
        self._check(Action.TAG)
        self.trigger_event(
            self.Tagged,
            timestamp=when(at),
            image=image.to_json(),
            access=access.to_json(),
            owner=uid,
            uid=uid,
            user=user,
        )

    def untag(self, at: float, *, by: str, uid: int, user: str) -> None:
        self._check(Action.UNTAG)
        self.trigger_event(self.Untagged, timestamp=when(at), by=by, uid=uid, user=user)

    def migrate(self, image: Image, access: Access, at: float, *, owner: int, user: str) -> None:
        self._check(Action.MIGRATE)
        self.trigger_event(
            self.Migrated,
            timestamp=when(at),
            image=image.to_json(),
            access=access.to_json(),
            owner=owner,
            uid=owner,
            user=user,
        )

    def _check(self, action: Action) -> None:
        record = self.record
        state = None if record.attempt is None and record.image is None else record.state
        check(action, state, str(record.reference), has_image=record.image is not None)

    def _hold(self, worker: str | None, number: int, *, takeover: bool = False) -> Attempt:
        current = self.record.attempt
        assert current is not None
        if current.number != number or (not takeover and worker is not None and current.worker != worker):
            raise Superseded(
                f"{self.record.reference} is another worker's ({current.worker}, attempt {current.number})"
            )
        return current


EVENTS: tuple[type[ImageReference.Event], ...] = (
    ImageReference.Created,
    ImageReference.PullRequested,
    ImageReference.PullJoined,
    ImageReference.StageReached,
    ImageReference.PullCompleted,
    ImageReference.PullFailed,
    ImageReference.ImportRequested,
    ImageReference.ImportCompleted,
    ImageReference.ImportFailed,
    ImageReference.Migrated,
    ImageReference.Tagged,
    ImageReference.Untagged,
    ImageReference.AclChanged,
    ImageReference.Used,
    ImageReference.Expired,
    ImageReference.Removed,
    ImageReference.Restored,
)
