"""What a table is made of: one row a fact about a runtime, with its conditions and its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from onnx_attn.targets.facts import Facts, Value

Outcome = Literal["lands", "costs", "runs", "rejected", "wrong", "unwritable"]
"""lands: on an attention kernel. costs: on one, at more kernels than the primitives. runs: taken, without one.
rejected: parsing, building or loading fails. wrong: accepted, and something else is computed.
unwritable: taken where it stands, but `fuse` cannot write it."""

FORMS = ("attention", "function", "primitives", "contrib")


class Condition(Protocol):
    """What a row asks of one fact. A fact that is not known (None) fulfils none but `Isnt`."""

    def holds(self, value: Value | None) -> bool: ...


@dataclass(frozen=True)
class Is:
    value: Value

    def holds(self, value: Value | None) -> bool:
        return value == self.value

    def __str__(self) -> str:
        return f"is {self.value}"


@dataclass(frozen=True)
class Isnt:
    """Holds for an unknown fact too."""

    value: Value

    def holds(self, value: Value | None) -> bool:
        return value != self.value

    def __str__(self) -> str:
        return f"is not {self.value}"


@dataclass(frozen=True)
class NoneOf:
    """Does not hold for an unknown fact."""

    values: tuple[Value, ...]

    def holds(self, value: Value | None) -> bool:
        return value is not None and value not in self.values

    def __str__(self) -> str:
        return f"is neither {' nor '.join(map(str, self.values))}"


@dataclass(frozen=True)
class AnyOf:
    values: tuple[Value, ...]

    def holds(self, value: Value | None) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return f"is {' or '.join(map(str, self.values))}"


@dataclass(frozen=True)
class Below:
    bound: int

    def holds(self, value: Value | None) -> bool:
        return isinstance(value, int) and value < self.bound

    def __str__(self) -> str:
        return f"is below {self.bound}"


@dataclass(frozen=True)
class Above:
    bound: int

    def holds(self, value: Value | None) -> bool:
        return isinstance(value, int) and value > self.bound

    def __str__(self) -> str:
        return f"is above {self.bound}"


@dataclass(frozen=True)
class NotMultiple:
    of: int

    def holds(self, value: Value | None) -> bool:
        return isinstance(value, int) and value % self.of != 0

    def __str__(self) -> str:
        return f"is not a multiple of {self.of}"


@dataclass(frozen=True)
class Measured:
    """Tried with this version of the runtime, and tried again by a test on the row's examples."""

    version: str

    def __str__(self) -> str:
        return f"measured with {self.version}"


@dataclass(frozen=True)
class Documented:
    """Read at this address."""

    address: str

    def __str__(self) -> str:
        return f"documented: {self.address}"


@dataclass(frozen=True)
class Example:
    """A form, and what sets the site apart from the plain one (`facts.PLAIN`)."""

    form: str
    facts: Mapping[str, Value]


def examples(*forms: str, of: tuple[Mapping[str, Value], ...] = ({},)) -> tuple[Example, ...]:
    """Each of the facts in each of the forms."""
    return tuple(Example(form, facts) for form in forms for facts in of)


@dataclass(frozen=True)
class Row:
    """Under `when`, a site in one of `forms` has this `outcome` with the runtimes `editions`.

    name: tells the row from every other, in messages of tests.
    reason, remedy: for the user; empty where nothing is wrong.
    code: under which `fuse` refuses a site that no other form is left for; None where the site fails in every form.
    presumed: editions for which the row is taken over without having been tried there.
    examples: sites that the row holds for.
    """

    name: str
    editions: tuple[str, ...]
    forms: tuple[str, ...]
    when: Mapping[str, Condition]
    outcome: Outcome
    evidence: Measured | Documented
    reason: str = ""
    remedy: str | None = None
    code: str | None = None
    presumed: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()

    def matches(self, form: str, facts: Facts) -> bool:
        return form in self.forms and all(
            condition.holds(getattr(facts, fact)) for fact, condition in self.when.items()
        )

    @property
    def source(self) -> str:
        """The evidence, and for what it stands without having been tried."""
        presumed = f"; presumed for {', '.join(self.presumed)}" if self.presumed else ""
        return f"{self.evidence}{presumed}"

    def told(self, facts: Facts) -> str:
        """The reason, with the facts that it rests on: `opset 12: the primitives need …`."""
        found = [f"{fact} {getattr(facts, fact)}" for fact in self.when]
        return f"{', '.join(found)}: {self.reason}" if found else self.reason
