"""Which extract is next: pure functions, no I/O."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby

from kbo_pipeline.core.errors import OrderError
from kbo_pipeline.core.extracts import ExtractKey


def next_to_apply(
    staged: Collection[ExtractKey], published: ExtractKey | None
) -> ExtractKey | None:
    """The staged extract that follows what is published; None when none does."""
    for key in sorted(staged):
        try:
            check_order(key, published)
        except OrderError:
            continue
        return key
    return None


def import_order(keys: Collection[ExtractKey], published: ExtractKey | None) -> list[ExtractKey]:
    """Puts extracts that are all to be imported in order.

    Of a Full and an Update of one number, the Full comes first where only it follows what was
    imported before; the other one has nothing left to do then.
    """
    ordered: list[ExtractKey] = []
    for _, group in groupby(sorted(keys), key=lambda key: key.number):
        same = list(group)
        first = next_to_apply(same, published)
        if first is not None:
            same.remove(first)
            same.insert(0, first)
            published = first
        ordered += same
    return ordered


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be imported of what is on offer.

    Attributes:
        due: extracts, in the order in which they are imported.
        reason: why these, in one line.
        gap: what is missing, where neither the needed extract nor a Full above it is at hand.
    """

    due: tuple[ExtractKey, ...]
    reason: str
    gap: str | None = None


def plan_imports(
    offered: Collection[ExtractKey],
    published: ExtractKey | None,
    unusable: Collection[ExtractKey] = (),
    rolled_back: Collection[ExtractKey] = (),
) -> Plan:
    """Plans the way from what is published to the newest extract on offer.

    An Update costs little, so Updates come in order as long as each is there. Where one is not,
    expired or never made, the newest Full above goes in its place, and the Updates after it.

    Args:
        offered: extracts on offer, in any order.
        published: the newest published extract; None when the register is empty.
        unusable: extracts that count as not there, though they may be on offer.
        rolled_back: extracts that a person has undone: none of their numbers is imported before a
            person asks for it, but a Full above them all may take their place.
    """
    number = published.number if published else 0
    undone = {key.number: key for key in rolled_back if key.number > number}
    usable = {key for key in {*offered} - {*unusable} if key.number not in undone}
    last_undone = max(undone, default=0)
    fulls = sorted(key.number for key in usable if key.type == "full" and key.number > last_undone)
    updates = {key.number for key in usable if key.type == "update"}
    newest = max((last_undone, *(key.number for key in offered)))
    if published is None and not fulls and not undone:
        return Plan(
            (), "the register is empty and no Full is at hand", gap="a Full" if offered else None
        )

    def absence(key: ExtractKey) -> str:
        if key.number in undone:
            return f"{undone[key.number]} was rolled back"
        return f"{key} {'failed too often' if key in unusable else 'is not on offer'}"

    due: list[ExtractKey] = []
    bridges: list[str] = []
    while number < newest:
        following = ExtractKey(number + 1, "update")
        waiting = [undone[n] for n in sorted(undone) if n > number]
        if (due or published) and following.number in updates:
            due.append(following)
        elif fulls and fulls[-1] > number:
            due.append(ExtractKey(fulls[-1], "full"))
            missing = absence(following) if number else "the register is empty"
            bridges.append(f"{missing}: {due[-1]} takes its place")
        elif waiting:
            reason = f"{waiting[0]} was rolled back; kbo retry {waiting[0]} imports it again"
            return Plan(tuple(due), "; ".join([*bridges, reason]))
        else:
            reason = f"{absence(following)}, and there is no Full above it"
            return Plan(tuple(due), "; ".join([*bridges, reason]), gap=str(following))
        number = due[-1].number
    if not due:
        return Plan((), f"{published} is the newest: nothing to do")
    return Plan(tuple(due), "; ".join(bridges) or f"follows {published}")


def check_order(key: ExtractKey, published: ExtractKey | None) -> None:
    """Makes sure that an extract may be applied after what is published.

    Raises:
        OrderError: names the extract that is expected.
    """
    if published is None:
        if key.type == "update":
            raise OrderError(f"{key}: the register is empty; import a Full first")
    elif key.number <= published.number:
        why = "what it brings is in the register"
        if key.type == "full":
            why = "an older Full is not taken; kbo rollback is the way back"
        raise OrderError(f"{key}: {published} is published; {why}")
    elif key.type == "update" and key.number != published.number + 1:
        expected = ExtractKey(published.number + 1, "update")
        raise OrderError(
            f"{key}: {published} is published; {expected} is expected, or a Full above it"
        )
