"""Frozen records for programs that start on every node of a job.

`Record` is what `dataclasses.dataclass(frozen=True)` would be used for, without that module's imports: they cost 13
ms of a start whose whole budget is 45 ms, on every node. A subclass lists annotated fields, with defaults; type
checkers see a dataclass (PEP 681). It promises equality, hashing, a readable repr and no assignment; it does not
convert or check values.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_options):
        return lambda cls: cls


@dataclass_transform(frozen_default=True, eq_default=True)
class Record:
    """Base of frozen records. Fields are the class's annotations in order; `ClassVar` annotations are not fields."""

    __slots__ = ("__dict__",)
    FIELDS: "ClassVar[tuple[str, ...]]" = ()

    def __init_subclass__(cls) -> None:
        # not inspect.get_annotations: importing inspect is most of what dataclasses costs
        annotations: dict[str, object] = cls.__dict__.get("__annotations__", {})  # noqa: RUF063
        own = tuple(name for name, kind in annotations.items() if "ClassVar" not in str(kind))
        cls.FIELDS = (*(f for f in cls.FIELDS if f not in own), *own)

    def __init__(self, *args: "Any", **named: "Any") -> None:
        if len(args) > len(self.FIELDS):
            raise TypeError(f"{type(self).__name__} takes {len(self.FIELDS)} fields, {len(args)} given")
        values = dict(zip(self.FIELDS, args, strict=False))
        for name, value in named.items():
            if name not in self.FIELDS or name in values:
                raise TypeError(f"{type(self).__name__}: unexpected field {name!r}")
            values[name] = value
        for name in self.FIELDS:
            if name not in values:
                try:
                    values[name] = getattr(type(self), name)
                except AttributeError:
                    raise TypeError(f"{type(self).__name__}: field {name!r} is missing") from None
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be assigned")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.__dict__[name] for name in self.FIELDS)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={self.__dict__[name]!r}' for name in self.FIELDS)})"

    def changed(self, **values: "Any") -> "Self":
        """A copy in which the named fields have other values."""
        return type(self)(**{**self.__dict__, **values})
